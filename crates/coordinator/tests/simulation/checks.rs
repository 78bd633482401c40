//! What must hold after every record, seen from outside the state.

use crate::timing::Timing;
use catchment_ledger::{AcceptOutcome, Outcome, Phase, State};
use catchment_types::{Accept, CloseReason, Digest, JobState, JobUid, ReceiptId, ReceiptState, Record, TimeMs};
use std::collections::{BTreeMap, BTreeSet};

/// What the runs together must come to see: a simulation that simulates nothing proves nothing.
const EVERYTHING: [&str; 38] = [
    "round committed",
    "round skipped",
    "round extended",
    "round closed at its deadline",
    "accepted",
    "accepted again after a loss",
    "duplicate",
    "conflict",
    "too late",
    "too early",
    "paused out",
    "unknown job",
    "folded",
    "folded twice",
    "discarded",
    "discarded after the close",
    "lost",
    "sum lost",
    "commit ignored",
    "job completed",
    "job failed",
    "job stopped",
    "decision stale",
    "decision not quite fresh",
    "decision too late",
    "moved to the next buffer",
    "stale but counted",
    "node given up",
    "node given up alive",
    "refused by a node given up",
    "committed from many nodes",
    "a partial out of reach",
    "a partial of another incarnation",
    "round given up",
    "give-up ignored",
    "paused after rounds given up",
    "a clock jumped",
    "coordinator started anew",
];

