//! Runs every test of the workspace, with everything they need beside them.

use crate::{setup, workspace};
use anyhow::{Context, Result, bail};
use std::process::Command;

/// What has to do with servers; storms choose runners for themselves.
const END_TO_END: &str = "package(catchment-tests) - binary(=chaos) - binary(=layers) - binary(=endurance)";

/// Which tests are run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only end to end, with so many runner processes in every server. CATCHMENT_EBPF says who routes descriptors to them.
    #[arg(long, value_name = "N")]
    runners: Option<u32>,
}

/// Runs documentation tests, then everything else. The tests run what ships: the release profile.
pub fn run(arguments: &Arguments) -> Result<()> {
    let tools = setup::run()?;
    let cargo = |of_cargo: &[&str]| {
        let mut command = Command::new("cargo");
        command
            .args(of_cargo)
            .current_dir(workspace::root())
            .env("CATCHMENT_FUNCTIONS_DIR", workspace::target_dir().join("functions"))
            .env("CATCHMENT_BIN_DIR", workspace::target_dir().join("release"))
            .env("CATCHMENT_PYTHON", &tools.python)
            .env("NATS_SERVER", &tools.nats_server);
        if let Some(runners) = arguments.runners {
            command.env("CATCHMENT_RUNNERS", runners.to_string());
        }
        check(&mut command)
    };
    let has_nextest = Command::new("cargo").args(["nextest", "--version"]).output();
    let has_nextest = has_nextest.is_ok_and(|output| output.status.success());
    if !has_nextest {
        println!("cargo-nextest is not installed; running the tests with cargo test");
    }
    match (arguments.runners, has_nextest) {
        (Some(_), true) => cargo(&["nextest", "run", "--release", "--workspace", "--filterset", END_TO_END]),
        (Some(_), false) => cargo(&["test", "--release", "--package", "catchment-tests", "--tests"]),
        (None, _) => {
            cargo(&["test", "--release", "--workspace", "--doc", "--quiet"])?;
            match has_nextest {
                true => cargo(&["nextest", "run", "--release", "--workspace"]),
                false => cargo(&["test", "--release", "--workspace", "--tests", "--bins", "--lib"]),
            }
        }
    }
}

fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    if status.success() { Ok(()) } else { bail!("{command:?} failed") }
}
