//! How fast updates are folded, next to how fast this machine reads memory at all.
//!
//! `cargo run --release -p catchment-runtime --example fold_speed -- [MiB per update] [threads] [4k|2m]`
//!
//! Sixteen updates in shared memory are folded at once by one instance a thread, each over its share of the
//! coordinates, in ranges as a node would cut them. The ceiling is the same memory read and summed natively; exact sums
//! are measured in turn with plain ones. Beside it are the costs of a start: compiling the module, making an instance, one tiny fold.

use catchment_runtime::{Dtype, Exact, FoldArgs, Function, Limits, Rule, Runtime, RuntimeConfig, UpdateWindow, Window};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use std::fs::File;
use std::hint::black_box;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const UPDATES: usize = 16;
const ROUNDS: usize = 5;
/// Coordinates of one call: 32 MiB of partial.
const RANGE: u64 = 4 << 20;

const HUGE: usize = 2 << 20;
/// The exact sums of a job with `{"bound": 2, "weight_max": 1, "updates_max": 1000}`.
const EXACT: Exact = Exact { exponent: 50, weight_max: 1.0 };

/// A file in shared memory, mapped for filling and reading. Mappings last as long as the process.
struct Slab {
    file: File,
    map: &'static mut [u8],
}

impl Slab {
    fn new(bytes: u64, huge: bool) -> Result<Self> {
        let file = File::from(rustix::fs::memfd_create("fold-speed", rustix::fs::MemfdFlags::CLOEXEC)?);
        file.set_len(bytes)?;
        let len = bytes as usize;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: the first mapping reserves a range of our own; the second lies within it, at its first multiple of
        // 2 MiB. The file keeps its length, and folds write to it only while nobody holds the slice's content.
        let map = unsafe {
            let reserved = mmap_anonymous(std::ptr::null_mut(), len + HUGE, ProtFlags::empty(), MapFlags::PRIVATE)?;
            let aligned = (reserved as usize).next_multiple_of(HUGE) as *mut _;
            let at = mmap(aligned, len, ProtFlags::READ | ProtFlags::WRITE, flags, &file, 0)?;
            std::slice::from_raw_parts_mut(at.cast::<u8>(), len)
        };
        map.chunks_mut(4096).for_each(|page| page[0] = 1);
        if huge && len >= HUGE {
            collapse(map).map_err(|e| format!("collapse into huge pages: {e}"))?;
        }
        Ok(Self { file, map })
    }

    fn window(&self, offset_bytes: u64, len_bytes: u64) -> Window<BorrowedFd<'_>> {
        Window { file: self.file.as_fd(), offset_bytes, len_bytes }
    }
}

/// `MADV_COLLAPSE`, which works on memory files whatever the system's setting for them is.
fn collapse(map: &mut [u8]) -> std::io::Result<()> {
    const MADV_COLLAPSE: i32 = 25;
    // SAFETY: the range is one live mapping of ours; the advice changes how it is backed, not what it holds.
    match unsafe { libc::madvise(map.as_mut_ptr().cast(), map.len(), MADV_COLLAPSE) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mib: u64 = arguments.first().map_or(Ok(64), |a| a.parse())?;
    let threads: u64 = arguments.get(1).map_or(Ok(2), |a| a.parse())?;
    let huge = arguments.get(2).is_none_or(|a| a == "2m");
    let runtime = Runtime::new(RuntimeConfig::default())?;
    let function = starts(&runtime)?;

    println!("{UPDATES} updates of {mib} MiB, {threads} threads, {} pages", if huge { "2 MiB" } else { "4 KiB" });
    let mut slabs = (0..UPDATES).map(|_| Slab::new(mib << 20, huge)).collect::<Result<Vec<_>>>()?;
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::F64] {
        let elements = (mib << 20) / dtype.bytes() as u64 / (threads * 4096) * (threads * 4096);
        let accs = [Slab::new(elements * 8, huge)?, Slab::new(elements * 8, huge)?];
        fill(&mut slabs, dtype);
        let (read_cpu_ns, fold_cpu_ns) = (AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX));
        let ceiling = best(|| {
            read_cpu_ns.fetch_min(read_all(&slabs, threads), Relaxed);
        });
        // Turn and turn about, so that both meet the machine in the same mood.
        let (mut folded, mut exact) = (Duration::MAX, Duration::MAX);
        for _ in 0..ROUNDS {
            folded = folded.min(timed(|| {
                let used = fold_all(&function, None, &slabs, &accs, dtype, elements, threads);
                fold_cpu_ns.fetch_min(used, Relaxed);
            }));
            exact = exact.min(timed(|| {
                fold_all(&function, Some(EXACT), &slabs, &accs, dtype, elements, threads);
            }));
        }
        let bytes = (UPDATES as u64 * elements * dtype.bytes() as u64) as f64;
        let rate = |time: Duration| bytes / time.as_secs_f64() / 1e9;
        let with_acc = (bytes + 16.0 * elements as f64) / folded.as_secs_f64() / 1e9;
        println!(
            "{:>4}: read {:5.1} GB/s   fold {:5.1} GB/s of updates ({:.0}%), {with_acc:5.1} GB/s with the partials; \
             per CPU second read {:.1} GB, fold {:.1} GB; exact {:5.1} GB/s, {:.2} of plain",
            dtype.as_str(),
            rate(ceiling),
            rate(folded),
            100.0 * rate(folded) / rate(ceiling),
            bytes / read_cpu_ns.into_inner() as f64,
            bytes / fold_cpu_ns.into_inner() as f64,
            rate(exact),
            rate(exact) / rate(folded)
        );
    }
    Ok(())
}

