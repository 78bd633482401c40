//! A hash of all that the state has made of the log, by which processes find out that they have come to different states: by a
//! mistake in the fold, a release that folds differently, or broken memory.
//!
//! Every record's outcome goes into it, and now and then a summary of every job. Some process writes such a hash into the log
//! once in a while; whoever has another at that place goes no further.

use crate::outcome::{AcceptOutcome, EvaluateOutcome, Outcome};
use crate::state::State;
use catchment_types::StateHash;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Records between two hashes that can be compared.
pub(crate) const EVERY: u64 = 4096;
/// Hashes that are kept: the record that carries one comes a little later.
const KEPT: usize = 8;

/// The hashes of the last records, from level 2 on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hashes {
    now: StateHash,
    kept: VecDeque<(u64, StateHash)>,
}

impl Hashes {
    /// The hash after this record, where it is kept.
    pub(crate) fn at(&self, sequence: u64) -> Option<StateHash> {
        self.kept.iter().find(|(at, _)| *at == sequence).map(|(_, hash)| *hash)
    }
}

impl State {
    /// Takes note of what has become of the newest record.
    pub(crate) fn hash_outcome(&mut self, outcome: &Outcome) {
        if self.level < 2 {
            return;
        }
        let sequence = self.sequence;
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.hashes.now.as_bytes()).update(&sequence.to_le_bytes());
        match outcome {
            Outcome::Done => hasher.update(&[0]),
            Outcome::Ignored(_) => hasher.update(&[1]),
            Outcome::Accepts(each) => {
                each.iter().fold(hasher.update(&[2]), |hasher, outcome| accepted(hasher, *outcome))
            }
            Outcome::Evaluations(each) => {
                each.iter().fold(hasher.update(&[3]), |hasher, outcome| hasher.update(&[evaluated(*outcome)]))
            }
        };
        if sequence.is_multiple_of(EVERY) {
            self.summarize(&mut hasher);
        }
        self.hashes.now = StateHash::from_bytes(*hasher.finalize().as_bytes().first_chunk().expect("a hash is longer"));
        if sequence.is_multiple_of(EVERY) {
            let Hashes { now, kept } = &mut self.hashes;
            kept.push_back((sequence, *now));
            kept.drain(..kept.len().saturating_sub(KEPT));
        }
    }

    /// What decides how every job and node goes on.
    fn summarize(&self, hasher: &mut blake3::Hasher) {
        for job in self.jobs.values() {
            hasher.update(job.uid.as_bytes());
            let round = job.round.as_ref();
            let numbers = [
                job.revision,
                job.models.next(),
                job.state as u64,
                round.map_or(0, |round| round.number),
                round.map_or(0, |round| round.received()),
                round.map_or(0, |round| u64::from(round.is_active())),
            ];
            for number in numbers {
                hasher.update(&number.to_le_bytes());
            }
            if let Some(round) = round {
                hasher.update(round.contribution().as_bytes());
            }
        }
        for (node, incarnation) in &self.incarnations {
            hasher.update(&node.0.to_le_bytes()).update(&incarnation.to_le_bytes());
        }
    }
}

fn accepted(hasher: &mut blake3::Hasher, outcome: AcceptOutcome) -> &mut blake3::Hasher {
    let (code, receipt) = match outcome {
        AcceptOutcome::Accepted(receipt) => (0, Some(receipt)),
        AcceptOutcome::Duplicate(receipt) => (1, Some(receipt)),
        AcceptOutcome::Conflict(receipt) => (2, Some(receipt)),
        AcceptOutcome::RoundClosed { .. } => (3, None),
        AcceptOutcome::NotOpenYet { .. } => (4, None),
        AcceptOutcome::WrongState(_) => (5, None),
        AcceptOutcome::UnknownJob => (6, None),
        AcceptOutcome::Moved => (7, None),
        AcceptOutcome::NodeLost => (8, None),
    };
    let hasher = hasher.update(&[code]);
    receipt.iter().fold(hasher, |hasher, receipt| hasher.update(receipt.as_bytes()))
}

fn evaluated(outcome: EvaluateOutcome) -> u8 {
    match outcome {
        EvaluateOutcome::Counted => 0,
        EvaluateOutcome::Duplicate => 1,
        EvaluateOutcome::Conflict => 2,
        EvaluateOutcome::Enough => 3,
        EvaluateOutcome::UnknownVersion => 4,
        EvaluateOutcome::UnknownJob => 5,
    }
}
