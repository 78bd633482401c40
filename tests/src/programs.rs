//! Where the programs under test are, and how to get them when they are not there.

use crate::Release;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The workspace's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace")
}

/// The folder for build output: `CARGO_TARGET_DIR`, else `target/` in the workspace.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The server that tests end, hold up and mislead about the time: beside the other one.
pub(crate) fn failpoints() -> PathBuf {
    let path = Release::Present.program().with_file_name("catchment-failpoints");
    assert!(path.is_file(), "{} is not there: run `make failpoints`", path.display());
    path
}

/// Where built functions lie beside the binary; the binary may carry them as well.
pub fn functions_dir() -> Option<PathBuf> {
    Some(target_dir().join("functions")).filter(|dir| dir.is_dir())
}

/// The NATS server: `NATS_SERVER`, else on the `PATH`, in the system's folders, or among the tools of the build.
pub(crate) fn nats_server() -> PathBuf {
    if let Some(path) = std::env::var_os("NATS_SERVER") {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = std::env::var_os("CATCHMENT_TOOLS").map_or_else(|| target_dir().join("tools"), PathBuf::from);
    let system = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin"].map(PathBuf::from);
    let mut places = std::env::split_paths(&path).chain(system).chain([tools.join("bin"), tools]);
    let found = places.find_map(|dir| Some(dir.join("nats-server")).filter(|path| path.is_file()));
    found.expect("no nats-server: `make test` installs one, or `apt-get install nats-server`, or set NATS_SERVER")
}

/// The arguments of `catchment` with nothing inherited that would change its ways.
pub(crate) fn catchment_command() -> Command {
    catchment_command_of(Release::Present)
}

/// The same of this release.
pub(crate) fn catchment_command_of(release: Release) -> Command {
    uninfluenced(Command::new(release.program()))
}

/// What whoever runs the tests may ask of every server: runner processes, and who routes descriptors to them.
const ASKED_FOR: [&str; 2] = ["CATCHMENT_RUNNERS", "CATCHMENT_EBPF"];

/// A command that inherits nothing else that would change the ways of `catchment`.
pub(crate) fn uninfluenced(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        let changes = |name: &str| name.starts_with("CATCHMENT_") && !ASKED_FOR.contains(&name) || name == "RUST_LOG";
        if name.to_str().is_some_and(changes) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs `catchment` with `arguments` until it ends by itself, at most for `patience`.
pub fn run_to_end(arguments: &[&str], patience: Duration) -> Output {
    let mut command = catchment_command();
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("run catchment");
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().expect("wait for catchment") {
            Some(status) => break status,
            None if begun.elapsed() > patience => {
                child.kill().ok();
                child.wait().ok();
                panic!("`catchment {}` still runs after {patience:?}", arguments.join(" "));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let read = |source: Option<&mut dyn Read>| {
        let mut bytes = Vec::new();
        source.map(|source| source.read_to_end(&mut bytes));
        bytes
    };
    let stdout = read(child.stdout.as_mut().map(|pipe| pipe as &mut dyn Read));
    let stderr = read(child.stderr.as_mut().map(|pipe| pipe as &mut dyn Read));
    Output { status, stdout, stderr }
}
