//! The job spec: what an owner says of a job.
//!
//! Read field by field, so that one answer names every bad field and not only the first.

mod clients;
mod exact;
mod fields;
mod mode;
mod quantity;
mod stored;

use crate::{Digest, Dtype, FieldError, Name, TensorRule};
pub use clients::{Better, Evaluate, Policy, Selection};
pub use exact::Exact;
use fields::Fields;
pub use mode::{Buffered, Mode, Staleness};
pub use quantity::DurationText;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What clients send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpdateKind {
    /// Whole weights.
    #[default]
    Weights,
    /// Differences from the round's model.
    Delta,
}

/// What happens when a round's deadline passes below `min_updates`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnShortfall {
    /// The round keeps what it has and gets another deadline.
    #[default]
    Retry,
    /// The round ends without a new model; its updates are discarded and the next round opens.
    Skip,
    /// The job fails.
    Fail,
}

/// The shape of the aggregation on one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Topology {
    /// One accumulator, cut by coordinate.
    #[default]
    Auto,
    /// A tree of accumulators: leaves, then middles, then one top.
    Tree {
        /// Accumulators that take updates, 1 to 64.
        leaves: u32,
        /// Accumulators between the leaves and the top; 0 for none.
        middles: u32,
    },
}

impl Topology {
    /// Number of accumulators that take updates.
    pub fn leaves(self) -> u32 {
        match self {
            Self::Auto => 1,
            Self::Tree { leaves, .. } => leaves.max(1),
        }
    }
}

/// What a job may cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobLimits {
    /// Bytes of one update's body.
    pub update_bytes: u64,
    /// Instances of its function at one time.
    pub instances: u32,
    /// Bytes of one instance's own memory, windows not counted.
    pub memory_bytes: u64,
    /// Milliseconds one call into the function may take.
    pub cpu_ms: u64,
    /// Largest weight of an update. Default 1e9, the number of samples that a client may claim to have.
    pub weight_max: f64,
}

impl Default for JobLimits {
    fn default() -> Self {
        Self { update_bytes: 64 << 30, instances: 8, memory_bytes: 16 << 20, cpu_ms: 60_000, weight_max: 1e9 }
    }
}

/// Which checkpoints are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Checkpoints {
    /// Model versions kept beside the initial one; the newest always is.
    pub keep_last: u32,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { keep_last: 10 }
    }
}

/// What an owner says of a job. Everything but `name` and `function` has a default.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct JobSpec {
    /// The job's name, a DNS label.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its namespace; `default` when absent.
    #[schema(value_type = String)]
    pub namespace: Name,
    /// The function: a name, or `name@digest` to pin its bytes. A name alone is pinned when the job is created, to the
    /// bytes that it stands for at that node then.
    pub function: String,
    /// The function's own configuration, checked by it. Default `{}`.
    #[schema(value_type = Object)]
    pub config: Map<String, Value>,
    /// Handed to clients with every task. Default `{}`.
    #[schema(value_type = Object)]
    pub client_config: Map<String, Value>,
    /// Overrides of `client_config` that hold from the named round on. Default none.
    #[schema(value_type = Object)]
    pub client_config_from_round: BTreeMap<u64, Map<String, Value>>,
    /// What clients send. Default `weights`.
    pub update: UpdateKind,
    /// Rules for tensors by name, first match first. Default: floats are averaged, the rest is kept.
    pub tensors: Vec<TensorRule>,
    /// Float types an update may use beside the model's own. Default none.
    pub update_dtypes: Vec<Dtype>,
    /// Whether clients train together (`"sync"`) or each at its own pace. Default `"sync"`.
    pub mode: Mode,
    /// Rounds until the job is completed. Default 10.
    pub rounds: u64,
    /// Updates that close a round. Default 2; of an asynchronous job, its buffer.
    pub goal: u64,
    /// Tasks handed out for a round, as a multiple of `goal`; at least 1. Default 1.3.
    pub over_provision: f64,
    /// Updates that a round needs at its deadline to be committed. Default: half of `goal`, rounded up.
    pub min_updates: u64,
    /// How long a round stays open; null for no deadline. Default `"10m"`.
    #[schema(value_type = Option<String>)]
    pub deadline: Option<DurationText>,
    /// What happens below `min_updates`. Default `retry`.
    pub on_shortfall: OnShortfall,
    /// Which clients get tasks. Default: everyone who asks.
    pub selection: Selection,
    /// Whether clients measure models, and what follows from it; null for not at all. Default null.
    pub evaluate: Option<Evaluate>,
    /// Exact sums: `false`, or the bounds that they need. Default `false`.
    #[serde(serialize_with = "Exact::write")]
    #[schema(value_type = Option<Exact>)]
    pub exact: Option<Exact>,
    /// The shape of the aggregation. Default `auto`.
    pub topology: Topology,
    /// What the job may cost.
    pub limits: JobLimits,
    /// Which checkpoints are kept.
    pub checkpoints: Checkpoints,
    /// How long receipts of ended rounds are kept. Default `"24h"`.
    #[schema(value_type = String)]
    pub receipts: DurationText,
    /// Of a stored spec, the fields that this release does not know: kept and shown.
    #[serde(skip)]
    pub unknown: Map<String, Value>,
}

