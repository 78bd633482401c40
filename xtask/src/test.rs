//! Runs every test of the workspace, with everything they need beside them.

use crate::setup::Setup;
use crate::{releases, workspace};
use anyhow::{Context, Result, bail};
use std::process::Command;

/// What has to do with servers; storms choose runners for themselves.
const END_TO_END: &str = "package(catchment-tests) - binary(=chaos) - binary(=layers) - binary(=endurance)";

/// What writes fixtures.
const FIXTURES: &str = "package(catchment-tests) & binary(=stored)";

/// Which tests are run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only end to end, with so many runner processes in every server. CATCHMENT_EBPF says who routes descriptors to them.
    #[arg(long, value_name = "N")]
    runners: Option<u32>,
    /// Instead, write the committed fixtures again, with the programs of the releases that first wrote them.
    #[arg(long, conflicts_with = "runners")]
    fixtures: bool,
}

/// Runs documentation tests, then everything else. The tests run what ships: the release profile.
pub fn run(arguments: &Arguments) -> Result<()> {
    let setup = Setup::this();
    let (nextest, nats_server, python) = (setup.cargo_nextest()?, setup.nats_server()?, setup.python()?);
    releases::run()?;
    let run = |mut command: Command, of_cargo: &[&str]| {
        workspace::without_package(&mut command)
            .args(of_cargo)
            .current_dir(workspace::root())
            .env("CATCHMENT_FUNCTIONS_DIR", workspace::target_dir().join("functions"))
            .env("CATCHMENT_BIN_DIR", workspace::target_dir().join("release"))
            .env("CATCHMENT_PYTHON", &python)
            .env("NATS_SERVER", &nats_server);
        if let Some(runners) = arguments.runners {
            command.env("CATCHMENT_RUNNERS", runners.to_string());
        }
        check(&mut command)
    };
    if arguments.fixtures {
        let wanted = ["nextest", "run", "--release", "--workspace", "--run-ignored", "only", "--filterset", FIXTURES];
        return run(Command::new(&nextest), &wanted);
    }
    if arguments.runners.is_some() {
        let wanted = ["nextest", "run", "--release", "--workspace", "--filterset", END_TO_END];
        return run(Command::new(&nextest), &wanted);
    }
    run(Command::new("cargo"), &["test", "--release", "--workspace", "--doc", "--quiet"])?;
    run(Command::new(&nextest), &["nextest", "run", "--release", "--workspace"])
}

fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    if status.success() { Ok(()) } else { bail!("{command:?} failed") }
}
