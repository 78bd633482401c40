//! The places where a process may die between two steps that must both happen, named, so that tests can end it there.

/// A step that is done. The next one may be done by another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A slab was granted for an update.
    Granted,
    /// The whole update lies in it.
    Received,
    /// The slab is frozen.
    Frozen,
    /// The log has the update.
    Logged,
    /// A batch is written down in its accumulator.
    Planned,
    /// An order of a batch is done.
    Called,
    /// A range has the batch.
    Flipped,
    /// Every range has it.
    Batched,
    /// The log has its updates as folded.
    Folded,
    /// Their slabs are given back.
    Released,
    /// Memory for a new model was granted.
    Scratched,
    /// The accumulators are merged.
    Merged,
    /// The new model's numbers are made.
    Finalized,
    /// Its file is kept.
    Kept,
    /// The log has it.
    Committed,
    /// Everybody was told.
    Published,
    /// A runner has an order.
    RunnerTook,
    /// It has made the calls.
    RunnerCalled,
    /// It has answered.
    RunnerAnswered,
}

impl Step {
    /// All there are, in the order of an update's way.
    pub const ALL: [Self; 19] = [
        Self::Granted,
        Self::Received,
        Self::Frozen,
        Self::Logged,
        Self::Planned,
        Self::Called,
        Self::Flipped,
        Self::Batched,
        Self::Folded,
        Self::Released,
        Self::Scratched,
        Self::Merged,
        Self::Finalized,
        Self::Kept,
        Self::Committed,
        Self::Published,
        Self::RunnerTook,
        Self::RunnerCalled,
        Self::RunnerAnswered,
    ];

    /// Its name, as written above.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// Told of every step. Beside the clock and randomness, the third thing that is handed in.
pub trait Steps: Send + Sync + 'static {
    /// A step is done.
    fn done(&self, step: Step);
}

/// Lets every step pass.
pub struct NoSteps;

impl Steps for NoSteps {
    fn done(&self, _: Step) {}
}
