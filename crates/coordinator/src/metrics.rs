//! What a coordinator counts, for Prometheus.

use catchment_fleet::Counts;
use catchment_types::Record;
use prometheus::core::Collector;
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

/// What says how it stands with the log. Nodes show the same under the same names.
const FOREIGN: &str = "Messages in the event log that are no records: everybody leaves them out.";
const FOLLOWED: &str =
    "1 while the event log is followed, 0 once it holds what this process cannot read; /readyz says what.";

/// How it stands with the log.
pub(crate) struct LogSeen {
    pub sequence: u64,
    pub foreign: u64,
    pub is_followed: bool,
}

/// A coordinator's metrics. Clones are the same ones.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    leads: IntGauge,
    nodes: IntGaugeVec,
    /// Without labels; absent for as long as nothing can be said.
    wanted: IntGaugeVec,
    decisions: IntCounterVec,
    sequence: IntGauge,
    foreign: IntGauge,
    follows: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Self {
        let registry = Registry::new();
        let gauge = |name, help| register(&registry, IntGauge::new(name, help).expect("a valid name"));
        let gauges = |name, help, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels).expect("valid names"))
        };
        let decisions = Opts::new("catchment_decisions_total", "Decisions of this coordinator, by kind.");
        Self {
            leads: gauge("catchment_coordinator_leads", "1 while this coordinator decides, 0 while it stands by."),
            nodes: gauges(
                "catchment_nodes",
                "Nodes: live, draining, quiet (silent, not given up), or lost (silent for too long, and holding something).",
                &["state"],
            ),
            wanted: gauges("catchment_nodes_wanted", "Nodes that the open rounds want.", &[]),
            decisions: register(&registry, IntCounterVec::new(decisions, &["kind"]).expect("valid names")),
            sequence: gauge("catchment_log_sequence", "Sequence of the event log's last record that was read."),
            foreign: gauge("catchment_log_foreign", FOREIGN),
            follows: gauge("catchment_log_followed", FOLLOWED),
            registry,
        }
    }

    /// Notes how things are.
    pub(crate) fn see(&self, leads: bool, nodes: Counts, log: LogSeen) {
        self.leads.set(leads.into());
        let Counts { live, draining, quiet, lost } = nodes;
        for (state, count) in [("live", live), ("draining", draining), ("quiet", quiet), ("lost", lost)] {
            self.nodes.with_label_values(&[state]).set(count as i64);
        }
        let LogSeen { sequence, foreign, is_followed } = log;
        self.sequence.set(sequence as i64);
        self.foreign.set(foreign as i64);
        self.follows.set(is_followed.into());
    }

    /// Notes how many nodes are wanted.
    pub(crate) fn want(&self, nodes: u64) {
        self.wanted.with_label_values::<&str>(&[]).set(i64::try_from(nodes).unwrap_or(i64::MAX));
    }

    /// How many nodes are wanted, as far as that can be said.
    pub fn wanted(&self) -> Option<u64> {
        let shown = !self.wanted.collect().iter().all(|family| family.get_metric().is_empty());
        shown.then(|| self.wanted.with_label_values::<&str>(&[]).get().unsigned_abs())
    }

    /// Counts a decision that was carried out.
    pub(crate) fn count(&self, decision: &Record) {
        self.decisions.with_label_values(&[decision.kind()]).inc();
    }

    /// What they are registered in, for a process that shows more beside them.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Adds what every process shows: its `version`.
    pub fn of_version(self, version: &str) -> Self {
        let opts = Opts::new("catchment_build_info", "Constant 1, with the version.");
        let info = IntGaugeVec::new(opts, &["version"]).expect("valid names");
        register(&self.registry, info).with_label_values(&[version]).set(1);
        self
    }

    /// Everything in Prometheus text format.
    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("each name is registered once");
    collector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_shown() {
        let metrics = Metrics::new().of_version("1");
        assert_eq!(metrics.wanted(), None);
        assert!(!metrics.text().contains("catchment_nodes_wanted"));
        metrics.want(3);
        assert_eq!(metrics.wanted(), Some(3));
        metrics.see(
            true,
            Counts { live: 2, draining: 1, ..Counts::default() },
            LogSeen { sequence: 17, foreign: 2, is_followed: false },
        );
        let text = metrics.text();
        for line in [
            "catchment_nodes_wanted 3",
            "catchment_coordinator_leads 1",
            r#"catchment_nodes{state="draining"} 1"#,
            r#"catchment_nodes{state="lost"} 0"#,
            "catchment_log_sequence 17",
            "catchment_log_foreign 2",
            "catchment_log_followed 0",
            r#"catchment_build_info{version="1"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
