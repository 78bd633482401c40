//! Records on their way into the log, several at a time. Their place in it decides what becomes of them, and the state says so
//! once it has come to them.
//!
//! A record whose acknowledgement is lost may be in the log, or come later, or never. It need not be asked for: records of a
//! writer are numbered, and the fold takes none that comes behind a later one (`crate::writers`). So as soon as the state has
//! come to a later record of this writer, every earlier one that it has not met never will count, and is written anew. When
//! nothing else is on its way, an empty record serves.

use crate::driver::Driver;
use crate::envelope::{Envelope, Guard, Stocked};
use crate::hashes::EVERY;
use crate::ledger::{AcceptReply, LedgerError, ResultReply};
use crate::outcome::Outcome;
use crate::state::{CHANGED, State};
use bytes::Bytes;
use catchment_bus::LogError;
use catchment_types::Record;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::collections::BTreeMap;
use tokio::sync::oneshot;

/// Records on their way at one time. With more, each would carry less.
pub(crate) const IN_FLIGHT: usize = 8;

/// Who waits for what becomes of a record.
pub(crate) enum Wait {
    Accepts(Vec<AcceptReply>),
    Results(Vec<ResultReply>),
    One(oneshot::Sender<Result<Outcome, LedgerError>>),
    /// Nobody: it settles others.
    Nobody,
}

/// A record that is on its way.
struct Sent {
    stocked: Stocked,
    bytes: usize,
    wait: Wait,
    fate: Fate,
}

/// What the log has said of a record.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// Nothing yet.
    Open,
    /// Where it is.
    At(u64),
    /// Nothing, and perhaps it never will.
    Unknown,
}

/// What the log says of one of them: its number, and where it is.
type Acknowledged = (u64, Result<u64, LogError>);

/// The records of this process that are on their way, by their numbers.
#[derive(Default)]
pub(crate) struct Flight {
    sent: BTreeMap<u64, Sent>,
    pub acknowledgements: FuturesUnordered<BoxFuture<'static, Acknowledged>>,
    /// Records that never came to count, to be written anew: what they say, and who waits.
    again: Vec<(Box<Envelope>, Wait)>,
    /// Whether this process wrote the record after which the state is hashed, and has not said what it came to.
    owes_hash: bool,
}

impl Flight {
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.again.is_empty()
    }

    pub fn has_room(&self) -> bool {
        self.sent.len() < IN_FLIGHT && self.again.is_empty()
    }

    /// Whether only a later record can say what has become of some, and none is on its way.
    fn is_unsettled(&self) -> bool {
        self.sent.values().next_back().is_some_and(|newest| newest.fate == Fate::Unknown)
    }

    /// Whether there is something to be written anew, or to be settled.
    pub fn is_due(&self) -> bool {
        !self.again.is_empty() || self.is_unsettled()
    }

    /// The number of the record that the log has at `sequence`.
    fn number_at(&self, sequence: u64) -> Option<u64> {
        self.sent.iter().find(|(_, sent)| sent.fate == Fate::At(sequence)).map(|(number, _)| *number)
    }
}

impl Wait {
    /// Everybody who waits is told that it came to nothing.
    fn fail(self, error: &LedgerError) {
        match self {
            Self::Accepts(replies) => replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone())))),
            Self::Results(replies) => replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone())))),
            Self::One(reply) => drop(reply.send(Err(error.clone()))),
            Self::Nobody => {}
        }
    }

    /// Everybody who waits is told what became of it.
    fn answer(self, outcome: Outcome, sequence: u64) {
        match (self, outcome) {
            (Self::Accepts(replies), Outcome::Accepts(outcomes)) => {
                replies.into_iter().zip(outcomes).for_each(|(reply, outcome)| drop(reply.send(Ok(outcome))));
            }
            (Self::Results(replies), Outcome::Evaluations(outcomes)) => {
                replies.into_iter().zip(outcomes).for_each(|(reply, outcome)| drop(reply.send(Ok(outcome))));
            }
            (Self::One(reply), Outcome::Ignored(CHANGED)) => drop(reply.send(Err(LedgerError::Stale { sequence }))),
            (Self::One(reply), outcome) => drop(reply.send(Ok(outcome))),
            (Self::Nobody, _) => {}
            (Self::Accepts(_) | Self::Results(_), other) => {
                unreachable!("a group has an outcome for each, not {other:?}")
            }
        }
    }
}

