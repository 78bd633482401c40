//! Gauges of jobs: what the state says when they are asked for, so that a restart forgets none, an older model's are gone,
//! and every node of a cluster shows the same.

use crate::context::Context;
use catchment_ledger::{Evaluation, Job};
use catchment_types::JobUid;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Numbers of one job's contributors that are shown, and as many of those who measured. Their names come from clients.
const NUMBERS_MAX: usize = 32;

/// What is shown of one job.
struct Shown {
    labels: [String; 2],
    last_commit_s: Option<u64>,
    queue: u64,
    is_over: bool,
    numbers: BTreeMap<String, f64>,
}

impl Shown {
    fn of(job: &Job) -> Self {
        let newest = job.newest_model().map(Job::numbers).unwrap_or_default();
        let measured = job.newest_evaluation().map(Evaluation::view).unwrap_or_default().metrics;
        let measured = measured.into_iter().map(|(name, value)| (format!("eval_{name}"), value));
        Self {
            labels: [job.spec.namespace.to_string(), job.spec.name.to_string()],
            last_commit_s: job.last_commit_ms().map(|at_ms| at_ms / 1000),
            queue: job.active_round().map_or(0, |round| round.received() - round.folded()),
            is_over: job.state.is_over(),
            numbers: newest.into_iter().take(NUMBERS_MAX).chain(measured.take(NUMBERS_MAX)).collect(),
        }
    }
}

/// Sets them all. One job at a time, so that the ledger is not kept from its work.
pub fn show(context: &Context) {
    let metrics = &context.metrics;
    let (parked, troubled) = (context.parking.counts(), context.trouble.jobs());
    for gauge in
        [&metrics.uploads_parked, &metrics.uploads_stored, &metrics.last_commit, &metrics.queue_depth, &metrics.stalled]
    {
        gauge.reset();
    }
    metrics.job_metric.reset();
    let jobs: Vec<JobUid> = context.ledger.read(|state| state.jobs().map(|job| job.uid).collect());
    for uid in jobs {
        let Some(shown) = context.ledger.read(|state| state.job(uid).map(Shown::of)) else { continue };
        set(context, uid, &shown, &parked, &troubled);
    }
}

fn set(
    context: &Context,
    uid: JobUid,
    shown: &Shown,
    parked: &HashMap<JobUid, (i64, i64)>,
    troubled: &HashSet<JobUid>,
) {
    let (metrics, labels) = (&context.metrics, [shown.labels[0].as_str(), shown.labels[1].as_str()]);
    let (all, stored) = parked.get(&uid).copied().unwrap_or_default();
    metrics.uploads_parked.with_label_values(&labels).set(all);
    metrics.uploads_stored.with_label_values(&labels).set(stored);
    metrics.queue_depth.with_label_values(&labels).set(shown.queue as i64);
    let is_stalled = troubled.contains(&uid) && !shown.is_over;
    metrics.stalled.with_label_values(&labels).set(is_stalled.into());
    if let Some(at_s) = shown.last_commit_s {
        metrics.last_commit.with_label_values(&labels).set(at_s as i64);
    }
    for (name, value) in &shown.numbers {
        metrics.job_metric.with_label_values(&[labels[0], labels[1], name]).set(*value);
    }
}
