//! When rounds' deadlines pass, as one process sees it.
//!
//! A deadline is a duration, and its time counts from the moment in which this process saw the record that set it. Every
//! coordinator follows the log all the time, so all of them see that at the same time, and whoever takes over from another
//! goes on as if nothing had happened. Comparing the deadline that is shown with a clock would let each coordinator whose
//! clock is wrong close every round at once, or none in time.
//!
//! A process that has just started has seen nothing. It believes what does not depend on whose clock is right: the time that
//! passed between the updates that one node has taken since, by that node's clock (`term.rs`; from level 2 on). That is a part
//! of what really has passed. So a start may make a deadline later and not earlier, and does not put it off for ever while
//! updates come. A process that is alone has written the whole log by its own clock, and believes that.

use crate::job::Job;
use crate::round::Round;
use crate::state::State;
use catchment_types::{JobState, JobUid, TimeMs};
use std::collections::BTreeMap;

/// Now, twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// By the clock, to be written down and shown.
    pub clock_ms: TimeMs,
    /// Since some moment of this process, on a clock that only goes on.
    pub passed_ms: u64,
}

/// The deadlines of active rounds. Told of the state and of the time; has no clock.
#[derive(Debug, Clone)]
pub struct Deadlines {
    /// Whether nobody else writes into the log, now and before.
    alone: bool,
    has_looked: bool,
    seen: BTreeMap<JobUid, Seen>,
}

/// The deadline of a job's round.
#[derive(Debug, Clone, Copy)]
struct Seen {
    round: u64,
    /// Its number in the round; `None` at the first level.
    number: Option<u64>,
    /// What is shown.
    deadline_ms: TimeMs,
    allowed_ms: u64,
    /// Used up at `looked_ms`.
    used_ms: u64,
    looked_ms: u64,
    /// Whether it was being used up then; if not, it was seen then that its job is paused.
    runs: bool,
    /// While its job is paused: what was counted between the look before and the one that saw the pause. When in between it
    /// began is known only once the pause is over.
    doubtful_ms: u64,
}

impl Deadlines {
    /// Nothing was seen yet. `alone`: nobody else writes into the log, so its clock is this process's.
    pub fn new(alone: bool) -> Self {
        Self { alone, has_looked: false, seen: BTreeMap::new() }
    }

    /// Takes note of deadlines that were set, and of the time. To be called when the state has changed, and not long after.
    pub fn look(&mut self, state: &State, now: Moment) {
        let is_first = !std::mem::replace(&mut self.has_looked, true);
        self.seen.retain(|uid, _| state.job(*uid).and_then(timed).is_some());
        for (job, (round, deadline_ms)) in state.jobs().filter_map(|job| Some((job, timed(job)?))) {
            let before = self.seen.get(&job.uid).copied().filter(|seen| seen.round == round.number);
            let seen = match before {
                Some(seen) if seen.is_still(round, deadline_ms) => seen.go_on(job, deadline_ms, now),
                _ => {
                    let allowed_ms = allowed_ms(job, round, deadline_ms, before.is_some());
                    let used_ms = match is_first {
                        // Everybody saw it when it was set, which was just now.
                        false => 0,
                        true if self.alone => {
                            let until_ms = job.paused_ms.unwrap_or(now.clock_ms);
                            allowed_ms.saturating_sub(deadline_ms.saturating_sub(until_ms))
                        }
                        true => round.used_ms(),
                    };
                    Seen {
                        round: round.number,
                        number: round.term.map(|term| term.number),
                        deadline_ms,
                        allowed_ms,
                        used_ms,
                        looked_ms: now.passed_ms,
                        runs: job.state == JobState::Running,
                        doubtful_ms: 0,
                    }
                }
            };
            self.seen.insert(job.uid, seen);
        }
    }

    /// What is left of the time of a job's active round: nothing once its deadline has passed. `None`: it has no deadline.
    pub fn left_ms(&self, job: &Job, now: Moment) -> Option<u64> {
        let (round, deadline_ms) = timed(job)?;
        let seen = self.seen.get(&job.uid).filter(|seen| seen.round == round.number);
        Some(match seen.filter(|seen| seen.is_still(round, deadline_ms)) {
            Some(seen) => seen.allowed_ms.saturating_sub(seen.used_ms_at(now)),
            None => allowed_ms(job, round, deadline_ms, seen.is_some()),
        })
    }
}

impl Seen {
    /// Whether the round's deadline is still this one. At the first level another one shows as another time, unless a pause
    /// that was seen has moved it.
    fn is_still(&self, round: &Round, deadline_ms: TimeMs) -> bool {
        let number = round.term.map(|term| term.number);
        number == self.number && (number.is_some() || deadline_ms == self.deadline_ms || !self.runs)
    }

    fn used_ms_at(&self, now: Moment) -> u64 {
        let since_ms = if self.runs { now.passed_ms.saturating_sub(self.looked_ms) } else { 0 };
        self.used_ms.saturating_add(since_ms)
    }

    fn go_on(self, job: &Job, deadline_ms: TimeMs, now: Moment) -> Self {
        let (runs, since_ms) = (job.state == JobState::Running, now.passed_ms.saturating_sub(self.looked_ms));
        if !self.runs && !runs {
            return Self { deadline_ms, ..self };
        }
        // What is shown has moved by as long as a pause was. Of that, a look that came late may have counted a part.
        let paused_ms = deadline_ms.saturating_sub(self.deadline_ms);
        let (seen_ms, doubtful_ms) = if self.runs { (0, since_ms) } else { (since_ms, self.doubtful_ms) };
        let counted_ms = paused_ms.saturating_sub(seen_ms).min(doubtful_ms);
        Self {
            deadline_ms,
            used_ms: self.used_ms_at(now).saturating_sub(counted_ms),
            looked_ms: now.passed_ms,
            runs,
            doubtful_ms: if runs { 0 } else { doubtful_ms - counted_ms },
            ..self
        }
    }
}

/// The active round of a job, if it has a deadline, and the one that is shown.
fn timed(job: &Job) -> Option<(&Round, TimeMs)> {
    let round = job.active_round()?;
    Some((round, round.deadline_ms?))
}

/// How long a deadline is. At the first level only whoever saw the one before it knows that it is a new one, as long as
/// the job's; for others it may be the first, and the longest that it can be is believed.
fn allowed_ms(job: &Job, round: &Round, deadline_ms: TimeMs, is_next: bool) -> u64 {
    let since_opened_ms = deadline_ms.saturating_sub(round.opened_ms);
    match (round.term, job.spec.deadline) {
        (Some(term), _) => term.allowed_ms,
        (None, Some(spec)) if is_next => spec.ms(),
        (None, Some(spec)) => since_opened_ms.max(spec.ms()),
        (None, None) => since_opened_ms,
    }
}
