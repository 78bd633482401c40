//! What the node counts. Labels are the namespace, the job and small closed sets, never a client: a label per client
//! would cost more memory than the clients' updates.

use catchment_types::{Code, JobSpec, Problem};
use prometheus::{
    CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
    core::{Collector, MetricVec, MetricVecBuilder},
};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock};

const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];
const JOB: [&str; 2] = ["namespace", "job"];

/// The node's metrics.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Updates answered with 202.
    pub updates_received: IntCounterVec,
    /// Bytes of their bodies.
    pub update_bytes: IntCounterVec,
    /// Updates refused, by code.
    pub updates_rejected: IntCounterVec,
    /// Uploads that were gone on with after their connection broke.
    pub uploads_resumed: IntCounterVec,
    /// Uploads that wait for their clients to go on.
    pub uploads_parked: IntGaugeVec,
    pub uploads_stored: IntGaugeVec,
    /// From a round's opening to its commit.
    pub round_duration: HistogramVec,
    /// Time spent folding, merging and finalising one round.
    pub aggregation: HistogramVec,
    /// From an update's acceptance to the commit of its round.
    pub accept_to_commit: HistogramVec,
    /// Rounds ended, by outcome.
    pub rounds: IntCounterVec,
    /// Steps of jobs' aggregations that failed and are tried again, by kind.
    pub step_failures: IntCounterVec,
    /// When a job last committed, in seconds since the epoch.
    pub last_commit: IntGaugeVec,
    /// Instances alive, by level and state.
    pub instances: IntGaugeVec,
    /// Instances created.
    pub cold_starts: IntCounterVec,
    /// CPU time of functions.
    pub function_cpu: CounterVec,
    /// Time that work waited for a runner.
    pub order_wait: HistogramVec,
    /// Descriptors to runners, by path.
    pub descriptors: IntCounterVec,
    /// Bytes of payload that they named.
    pub descriptor_payload: IntCounterVec,
    /// Runner processes.
    pub runners: IntGauge,
    /// Runners started because another had ended.
    pub runner_restarts: IntCounter,
    /// CPU time of runners, by what it was.
    pub runner_cpu: CounterVec,
    /// How descriptors reach runners, and what was missing for more.
    pub link: IntGaugeVec,
    /// Time to create one.
    pub cold_start_seconds: Histogram,
    /// Accepted updates that no accumulator has yet.
    pub queue_depth: IntGaugeVec,
    /// Jobs whose work fails here and is tried again.
    pub stalled: IntGaugeVec,
    /// Whether the directories that the node writes to can be written to.
    pub writable: IntGauge,
    /// Whether the log is followed.
    pub log_followed: IntGauge,
    /// What is in the log and is no record.
    pub log_foreign: IntGauge,
    /// Bytes that came from other nodes, by what they were.
    pub peer_bytes: IntCounterVec,
    /// Shared memory by state.
    pub slab_bytes: IntGaugeVec,
    /// Memory for heads and decoders of bodies that are being received.
    pub buffer_bytes: IntGaugeVec,
    /// Initial models that are being received.
    pub drafts: IntGauge,
    /// Bytes on disk that they may take.
    pub draft_bytes: IntGauge,
    /// Large slab files made, by the size of their pages.
    pub slab_large_files: IntGaugeVec,
    /// What contributors reported, averaged, for the newest model.
    pub job_metric: prometheus::GaugeVec,
    /// Held while counters are set from elsewhere and shown.
    pub scrape: Arc<Mutex<()>>,
    /// What else this process counts.
    beside: Arc<OnceLock<Registry>>,
}

