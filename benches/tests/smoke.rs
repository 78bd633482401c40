//! Every bench once, as small as it goes, so that none rots. Nothing here looks at a time.

use std::process::Command;

fn bench(arguments: &str, says: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_catchment-benches"));
    let output = command.args(arguments.split(' ')).output().unwrap();
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains(says), "{arguments}\n{said}\n{log}");
}

#[test]
fn fold() {
    bench("fold --small --rounds 1", "| 16 |");
}

#[test]
fn kernels() {
    bench("kernels --small --rounds 1", "| F16, exact |");
}

#[test]
fn descriptors() {
    bench("descriptors --rounds 1", "On two cores");
}

#[test]
fn hop() {
    bench("hop --small --rounds 1", "bare round trip");
}

#[test]
fn start() {
    bench("start --rounds 1 --idle-seconds 1", "idle 2 s");
}

#[test]
fn round() {
    bench("round --clients 2 --rounds 2 --window 2", "| Catchment |");
}

#[test]
fn large() {
    bench("large --mib 3", "every number checked");
}

#[test]
fn many() {
    let svg = tempfile::NamedTempFile::new().unwrap();
    bench(&format!("many --clients 10 --svg {}", svg.path().display()), "after client 1");
    assert!(std::fs::read_to_string(svg.path()).unwrap().ends_with("</svg>\n"));
}

/// Where hosts cannot be made it says so.
#[test]
fn cluster() {
    let small = "cluster --repeats 1 --jobs 2 --rounds 2 --clients 3 --kib 64 --seconds 0.5 --idle-seconds 1";
    bench(small, "Three nodes on hosts of their own");
}

#[test]
fn waiting() {
    bench("waiting --clients 50 --seconds 1 --rounds 1", "50 clients that wait");
}

#[test]
fn log() {
    bench("log --writers 1,2 --clients 2 --seconds 0.3 --rounds 1", "| 2 | 2 | ");
}

#[test]
fn plan() {
    bench("plan --runs 1", "| fast arrivals |");
}
