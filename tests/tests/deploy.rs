//! What `deploy/` starts exists in the program that it starts.

use catchment_tests::{root, run_to_end};
use std::fs;
use std::time::Duration;

/// The arguments of a unit's `ExecStart`.
fn arguments(unit: &str) -> Vec<String> {
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/catchment "));
    line.expect("a unit that starts catchment").split_whitespace().map(str::to_owned).collect()
}

/// Arguments before `--help` are read and checked; a flag that does not exist is an error all the same.
fn is_understood(arguments: &[String]) -> bool {
    let with_help: Vec<&str> = arguments.iter().map(String::as_str).chain(["--help"]).collect();
    run_to_end(&with_help, Duration::from_secs(20)).status.success()
}

#[test]
fn units_start_roles_with_flags_that_exist() {
    let mut seen = 0;
    for entry in fs::read_dir(root().join("deploy/systemd")).expect("list units") {
        let path = entry.expect("list units").path();
        let mut arguments = arguments(&fs::read_to_string(&path).expect("read a unit"));
        assert!(is_understood(&arguments), "{}: {arguments:?}", path.display());
        arguments.push("--no-such-flag".to_owned());
        assert!(!is_understood(&arguments), "what is not understood must show");
        seen += 1;
    }
    assert_eq!(seen, 2);
}
