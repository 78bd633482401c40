//! `xtask deny`: licences, bans and sources of every dependency, of each workspace.

use crate::setup::Setup;
use crate::workspace::root;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// The workspaces, each with dependencies of its own.
const WORKSPACES: [&str; 3] = [ROOT, "ebpf", "fuzz"];
const ROOT: &str = ".";
/// What the list names and a workspace does not have: too much in the first workspace, usual in the others.
const UNUSED: [&str; 2] = ["license-not-encountered", "unused-wrapper"];

/// Checks all; advisories where their database can be had, and says so where it cannot.
pub fn run() -> Result<()> {
    let program = Setup::this().cargo_deny()?;
    let database = deny(&program, ".").args(["fetch", "db"]).output().context("run cargo-deny")?;
    let mut checks = vec!["bans", "licenses", "sources"];
    match database.status.success() {
        true => checks.insert(0, "advisories"),
        false => {
            let text = String::from_utf8_lossy(&database.stderr);
            let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            println!("NOT CHECKED: advisories, whose database cannot be had here ({line})");
        }
    }
    for workspace in WORKSPACES {
        println!("cargo deny check {} in {workspace}", checks.join(" "));
        let mut check = deny(&program, workspace);
        check.args(["check", "--allow", "license-exception-not-encountered"]);
        for lint in UNUSED {
            check.args([if workspace == ROOT { "--deny" } else { "--allow" }, lint]);
        }
        let status = check.args(&checks).status().context("run cargo-deny")?;
        if !status.success() {
            bail!("cargo deny refuses dependencies in {workspace}");
        }
    }
    Ok(())
}

fn deny(program: &Path, workspace: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).arg("--manifest-path").arg(root().join(workspace).join("Cargo.toml"));
    command.arg("--config").arg(root().join("deny.toml")).arg("--locked");
    command
}