impl Driver {
    /// Sends a record on its way.
    pub async fn push(&mut self, record: Record, guard: Option<Guard>, wait: Wait) {
        if let Some(why) = self.shared.broken.get() {
            return wait.fail(&LedgerError::Unreadable(why.clone()));
        }
        self.number += 1;
        let (number, seen) = (self.number, Some(self.state(State::sequence)));
        let envelope = Envelope { writer: self.writer, number, guard, seen, record };
        let bytes = match envelope.to_bytes(self.state(State::level), self.record_bytes_max()) {
            Ok(bytes) => Bytes::from(bytes),
            Err(why) => return wait.fail(&LedgerError::Refused(why)),
        };
        let (length, stocked) = (bytes.len(), Stocked::Record(Box::new(envelope)));
        self.flight.sent.insert(number, Sent { stocked, bytes: length, wait, fate: Fate::Open });
        match self.log.push(bytes).await {
            Ok(acknowledged) => {
                self.flight.acknowledgements.push(Box::pin(async move { (number, acknowledged.await) }));
            }
            Err(error) => self.acknowledged(number, Err(error)),
        }
    }

    /// Takes note of what the log says of a record.
    pub fn acknowledged(&mut self, number: u64, said: Result<u64, LogError>) {
        match said {
            Ok(sequence) => {
                self.reached();
                // It may have been met already, or been given up for a later one.
                if let Some(sent) = self.flight.sent.get_mut(&number) {
                    sent.fate = Fate::At(sequence);
                }
                self.advance();
            }
            Err(LogError::Refused(why)) => {
                let Some(sent) = self.flight.sent.remove(&number) else { return };
                if matches!(sent.wait, Wait::Nobody) {
                    // Not at once again.
                    self.stall(&why);
                }
                sent.wait.fail(&LedgerError::Refused(why));
            }
            Err(LogError::Damaged(why)) => drop(self.give_up(why)),
            Err(error) => {
                if let Some(sent) = self.flight.sent.get_mut(&number) {
                    sent.fate = Fate::Unknown;
                    self.stall(&error.to_string());
                }
            }
        }
    }

    /// Applies what is known to be stored, as far as there are no gaps; where there are, they are others' records, which come by
    /// themselves.
    fn advance(&mut self) {
        loop {
            let next = self.state(State::sequence) + 1;
            let Some(number) = self.flight.number_at(next) else { return };
            let sent = self.flight.sent.remove(&number).expect("it is on its way");
            self.keeper.count(sent.bytes, true);
            let outcome = self.apply(next, &sent.stocked);
            sent.wait.answer(outcome, next);
            self.settle_before(number);
            self.flight.owes_hash |= next.is_multiple_of(EVERY);
        }
    }

    /// Writes down what the state has come to, when this process wrote the record after which that is done.
    pub async fn write_hash(&mut self) {
        let sequence = self.state(State::sequence) / EVERY * EVERY;
        let hash = self.state(|state| state.hashes.at(sequence));
        if let Some(hash) = hash.filter(|_| std::mem::take(&mut self.flight.owes_hash)) {
            self.push(Record::StateHashed { sequence, hash }, None, Wait::Nobody).await;
        }
    }

    /// What was read is one of this process's records.
    pub fn met(&mut self, number: u64, outcome: &Outcome, sequence: u64) {
        if let Some(sent) = self.flight.sent.remove(&number) {
            sent.wait.answer(outcome.clone(), sequence);
        }
        self.settle_before(number);
        self.flight.owes_hash |= sequence.is_multiple_of(EVERY);
    }

    /// The state has gone over records that the log has forgotten. Those of this process that may be among them are known by
    /// their numbers; what became of each nobody can say.
    pub fn passed_over(&mut self) {
        // A writer that the state does not know has written nothing, or nothing for long.
        let newest = self.state(|state| state.writers.newest(&self.writer)).unwrap_or(u64::MAX);
        let error = LedgerError::Unreadable(crate::append::FORGOTTEN.to_owned());
        self.flight.sent.extract_if(..=newest, |_, _| true).for_each(|(_, sent)| sent.wait.fail(&error));
    }

    /// The state has come to record `number`: what it has not met of those before it counts for nothing, wherever it is.
    fn settle_before(&mut self, number: u64) {
        let later = self.flight.sent.split_off(&number);
        let never = std::mem::replace(&mut self.flight.sent, later);
        for (_, Sent { stocked, wait, .. }) in never {
            if let Stocked::Record(envelope) = stocked {
                self.flight.again.push((envelope, wait));
            }
        }
    }

    /// Writes anew what never came to count, and sends an empty record where only that settles what has become of others.
    pub async fn write_anew(&mut self) {
        for (envelope, wait) in std::mem::take(&mut self.flight.again) {
            match wait {
                Wait::Nobody => {}
                wait => self.push(envelope.record, envelope.guard, wait).await,
            }
        }
        if self.flight.is_unsettled() && self.shared.broken.get().is_none() {
            self.push(Record::Accepted(Vec::new()), None, Wait::Nobody).await;
        }
    }

    /// Nothing more can be said of what is on its way.
    pub fn abandon(&mut self, error: &LedgerError) {
        let again = std::mem::take(&mut self.flight.again).into_iter().map(|(_, wait)| wait);
        let sent = std::mem::take(&mut self.flight.sent).into_values().map(|sent| sent.wait);
        again.chain(sent).for_each(|wait| wait.fail(error));
        self.flight.acknowledgements.clear();
    }
}