/// Compiling, instantiating, and the smallest call.
fn starts(runtime: &Runtime) -> Result<Function> {
    let dir = std::env::var_os("CATCHMENT_FUNCTIONS_DIR").map(std::path::PathBuf::from);
    let exe = std::env::current_exe()?;
    let dir = dir.unwrap_or_else(|| exe.ancestors().nth(3).expect("a target folder").join("functions"));
    let wasm =
        std::fs::read(dir.join("fedavg.wasm")).map_err(|e| format!("fedavg.wasm (xtask functions builds it): {e}"))?;
    let load = best(|| drop(runtime.load(&wasm).expect("loads")));
    let function = runtime.load(&wasm)?;
    let config = serde_json::json!({});
    let start = |n: u32| {
        let instance = || function.instantiate(&config, Limits::default()).expect("starts");
        best(|| (0..n).for_each(|_| drop(instance()))) / n
    };
    let slabs = (0..18).map(|_| Slab::new(4096, false)).collect::<Result<Vec<_>>>()?;
    let updates: Vec<_> = slabs[2..].iter().map(|s| update(s, Dtype::F64, 0, 512)).collect();
    let mut instance = function.instantiate(&config, Limits::default())?;
    let mut small = |k: usize| {
        best(|| {
            for _ in 0..1000 {
                let acc_in = Some(slabs[0].window(0, 4096));
                let acc_out = slabs[1].window(0, 4096);
                let args =
                    FoldArgs { elements: 512, rule: Rule::Mean, acc_in, acc_out, updates: updates[..k].to_vec() };
                instance.fold(&args).expect("folds");
            }
        }) / 1000
    };
    println!(
        "compile {} KiB: {:.1} ms; instantiate and drop: {:.1} µs; a fold of 512 numbers: {:.1} µs (k=1), {:.1} µs (k=16)",
        wasm.len() >> 10,
        load.as_secs_f64() * 1e3,
        start(200).as_secs_f64() * 1e6,
        small(1).as_secs_f64() * 1e6,
        small(16).as_secs_f64() * 1e6
    );
    Ok(function)
}

/// The shortest of several runs.
fn best(mut run: impl FnMut()) -> Duration {
    (0..ROUNDS).map(|_| timed(&mut run)).min().expect("at least one run")
}

fn timed(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

/// Ordinary numbers, so that no conversion meets a special case.
fn fill(slabs: &mut [Slab], dtype: Dtype) {
    let pattern: Vec<u8> = match dtype {
        Dtype::F64 => 1.25f64.to_le_bytes().repeat(512),
        Dtype::F32 => 1.25f32.to_le_bytes().repeat(1024),
        Dtype::Bf16 => 0x3fa0u16.to_le_bytes().repeat(2048),
        _ => 0x3d00u16.to_le_bytes().repeat(2048),
    };
    for slab in slabs {
        slab.map.chunks_exact_mut(4096).for_each(|page| page.copy_from_slice(&pattern));
    }
}

/// Each thread reads its share of every slab. Returns the CPU time of all.
fn read_all(slabs: &[Slab], threads: u64) -> u64 {
    let cpu_ns = AtomicU64::new(0);
    let cpu = &cpu_ns;
    std::thread::scope(|scope| {
        for thread in 0..threads as usize {
            scope.spawn(move || {
                let started = thread_cpu_ns();
                let mut sums = [0u64; 8];
                for slab in slabs {
                    let share = slab.map.len() / threads as usize;
                    for line in slab.map[thread * share..][..share].as_chunks::<64>().0 {
                        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                        }
                    }
                }
                black_box(sums);
                cpu.fetch_add(thread_cpu_ns() - started, Relaxed);
            });
        }
    });
    cpu_ns.into_inner()
}

fn thread_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

fn update(slab: &Slab, dtype: Dtype, start: u64, count: u64) -> UpdateWindow<BorrowedFd<'_>> {
    let bytes = dtype.bytes() as u64;
    let window = slab.window(start * bytes, count * bytes);
    UpdateWindow { window, dtype, weight: 0.5, num_samples: 1.0, staleness: 0 }
}

/// Each thread folds its share of the coordinates, range by range. Returns the CPU time of all.
fn fold_all(
    function: &Function,
    exact: Option<Exact>,
    slabs: &[Slab],
    accs: &[Slab; 2],
    dtype: Dtype,
    elements: u64,
    threads: u64,
) -> u64 {
    let share = elements / threads;
    let cpu_ns = AtomicU64::new(0);
    let cpu = &cpu_ns;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let config = serde_json::json!({});
                let mut instance = function.instantiate_with(&config, exact, Limits::default()).expect("starts");
                let (mut start, end) = (thread * share, (thread + 1) * share);
                while start < end {
                    let count = RANGE.min(end - start);
                    let updates: Vec<_> = slabs.iter().map(|s| update(s, dtype, start, count)).collect();
                    let args = FoldArgs {
                        elements: count,
                        rule: Rule::Mean,
                        acc_in: Some(accs[0].window(start * 8, count * 8)),
                        acc_out: accs[1].window(start * 8, count * 8),
                        updates: updates.clone(),
                    };
                    cpu.fetch_add(instance.fold(&args).expect("folds").cpu_ns, Relaxed);
                    start += count;
                }
            });
        }
    });
    cpu_ns.into_inner()
}
