//! What an additive function implements, what every function says about itself, and what calls carry.
//!
//! These types are the whole contract between a function and the platform. They hold typed slices only, so a function
//! cannot tell whether it runs as wasm over shared memory or natively over vectors in a test.

use crate::{Config, Partial, PartialMut, UpdateLayout, Values, ValuesMut};
use alloc::string::String;

/// A function whose partials add up: weighted sums and the like. Updates are folded as they arrive, in any tree.
pub trait Additive: Sized {
    /// What the function is. Read once, when the host loads it.
    const DESCRIPTION: Description;

    /// Makes the function from a job's configuration, or refuses with a reason that names the field.
    ///
    /// # Errors
    /// A sentence for the person who wrote the configuration.
    fn init(config: &Config) -> Result<Self, String>;

    /// Adds updates to a partial. A panic here costs the culprit its update.
    fn fold(&self, call: Fold<'_>);

    /// Joins partials of disjoint sets of updates. A panic here fails the job.
    fn merge(&self, call: Merge<'_>);

    /// Turns the partial of a round into the model.
    ///
    /// # Errors
    /// A sentence for the job's owner; the round is not committed.
    fn finalize(&self, call: Finalize<'_>) -> Result<(), String>;
}

/// What a function says about itself.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// A DNS label of at most 63 characters.
    pub name: &'static str,
    /// The function's own version, as semver text.
    pub version: &'static str,
    /// One line for lists.
    pub summary: &'static str,
    /// The configuration it takes. Fields that are not listed are refused before `init` runs.
    pub config: &'static [ConfigField],
    /// Whether the model before the round must be there even when updates are whole weights.
    pub needs_previous: bool,
    /// Whether jobs may ask for exact sums: every partial comes from [`crate::kernels`], and
    /// [`Additive::finalize`] gives the same bits for the same arguments.
    pub exact: bool,
    /// What its updates look like.
    pub update_layout: UpdateLayout,
}

impl Description {
    /// What most functions say of themselves; name, version and summary are still to be filled in.
    pub const DEFAULT: Self = Self {
        name: "",
        version: "",
        summary: "",
        config: &[],
        needs_previous: false,
        exact: false,
        update_layout: UpdateLayout::AsModel,
    };
}

/// One field of a function's configuration, for help texts.
#[derive(Debug, Clone, Copy)]
pub struct ConfigField {
    /// The JSON key.
    pub name: &'static str,
    /// What it means, which values it takes and the default.
    pub help: &'static str,
}

/// How a function's work may be cut; the planner chooses the shape of the work from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Weighted sums and the like: any tree, partials merge in any order.
    Additive,
    /// Needs every update for each coordinate (median, trimmed mean).
    CoordinateWise,
    /// A reduce, then a choice, then a fold of the chosen (Krum).
    TwoPhase,
    /// No fixed coordinates: an update is folded in one piece.
    Whole,
}

impl Class {
    /// Its name in a description.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Additive => "additive",
            Self::CoordinateWise => "coordinate-wise",
            Self::TwoPhase => "two-phase",
            Self::Whole => "whole",
        }
    }

    /// The class of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Additive, Self::CoordinateWise, Self::TwoPhase, Self::Whole].into_iter().find(|c| c.as_str() == name)
    }
}

/// What the job's spec asks of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The mean, weighted as the function says.
    Mean,
    /// The largest value of any update.
    Max,
}

/// What an update's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The client's whole model.
    Weights,
    /// The difference to the model the client started from.
    Delta,
}

/// One client's numbers for the range of a call.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// Its numbers.
    pub values: Values<'a>,
    /// The weight it was submitted with: finite and positive.
    pub weight: f64,
    /// Training examples behind it.
    pub num_samples: f64,
    /// How many rounds old its base model is; 0 in synchronous jobs.
    pub staleness: u32,
}

/// Adds updates to a partial.
#[derive(Debug)]
pub struct Fold<'a> {
    /// What the spec asks of this tensor.
    pub rule: Rule,
    /// The partial so far; `None` when these are the first updates.
    pub acc_in: Option<Partial<'a>>,
    /// The partial with the updates. Its former content means nothing and must be overwritten.
    pub acc_out: PartialMut<'a>,
    /// 1 to 16 updates.
    pub updates: &'a [Update<'a>],
}

/// Joins partials of disjoint sets of updates.
#[derive(Debug)]
pub struct Merge<'a> {
    /// What the spec asks of this tensor.
    pub rule: Rule,
    /// The partial so far; `None` when it is joined from `partials` alone.
    pub acc_in: Option<Partial<'a>>,
    /// The joint partial. Its former content means nothing and must be overwritten.
    pub acc_out: PartialMut<'a>,
    /// 1 to 16 partials.
    pub partials: &'a [Partial<'a>],
}

/// Turns a partial into the model.
#[derive(Debug)]
pub struct Finalize<'a> {
    /// What the spec asks of this tensor.
    pub rule: Rule,
    /// What the updates were.
    pub kind: Kind,
    /// The partial of every update of the round.
    pub partial: Partial<'a>,
    /// The model before the round. There for deltas, and when the description asks for it.
    pub previous: Option<Values<'a>>,
    /// The new model, in the model's own dtype. Its former content means nothing and must be overwritten.
    pub out: ValuesMut<'a>,
    /// Sum of the updates' weights, rounded once: it does not depend on their order.
    pub total_weight: f64,
    /// How many updates the partial holds.
    pub updates: u64,
    /// The only randomness there is: equal for every range of a round, different from round to round.
    pub seed: u64,
}
