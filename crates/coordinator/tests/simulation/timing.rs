//! What must hold of deadlines in true time, whatever coordinators' clocks say.

use catchment_ledger::{Outcome, Phase, State};
use catchment_types::{CloseReason, JobState, JobUid, OnShortfall, Record, TimeMs};
use std::collections::BTreeMap;

/// How long a round may stay open after its deadline: two looks, and the way of a decision.
const LATE_MS_MAX: u64 = 500;

/// The deadline of an active round.
struct Term {
    round: u64,
    allowed_ms: u64,
    used_ms: u64,
    /// Since when it is being used up.
    since_ms: Option<TimeMs>,
    /// Since when its round should be closed.
    overdue_ms: Option<TimeMs>,
    /// Whether a coordinator has died since, so that it may be late.
    is_disturbed: bool,
    /// Whether nothing but time has happened to it: the first feature level promises no more.
    is_plain: bool,
}

impl Term {
    fn used_ms(&self, now_ms: TimeMs) -> u64 {
        self.used_ms + self.since_ms.map_or(0, |since| now_ms - since)
    }
}

/// The true time of every deadline.
#[derive(Default)]
pub struct Timing(BTreeMap<JobUid, Term>);

impl Timing {
    /// A coordinator has died.
    pub fn disturb(&mut self) {
        self.0.values_mut().for_each(|term| term.is_disturbed = true);
    }

    /// After a record, of a job whose newest round was in this phase before.
    pub fn after(&mut self, now_ms: TimeMs, phase: Option<Phase>, state: &State, record: &Record, outcome: &Outcome) {
        if *outcome == Outcome::Done {
            self.happened(now_ms, phase, state, record);
        }
        self.0.retain(|uid, term| {
            let round = state.job(*uid).and_then(|job| job.active_round());
            round.is_some_and(|round| round.number == term.round)
        });
        for (uid, term) in &mut self.0 {
            let job = state.job(*uid).expect("its round is active");
            let round = job.active_round().expect("it is active");
            let runs = job.state == JobState::Running;
            if !runs {
                (term.used_ms, term.since_ms, term.is_plain) = (term.used_ms(now_ms), None, false);
            } else {
                term.since_ms.get_or_insert(now_ms);
            }
            let waits = job.spec.on_shortfall == OnShortfall::Retry && round.received() == 0;
            let is_due = runs && round.phase == Phase::Open && !waits && term.used_ms(now_ms) >= term.allowed_ms;
            let is_promised = (state.level() >= 2 || term.is_plain) && !term.is_disturbed;
            term.overdue_ms = term.overdue_ms.or(Some(now_ms)).filter(|_| is_due && is_promised);
            let late_ms = term.overdue_ms.map_or(0, |since| now_ms - since);
            assert!(late_ms <= LATE_MS_MAX, "round {} is open for {late_ms} ms after its deadline", term.round);
        }
    }

    fn happened(&mut self, now_ms: TimeMs, phase: Option<Phase>, state: &State, record: &Record) {
        let (uid, set) = match record {
            Record::RoundOpened { uid, round, deadline_ms, at_ms, .. } => {
                (uid, deadline_ms.map(|deadline| (*round, deadline - at_ms, true)))
            }
            Record::RoundExtended { uid, round, .. } => {
                let deadline = state.job(*uid).and_then(|job| job.spec.deadline);
                (uid, deadline.map(|deadline| (*round, deadline.ms(), false)))
            }
            Record::RoundClosed { uid, reason: CloseReason::Deadline | CloseReason::Shortfall, .. } => (uid, None),
            Record::JobFailed { uid, reason, .. } if reason.contains("at its deadline") => (uid, None),
            _ => return,
        };
        // Of a round that is closed already too few updates may be left, before its deadline.
        if let Some(term) = self.0.remove(uid).filter(|_| phase == Some(Phase::Open)) {
            let (used_ms, allowed_ms) = (term.used_ms(now_ms), term.allowed_ms);
            let is_promised = state.level() >= 2 || (term.is_plain && !term.is_disturbed);
            assert!(!is_promised || used_ms >= allowed_ms, "{record:?} after {used_ms} of {allowed_ms} ms");
        }
        if let Some((round, allowed_ms, is_plain)) = set {
            let (used_ms, since_ms, overdue_ms) = (0, None, None);
            let term = Term { round, allowed_ms, used_ms, since_ms, overdue_ms, is_disturbed: false, is_plain };
            self.0.insert(*uid, term);
        }
    }
}
