//! What the tests share: files in memory, the real function, and guests written by hand.
#![allow(dead_code, reason = "no test file uses all of it")]

use catchment_runtime::{Dtype, Function, Runtime, RuntimeConfig, UpdateWindow, Window};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// A runtime with the default limits.
pub fn runtime() -> Runtime {
    Runtime::new(RuntimeConfig::default()).expect("a runtime")
}

/// The bytes of a function that the xtask has built.
pub fn built(name: &str) -> Vec<u8> {
    let dir = std::env::var_os("CATCHMENT_FUNCTIONS_DIR").map(PathBuf::from).unwrap_or_else(|| {
        // Tests run from <target>/release/deps.
        let exe = std::env::current_exe().expect("a test has a path");
        exe.ancestors().nth(3).expect("a target folder").join("functions")
    });
    let path = dir.join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}\nBuild the functions first: cargo run --release -p xtask -- functions\n(or point \
             CATCHMENT_FUNCTIONS_DIR at them)",
            path.display()
        )
    })
}

/// Federated averaging, as wasm.
pub fn fedavg(runtime: &Runtime) -> Function {
    runtime.load(&built("fedavg")).expect("fedavg loads")
}

/// A file in memory.
pub struct Memory {
    file: File,
    len: u64,
}

impl Memory {
    pub fn new(bytes: &[u8]) -> Self {
        let file = rustix::fs::memfd_create("catchment-test", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
        let mut file = File::from(file);
        file.write_all(bytes).expect("room in memory");
        Self { file, len: bytes.len() as u64 }
    }

    pub fn zeros(len: usize) -> Self {
        Self::new(&vec![0; len])
    }

    pub fn f64s(numbers: &[f64]) -> Self {
        Self::new(&numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    }

    pub fn f32s(numbers: &[f32]) -> Self {
        Self::new(&numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// The same file, open for reading only.
    pub fn read_only(&self) -> Self {
        use std::os::fd::AsRawFd;
        let file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd())).expect("open again");
        Self { file, len: self.len }
    }

    pub fn window(&self) -> Window<BorrowedFd<'_>> {
        self.range(0, self.len)
    }

    pub fn range(&self, offset_bytes: u64, len_bytes: u64) -> Window<BorrowedFd<'_>> {
        Window { file: self.file.as_fd(), offset_bytes, len_bytes }
    }

    pub fn update(&self, dtype: Dtype, weight: f64) -> UpdateWindow<BorrowedFd<'_>> {
        UpdateWindow { window: self.window(), dtype, weight, num_samples: weight, staleness: 0 }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.file.read_exact_at(&mut bytes, 0).expect("read back");
        bytes
    }

    pub fn read_f64s(&self) -> Vec<f64> {
        self.bytes().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn read_f32s(&self) -> Vec<f32> {
        self.bytes().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// Numbers that look random, from -1 to 1.
pub fn numbers(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

/// Bodies of a guest written by hand. Each is WAT; what is left empty does nothing.
#[derive(Clone, Copy)]
pub struct Guest<'a> {
    pub header: &'a str,
    pub description: &'a str,
    pub abi: &'a str,
    pub args: &'a str,
    pub config: &'a str,
    pub init: &'a str,
    pub fold: &'a str,
    pub merge: &'a str,
    pub finalize: &'a str,
}

/// Address of the first update's first byte, within `fold`.
pub const UPDATE: &str = "(i32.load (i32.const 4120))";
/// Address of the output's first byte, within `fold` and `merge`.
pub const ACC_OUT: &str = "(i32.load (i32.const 4108))";

impl Default for Guest<'_> {
    fn default() -> Self {
        Self {
            header: "(import \"catchment\" \"panic\" (func $panic (param i32 i32))) (memory (export \"memory\") 2)",
            description: r#"{"name":"by-hand","version":"1","class":"additive","partial":"F64","summary":"a test",
                "config":[],"needs_previous":false,"exact":false,"update_layout":"as_model"}"#,
            abi: "(i32.const 4)",
            args: "(i32.const 4096)",
            config: "(i32.const 16384)",
            init: "(i64.const 0)",
            fold: "",
            merge: "",
            finalize: "(i64.const 0)",
        }
    }
}

impl Guest<'_> {
    /// The module. Its description stands at 1024, the text "boom" at 64, arguments at 4096.
    pub fn wasm(&self) -> Vec<u8> {
        let Self { header, description, abi, args, config, init, fold, merge, finalize } = self;
        let json: String = description.split_whitespace().collect::<Vec<_>>().join(" ");
        let packed = (json.len() as u64) << 32 | 1024;
        let quoted = json.replace('"', "\\22");
        let text = format!(
            r#"(module {header}
                (data (i32.const 64) "boom")
                (data (i32.const 1024) "{quoted}")
                (func (export "catchment_abi") (result i32) {abi})
                (func (export "catchment_describe") (result i64) (i64.const {packed}))
                (func (export "catchment_args") (result i32) {args})
                (func (export "catchment_room") (param i32) (result i32) {config})
                (func (export "catchment_init") (result i64) {init})
                (func (export "catchment_fold") {fold})
                (func (export "catchment_merge") {merge})
                (func (export "catchment_finalize") (result i64) {finalize}))"#
        );
        wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }
}
