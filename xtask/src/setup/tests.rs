use super::*;
use crate::fakes::Fake;
use crate::machine::output;
use tempfile::TempDir;

/// Two versions of a package that does nothing, as files that pip installs without any index.
const WHEELS: &str = r#"
import sys, zipfile
for version in ("1.0", "2.0"):
    with zipfile.ZipFile(f"{sys.argv[1]}/thing-{version}-py3-none-any.whl", "w") as wheel:
        info = f"thing-{version}.dist-info"
        wheel.writestr("thing.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"thing.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
"#;

fn list(dir: &Path, version: &str) -> PathBuf {
    let path = dir.join(format!("list-{version}.txt"));
    fs::write(&path, format!("--no-index\n--find-links {}\nthing=={version}  # comment\n", dir.display()))
        .expect("write");
    path
}

/// One that lacks something, has another version, or lost its installer is made whole, each time it is asked for.
#[test]
fn an_environment_is_completed_and_not_believed() {
    let dir = TempDir::new().expect("make a folder");
    let setup = Setup::with(Machine::this(), dir.path().join("tools"));
    let python = python::environment(&setup).expect("an environment");
    output(Command::new(&python).args(["-c", WHEELS]).arg(dir.path())).expect("make wheels");
    let (one, two) = (list(dir.path(), "1.0"), list(dir.path(), "2.0"));

    let refused = python::look(&setup, &one).expect_err("it is missing");
    assert_eq!(refused, "thing is missing");
    python::complete(&python, &one).expect("it is installed");
    python::look(&setup, &one).expect("it is there");
    let refused = python::look(&setup, &two).expect_err("it is another one");
    assert_eq!(refused, "thing is 1.0, not 2.0");
    python::complete(&python, &two).expect("it is upgraded");
    python::complete(&python, &one).expect("and the other way");
    python::look(&setup, &one).expect("it is there");

    let libraries = dir.path().join("tools/venv/lib");
    let version = fs::read_dir(&libraries).expect("a folder").flatten().next().expect("a version").path();
    fs::remove_dir_all(version.join("site-packages/pip")).expect("remove its installer");
    assert_eq!(python::environment(&setup).expect("it is made anew"), python);
    python::complete(&python, &two).expect("it is installed");
    python::look(&setup, &two).expect("it is there");
}

#[test]
fn every_package_of_the_list_is_pinned() {
    let text = fs::read_to_string(python_list()).expect("read the list");
    assert!(text.lines().count() > 0 && text.lines().all(|line| line.contains("==")), "{text}");
}

#[test]
fn an_old_program_of_the_machine_is_refused_with_its_version() {
    let fake = Fake::new();
    let setup = Setup::with(fake.machine(false), fake.path("tools"));
    for program in [&CARGO_NEXTEST, &CARGO_DENY, &NATS_SERVER] {
        assert!(program.look(&setup).expect_err("there is none").contains("none on the search path"));
        fake.program(program.program, &format!("echo {} v0.1.2", program.program));
        let refused = program.look(&setup).expect_err("it is too old");
        assert!(refused.contains("is 0.1.2, and") && refused.contains("or newer is wanted"), "{refused}");
        fake.program(program.program, &format!("echo {} 99.0.0", program.program));
        program.look(&setup).expect("it is new enough");
    }
}

/// What was kept from an older list is not what is wanted now.
#[test]
fn a_kept_program_of_another_version_is_not_believed() {
    let fake = Fake::new();
    // The folder of this machine's programs is that of another one's tools.
    let setup = Setup::with(Machine::with(Vec::new(), fake.path("usr/rustc"), false), fake.path(""));
    fake.program("cargo-deny", "echo cargo-deny 0.19.0");
    let refused = CARGO_DENY.look(&setup).expect_err("another version");
    assert!(refused.contains("is 0.19.0, not 0.20.2"), "{refused}");
    fake.program("cargo-deny", "exit 1");
    CARGO_DENY.look(&setup).expect_err("one that does not run");
    fake.program("cargo-deny", "echo cargo-deny 0.20.2");
    CARGO_DENY.look(&setup).expect("the one");
}

#[test]
fn a_server_that_is_named_has_to_run() {
    let fake = Fake::new();
    let setup = Setup::with(fake.machine(false), fake.path("tools"));
    let named = || Some(fake.path("bin/mine"));
    let error = packaged::nats_server(&setup, named()).expect_err("it is not there");
    assert!(error.to_string().contains("NATS_SERVER"), "{error}");
    fake.program("mine", "echo nats-server: v2.9.10");
    assert_eq!(packaged::nats_server(&setup, named()).ok(), named(), "whoever names one gets it");
}

#[test]
fn an_old_python_is_refused_with_its_version() {
    let fake = Fake::new();
    let setup = Setup::with(fake.machine(false), fake.path("tools"));
    fake.program("python3", "echo Python 3.9.2");
    let error = format!("{:#}", setup.python().expect_err("it is too old"));
    assert!(error.contains("no Python 3.11.0 or newer") && error.contains("is Python 3.9.2"), "{error}");
}