/// Most updates of one round, and most rounds of a job.
const COUNT_MAX: u64 = 1 << 40;
/// Most rules for tensors: each is tried on every tensor.
const RULES_MAX: usize = 256;
/// Deepest nesting and longest text of a spec are bounded by its size.
pub const SPEC_BYTES_MAX: usize = 256 << 10;

impl JobSpec {
    /// Reads a spec, naming every bad field.
    pub fn from_json(text: &[u8]) -> Result<Self, Vec<FieldError>> {
        let whole = |message: String| vec![FieldError { field: String::new(), message }];
        if text.len() > SPEC_BYTES_MAX {
            return Err(whole(format!("a spec has at most {SPEC_BYTES_MAX} bytes, this one has {}", text.len())));
        }
        match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => Self::from_map(map),
            Ok(_) => Err(whole("expected a JSON object: a spec is one".to_owned())),
            Err(error) => Err(whole(format!("not JSON: {error}"))),
        }
    }

    /// Reads a spec from a JSON object.
    pub fn from_map(map: Map<String, Value>) -> Result<Self, Vec<FieldError>> {
        Self::read(Fields::new(map))
    }

    fn read(mut f: Fields) -> Result<Self, Vec<FieldError>> {
        let name = f.required("name");
        let function = f.required::<String>("function");
        let mode: Mode = f.or_default("mode");
        mode.check(&mut f);
        let buffer = mode.buffered().map(|buffered| buffered.buffer.clamp(1, COUNT_MAX));
        let goal = f.count("goal", buffer.unwrap_or(2), COUNT_MAX);
        if buffer.is_some_and(|buffer| buffer != goal) {
            f.error("goal", "of an asynchronous job it is mode.async.buffer: leave it out");
        }
        let mut spec = Self {
            name: name.unwrap_or_else(Name::default_namespace),
            namespace: f.or_else("namespace", Name::default_namespace),
            function: function.unwrap_or_default(),
            config: f.or_default("config"),
            client_config: f.or_default("client_config"),
            client_config_from_round: f.or_default("client_config_from_round"),
            mode,
            update: f.or_default("update"),
            tensors: f.or_default("tensors"),
            update_dtypes: f.or_default("update_dtypes"),
            rounds: f.count("rounds", 10, COUNT_MAX),
            goal,
            over_provision: f.or_else("over_provision", || 1.3),
            min_updates: f.count("min_updates", goal.div_ceil(2), COUNT_MAX),
            deadline: f.or_else("deadline", || Some(DurationText::from_ms(600_000))),
            on_shortfall: f.or_default("on_shortfall"),
            selection: Selection::read(&mut f),
            evaluate: Evaluate::read(&mut f),
            exact: Exact::read(&mut f),
            topology: topology(&mut f),
            limits: limits(&mut f),
            checkpoints: checkpoints(&mut f),
            receipts: f.or_else("receipts", || DurationText::from_ms(24 * 3_600_000)),
            unknown: Map::new(),
        };
        spec.check(&mut f);
        spec.unknown = f.take_unknown();
        f.finish().map(|()| spec)
    }

    /// The checks that a type alone does not make.
    fn check(&self, f: &mut Fields) {
        if !f.has_error("function") && !is_function_reference(&self.function) {
            f.error("function", "a function is a DNS label, or name@digest with 64 hexadecimal digits");
        }
        if !(1.0..=100.0).contains(&self.over_provision) {
            f.error("over_provision", "a number from 1 to 100");
        }
        if self.min_updates > self.goal {
            f.error("min_updates", &format!("at most the goal, {}", self.goal));
        }
        if self.mode != Mode::Sync && self.update != UpdateKind::Delta {
            f.error("update", "asynchronous jobs take deltas: a mean of whole weights would undo what came meanwhile");
        }
        if self.mode != Mode::Sync && self.exact.is_some() {
            f.error("exact", "only of synchronous jobs: the weight of a stale update depends on when it comes");
        }
        if let Some(problem) = self.too_many_updates() {
            f.error("exact.updates_max", &problem);
        }
        if self.deadline.is_some_and(|deadline| !(100..=365 * 86_400_000).contains(&deadline.ms())) {
            f.error("deadline", "from 100ms to 365d, or null for none");
        }
        if let Some(bad) = self.update_dtypes.iter().find(|dtype| !dtype.is_float()) {
            f.error("update_dtypes", &format!("{bad} is not a float type that functions read"));
        }
        if self.tensors.len() > RULES_MAX {
            f.error("tensors", &format!("at most {RULES_MAX} rules"));
        }
        for (i, rule) in self.tensors.iter().enumerate() {
            if rule.pattern.is_empty() || rule.pattern.len() > 1024 {
                f.error(&format!("tensors.{i}.match"), "a pattern of 1 to 1024 bytes; `*` stands for any text");
            }
        }
    }

    /// The function's name, without the digest.
    pub fn function_name(&self) -> &str {
        self.function.split_once('@').map_or(&self.function, |(name, _)| name)
    }

    /// The digest of the function's bytes, when they are pinned.
    pub fn function_digest(&self) -> Option<Digest> {
        self.function.split_once('@').and_then(|(_, digest)| digest.parse().ok())
    }

    /// The spec with `patch` applied, if it would be a good one.
    ///
    /// # Errors
    /// Every bad field.
    pub fn patched(&self, patch: &SpecPatch) -> Result<Self, Vec<FieldError>> {
        let before = match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        };
        let mut map = before.clone();
        for (field, value) in [("rounds", patch.rounds), ("goal", patch.goal)] {
            map.extend(value.map(|value| (field.to_owned(), value.into())));
        }
        map.extend(patch.deadline.map(|deadline| ("deadline".to_owned(), serde_json::json!(deadline))));
        if let Some(goal) = patch.goal {
            map.insert("min_updates".to_owned(), self.min_updates.min(goal).max(1).into());
            if let Mode::Async(buffered) = self.mode {
                map.insert("mode".to_owned(), serde_json::json!(Mode::Async(Buffered { buffer: goal, ..buffered })));
            }
        }
        let patched = Self::from_map(map.clone()).or_else(|errors| {
            // What a release with other limits has accepted is nothing that the patch has done.
            let known = Self::from_map(before).err().unwrap_or_default();
            let new: Vec<FieldError> = errors.into_iter().filter(|error| !known.contains(error)).collect();
            if new.is_empty() { Self::read(Fields::stored(map)) } else { Err(new) }
        });
        patched.map(|patched| Self { unknown: self.unknown.clone(), ..patched })
    }

    /// The client configuration for `round`: the base, then every override that holds by then, in order.
    pub fn client_config_for(&self, round: u64) -> Map<String, Value> {
        let mut config = self.client_config.clone();
        for (_, overrides) in self.client_config_from_round.range(..=round) {
            config.extend(overrides.clone());
        }
        config
    }

    /// What is wrong when a round may have more updates than exact sums have room for.
    pub fn too_many_updates(&self) -> Option<String> {
        let (exact, tasks) = (self.exact?, self.tasks_per_round());
        (tasks > exact.updates_max)
            .then(|| format!("{}, and a round has up to {tasks} updates (goal · over_provision)", exact.updates_max))
    }

    /// The largest weight of an update.
    pub fn weight_max(&self) -> f64 {
        self.exact.map_or(self.limits.weight_max, |exact| exact.weight_max.min(self.limits.weight_max))
    }

    /// The goal becomes another.
    pub fn set_goal(&mut self, goal: u64) {
        self.goal = goal.max(1);
        self.min_updates = self.min_updates.min(self.goal);
        if let Mode::Async(buffered) = &mut self.mode {
            buffered.buffer = self.goal;
        }
    }

    /// Training tasks handed out for one round.
    pub fn tasks_per_round(&self) -> u64 {
        self.tasks_for(self.goal)
    }

    /// The same for a round with this goal.
    pub fn tasks_for(&self, goal: u64) -> u64 {
        (goal as f64 * self.over_provision).ceil() as u64
    }
}

