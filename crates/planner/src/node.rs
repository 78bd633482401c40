//! What a node has.

use crate::config::Config;
use catchment_types::NodeId;
use serde::{Deserialize, Serialize};

/// A live node of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub node: NodeId,
    /// Cores that may fold.
    pub cores: f64,
    /// Bytes its budget grants to updates and accumulators in all, whether held now or not.
    pub memory_bytes: u64,
    /// Bytes a second that its link brings in.
    pub link_bytes_per_s: f64,
    /// Nodes of one zone (a rack, a site) reach each other over short ways.
    pub zone: u32,
}

/// Millionths of a core, so that what is given back is exactly what was taken.
pub(crate) const MICRO: f64 = 1e6;

/// Three capacities, or parts of them, in whole numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Amount {
    pub micro_cores: u64,
    pub link_bytes_per_s: u64,
    pub memory_bytes: u64,
}

impl Amount {
    pub fn less(self, other: Self) -> Self {
        Self {
            micro_cores: self.micro_cores.saturating_sub(other.micro_cores),
            link_bytes_per_s: self.link_bytes_per_s.saturating_sub(other.link_bytes_per_s),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }

    pub fn and(self, other: Self) -> Self {
        Self {
            micro_cores: self.micro_cores.saturating_add(other.micro_cores),
            link_bytes_per_s: self.link_bytes_per_s.saturating_add(other.link_bytes_per_s),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    pub fn is_within(self, other: Self) -> bool {
        self.micro_cores <= other.micro_cores
            && self.link_bytes_per_s <= other.link_bytes_per_s
            && self.memory_bytes <= other.memory_bytes
    }
}

impl Node {
    /// What may be planned on it: cores and link up to the utilisation, memory whole.
    pub(crate) fn capacity(&self, config: &Config) -> Amount {
        let part = |whole: f64| if whole.is_finite() { (whole * config.utilisation).max(0.0) as u64 } else { 0 };
        Amount {
            micro_cores: part(self.cores * MICRO),
            link_bytes_per_s: part(self.link_bytes_per_s),
            memory_bytes: self.memory_bytes,
        }
    }
}
