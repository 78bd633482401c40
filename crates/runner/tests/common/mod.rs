//! Functions, batches whose sums are known, and runner processes of this very program.

use catchment_proxy::{Link, Mode, Options, Report};
use catchment_runner::{Blueprint, Lane, Processes, ProcessesConfig, Setup, StartError, Work};
use catchment_runtime::{Call, Dtype, FoldArgs, Function, Limits, Rule, Runtime, RuntimeConfig, UpdateWindow, Window};
use catchment_types::JobUid;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub fn start(count: u32, link: (Arc<dyn Link>, Report)) -> Processes {
    let arguments = ["--ignored", "--exact", "runner_process", "--nocapture"].map(Into::into).to_vec();
    start_program(std::env::current_exe().unwrap(), arguments, count, link).unwrap()
}

pub fn start_program(
    program: PathBuf,
    arguments: Vec<OsString>,
    count: u32,
    link: (Arc<dyn Link>, Report),
) -> Result<Processes, StartError> {
    let setup = Setup { workers: 2, runtime: RuntimeConfig::default(), user: None };
    let lock = File::open("/dev/null").unwrap().into();
    let patience = Duration::from_millis(500);
    Processes::start(ProcessesConfig { program, arguments, count, setup, once: vec![], lock, patience }, link)
}

pub fn socket_link() -> (Arc<dyn Link>, Report) {
    catchment_proxy::open(Mode::Off, &Options::default()).unwrap()
}

pub fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

pub struct Functions {
    /// Federated averaging.
    pub fedavg: Function,
    /// Folds that never end.
    pub endless: Function,
}

impl Functions {
    pub fn new() -> Self {
        let runtime = Runtime::new(RuntimeConfig::default()).unwrap();
        let dir = std::env::var_os("CATCHMENT_FUNCTIONS_DIR").map(PathBuf::from).unwrap_or_else(|| {
            // Tests run from <target>/release/deps.
            std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("functions")
        });
        let path = dir.join("fedavg.wasm");
        let wasm = std::fs::read(&path);
        let wasm = wasm.unwrap_or_else(|error| panic!("{}: {error}; build it: xtask functions", path.display()));
        Self { fedavg: runtime.load(&wasm).unwrap(), endless: runtime.load(&endless()).unwrap() }
    }
}

/// A guest written by hand.
fn endless() -> Vec<u8> {
    let description = r#"{"name":"endless","version":"1","class":"additive","partial":"F64","summary":"a test",
        "config":[],"needs_previous":false,"exact":false,"update_layout":"as_model"}"#;
    let description: String = description.lines().map(str::trim).collect();
    let packed = (description.len() as u64) << 32 | 1024;
    let text = format!(
        r#"(module (memory (export "memory") 2)
            (data (i32.const 1024) "{}")
            (func (export "catchment_abi") (result i32) (i32.const 3))
            (func (export "catchment_describe") (result i64) (i64.const {packed}))
            (func (export "catchment_args") (result i32) (i32.const 4096))
            (func (export "catchment_room") (param i32) (result i32) (i32.const 16384))
            (func (export "catchment_init") (result i64) (i64.const 0))
            (func (export "catchment_fold") (loop (br 0)))
            (func (export "catchment_merge"))
            (func (export "catchment_finalize") (result i64) (i64.const 0)))"#,
        description.replace('"', "\\22"),
    );
    wat::parse_str(&text).unwrap()
}

pub fn blueprint(function: &Function, job: u8) -> Blueprint {
    let limits = Limits { cpu_ms: 300, ..Limits::default() };
    let function = function.digest().parse().unwrap();
    Blueprint { job: JobUid::from_bytes([job; 16]), function, config: "{}".to_owned(), exact: None, limits }
}

fn memory(bytes: &[u8]) -> File {
    let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(file);
    file.write_all(bytes).unwrap();
    file
}

pub const ELEMENTS: usize = 1000;

/// A batch of updates, what they sum to, and where the sum goes.
pub struct Batch {
    updates: Vec<(File, f64)>,
    out: File,
    sums: Vec<f64>,
}

impl Batch {
    pub fn new(seed: u64) -> Self {
        let number = |k: u64, i: usize| ((seed * 31 + k * 7 + i as u64) % 101) as f32;
        let weight = |k: u64| (k + 1) as f64;
        let update = |k: u64| {
            let bytes: Vec<u8> = (0..ELEMENTS).flat_map(|i| number(k, i).to_le_bytes()).collect();
            (memory(&bytes), weight(k))
        };
        let sum = |i: usize| (0..4).map(|k| weight(k) * f64::from(number(k, i))).sum();
        let sums = (0..ELEMENTS).map(sum).collect();
        Self { updates: (0..4).map(update).collect(), out: memory(&[0; ELEMENTS * 8]), sums }
    }

    pub fn fold<'a>(&'a self, function: &'a Function, blueprint: &'a Blueprint, index: u32) -> Work<'a> {
        let window = |file: &'a File, width: usize| Window {
            file: file.as_fd(),
            offset_bytes: 0,
            len_bytes: (ELEMENTS * width) as u64,
        };
        let update = |(file, weight): &'a (File, f64)| UpdateWindow {
            window: window(file, 4),
            dtype: Dtype::F32,
            weight: *weight,
            num_samples: 1.0,
            staleness: 0,
        };
        let call = Call::Fold(FoldArgs {
            elements: ELEMENTS as u64,
            rule: Rule::Mean,
            acc_in: None,
            acc_out: window(&self.out, 8),
            updates: self.updates.iter().map(update).collect(),
        });
        Work { lane: Lane { job: blueprint.job, index }, blueprint, function, calls: vec![call] }
    }

    pub fn check(&self) {
        let mut bytes = vec![0; ELEMENTS * 8];
        self.out.read_exact_at(&mut bytes, 0).unwrap();
        let found: Vec<f64> = bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
        assert_eq!(found, self.sums);
    }
}
