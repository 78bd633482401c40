//! Runs every test of the workspace, with everything they need beside them.

use crate::{setup, workspace};
use anyhow::{Context, Result, bail};
use std::process::Command;

/// Runs documentation tests, then everything else. The tests run what ships: the release profile.
pub fn run() -> Result<()> {
    let tools = setup::run()?;
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new("cargo");
        command
            .args(arguments)
            .current_dir(workspace::root())
            .env("CATCHMENT_FUNCTIONS_DIR", workspace::target_dir().join("functions"))
            .env("CATCHMENT_BIN_DIR", workspace::target_dir().join("release"))
            .env("CATCHMENT_PYTHON", &tools.python)
            .env("NATS_SERVER", &tools.nats_server);
        check(&mut command)
    };
    cargo(&["test", "--release", "--workspace", "--doc", "--quiet"])?;
    if Command::new("cargo").args(["nextest", "--version"]).output().is_ok_and(|output| output.status.success()) {
        cargo(&["nextest", "run", "--release", "--workspace"])
    } else {
        println!("cargo-nextest is not installed; running the tests with cargo test");
        cargo(&["test", "--release", "--workspace", "--tests", "--bins", "--lib"])
    }
}

fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    if status.success() { Ok(()) } else { bail!("{command:?} failed") }
}
