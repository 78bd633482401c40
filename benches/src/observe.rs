//! What a process has used, as the kernel counts it.

use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// CPU seconds of a process, all threads.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("a stat line")?.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Seconds that threads of a process and of those it has started were ready to run and had no processor. Of threads that
/// are still there.
pub fn processor_wait_seconds(pid: u32) -> Result<f64> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let pids = children.split_whitespace().map(str::to_owned).chain([pid.to_string()]);
    let tasks = pids.filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten().flatten();
    let wait = |stat: String| stat.split_whitespace().nth(1).and_then(|ns| ns.parse::<u64>().ok());
    let waits = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok().and_then(wait));
    Ok(waits.sum::<u64>() as f64 / 1e9)
}

/// Bytes of memory that are a process's alone.
pub fn anonymous_bytes(pid: u32) -> Result<u64> {
    status_bytes(pid, "RssAnon:")
}

fn status_bytes(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| field.to_owned())?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? << 10)
}

/// Proportional share of memory of a process (`Pss`), shared memory included.
pub fn pss_bytes(pid: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("Pss")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? << 10)
}

/// Bytes that the files of a directory take.
pub fn directory_bytes(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}

/// The middle of several figures.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Several measurements of one thing.
#[derive(Debug, Clone, Default)]
pub struct Series(Vec<f64>);

impl Series {
    /// One more.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Element by element, this over that: for what was measured turn and turn about.
    pub fn over(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }

    /// Every value in another unit.
    pub fn map(&self, to: impl Fn(f64) -> f64) -> Self {
        Self(self.0.iter().copied().map(to).collect())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        median(self.0.iter().copied())
    }

    /// `median (least–most)`, with so many digits; of a single value, that.
    pub fn show(&self, digits: usize) -> String {
        if self.0.len() == 1 {
            return format!("{:.digits$}", self.0[0]);
        }
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("{:.digits$} ({least:.digits$}–{most:.digits$})", self.median())
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// Bytes that could be allocated now without swapping.
pub fn free_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? << 10)
}