fn topology(f: &mut Fields) -> Topology {
    let topology = f.or_default("topology");
    if let Topology::Tree { leaves, middles } = topology
        && (!(1..=64).contains(&leaves) || middles > leaves)
    {
        f.error("topology", "1 to 64 leaves and at most as many middles");
    }
    topology
}

fn limits(f: &mut Fields) -> JobLimits {
    let default = JobLimits::default();
    let mut g = f.nested("limits");
    let limits = JobLimits {
        update_bytes: g.count("update_bytes", default.update_bytes, 1 << 42),
        instances: g.count("instances", default.instances.into(), 256) as u32,
        memory_bytes: g.count("memory_bytes", default.memory_bytes, 64 << 20),
        cpu_ms: g.count("cpu_ms", default.cpu_ms, 3_600_000),
        weight_max: g.or_else("weight_max", || default.weight_max),
    };
    if !(limits.weight_max.is_finite() && limits.weight_max > 0.0) {
        g.error("weight_max", "a finite positive number");
    }
    f.absorb(g);
    limits
}

fn checkpoints(f: &mut Fields) -> Checkpoints {
    let mut g = f.nested("checkpoints");
    let checkpoints = Checkpoints { keep_last: g.count("keep_last", 10, 1_000_000) as u32 };
    f.absorb(g);
    checkpoints
}