/// How often what was seen.
#[derive(Debug, Default)]
pub struct Reached(BTreeMap<&'static str, u64>);

impl Reached {
    pub fn count(&mut self, what: &'static str) {
        assert!(EVERYTHING.contains(&what), "{what} is not listed");
        *self.0.entry(what).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        other.0.iter().for_each(|(what, times)| *self.0.entry(what).or_default() += times);
    }

    pub fn assert_everything_happened(&self) {
        let missing: Vec<_> = EVERYTHING.iter().filter(|what| !self.0.contains_key(*what)).collect();
        assert!(missing.is_empty(), "never seen: {missing:?}");
    }
}

/// The job that a record is about, if it is about one.
pub fn subject(record: &Record) -> Option<JobUid> {
    match record {
        Record::JobCreated { uid, .. }
        | Record::RoundPlaced { uid, .. }
        | Record::JobPatched { uid, .. }
        | Record::JobActed { uid, .. }
        | Record::JobFailed { uid, .. }
        | Record::ModelPut { uid, .. }
        | Record::RoundOpened { uid, .. }
        | Record::RoundExtended { uid, .. }
        | Record::RoundClosed { uid, .. }
        | Record::Folded { uid, .. }
        | Record::Discarded { uid, .. }
        | Record::Lost { uid, .. }
        | Record::SumLost { uid, .. }
        | Record::Evaluated { uid, .. }
        | Record::JobCompleted { uid, .. }
        | Record::RoundGivenUp { uid, .. }
        | Record::Committed { uid, .. } => Some(*uid),
        Record::Accepted(_)
        | Record::NodeLost { .. }
        | Record::NodeStarted { .. }
        | Record::LevelRaised { .. }
        | Record::StateHashed { .. } => None,
    }
}

/// What one job looked like before a record.
#[derive(Default)]
pub struct Before {
    round: u64,
    phase: Option<Phase>,
    models: u64,
    contribution: Option<Digest>,
    updates: BTreeMap<ReceiptId, ReceiptState>,
}

/// The account kept beside the state.
#[derive(Default)]
pub struct Checks {
    pub reached: Reached,
    pub timing: Timing,
    accepted: BTreeMap<ReceiptId, (JobUid, u64)>,
    opened: BTreeSet<(JobUid, u64)>,
    committed: BTreeSet<ReceiptId>,
}

impl Checks {
    pub fn before(&self, state: &State, record: &Record) -> Before {
        let Some(job) = subject(record).and_then(|uid| state.job(uid)) else { return Before::default() };
        let updates = job.round.iter().flat_map(|round| round.updates());
        Before {
            round: job.round_number(),
            phase: job.round.as_ref().map(|round| round.phase),
            models: job.models.next(),
            contribution: job.active_round().map(|round| round.contribution()),
            updates: updates.map(|update| (update.receipt, update.state)).collect(),
        }
    }

    pub fn after(&mut self, now_ms: TimeMs, before: Before, state: &State, record: &Record, outcome: &Outcome) {
        self.timing.after(now_ms, before.phase, state, record, outcome);
        match (record, outcome) {
            (Record::Accepted(group), Outcome::Accepts(outcomes)) => {
                assert_eq!(group.len(), outcomes.len());
                group.iter().zip(outcomes).for_each(|(accept, outcome)| self.answered(accept, *outcome));
            }
            (Record::RoundOpened { uid, round, .. }, Outcome::Done) => {
                assert!(self.opened.insert((*uid, *round)), "round {round} opened twice");
                assert!(!matches!(before.phase, Some(Phase::Open | Phase::Aggregating)), "two rounds are open");
                assert_eq!(*round, before.round + 1);
            }
            (Record::Lost { uid, .. } | Record::SumLost { uid, .. }, Outcome::Done) => {
                let round = state.job(*uid).and_then(|job| job.active_round()).expect("only an active round loses");
                assert_eq!(round.phase, Phase::Open, "what was lost may be sent again");
            }
            (Record::Committed { uid, round, model, .. }, Outcome::Done) => {
                let job = state.job(*uid).expect("its round was committed");
                assert_eq!((model.version, job.models.next()), (before.models, before.models + 1));
                let round = job.round_numbered(*round).expect("it was committed");
                let contributors: Vec<_> = round.contributors().map(|update| update.receipt).collect();
                let folded = before.updates.iter().filter(|(_, state)| **state == ReceiptState::Folded);
                assert!(folded.map(|(receipt, _)| receipt).eq(&contributors), "what was folded is what is committed");
                assert_eq!(model.contributors, contributors.len() as u64);
                for receipt in contributors {
                    assert!(self.committed.insert(receipt), "{receipt} is in two models");
                }
            }
            (Record::RoundGivenUp { uid, round, contribution, .. }, Outcome::Done) => {
                let job = state.job(*uid).expect("its round was given up");
                let ended = job.round_numbered(*round).expect("it was given up just now");
                assert_eq!((ended.phase, job.models.next()), (Phase::Skipped, before.models), "the model stands");
                assert!(ended.given_up().is_some_and(|reason| !reason.is_empty()));
                assert!(job.spec.rounds > *round && !job.state.is_over(), "it is asked again");
                assert_eq!(before.contribution, Some(*contribution), "it is what was to be given up");
                if job.state == JobState::Paused && job.reason.is_some() {
                    self.reached.count("paused after rounds given up");
                }
            }
            _ => {}
        }
        if *outcome != Outcome::Done {
            assert!(matches!(outcome, Outcome::Accepts(_)) || self.is_same(&before, state, record));
        }
        self.see(&before, record, outcome);
        if let Some(job) = subject(record).and_then(|uid| state.job(uid))
            && let Some(round) = job.round_numbered(before.round)
        {
            for (receipt, was) in &before.updates {
                let is = round.update(*receipt).expect("no update of a kept round disappears").state;
                assert!(is == *was || may_become(*was, is, record), "{receipt} from {was:?} to {is:?} by {record:?}");
            }
            assert_eq!(round.updates().count(), before.updates.len(), "only an accept brings updates");
        }
    }

    fn is_same(&self, before: &Before, state: &State, record: &Record) -> bool {
        let now = self.before(state, record);
        (now.round, now.phase, now.models) == (before.round, before.phase, before.models)
            && now.updates == before.updates
    }

    fn answered(&mut self, accept: &Accept, outcome: AcceptOutcome) {
        let place = (accept.uid, accept.round);
        match outcome {
            AcceptOutcome::Accepted(receipt) => {
                let first = ReceiptId::derive(accept.uid, accept.round, &accept.client, &accept.digest, 0);
                self.reached.count(if receipt == first { "accepted" } else { "accepted again after a loss" });
                assert!(self.accepted.insert(receipt, place).is_none(), "{receipt} was given twice");
                if accept.base.is_some_and(|base| base + 1 < accept.round) {
                    self.reached.count("stale but counted");
                }
            }
            AcceptOutcome::Duplicate(receipt) | AcceptOutcome::Conflict(receipt) => {
                let known = self.accepted.get(&receipt);
                // An asynchronous update may stand in an earlier buffer than the one that is open.
                let is_it = known.is_some_and(|known| *known == place || (accept.base.is_some() && known.0 == place.0));
                assert!(is_it, "it repeats what was accepted");
                let is_duplicate = matches!(outcome, AcceptOutcome::Duplicate(_));
                self.reached.count(if is_duplicate { "duplicate" } else { "conflict" });
            }
            AcceptOutcome::RoundClosed { .. } => self.reached.count("too late"),
            AcceptOutcome::NotOpenYet { .. } => self.reached.count("too early"),
            AcceptOutcome::WrongState(_) => self.reached.count("paused out"),
            AcceptOutcome::UnknownJob => self.reached.count("unknown job"),
            AcceptOutcome::Moved => self.reached.count("moved to the next buffer"),
            AcceptOutcome::NodeLost => self.reached.count("refused by a node given up"),
        }
    }

    fn see(&mut self, before: &Before, record: &Record, outcome: &Outcome) {
        let done = *outcome == Outcome::Done;
        let closed = before.phase == Some(Phase::Aggregating);
        let what = match record {
            Record::Committed { .. } if done => "round committed",
            Record::Committed { .. } => "commit ignored",
            Record::RoundClosed { reason: CloseReason::Deadline, .. } if done => "round closed at its deadline",
            Record::RoundClosed { .. } if done => "round skipped",
            Record::RoundExtended { .. } if done => "round extended",
            Record::Folded { .. } if done => "folded",
            Record::Folded { .. } => "folded twice",
            Record::Discarded { .. } if done && closed => "discarded after the close",
            Record::Discarded { .. } if done => "discarded",
            Record::Lost { .. } if done => "lost",
            Record::SumLost { .. } if done => "sum lost",
            Record::NodeLost { .. } if done => "node given up",
            Record::RoundGivenUp { .. } if done => "round given up",
            Record::RoundGivenUp { .. } => "give-up ignored",
            _ => return,
        };
        self.reached.count(what);
    }

    /// Every promise that was given is kept, or says why not.
    pub fn at_the_end(&mut self, state: &State) {
        for (receipt, (uid, number)) in &self.accepted {
            let Some(round) = state.job(*uid).and_then(|job| job.round_numbered(*number)) else { continue };
            let update = round.update(*receipt).expect("an accepted update of a kept round is there");
            match update.state {
                ReceiptState::Committed => assert!(self.committed.contains(receipt)),
                ReceiptState::Discarded | ReceiptState::Lost => {
                    assert!(update.code.is_some() && update.reason.is_some(), "{receipt} does not say why");
                    assert!(!self.committed.contains(receipt));
                }
                state => panic!("{receipt} is {state:?} for ever"),
            }
        }
        for job in state.jobs() {
            self.reached.count(match job.state {
                JobState::Completed => "job completed",
                JobState::Failed => "job failed",
                JobState::Stopped => "job stopped",
                state => panic!("a job ends as {state:?}"),
            });
        }
    }
}

/// Whether `record` may move an update from `was` to `is`.
fn may_become(was: ReceiptState, is: ReceiptState, record: &Record) -> bool {
    use ReceiptState::{Accepted, Committed, Discarded, Folded, Lost};
    match (was, is) {
        (Accepted, Folded) => matches!(record, Record::Folded { .. }),
        (Folded, Committed) => matches!(record, Record::Committed { .. }),
        (Accepted | Folded, Lost) if matches!(record, Record::Lost { .. }) => true,
        (Folded, Lost) => matches!(record, Record::SumLost { .. }),
        (Accepted | Folded, Discarded) => matches!(
            record,
            Record::Discarded { .. }
                | Record::RoundClosed { .. }
                | Record::RoundGivenUp { .. }
                | Record::JobActed { .. }
                | Record::JobFailed { .. }
        ),
        _ => false,
    }
}
