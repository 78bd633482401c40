//! A real `catchment up` in directories of its own, and the program run against it.

use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A running server; killed, and its directories removed, when dropped.
pub struct Server {
    child: Child,
    pub url: String,
    data: TempDir,
    slabs: TempDir,
}

/// Where the wasm functions are: built by `cargo run --release -p xtask -- functions`.
fn functions() -> PathBuf {
    let beside_the_program =
        || Path::new(env!("CARGO_BIN_EXE_catchment")).ancestors().nth(2).unwrap().join("functions");
    let dir = std::env::var_os("CATCHMENT_FUNCTIONS_DIR").map_or_else(beside_the_program, PathBuf::from);
    assert!(dir.join("fedavg.wasm").exists(), "no fedavg.wasm in {}: build the functions first", dir.display());
    dir
}

fn start(listen: &str, data: &Path, slabs: &Path) -> (Child, String) {
    let mut child = program()
        .args(["up", "--listen", listen, "--slab-mib", "64", "--lanes", "2"])
        .arg("--data")
        .arg(data)
        .arg("--slabs")
        // Made by the server, for nobody else.
        .arg(slabs.join("slabs"))
        .arg("--functions")
        .arg(functions())
        .env("RUST_LOG", "warn")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("catchment is up: ").expect("the server says where it is").to_owned();
    (child, url)
}

impl Server {
    pub fn start() -> Self {
        let (data, slabs) = (TempDir::new().unwrap(), TempDir::new_in("/dev/shm").unwrap());
        let (child, url) = start("127.0.0.1:0", data.path(), slabs.path());
        Self { child, url, data, slabs }
    }

    /// Kills the server and starts it again at the same address, with what it left.
    pub fn restart(&mut self, absence: Duration) {
        self.kill();
        std::thread::sleep(absence);
        let listen = self.url.strip_prefix("http://").unwrap().to_owned();
        let (child, url) = start(&listen, self.data.path(), self.slabs.path());
        assert_eq!(url, self.url);
        self.child = child;
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A command against this server.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command.args(arguments).env("CATCHMENT_URL", &self.url);
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    /// Runs a command that must succeed and gives the one JSON object it prints.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut lines = self.run(arguments).ok().json_lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.remove(0)
    }

    /// Runs a command that must succeed and gives the text it prints for people.
    #[track_caller]
    pub fn text(&self, arguments: &[&str]) -> String {
        self.run(&[arguments, &["--output", "table"]].concat()).ok().out
    }

    /// Waits until another process has created this job and its round is open.
    pub fn await_created(&self, name: &str) {
        let begun = Instant::now();
        while self.run(&["job", "status", name]).status != 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "no job {name}");
        }
        self.await_job(name, |job| job["round"]["state"] == "open");
    }

    /// Polls a job until it has what is wanted.
    #[track_caller]
    pub fn await_job(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let job = self.json(&["job", "status", name]);
            if wanted(&job) {
                return job;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{job}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The program, free of the caller's settings.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_catchment"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CATCHMENT_") {
            command.env_remove(name);
        }
    }
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// What became of a command.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { status: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ran {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!((self.status, self.err.as_str()), (0, ""), "{}", self.out);
        self
    }

    /// Checks that the command failed with this status and says so on standard error alone.
    #[track_caller]
    pub fn fails(self, status: i32, why: &str) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.err.starts_with("error: ") && self.err.contains(why), "{self:?}");
        self
    }

    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }
}

/// Runs a command with this text on standard input.
pub fn with_input(mut command: Command, input: &str) -> Ran {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

/// A directory of tensor files.
pub struct Files(TempDir);

impl Files {
    pub fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// The path of a file that need not exist.
    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A safetensors file with one float tensor `w`.
    pub fn tensors(&self, name: &str, values: &[f32]) -> String {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![values.len()], &data).unwrap();
        self.write(name, safetensors::serialize([("w", view)], None).unwrap())
    }
}

/// The values of the tensor `w` of a file.
pub fn values(path: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor("w").unwrap().data();
    data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
