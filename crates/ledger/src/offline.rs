//! A log's records one by one, for whoever looks for the one that is wrong.
//!
//! A [`Ledger`](crate::Ledger) gives up at the first record it does not read, because going on would build on a wrong
//! history. A tool that repairs a log has to say which record that is and what the log would be without it, so here the
//! same records go through the same fold, and what goes wrong is an answer.

use crate::envelope::{Envelope, Stocked};
use crate::outcome::{AcceptOutcome, EvaluateOutcome, Outcome};
use crate::state::{DIFFERS, State};
use catchment_bus::LogError;
use catchment_types::{LEVEL_MAX, NodeId, Record, TimeMs};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Reads what was stored as record `sequence`.
///
/// # Errors
/// Why it does not read.
pub fn read(sequence: u64, bytes: &[u8]) -> Result<Envelope, String> {
    match Envelope::read(sequence, bytes, LEVEL_MAX).map_err(|error| why(sequence, error))? {
        Stocked::Record(envelope) => Ok(*envelope),
        Stocked::Foreign(why) => Err(format!("it is no record: {why}")),
    }
}

/// A record that changes nothing, to stand where one is left out. The sequences of the others stay what they are.
pub fn nothing(sequence: u64) -> Vec<u8> {
    written(sequence, Record::Accepted(Vec::new()))
}

/// A record that ends a node's life, and with it what the node has in shared memory for open rounds. A log that has lost
/// accepts does not know them, but their sums are there: folded again, they would count twice.
pub fn node_lost(sequence: u64, node: NodeId, incarnation: u64, at_ms: TimeMs) -> Vec<u8> {
    written(sequence, Record::NodeLost { node, incarnation, at_ms })
}

/// Whether a record says what the state came to: after one is left out that is not so any more.
pub fn is_of_a_state(sequence: u64, bytes: &[u8]) -> bool {
    read(sequence, bytes).is_ok_and(|envelope| matches!(envelope.record, Record::StateHashed { .. }))
}

/// The same record, to count whatever it was decided on.
///
/// # Errors
/// It does not read.
pub fn unguarded(sequence: u64, bytes: &[u8]) -> Result<Vec<u8>, String> {
    Envelope { guard: None, ..read(sequence, bytes)? }.to_bytes(LEVEL_MAX, usize::MAX)
}

/// The nodes that a record says hold something.
pub fn nodes(record: &Record) -> BTreeSet<NodeId> {
    match record {
        Record::Accepted(group) => group.iter().map(|accept| accept.node).collect(),
        Record::ModelPut { model, .. } | Record::Committed { model, .. } => [model.node].into(),
        Record::RoundOpened { places, .. } | Record::RoundPlaced { places, .. } => {
            places.iter().map(|place| place.node).collect()
        }
        _ => BTreeSet::new(),
    }
}

fn written(sequence: u64, record: Record) -> Vec<u8> {
    let envelope = Envelope { writer: [0; 16], number: sequence, guard: None, seen: None, record };
    // In the first form, which is read whatever the log's level is there.
    envelope.to_bytes(1, 1 << 10).expect("it is short, and of the first level")
}

/// The text of damage, without what the log puts before it: that and the record are said by whoever asked.
fn why(sequence: u64, error: LogError) -> String {
    let why = match error {
        LogError::Damaged(why) => why,
        error => error.to_string(),
    };
    why.strip_prefix(&format!("record {sequence}: ")).map(str::to_owned).unwrap_or(why)
}

/// The fold over a log that may be damaged.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    state: State,
}

impl Replay {
    /// Goes on from a snapshot instead of from the beginning.
    ///
    /// # Errors
    /// Why it is no snapshot of record `sequence`, or what does not hold in it.
    pub fn from_snapshot(sequence: u64, bytes: &[u8]) -> Result<Self, String> {
        let state = guarded(|| State::from_snapshot(bytes))?;
        if state.sequence() != sequence {
            return Err(format!("it is of record {} and was stored as of {sequence}", state.sequence()));
        }
        let replay = Self { state };
        replay.audit()?;
        Ok(replay)
    }

