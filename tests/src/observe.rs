//! What a process holds, as the kernel counts it.

use std::fs;

/// What a process held at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// Memory of its own that is resident: anonymous pages, no files, no shared memory.
    pub rss_bytes: u64,
    /// Open files.
    pub files: usize,
    /// Threads.
    pub threads: usize,
    /// Mappings.
    pub mappings: usize,
}

impl Observed {
    /// Looks at the process.
    pub fn of(pid: u32) -> Self {
        let read = |what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).expect("the process is alive");
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("the process is alive").count();
        let status = read("status");
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux counts RssAnon");
        let kib: u64 = anonymous.trim().trim_end_matches(" kB").trim().parse().expect("a number of kB");
        Self {
            rss_bytes: kib << 10,
            files: count("fd"),
            threads: count("task"),
            mappings: read("maps").lines().count(),
        }
    }
}
