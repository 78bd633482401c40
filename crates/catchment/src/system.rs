//! The real clock, the real randomness, and what the machine has: handed in here and nowhere else.

use catchment_types::{Clock, Entropy, NoSteps, Steps, TimeMs};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a program for tests changes. The program that people get changes nothing.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Milliseconds by which this process's clock is ahead of the machine's, asked for at every look at the clock.
    pub clock_ahead_ms: fn() -> i64,
    /// Who is told of every step.
    pub steps: fn() -> Arc<dyn Steps>,
    /// Environment variables that the first runner processes get, and those that replace them do not.
    pub runners_once: &'static [&'static str],
}

impl Hooks {
    /// Changes nothing.
    pub fn none() -> Self {
        Self { clock_ahead_ms: || 0, steps: || Arc::new(NoSteps), runners_once: &[] }
    }
}

static HOOKS: OnceLock<Hooks> = OnceLock::new();

/// Notes what this program changes: first of all, and once.
pub fn take(hooks: Hooks) {
    HOOKS.set(hooks).ok();
}

/// What this program changes.
pub fn hooks() -> Hooks {
    HOOKS.get().copied().unwrap_or_else(Hooks::none)
}

/// The machine's clock.
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> TimeMs {
        #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        TimeMs::try_from(since.as_millis()).unwrap_or(TimeMs::MAX).saturating_add_signed((hooks().clock_ahead_ms)())
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