impl Metrics {
    /// Registers everything.
    pub fn new(version: &str) -> Self {
        let registry = Registry::new();
        let counter = |name, help, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels).expect("valid names"))
        };
        let gauge = |name, help, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels).expect("valid names"))
        };
        let seconds = |name, help, labels: &[&str]| {
            let opts = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            register(&registry, HistogramVec::new(opts, labels).expect("valid names"))
        };
        gauge("catchment_build_info", "Constant 1, with the version.", &["version"])
            .with_label_values(&[version])
            .set(1);
        let cold = HistogramOpts::new("catchment_cold_start_seconds", "Time to create an instance.")
            .buckets(vec![1e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 1e-2, 0.1, 1.0]);
        let level = ["namespace", "job", "level", "state"];
        Self {
            updates_received: counter("catchment_updates_received_total", "Updates accepted.", &JOB),
            update_bytes: counter("catchment_update_bytes_total", "Bytes of accepted updates.", &JOB),
            updates_rejected: counter(
                "catchment_updates_rejected_total",
                "Updates refused, by code.",
                &["namespace", "job", "reason"],
            ),
            uploads_resumed: counter(
                "catchment_uploads_resumed_total",
                "Uploads that were gone on with after their connection broke.",
                &JOB,
            ),
            uploads_parked: gauge(
                "catchment_uploads_parked",
                "Uploads whose connection broke, kept for their clients.",
                &JOB,
            ),
            uploads_stored: gauge(
                "catchment_uploads_stored",
                "Of these, the ones that are in the data directory, and outlive the process.",
                &JOB,
            ),
            round_duration: seconds("catchment_round_duration_seconds", "From a round's opening to its commit.", &JOB),
            aggregation: seconds("catchment_aggregation_seconds", "Time aggregating one round's updates.", &JOB),
            accept_to_commit: seconds(
                "catchment_accept_to_commit_seconds",
                "From an update's acceptance to its round's commit.",
                &JOB,
            ),
            rounds: counter("catchment_rounds_total", "Rounds ended, by outcome.", &["namespace", "job", "outcome"]),
            step_failures: counter(
                "catchment_job_step_failures_total",
                "Steps of a job's aggregation that failed and are tried again: panic, or outside.",
                &["namespace", "job", "kind"],
            ),
            last_commit: gauge("catchment_last_commit_timestamp_seconds", "When a job last committed.", &JOB),
            instances: gauge("catchment_function_instances", "Function instances, by level and state.", &level),
            cold_starts: counter("catchment_cold_starts_total", "Function instances created.", &JOB),
            order_wait: register(
                &registry,
                HistogramVec::new(
                    HistogramOpts::new("catchment_order_wait_seconds", "Time that work waited for a runner.")
                        .buckets(vec![1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 5e-3, 2.5e-2, 0.1, 1.0, 10.0]),
                    &JOB,
                )
                .expect("valid names"),
            ),
            descriptors: counter(
                "catchment_descriptors_routed_total",
                "Descriptors to runners, by path: kernel, socket or slow.",
                &["namespace", "job", "path"],
            ),
            descriptor_payload: counter(
                "catchment_descriptor_payload_bytes_total",
                "Bytes of payload that descriptors to runners named.",
                &JOB,
            ),
            runners: register(
                &registry,
                IntGauge::new("catchment_runners", "Runner processes.").expect("a valid name"),
            ),
            runner_restarts: register(
                &registry,
                IntCounter::new("catchment_runner_restarts_total", "Runners started because another had ended.")
                    .expect("a valid name"),
            ),
            runner_cpu: register(
                &registry,
                CounterVec::new(
                    Opts::new(
                        "catchment_runner_cpu_seconds_total",
                        "What the kernel saw of runners: running, or queued for a CPU.",
                    ),
                    &["state"],
                )
                .expect("valid names"),
            ),
            link: gauge(
                "catchment_link",
                "Constant 1: how descriptors reach runners, and what was missing for the kernel to route or meter.",
                &["link", "routing_lacks", "metering_lacks"],
            ),
            function_cpu: register(
                &registry,
                CounterVec::new(Opts::new("catchment_function_cpu_seconds_total", "CPU time of functions."), &JOB)
                    .expect("valid names"),
            ),
            cold_start_seconds: register(&registry, Histogram::with_opts(cold).expect("valid names")),
            queue_depth: gauge("catchment_queue_depth", "Accepted updates that wait to be folded.", &JOB),
            stalled: gauge(
                "catchment_job_stalled",
                "1 while a job's work fails on this node and is tried again; its reason says why.",
                &JOB,
            ),
            writable: register(
                &registry,
                IntGauge::new(
                    "catchment_data_dir_writable",
                    "1 while data and slab directory take writes, 0 while one refuses them.",
                )
                .expect("a valid name"),
            ),
            log_followed: register(
                &registry,
                IntGauge::new(
                    "catchment_log_followed",
                    "1 while the event log is followed, 0 once it holds what this process cannot read; /readyz says what.",
                )
                .expect("a valid name"),
            ),
            log_foreign: register(
                &registry,
                IntGauge::new(
                    "catchment_log_foreign",
                    "Messages in the event log that are no records: everybody leaves them out.",
                )
                .expect("a valid name"),
            ),
            peer_bytes: counter(
                "catchment_peer_bytes_total",
                "Bytes that came from other nodes: partials or updates.",
                &["namespace", "job", "kind"],
            ),
            slab_bytes: gauge("catchment_slab_bytes", "Shared memory, by state.", &["state"]),
            buffer_bytes: gauge(
                "catchment_buffer_bytes",
                "Memory for bodies that are being received, by what for: head or decoder. --buffer-mib limits it.",
                &["kind"],
            ),
            drafts: register(
                &registry,
                IntGauge::new("catchment_model_drafts", "Initial models that are being received.")
                    .expect("a valid name"),
            ),
            draft_bytes: register(
                &registry,
                IntGauge::new("catchment_model_draft_bytes", "Bytes on disk that they have or are about to have.")
                    .expect("a valid name"),
            ),
            slab_large_files: gauge(
                "catchment_slab_large_files",
                "Slab files of 16 MiB and more made since the start, by the size of their pages.",
                &["pages"],
            ),
            job_metric: register(
                &registry,
                prometheus::GaugeVec::new(
                    Opts::new("catchment_job_metric", "What contributors reported, averaged, for the newest model."),
                    &["namespace", "job", "name"],
                )
                .expect("valid names"),
            ),
            scrape: Arc::default(),
            beside: Arc::default(),
            registry,
        }
    }

    /// Counts a refusal. Unknown jobs are counted under empty names, so that a caller cannot make labels.
    pub fn reject(&self, spec: Option<&JobSpec>, problem: &Problem) {
        let code = Code::ALL.iter().copied().find(|code| problem.is(*code)).unwrap_or(Code::Internal);
        let (namespace, job) = spec.map_or(("", ""), |spec| (spec.namespace.as_str(), spec.name.as_str()));
        self.updates_rejected.with_label_values(&[namespace, job, code.as_str()]).inc();
    }

    /// Forgets the series of jobs, given by namespace and name, that are gone.
    pub fn forget(&self, is_gone: impl Fn([&str; 2]) -> bool) {
        for counter in [
            &self.updates_received,
            &self.update_bytes,
            &self.updates_rejected,
            &self.uploads_resumed,
            &self.rounds,
            &self.step_failures,
            &self.cold_starts,
            &self.descriptors,
            &self.descriptor_payload,
            &self.peer_bytes,
        ] {
            remove(counter, &is_gone);
        }
        remove(&self.function_cpu, &is_gone);
        for histogram in [&self.order_wait, &self.round_duration, &self.aggregation, &self.accept_to_commit] {
            remove(histogram, &is_gone);
        }
        let gauges = [
            &self.uploads_parked,
            &self.uploads_stored,
            &self.last_commit,
            &self.queue_depth,
            &self.stalled,
            &self.instances,
        ];
        for gauge in gauges {
            remove(gauge, &is_gone);
        }
        remove(&self.job_metric, &is_gone);
    }

    /// Seconds of CPU that functions took for each byte of updates; 0 before the first. Both are sums since the start, so
    /// this moves slowly, as an estimate should.
    pub fn cpu_s_per_byte(&self) -> f64 {
        let seconds: f64 = sum(&self.function_cpu);
        let bytes: f64 = sum(&self.update_bytes);
        if bytes > 0.0 { seconds / bytes } else { 0.0 }
    }

    /// Shows what is counted elsewhere in this process, too; its names are others.
    pub fn show_too(&self, registry: Registry) {
        self.beside.set(registry).ok();
    }

    /// Everything in Prometheus text format.
    pub fn text(&self) -> String {
        let mut families = self.registry.gather();
        // What both show, like how it stands with the log, is the same: once is enough, and twice is not allowed.
        let ours: HashSet<String> = families.iter().map(|family| family.name().to_owned()).collect();
        let beside = self.beside.get().into_iter().flat_map(Registry::gather);
        families.extend(beside.filter(|family| !ours.contains(family.name())));
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

/// The sum of a counter over all its labels.
fn sum(counter: &impl Collector) -> f64 {
    counter.collect().iter().flat_map(|family| family.get_metric()).map(|metric| metric.get_counter().get_value()).sum()
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("each name is registered once");
    collector
}

/// Removes every series of a vector whose job is gone.
fn remove<T: MetricVecBuilder>(vector: &MetricVec<T>, is_gone: impl Fn([&str; 2]) -> bool) {
    for family in vector.collect() {
        for metric in family.get_metric() {
            let labels: HashMap<&str, &str> =
                metric.get_label().iter().map(|pair| (pair.name(), pair.value())).collect();
            if is_gone(JOB.map(|name| labels.get(name).copied().unwrap_or_default())) {
                vector.remove(&labels).ok();
            }
        }
    }
}