    /// The state so far.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The nodes that hold something of an open round, or have made a model.
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        let models = self.state.jobs().flat_map(|job| job.models.iter()).map(|model| model.commit.node);
        models.chain(self.state.holders()).collect()
    }

    /// Applies the next record, and says whether it changed anything.
    ///
    /// # Errors
    /// Why it does not read, and then the state is as before; or why it cannot be applied, and then it is of no use.
    pub fn apply(&mut self, sequence: u64, bytes: &[u8]) -> Result<bool, String> {
        if sequence != self.state.sequence() + 1 {
            return Err(format!("record {sequence} does not follow on record {}", self.state.sequence()));
        }
        let stocked = Envelope::read(sequence, bytes, self.state.level()).map_err(|error| why(sequence, error))?;
        guarded(|| match self.state.take(sequence, &stocked) {
            Outcome::Ignored(DIFFERS) => Err(DIFFERS.to_owned()),
            outcome => Ok(changes(&outcome)),
        })
    }

    /// Whether the next record is a decision that was taken on something that this history lacks: on a change of its job that is
    /// not there, or on updates that are not. One that was overtaken by a change that is there had no effect before either.
    pub fn lacks_what_it_was_decided_on(&self, sequence: u64, bytes: &[u8]) -> bool {
        let Ok(Stocked::Record(envelope)) = Envelope::read(sequence, bytes, self.state.level()) else { return false };
        envelope.guard.is_some_and(|guard| {
            !self.state.holds(&guard) && self.state.job(guard.uid).is_some_and(|job| job.revision <= guard.revision)
        })
    }

    /// Recounts everything that the state keeps counted.
    ///
    /// # Errors
    /// What does not hold.
    pub fn audit(&self) -> Result<(), String> {
        guarded(|| self.state.audit())
    }

    /// Compares with a snapshot of the same record.
    ///
    /// # Errors
    /// Where the two differ.
    pub fn compare(&self, other: &Self) -> Result<(), String> {
        if self.state == other.state {
            return Ok(());
        }
        let (ours, theirs) = (self.state.jobs_by_name(), other.state.jobs_by_name());
        let (ours, theirs): (Vec<_>, Vec<_>) = (ours.collect(), theirs.collect());
        let differs =
            ours.iter().find(|job| !theirs.contains(job)).or_else(|| theirs.iter().find(|job| !ours.contains(job)));
        Err(match differs {
            Some(job) => format!("job `{}` ({}) differs", job.spec.name, job.uid),
            None => "what is known of nodes or of names differs".to_owned(),
        })
    }

    /// The state as a snapshot.
    ///
    /// # Errors
    /// Why it cannot be one.
    pub fn to_snapshot(&self) -> Result<Vec<u8>, String> {
        self.state.to_snapshot()
    }
}

/// A panic in the fold is a finding about the record like an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("the fold panics: {}", text.unwrap_or("without a word")))
    })
}

/// Whether a record took effect, be it in part.
fn changes(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Done => true,
        Outcome::Ignored(_) => false,
        Outcome::Accepts(each) => each.iter().any(|each| matches!(each, AcceptOutcome::Accepted(_))),
        Outcome::Evaluations(each) => each.contains(&EvaluateOutcome::Counted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catchment_types::JobUid;

    fn stored(record: Record) -> Vec<u8> {
        Envelope { writer: [3; 16], number: 7, guard: None, seen: None, record }.to_bytes(1, 1 << 20).unwrap()
    }

    fn created(name: &str) -> Record {
        let spec = format!(r#"{{"name":"{name}","function":"fedavg"}}"#);
        Record::JobCreated { uid: JobUid::from_bytes([name.len() as u8; 16]), spec, at_ms: 5 }
    }

    #[test]
    fn a_replay_says_what_is_wrong_and_where() {
        let mut replay = Replay::default();
        assert_eq!(replay.apply(1, &stored(created("a"))), Ok(true));
        assert_eq!(replay.apply(2, &stored(created("a"))), Ok(false), "there is one of that name");
        assert_eq!(replay.apply(3, &nothing(3)), Ok(false));
        assert_eq!((replay.state().sequence(), replay.audit()), (3, Ok(())));
        let why = replay.clone().apply(4, b"CTL2x").unwrap_err();
        assert!(!why.contains("record 4") && why.contains("cut off"), "{why}");
        assert_eq!(replay.clone().apply(4, b"x"), Ok(false), "every process leaves it out");
        assert!(read(4, b"x").unwrap_err().contains("no record"));
        let why = replay.apply(6, &nothing(6)).unwrap_err();
        assert!(why.contains("does not follow"), "{why}");
    }

    #[test]
    fn a_record_that_reads_is_shown_with_its_writer() {
        let stored = read(1, &stored(created("a"))).unwrap();
        assert_eq!((stored.writer, stored.number, stored.record), ([3; 16], 7, created("a")));
        assert_eq!(read(9, &nothing(9)).unwrap().record, Record::Accepted(vec![]));
    }

    /// What a node holds that is ended counts for nothing, once.
    #[test]
    fn a_node_is_ended_by_a_record() {
        let mut replay = Replay::default();
        let node = NodeId(9);
        assert_eq!(replay.apply(1, &node_lost(1, node, 0, 5)), Ok(true));
        assert_eq!(replay.state().incarnation(node), 1);
        assert_eq!(replay.apply(2, &node_lost(2, node, 0, 5)), Ok(false));
    }

    #[test]
    fn snapshots_are_compared_with_the_records() {
        let mut replay = Replay::default();
        replay.apply(1, &stored(created("a"))).unwrap();
        let snapshot = replay.to_snapshot().unwrap();
        let again = Replay::from_snapshot(1, &snapshot).unwrap();
        assert_eq!(again.compare(&replay), Ok(()));
        let why = Replay::from_snapshot(2, &snapshot).unwrap_err();
        assert!(why.contains("of record 1"), "{why}");
        assert!(Replay::from_snapshot(1, &snapshot[..9]).is_err());
        let mut other = Replay::default();
        other.apply(1, &stored(created("bb"))).unwrap();
        let why = other.compare(&again).unwrap_err();
        assert!(why.contains("`bb`"), "{why}");
    }
}
