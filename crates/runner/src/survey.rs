//! What people and metrics see of runners.

use crate::order::Lane;
use catchment_proxy::{CpuTime, Report, RouteCount, RunnerId};
use catchment_types::JobUid;
use std::collections::{BTreeMap, HashMap};

/// The runners, and the way to them.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Which link was chosen, and what was missing for more.
    pub report: Option<Report>,
    /// The runners there are.
    pub runners: Vec<RunnerInfo>,
    /// Runners that were started because another had ended.
    pub restarts: u64,
    /// CPU time of all runners, of those that have ended too; `None` where the kernel does not count it.
    pub cpu: Option<CpuTime>,
    /// The routing map.
    pub routes: Vec<RouteInfo>,
    /// What went along all routes of a job, of those that are gone too.
    pub jobs: HashMap<JobUid, Counts>,
}

/// A runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunnerInfo {
    /// Its name.
    pub id: RunnerId,
    /// Its process.
    pub pid: u32,
    /// Lanes placed there.
    pub lanes: usize,
    /// What it used of the CPU.
    pub cpu: Option<CpuTime>,
}

/// A route, whose it is, and what went along it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteInfo {
    /// Whose orders it carries.
    pub lane: Lane,
    /// The rest.
    pub count: RouteCount,
}

/// Descriptors, and the payload they named.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Descriptors by path; see [`RouteCount::by_path`].
    pub by_path: BTreeMap<&'static str, u64>,
    /// Bytes of payload.
    pub payload_bytes: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, count: &RouteCount) {
        for (path, descriptors) in count.by_path() {
            *self.by_path.entry(path).or_default() += descriptors;
        }
        self.payload_bytes += count.payload_bytes;
    }
}
