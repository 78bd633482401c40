//! Whether clients train together or each at its own pace.

use super::fields::Fields;
use serde::{Deserialize, Serialize};

/// How rounds and updates belong together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// An update is for the round whose model it was trained from, and for no other.
    #[default]
    Sync,
    /// An update goes into the buffer that is open when it comes, whatever model version it was trained from; a full
    /// buffer makes the next version (FedBuff: Nguyen et al., AISTATS 2022, algorithm 1).
    Async(Buffered),
}

/// How an asynchronous job treats what comes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Buffered {
    /// Updates that make the next version: the job's goal.
    pub buffer: u64,
    /// How an update's weight falls with its age.
    #[serde(default)]
    pub staleness: Staleness,
    /// Versions that an update may be behind; older ones are refused. Default 20.
    #[serde(default = "staleness_max")]
    pub staleness_max: u64,
}

fn staleness_max() -> u64 {
    20
}

/// The factor of an update's weight in the sum, by the number of versions τ that it is behind. The mean is still over the
/// whole weights, so stale updates make the step smaller.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Staleness {
    /// 1.
    Constant,
    /// (1 + τ)^-a. Default, with a = 0.5, as FedBuff has it.
    Polynomial {
        /// How fast it falls, from 0 to 10.
        a: f64,
    },
    /// 1 up to τ = b, then 1 / (a · (τ − b) + 1) (FedAsync: Xie et al., 2019, section 5.2).
    Hinge {
        /// How fast it falls, from 0 to 1e6.
        a: f64,
        /// For how long it does not.
        b: u64,
    },
}

impl Default for Staleness {
    fn default() -> Self {
        Self::Polynomial { a: 0.5 }
    }
}

impl Staleness {
    /// The factor for an update that is `versions` behind: in (0, 1].
    pub fn factor(self, versions: u64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Polynomial { a } => (1.0 + versions as f64).powf(-a),
            Self::Hinge { a, b } => 1.0 / (a * versions.saturating_sub(b) as f64 + 1.0),
        }
    }
}

impl Mode {
    /// What an asynchronous job says.
    pub fn buffered(self) -> Option<Buffered> {
        match self {
            Self::Sync => None,
            Self::Async(buffered) => Some(buffered),
        }
    }

    /// The factor of the weight of an update that is so many versions behind.
    pub fn factor(self, versions: u64) -> f64 {
        self.buffered().map_or(1.0, |buffered| buffered.staleness.factor(versions))
    }

    /// The checks that the type alone does not make.
    pub(super) fn check(self, f: &mut Fields) {
        let Some(Buffered { buffer, staleness, staleness_max }) = self.buffered() else { return };
        if !(1..=super::COUNT_MAX).contains(&buffer) {
            f.error("mode.async.buffer", "at least 1");
        }
        if staleness_max > 10_000 {
            f.error("mode.async.staleness_max", "at most 10000");
        }
        match staleness {
            Staleness::Polynomial { a } if !(0.0..=10.0).contains(&a) => {
                f.error("mode.async.staleness.polynomial.a", "from 0 to 10");
            }
            Staleness::Hinge { a, .. } if !(0.0..=1e6).contains(&a) => {
                f.error("mode.async.staleness.hinge.a", "from 0 to 1000000");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn factors_are_those_of_the_papers() {
        assert_eq!(Staleness::Constant.factor(7), 1.0);
        assert_eq!(Staleness::default().factor(0), 1.0);
        assert!((Staleness::default().factor(3) - 0.5).abs() < 1e-15);
        let hinge = Staleness::Hinge { a: 10.0, b: 4 };
        assert_eq!((hinge.factor(4), hinge.factor(5)), (1.0, 1.0 / 11.0));
    }

    proptest! {
        #[test]
        fn a_factor_is_positive_and_never_grows(a in 0.0..10.0f64, b in 0..50u64, versions in 0..10_000u64) {
            for staleness in [Staleness::Constant, Staleness::Polynomial { a }, Staleness::Hinge { a, b }] {
                let (now, later) = (staleness.factor(versions), staleness.factor(versions + 1));
                prop_assert!(now > 0.0 && now <= 1.0 && later <= now);
            }
        }
    }
}
