//! The real clock, the real randomness, and what the machine has: handed in here and nowhere else.

use catchment_types::{Clock, Entropy, NoSteps, Step, Steps, TimeMs};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// For tests of clocks that jump: a file with the milliseconds by which this process's clock is ahead of the machine's,
/// read at every look at the clock. While it is not there, or no number, the clock is right.
const CLOCK_SKEW_FILE: &str = "CATCHMENT_CLOCK_SKEW_FILE";

static CLOCK_SKEW: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(CLOCK_SKEW_FILE).map(PathBuf::from));

fn skew_ms() -> i64 {
    let text = CLOCK_SKEW.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

/// The machine's clock.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> TimeMs {
        #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        TimeMs::try_from(since.as_millis()).unwrap_or(TimeMs::MAX).saturating_add_signed(skew_ms())
    }
}

/// The kernel's randomness.
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn bytes16(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
        bytes
    }
}

/// For tests of sudden death: the process ends, as by `kill -9`, right after the step of this name (`Flipped`) was done,
/// or done so often (`Flipped:3`).
pub const END_AT: &str = "CATCHMENT_END_AT";
/// For tests of mistakes in the program: whoever has done the step of this name panics, once, or so often (`Flipped:3`).
const PANIC_AT: &str = "CATCHMENT_PANIC_AT";

/// Something that happens when a step was done.
struct At {
    step: Step,
    left: AtomicI64,
    happens: fn(Step, i64),
}

impl At {
    /// What a variable says, if it says anything.
    fn said(variable: &str, happens: fn(Step, i64)) -> Option<Self> {
        let said = std::env::var(variable).ok()?;
        let (name, count) = said.split_once(':').unwrap_or((&said, "1"));
        let step = Step::ALL.into_iter().find(|step| step.name() == name)?;
        Some(Self { step, left: AtomicI64::new(count.parse().unwrap_or(1)), happens })
    }
}

impl Steps for At {
    fn done(&self, step: Step) {
        if step == self.step {
            (self.happens)(step, self.left.fetch_sub(1, Relaxed));
        }
    }
}

fn end(_: Step, left: i64) {
    if left == 1 {
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::KILL).expect("it is our own");
    }
}

fn panic_at(step: Step, left: i64) {
    assert!(left < 1, "{PANIC_AT} asks for a panic after {}", step.name());
}

/// What is to happen between steps: nothing, unless [`END_AT`] or [`PANIC_AT`] says so.
pub fn steps() -> Arc<dyn Steps> {
    match At::said(END_AT, end).or_else(|| At::said(PANIC_AT, panic_at)) {
        Some(at) => Arc::new(at),
        None => Arc::new(NoSteps),
    }
}

/// Where slabs of the instance with this data directory are kept when nobody says: one directory on `/dev/shm` for
/// each data directory, so that a restart finds its own.
pub fn default_slab_dir(data_dir: &Path) -> PathBuf {
    let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_path_buf());
    let name: String =
        data_dir.to_string_lossy().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let user = rustix::process::getuid().as_raw();
    // The end of a path is for people, who know it by that; the digest tells paths apart that look alike.
    let tail: String = name.chars().rev().take(80).collect::<Vec<_>>().into_iter().rev().collect();
    let digest = blake3::hash(data_dir.as_os_str().as_encoded_bytes()).to_hex();
    PathBuf::from("/dev/shm").join(format!("catchment-{user}{tail}-{}", &digest[..12]))
}

/// Shared memory to use when nobody says: half of what the tmpfs has free, half of the memory limit at most.
pub fn default_slab_budget_bytes(slab_dir: &Path) -> u64 {
    let on = slab_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let free = rustix::fs::statvfs(on).map_or(1 << 30, |stat| stat.f_bavail * stat.f_frsize);
    let limit = memory_limit_bytes().unwrap_or(u64::MAX);
    (free / 2).min(limit / 2).max(16 << 20)
}

/// What is free of the disk on which a data directory is, or is to be.
pub fn free_disk_bytes(data_dir: &Path) -> u64 {
    let on = data_dir.ancestors().find(|dir| dir.exists()).filter(|dir| !dir.as_os_str().is_empty());
    rustix::fs::statvfs(on.unwrap_or(Path::new("."))).map_or(64 << 30, |stat| stat.f_bavail * stat.f_frsize)
}

/// The memory limit of this process's cgroup, or the machine's memory.
fn memory_limit_bytes() -> Option<u64> {
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total_bytes = total.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? * 1024;
    Some(limit.unwrap_or(u64::MAX).min(total_bytes))
}
