//! The decisions, without I/O or clock.
//!
//! Whether a deadline has passed, [`Deadlines`] say. The clock is for what is written down only.

use crate::plan::Plans;
use catchment_ledger::{Deadlines, Job, Moment, Phase, Round, State};
use catchment_planner::{Explanation, Node};
use catchment_types::{CloseReason, JobState, NodeId, OnShortfall, Record, TimeMs};

/// What to do now.
#[derive(Debug, Clone, Default)]
pub struct Decision {
    /// Records to append, at most one a node or job.
    pub records: Vec<Record>,
    /// The time until the next deadline passes, if any does.
    pub look_again_ms: Option<u64>,
    /// Why rounds are placed where they are, for those that the records place.
    pub explanations: Vec<Explanation>,
}

/// Who is there, as far as the coordinator knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Nodes {
    /// Nodes that take work, and what they have.
    pub live: Vec<Node>,
    /// Seconds of CPU that folding a byte of updates takes, as nodes measure it; 0 where none has.
    pub cpu_s_per_byte: f64,
    /// Nodes that have been silent for too long.
    pub lost: Vec<NodeId>,
}

/// Decides for every node and job. `deadlines` have been told of this state.
pub fn decide(state: &State, nodes: &Nodes, deadlines: &Deadlines, now: Moment) -> Decision {
    let now_ms = now.clock_ms;
    let left_ms = |job: &Job| deadlines.left_ms(job, now);
    let mut decision = Decision::default();
    let holders = state.holders();
    let lost = nodes.lost.iter().filter(|node| holders.contains(node));
    decision.records.extend(lost.map(|node| {
        let incarnation = state.incarnation(*node);
        Record::NodeLost { node: *node, incarnation, at_ms: now_ms }
    }));
    let mut plans = Plans::new(state, nodes, &left_ms);
    for job in state.jobs().filter(|job| job.state == JobState::Running) {
        if let Some(record) = ends_early(job, now_ms) {
            decision.records.push(record);
            continue;
        }
        match job.active_round() {
            None => decision.records.extend(open_next(job, &mut plans, now_ms)),
            Some(round) => {
                match closing(job, round, left_ms(job) == Some(0), now_ms).or_else(|| plans.move_away(job, round)) {
                    Some(record) => decision.records.push(record),
                    None => {
                        let left_ms = left_ms(job).filter(|left| round.phase == Phase::Open && *left > 0);
                        decision.look_again_ms = decision.look_again_ms.into_iter().chain(left_ms).min();
                    }
                }
            }
        }
    }
    decision.explanations = plans.explanations;
    decision
}

/// A job that gets no better ends, but not on top of updates: what was accepted still becomes a model.
fn ends_early(job: &Job, now_ms: TimeMs) -> Option<Record> {
    let reason = job.plateau()?;
    let is_idle = job.active_round().is_none_or(|round| round.phase == Phase::Open && round.received() == 0);
    is_idle.then_some(Record::JobCompleted { uid: job.uid, reason, at_ms: now_ms })
}

fn open_next(job: &Job, plans: &mut Plans<'_>, now_ms: TimeMs) -> Option<Record> {
    let round = job.round_number() + 1;
    if round > job.spec.rounds {
        return None;
    }
    let deadline_ms = job.spec.deadline.map(|deadline| now_ms.saturating_add(deadline.ms()));
    let places = plans.place(job, round);
    Some(Record::RoundOpened { uid: job.uid, round, deadline_ms, places, at_ms: now_ms })
}

/// What becomes of an active round, if anything does now.
fn closing(job: &Job, round: &Round, deadline_passed: bool, now_ms: TimeMs) -> Option<Record> {
    let enough = round.received() >= round.min_updates.max(1);
    match round.phase {
        Phase::Open if deadline_passed && enough => Some(Record::RoundClosed {
            uid: job.uid,
            round: round.number,
            reason: CloseReason::Deadline,
            at_ms: now_ms,
        }),
        // Nobody has come: another deadline would be written down again and again for nothing.
        Phase::Open if deadline_passed && waits_for_anybody(job, round) => None,
        Phase::Open if deadline_passed => Some(shortfall(job, round, now_ms)),
        // Updates were discarded after the goal had closed the round, and too few are left.
        Phase::Aggregating if !enough => Some(shortfall(job, round, now_ms)),
        _ => None,
    }
}

/// A round that keeps what it has may as well keep its old deadline while it has nothing; the first update gives it a
/// new one.
fn waits_for_anybody(job: &Job, round: &Round) -> bool {
    job.spec.on_shortfall == OnShortfall::Retry && round.received() == 0
}

fn shortfall(job: &Job, round: &Round, now_ms: TimeMs) -> Record {
    let (uid, number) = (job.uid, round.number);
    match job.spec.on_shortfall {
        OnShortfall::Retry => {
            let deadline_ms = job.spec.deadline.map(|deadline| now_ms.saturating_add(deadline.ms()));
            Record::RoundExtended { uid, round: number, deadline_ms }
        }
        OnShortfall::Skip => Record::RoundClosed { uid, round: number, reason: CloseReason::Shortfall, at_ms: now_ms },
        OnShortfall::Fail => {
            let (received, wanted) = (round.received(), round.min_updates);
            let reason = format!("round {number} had {received} updates at its deadline and needs {wanted}");
            Record::JobFailed { uid, reason, at_ms: now_ms }
        }
    }
}
