//! What became of a record when it was applied.

use catchment_types::{JobState, ReceiptId};

/// What became of one reported update. The same on every process, because it follows from log order alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptOutcome {
    /// It counts; this is its receipt.
    Accepted(ReceiptId),
    /// The same digest from the same client was there already.
    Duplicate(ReceiptId),
    /// The client already sent something else for this round.
    Conflict(ReceiptId),
    /// The round takes no more updates; the next to take some, if there will be one.
    RoundClosed {
        /// The round to train for instead.
        next: Option<u64>,
    },
    /// The round has not opened yet; this is the current one.
    NotOpenYet {
        /// The newest round, 0 before the first.
        current: u64,
    },
    /// The job takes no updates in its present state.
    WrongState(JobState),
    /// There is no such job any more.
    UnknownJob,
    /// The buffer that an asynchronous update was for has closed meanwhile: it is for the next one.
    Moved,
    /// The node that took it was given up meanwhile.
    NodeLost,
}

impl AcceptOutcome {
    /// Whether the update's slab is now the round's. Otherwise whoever holds the slab frees it.
    pub fn is_accepted(self) -> bool {
        matches!(self, Self::Accepted(_))
    }
}

/// What became of a client's measurement of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvaluateOutcome {
    /// It counts.
    Counted,
    /// The same from the same client was there already.
    Duplicate,
    /// The client already said something else of this version.
    Conflict,
    /// The version has as many results as it takes.
    Enough,
    /// There is no such version, or it is too old to be measured.
    UnknownVersion,
    /// There is no such job any more.
    UnknownJob,
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect.
    Done,
    /// It came too late or twice and changed nothing.
    Ignored(&'static str),
    /// One outcome for each update of a group.
    Accepts(Vec<AcceptOutcome>),
    /// One outcome for each result of a group.
    Evaluations(Vec<EvaluateOutcome>),
}
