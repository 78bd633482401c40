//! Every job's floor, and what they share.

use crate::floor::{Call, Floor};
use crate::pacing::RATE_MAX_PER_S;
use crate::seed::Seed;
use crate::tasks;
use catchment_ledger::Job;
use catchment_types::{CheckIn, ClientId, JobUid, Task, TimeMs};
use std::collections::{HashMap, HashSet};

/// Share of the rate that goes by numbers of waiting clients; the rest goes to jobs in equal parts, so that the three
/// clients of one do not wait behind the hundred thousand of another.
const BY_NUMBERS: f64 = 0.75;
/// How often the shares are worked out.
const SHARES_MS: u64 = 1_000;

/// Answers check-ins.
#[derive(Debug)]
pub struct Desk {
    seed: Seed,
    floors: HashMap<JobUid, Floor>,
    /// Clients that wait for anything, and jobs that have some.
    waiting: usize,
    crowded: usize,
    shared_ms: TimeMs,
}

impl Desk {
    /// A desk that knows nobody yet. `seed`: fresh random bytes, which no client may know.
    pub fn new(seed: [u8; 16]) -> Self {
        Self { seed: Seed::new(seed), floors: HashMap::new(), waiting: 0, crowded: 0, shared_ms: 0 }
    }

    /// What `client` should do for `job` now. Asking again changes nothing: a task in hand is the same task, and an
    /// appointment stays. `left_ms`: the time until the deadline of the job's round.
    pub fn task(
        &mut self,
        job: &Job,
        client: &ClientId,
        checkin: &CheckIn,
        now_ms: TimeMs,
        left_ms: Option<u64>,
    ) -> Task {
        if job.state.is_over() {
            self.floors.remove(&job.uid);
            return tasks::stop(job);
        }
        if now_ms.abs_diff(self.shared_ms) >= SHARES_MS {
            self.shared_ms = now_ms;
            let numbers = self.floors.values().map(Floor::waiting).filter(|waiting| *waiting > 0);
            (self.waiting, self.crowded) = numbers.fold((0, 0), |(sum, jobs), waiting| (sum + waiting, jobs + 1));
        }
        let floor = self.floors.entry(job.uid).or_default();
        let by_numbers = floor.waiting().max(1) as f64 / self.waiting.max(floor.waiting()).max(1) as f64;
        let by_jobs = 1.0 / self.crowded.max(1) as f64;
        let per_s = RATE_MAX_PER_S * (BY_NUMBERS * by_numbers + (1.0 - BY_NUMBERS) * by_jobs);
        let key = self.seed.key(job.uid, client);
        floor.task(&Call { job, client, key, checkin, now_ms, left_ms, per_s, seed: &self.seed })
    }

    /// Clients of a job that were told to come again.
    pub fn waiting(&self, uid: JobUid) -> usize {
        self.floors.get(&uid).map_or(0, Floor::waiting)
    }

    /// Forgets jobs that are gone.
    pub fn retain(&mut self, alive: &HashSet<JobUid>) {
        self.floors.retain(|uid, _| alive.contains(uid));
    }
}
