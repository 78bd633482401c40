//! What came of it.

use crate::control::Control;
use crate::queue::{Micros, seconds};
use serde::Serialize;
use std::fmt::Write;

/// The spread of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// All but a hundredth are no more than this.
    pub p99: f64,
}

impl Spread {
    /// Of these; all 0 of none.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = |part: f64| sorted.get((part * sorted.len() as f64).ceil() as usize - 1).copied().unwrap_or(0.0);
        if sorted.is_empty() {
            return Self::default();
        }
        Self { mean: sorted.iter().sum::<f64>() / sorted.len() as f64, p50: rank(0.5), p99: rank(0.99) }
    }
}

/// What came of one policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The policy.
    pub policy: String,
    /// Jobs that published all their models.
    pub completed: usize,
    /// Models published.
    pub rounds: u64,
    /// Updates accepted.
    pub updates: u64,
    /// Aggregation completion time: from a round's first upload to its model, seconds. Most of it is clients arriving.
    pub completion_s: Spread,
    /// From a round's last accepted update to its model, seconds: the part that aggregation is to blame for.
    pub tail_s: Spread,
    /// Instances started.
    pub cold_starts: u64,
    /// Bytes of models and updates that went from node to node.
    pub between_nodes_bytes: u64,
    /// Of these, between zones.
    pub between_zones_bytes: u64,
    /// Nodes that a round was on, on average.
    pub nodes_per_round: f64,
    /// Levels of merging above the leaves, at the most.
    pub levels: u32,
    /// Time for which nodes were in use, or kept warm.
    pub node_s: f64,
    /// Core time.
    pub cpu_s: f64,
    /// The most memory of any node.
    pub memory_most_bytes: u64,
    /// Rounds that the planner called late.
    pub late: u64,
    /// Times that a round in progress was planned otherwise.
    pub replanned: u64,
    /// Nodes that died.
    pub deaths: u64,
    /// Updates lost with them, and sent again.
    pub lost: u64,
    /// Virtual time, seconds.
    pub took_s: f64,
    /// Events.
    pub events: u64,
    /// Records of the log.
    pub records: u64,
}

/// What is counted while it happens.
#[derive(Default)]
pub struct Measured {
    pub rounds: u64,
    pub accepted: u64,
    pub whole_s: Vec<f64>,
    pub tail_s: Vec<f64>,
    pub cold_starts: u64,
    pub between_nodes_bytes: u64,
    pub between_zones_bytes: u64,
    pub nodes_used: u64,
    pub levels: u32,
    pub node_us: Micros,
    pub cpu_us: Micros,
    pub memory_most: u64,
    pub late: u64,
    pub replanned: u64,
    pub deaths: u64,
    pub lost: u64,
}

impl Measured {
    pub fn report(&self, policy: &str, now: Micros, events: u64, control: &Control) -> Report {
        Report {
            policy: policy.to_owned(),
            completed: control.completed(),
            rounds: self.rounds,
            updates: self.accepted,
            completion_s: Spread::of(&self.whole_s),
            tail_s: Spread::of(&self.tail_s),
            cold_starts: self.cold_starts,
            between_nodes_bytes: self.between_nodes_bytes,
            between_zones_bytes: self.between_zones_bytes,
            nodes_per_round: self.nodes_used as f64 / self.rounds.max(1) as f64,
            levels: self.levels,
            node_s: seconds(self.node_us),
            cpu_s: seconds(self.cpu_us),
            memory_most_bytes: self.memory_most,
            late: self.late,
            replanned: self.replanned,
            deaths: self.deaths,
            lost: self.lost,
            took_s: seconds(now),
            events,
            records: control.records(),
        }
    }
}

/// The reports as a table in Markdown, the first one first; it is what the others are held against.
pub fn table(reports: &[Report]) -> String {
    let mut text = String::from(
        "| policy | model after last update s: mean / p50 / p99 | after first: mean / p50 / p99 | cold starts | nodes a round \
         | between nodes GB | node s | CPU s | tail, to the first | CPU, to the first | node s, to the first |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for report in reports {
        let first = &reports[0];
        let ratio = |own: f64, first: f64| if first > 0.0 { format!("{:.2}", own / first) } else { "–".to_owned() };
        writeln!(
            text,
            "| {} | {:.3} / {:.3} / {:.3} | {:.2} / {:.2} / {:.2} | {} | {:.1} | {:.2} | {:.0} | {:.1} | {} | {} | {} |",
            report.policy,
            report.tail_s.mean,
            report.tail_s.p50,
            report.tail_s.p99,
            report.completion_s.mean,
            report.completion_s.p50,
            report.completion_s.p99,
            report.cold_starts,
            report.nodes_per_round,
            report.between_nodes_bytes as f64 / 1e9,
            report.node_s,
            report.cpu_s,
            ratio(report.tail_s.mean, first.tail_s.mean),
            ratio(report.cpu_s, first.cpu_s),
            ratio(report.node_s, first.node_s),
        )
        .expect("a string grows");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_of_the_nearest_value() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(Spread::of(&values), Spread { mean: 100.5, p50: 100.0, p99: 198.0 });
        assert_eq!(Spread::of(&[3.0]), Spread { mean: 3.0, p50: 3.0, p99: 3.0 });
        assert_eq!(Spread::of(&[]), Spread::default());
    }
}