fn is_function_reference(text: &str) -> bool {
    match text.split_once('@') {
        None => text.parse::<Name>().is_ok(),
        Some((name, digest)) => name.parse::<Name>().is_ok() && digest.parse::<Digest>().is_ok(),
    }
}

/// The part of a spec that can change while the job runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecPatch {
    /// Rounds until the job is completed.
    #[serde(default)]
    pub rounds: Option<u64>,
    /// Updates that close a round, from the next round on.
    #[serde(default)]
    pub goal: Option<u64>,
    /// How long a round stays open, from the next round on.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub deadline: Option<DurationText>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_a_name_and_perhaps_a_digest() {
        let digest = Digest::from_bytes([7; 32]);
        for (function, said) in [("mean".to_owned(), None), (format!("mean@{digest}"), Some(digest))] {
            let spec = read(&format!(r#"{{"name":"a","function":"{function}"}}"#)).unwrap();
            assert_eq!((spec.function_name(), spec.function_digest()), ("mean", said));
        }
    }

    fn read(text: &str) -> Result<JobSpec, Vec<FieldError>> {
        JobSpec::from_json(text.as_bytes())
    }

    #[test]
    fn name_and_function_are_enough() {
        let spec = read(r#"{"name":"digits","function":"fedavg"}"#).unwrap();
        assert_eq!((spec.rounds, spec.goal, spec.min_updates), (10, 2, 1));
        assert_eq!(spec.namespace.as_str(), "default");
        assert_eq!(spec.deadline.unwrap().ms(), 600_000);
    }

    #[test]
    fn every_bad_field_is_named() {
        let errors = read(
            r#"{"name":"A","goal":0,"min_updates":"x","deadline":"soon","topology":{"tree":{"leaves":0,"middles":0}},
            "limits":{"cpu_ms":0,"speed":1},"update_dtypes":["I8"],"frobnicate":1,"mode":"eventually","exact":true}"#,
        )
        .unwrap_err();
        let mut fields: Vec<_> = errors.iter().map(|e| e.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(
            fields,
            [
                "deadline",
                "exact",
                "frobnicate",
                "function",
                "goal",
                "limits.cpu_ms",
                "limits.speed",
                "min_updates",
                "mode",
                "name",
                "topology",
                "update_dtypes"
            ]
        );
    }

    #[test]
    fn a_written_spec_reads_back() {
        let text = r#"{"name":"a","function":"fedavg","deadline":null,"topology":{"tree":{"leaves":4,"middles":2}},
            "client_config":{"lr":0.1},"client_config_from_round":{"5":{"lr":0.01}}}"#;
        let spec = read(text).unwrap();
        let again = JobSpec::from_json(&serde_json::to_vec(&spec).unwrap()).unwrap();
        assert_eq!(again, spec);
        assert_eq!(spec.client_config_for(4)["lr"], 0.1);
        assert_eq!(spec.client_config_for(9)["lr"], 0.01);
        assert_eq!(spec.topology.leaves(), 4);
    }

    #[test]
    fn defaults_may_be_spelled_out() {
        assert!(read(r#"{"name":"a","function":"fedavg","mode":"sync","exact":false,"clients":"open"}"#).is_ok());
    }

    #[test]
    fn exact_sums_have_bounds() {
        let spec = |exact: &str, goal: u64| {
            read(&format!(r#"{{"name":"a","function":"fedavg","goal":{goal},"over_provision":2,"exact":{exact}}}"#))
        };
        let good = spec(r#"{"bound":8,"weight_max":100,"updates_max":20}"#, 10).unwrap();
        assert_eq!((good.weight_max(), good.exact.unwrap().updates_max), (100.0, 20));
        assert_eq!(JobSpec::from_json(good.to_json().as_bytes()).unwrap(), good);
        for (exact, goal, field) in [
            (r#"{"bound":8,"weight_max":100,"updates_max":19}"#, 10, "exact.updates_max"),
            (r#"{"bound":0,"weight_max":100,"updates_max":20}"#, 10, "exact.bound"),
            (r#"{"bound":8,"weight_max":1e61,"updates_max":20}"#, 10, "exact.weight_max"),
            (r#"{"bound":8,"weight_max":100,"updates_max":0}"#, 1, "exact.updates_max"),
            (r#"{"bound":8,"weight_max":100}"#, 1, "exact"),
            (r#"{"bound":8,"weight_max":100,"updates_max":20,"x":1}"#, 1, "exact"),
            ("true", 1, "exact"),
        ] {
            assert_eq!(spec(exact, goal).unwrap_err()[0].field, field, "{exact}");
        }
    }

    #[test]
    fn clients_are_chosen_and_measure() {
        let spec = |more: &str| read(&format!(r#"{{"name":"a","function":"fedavg"{more}}}"#));
        let plain = spec("").unwrap();
        assert_eq!((plain.selection.policy, &plain.evaluate), (Policy::All, &None));
        let full = spec(
            r#","selection":{"policy":"utility","where":{"site":"x"},"window":"50ms","preferred_duration":"9s"},
            "evaluate":{"every":2,"fraction":0.5,"metric":"accuracy","goal":"max","patience":3}"#,
        )
        .unwrap();
        assert_eq!(JobSpec::from_json(full.to_json().as_bytes()).unwrap(), full);
        let again = full.patched(&SpecPatch { goal: Some(5), ..SpecPatch::default() }).unwrap();
        assert_eq!((&again.selection, &again.evaluate), (&full.selection, &full.evaluate));
        let labels = |value: &str| [("site".to_owned(), value.to_owned()), ("os".to_owned(), String::new())].into();
        assert!(full.selection.admits(&labels("x")) && !full.selection.admits(&labels("y")));
        assert!(!full.selection.admits(&BTreeMap::new()));
        let evaluate = full.evaluate.unwrap();
        assert!(evaluate.is_due(0) && evaluate.is_due(2) && !evaluate.is_due(3));
        assert_eq!((evaluate.tasks(3), evaluate.tasks(1)), (2, 1));
        for (more, field) in [
            (r#","selection":{"policy":"best"}"#, "selection.policy"),
            (r#","selection":{"window":"0ms"}"#, "selection.window"),
            (r#","selection":{"task_timeout":"1ms"}"#, "selection.task_timeout"),
            (r#","selection":{"where":{"a":1}}"#, "selection.where"),
            (r#","selection":{"speed":1}"#, "selection.speed"),
            (r#","selection":{"preferred_duration":"0s"}"#, "selection.preferred_duration"),
            (r#","evaluate":{"fraction":0}"#, "evaluate.fraction"),
            (r#","evaluate":{"every":0}"#, "evaluate.every"),
            (r#","evaluate":{"patience":0}"#, "evaluate.patience"),
            (r#","evaluate":{"min_results":0}"#, "evaluate.min_results"),
            (r#","evaluate":{"metric":""}"#, "evaluate.metric"),
            (r#","evaluate":{"goal":"best"}"#, "evaluate.goal"),
            (r#","evaluate":{"often":1}"#, "evaluate.often"),
            (r#","evaluate":1"#, "evaluate"),
        ] {
            let errors = spec(more).unwrap_err();
            assert_eq!(errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), [field], "{more}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,200}") {
            let _ = JobSpec::from_json(text.as_bytes());
            let _ = JobSpec::stored(text.as_bytes());
        }
    }
}
