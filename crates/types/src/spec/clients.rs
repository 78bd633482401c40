//! Which clients get a job's tasks, and which of them measure models instead of training.

use super::fields::Fields;
use super::{COUNT_MAX, DurationText};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// How a round's tasks are given out when more clients ask than there are tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// To everyone who asks, while there are tasks left.
    #[default]
    All,
    /// By lot among those who ask within `window`.
    Random,
    /// By lot, with a probability that grows with `num_samples` of the check-in.
    Weighted,
    /// To clients whose updates taught the model most for the time they took, and to some that were never tried (Oort:
    /// Lai et al., *Oort: Efficient Federated Learning via Guided Participant Selection*, OSDI 2021).
    Utility,
}

/// Which clients get tasks. Default: everyone who asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Selection {
    /// How tasks are given out. Default `all`.
    pub policy: Policy,
    /// Labels that a client must have, each with this value. Default none.
    #[serde(rename = "where")]
    pub labels: BTreeMap<String, String>,
    /// How long those who ask are collected before lots are drawn, 10ms to 5m; `all` draws none. Default `"1s"`.
    #[schema(value_type = String)]
    pub window: DurationText,
    /// How long a client has a task to itself: 100ms to 30d, and never beyond the round's deadline. Later it goes to
    /// another client as well; a check-in meanwhile renews it. Default `"2m"`.
    #[schema(value_type = String)]
    pub task_timeout: DurationText,
    /// For `utility`: how long a client's update should take at most; null to find it out while the job runs. Default
    /// null.
    #[schema(value_type = Option<String>)]
    pub preferred_duration: Option<DurationText>,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            policy: Policy::All,
            labels: BTreeMap::new(),
            window: DurationText::from_ms(1000),
            task_timeout: DurationText::from_ms(120_000),
            preferred_duration: None,
        }
    }
}

/// Most labels of a filter.
const LABELS_MAX: usize = 32;
/// Longest patience: the means of only so many versions are kept.
const PATIENCE_MAX: u64 = 1000;
/// Longest name or value of a label, in bytes.
const LABEL_BYTES_MAX: usize = 256;

impl Selection {
    /// Whether a client with these labels may have tasks.
    pub fn admits(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(name, value)| labels.get(name) == Some(value))
    }

    /// Reads the field `selection`.
    pub(super) fn read(f: &mut Fields) -> Self {
        let default = Self::default();
        let mut g = f.nested("selection");
        let selection = Self {
            policy: g.or_default("policy"),
            labels: g.or_default("where"),
            window: g.or_else("window", || default.window),
            task_timeout: g.or_else("task_timeout", || default.task_timeout),
            preferred_duration: g.or_default("preferred_duration"),
        };
        let is_long = |text: &String| text.len() > LABEL_BYTES_MAX;
        if selection.labels.len() > LABELS_MAX || selection.labels.iter().any(|(k, v)| is_long(k) || is_long(v)) {
            g.error(
                "where",
                &format!("at most {LABELS_MAX} labels, names and values of at most {LABEL_BYTES_MAX} bytes"),
            );
        }
        if !(10..=300_000).contains(&selection.window.ms()) {
            g.error("window", "from 10ms to 5m");
        }
        if !(100..=30 * 86_400_000).contains(&selection.task_timeout.ms()) {
            g.error("task_timeout", "from 100ms to 30d");
        }
        if selection.preferred_duration.is_some_and(|preferred| preferred.ms() == 0) {
            g.error("preferred_duration", "more than nothing, or null");
        }
        f.absorb(g);
        selection
    }
}

/// Which of two values of a metric is the better one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// The smaller.
    #[default]
    Min,
    /// The larger.
    Max,
}

impl Better {
    /// Whether `value` is better than `than`.
    pub fn is_better(self, value: f64, than: f64) -> bool {
        match self {
            Self::Min => value < than,
            Self::Max => value > than,
        }
    }
}

/// Clients measure models on their own data, beside training.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Evaluate {
    /// Every which version is measured, counted from version 0. Default 1.
    pub every: u64,
    /// Tasks to measure, as a share of a round's training tasks, above 0 and at most 1; they come on top of those.
    /// Default 0.1.
    pub fraction: f64,
    /// Results that a version needs before it is compared with others; null for half of the tasks to measure it, rounded
    /// up. Default null.
    pub min_results: Option<u64>,
    /// The number by which versions are compared. Default `loss`.
    pub metric: String,
    /// Whether a small or a large one is good. Default `min`.
    pub goal: Better,
    /// The job is completed early once so many measured versions in a row were no better than the best before them;
    /// null for never. Default null.
    pub patience: Option<u64>,
}

impl Evaluate {
    /// Whether this version is to be measured.
    pub fn is_due(&self, version: u64) -> bool {
        version.is_multiple_of(self.every)
    }

    /// Tasks to measure, beside so many to train.
    pub fn tasks(&self, training: u64) -> u64 {
        ((training as f64 * self.fraction).ceil() as u64).max(1)
    }

    /// Reads the field `evaluate`.
    pub(super) fn read(f: &mut Fields) -> Option<Self> {
        let map = f.or_default::<Option<Map<String, Value>>>("evaluate")?;
        let mut g = f.inside("evaluate", map);
        let evaluate = Self {
            every: g.count("every", 1, COUNT_MAX),
            fraction: g.or_else("fraction", || 0.1),
            min_results: g.or_default("min_results"),
            metric: g.or_else("metric", || "loss".to_owned()),
            goal: g.or_default("goal"),
            patience: g.or_default("patience"),
        };
        if !(evaluate.fraction > 0.0 && evaluate.fraction <= 1.0) {
            g.error("fraction", "above 0 and at most 1");
        }
        for (field, count, max) in
            [("min_results", evaluate.min_results, COUNT_MAX), ("patience", evaluate.patience, PATIENCE_MAX)]
        {
            if count.is_some_and(|count| !(1..=max).contains(&count)) {
                g.error(field, &format!("from 1 to {max}, or null"));
            }
        }
        if !(1..=LABEL_BYTES_MAX).contains(&evaluate.metric.len()) {
            g.error("metric", &format!("a name of 1 to {LABEL_BYTES_MAX} bytes"));
        }
        f.absorb(g);
        Some(evaluate)
    }
}
