//! What clients measured of models, folded to means.
//!
//! Only sums are kept for every version. Who has reported is kept for the newest few, which are the only ones that take
//! results: without an end to that, a job would remember every client for each of its models.

use crate::job::Job;
use crate::mean::Mean;
use crate::outcome::EvaluateOutcome;
use crate::round::METRICS_MAX;
use catchment_types::{ClientId, EvaluationResult, EvaluationView};
use std::collections::{BTreeMap, HashMap};

/// Newest versions that take results.
pub const MEASURED_MAX: u64 = 16;
/// Clients that may report on one version. With their names of about 30 bytes that is some 8 MB.
const CLIENTS_MAX: usize = 100_000;
/// Versions whose means are kept, the best one besides; more than the largest patience.
const VERSIONS_MAX: usize = 1_100;

/// What clients measured of one model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evaluation {
    pub(crate) results: u64,
    pub(crate) num_samples: u64,
    pub(crate) means: BTreeMap<String, Mean>,
    /// What each client said, while the version takes results.
    pub(crate) clients: HashMap<ClientId, u64>,
}

impl Evaluation {
    /// Clients that reported.
    pub fn results(&self) -> u64 {
        self.results
    }

    /// Whether this client is one of them, while the version takes results.
    pub fn has(&self, client: &ClientId) -> bool {
        self.clients.contains_key(client)
    }

    /// The mean of one number, and how many clients reported it.
    pub fn mean(&self, metric: &str) -> Option<(f64, u64)> {
        let mean = self.means.get(metric)?;
        mean.value().map(|value| (value, mean.clients()))
    }

    /// As callers see it.
    pub fn view(&self) -> EvaluationView {
        let finite = self.means.iter().filter_map(|(name, mean)| Some((name.clone(), mean.value()?)));
        EvaluationView { results: self.results, num_samples: self.num_samples, metrics: finite.collect() }
    }

    fn insert(&mut self, result: &EvaluationResult) {
        self.clients.insert(result.client.clone(), fingerprint(result));
        self.results += 1;
        self.num_samples = self.num_samples.saturating_add(result.num_samples);
        for (name, value) in result.metrics.iter().filter(|(_, value)| value.is_finite()) {
            if self.means.len() < METRICS_MAX || self.means.contains_key(name) {
                self.means.entry(name.clone()).or_default().add(*value, result.num_samples);
            }
        }
    }

    /// What its counts must agree with.
    pub(crate) fn audit(&self, is_measured: bool) -> bool {
        let reported = self.clients.len() as u64;
        if is_measured { reported == self.results } else { reported == 0 }
    }
}

/// Tells what a client said apart from anything else it might say.
fn fingerprint(result: &EvaluationResult) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("catchment v1 evaluation");
    hasher.update(&result.num_samples.to_le_bytes());
    for (name, value) in &result.metrics {
        hasher
            .update(&(name.len() as u64).to_le_bytes())
            .update(name.as_bytes())
            .update(&value.to_bits().to_le_bytes());
    }
    u64::from_le_bytes(*hasher.finalize().as_bytes().first_chunk().expect("a hash has eight bytes"))
}

impl Job {
    /// What clients measured of this version.
    pub fn evaluation(&self, version: u64) -> Option<&Evaluation> {
        self.evaluations.get(&version)
    }

    /// What clients measured of the newest version that any did.
    pub fn newest_evaluation(&self) -> Option<&Evaluation> {
        self.evaluations.last_key_value().map(|(_, evaluation)| evaluation)
    }

    /// Of the measured models whose files are kept, the best one.
    pub fn best_version(&self) -> Option<u64> {
        self.best
    }

    /// Whether results for this version count: its file is kept, and it is one of the newest [`MEASURED_MAX`].
    pub fn takes_results(&self, version: u64) -> bool {
        let next = self.models.next();
        version < next && version + MEASURED_MAX >= next && self.keeps(version)
    }

    /// What a result would meet. `None`: nothing stands in its way.
    pub(crate) fn judge_result(&self, version: u64, result: &EvaluationResult) -> Option<EvaluateOutcome> {
        if !self.takes_results(version) {
            return Some(EvaluateOutcome::UnknownVersion);
        }
        let evaluation = self.evaluations.get(&version)?;
        match evaluation.clients.get(&result.client) {
            Some(said) if *said == fingerprint(result) => Some(EvaluateOutcome::Duplicate),
            Some(_) => Some(EvaluateOutcome::Conflict),
            None => (evaluation.clients.len() >= CLIENTS_MAX).then_some(EvaluateOutcome::Enough),
        }
    }

    pub(crate) fn evaluate(&mut self, version: u64, result: &EvaluationResult) -> EvaluateOutcome {
        if let Some(outcome) = self.judge_result(version, result) {
            return outcome;
        }
        self.evaluations.entry(version).or_default().insert(result);
        self.best = self.find_best();
        EvaluateOutcome::Counted
    }

    /// Forgets who reported on versions that take no results any more.
    pub(crate) fn retire_evaluations(&mut self) {
        let next = self.models.next();
        let retired = next.saturating_sub(MEASURED_MAX);
        self.evaluations.range_mut(..retired).for_each(|(_, evaluation)| evaluation.clients = HashMap::new());
        while self.evaluations.len() > VERSIONS_MAX {
            let oldest = self.evaluations.keys().find(|version| Some(**version) != self.best);
            let oldest = *oldest.expect("only one of many is the best");
            self.evaluations.remove(&oldest);
        }
    }

    /// Versions with enough results, oldest first, and the mean by which they are compared.
    fn measured(&self) -> impl Iterator<Item = (u64, f64)> {
        let wanted = self.spec.evaluate.as_ref().map(|evaluate| {
            let half = || evaluate.tasks(self.spec.tasks_per_round()).div_ceil(2);
            (evaluate.metric.as_str(), evaluate.min_results.unwrap_or_else(half))
        });
        self.evaluations.iter().filter_map(move |(version, evaluation)| {
            let (metric, least) = wanted?;
            let (mean, clients) = evaluation.mean(metric)?;
            (clients >= least).then_some((*version, mean))
        })
    }

    /// The best version is looked for among those that can still be had. It is itself kept for as long as it is the best.
    fn find_best(&self) -> Option<u64> {
        let goal = self.spec.evaluate.as_ref()?.goal;
        let kept = self.measured().filter(|(version, _)| self.keeps(*version));
        let better = |best: (u64, f64), next: (u64, f64)| if goal.is_better(next.1, best.1) { next } else { best };
        kept.reduce(better).map(|(version, _)| version)
    }

    /// Why the job need not go on: as many measured versions as its patience allows were no better than the best before
    /// them.
    pub fn plateau(&self) -> Option<String> {
        let evaluate = self.spec.evaluate.as_ref()?;
        let patience = evaluate.patience?;
        let mut best: Option<(u64, f64)> = None;
        let mut since = 0;
        for (version, mean) in self.measured() {
            if best.is_none_or(|(_, best)| evaluate.goal.is_better(mean, best)) {
                (best, since) = (Some((version, mean)), 0);
            } else {
                since += 1;
            }
        }
        let (version, mean) = best.filter(|_| since >= patience)?;
        let metric = &evaluate.metric;
        Some(format!(
            "the last {since} measured models are no better than version {version}, whose mean `{metric}` is {mean}"
        ))
    }
}
