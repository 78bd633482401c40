//! What a round needs.

use crate::config::Config;
use catchment_types::{FunctionClass, JobUid};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// One round of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RoundKey {
    /// The job.
    pub uid: JobUid,
    /// The round.
    pub round: u64,
}

/// What a function declares itself to be. It decides which shapes of the work are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Partials merge in any order: any tree.
    Additive,
    /// Needs every update for each coordinate: updates are kept, and the work is cut by coordinate.
    CoordinateWise,
    /// A reduce over all updates, then a choice among them: updates are kept, on one node.
    TwoPhase,
    /// No fixed coordinates: small updates, kept on one node and folded in one piece.
    Whole,
}

/// A class that the planner does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownClass;

impl fmt::Display for UnknownClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a class is additive, coordinate_wise, two_phase or whole")
    }
}

impl std::error::Error for UnknownClass {}

impl FromStr for Class {
    type Err = UnknownClass;
    /// Reads the name as functions declare it; `-` and `_` are the same.
    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        Ok(match text.replace('-', "_").as_str() {
            "additive" => Self::Additive,
            "coordinate_wise" => Self::CoordinateWise,
            "two_phase" => Self::TwoPhase,
            "whole" => Self::Whole,
            _ => return Err(UnknownClass),
        })
    }
}

impl From<FunctionClass> for Class {
    fn from(class: FunctionClass) -> Self {
        match class {
            FunctionClass::Additive => Self::Additive,
            FunctionClass::CoordinateWise => Self::CoordinateWise,
            FunctionClass::TwoPhase => Self::TwoPhase,
            FunctionClass::Whole => Self::Whole,
        }
    }
}

impl Class {
    /// Whether updates stay in their slabs until the model is made.
    pub fn keeps_updates(self) -> bool {
        self != Self::Additive
    }

    /// Whether a round may lie on several nodes.
    pub fn can_spread(self) -> bool {
        matches!(self, Self::Additive | Self::CoordinateWise)
    }
}

/// What a round needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Demand {
    /// The round.
    pub key: RoundKey,
    /// The class of its function.
    pub class: Class,
    /// Updates that may come: `JobSpec::tasks_per_round`, goal × over-provision.
    pub updates: u64,
    /// Bytes of one update in memory.
    pub update_bytes: u64,
    /// Bytes of one partial: what a level hands up, and one of an accumulator's two blocks.
    pub partial_bytes: u64,
    /// Updates a second, as estimated; 0 where nothing is known.
    pub arrivals_per_s: f64,
    /// Core-seconds that one update takes to be received and folded, as estimated.
    pub service_s: f64,
    /// Time until the round's deadline, where it has one.
    pub time_left_s: Option<f64>,
}

impl Demand {
    /// Updates a second that have to be served for the round to be in time: at most `lag_s` after its last update, and
    /// before its deadline.
    ///
    /// `N` updates come within `N / λ`, so `μ = N / (N / λ + lag)` is enough, and a deadline that is nearer than that asks
    /// for `N / T`; more than `λ` never comes. Where `λ` is unknown all are expected within `unknown_s`, or the
    /// deadline.
    pub fn rate_per_s(&self, config: &Config) -> f64 {
        let updates = self.updates.max(1) as f64;
        let left_s = self.time_left_s.filter(|left| left.is_finite()).map(|left| left.max(0.001));
        if !(self.arrivals_per_s.is_finite() && self.arrivals_per_s > 0.0) {
            let within_s = left_s.map_or(config.unknown_s, |left| left.min(config.unknown_s));
            return updates / within_s.max(0.001);
        }
        let eager = updates / (updates / self.arrivals_per_s + config.lag_s.max(0.0));
        let by_deadline = left_s.map_or(0.0, |left| updates / left);
        eager.max(by_deadline).min(self.arrivals_per_s)
    }

    /// Core-seconds an update, where it makes sense.
    pub(crate) fn service_s(&self) -> f64 {
        if self.service_s.is_finite() { self.service_s.max(0.0) } else { 0.0 }
    }
}
