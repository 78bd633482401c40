//! Carries decisions out.

use crate::decide::{Nodes, decide};
use crate::metrics::{LogSeen, Metrics};
use crate::wanted::{Scale, Wanted};
use catchment_fleet::{Fleet, NodeBeat, Zones};
use catchment_ledger::{Deadlines, Decided, Ledger, LedgerError, Moment, Outcome, State};
use catchment_planner::{Explanation, Node};
use catchment_types::{Clock, LogId, Record, TimeMs};
use futures::future::{BoxFuture, join_all};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long to wait before deciding again when a decision could not be carried out.
const RETRY: Duration = Duration::from_secs(1);

/// One of the cluster's coordinators.
#[derive(Debug, Clone)]
pub struct Coordinator {
    /// Its name in the fleet.
    pub id: u64,
    /// What it counts.
    pub metrics: Metrics,
    /// How it counts nodes.
    pub scale: Scale,
    /// The highest feature level that it raises the cluster to.
    pub level_max: u32,
    /// The identity that it gives to a log that has none.
    pub log: LogId,
}

impl Coordinator {
    /// Gives a log that has no record yet its identity and its level: nobody can have written into it what an older release
    /// would have to read.
    ///
    /// # Errors
    /// The log cannot be written to.
    pub async fn begin(&self, ledger: &Ledger, at_ms: TimeMs) -> Result<(), LedgerError> {
        let first = Record::LevelRaised { level: self.level_max, log: self.log, at_ms };
        let on = ledger.read(|state| state.decided(&first));
        if self.level_max < 2 || on.sequence > 0 {
            return Ok(());
        }
        match ledger.decide(first, on).await {
            // Another was faster.
            Ok(_) | Err(LedgerError::Stale { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Decides whenever the state or the fleet changes or a deadline passes, while it is the one of the coordinators that
/// does; stands by otherwise, and knows as much. Runs until dropped.
///
/// In a box, so that it is compiled here, once.
pub fn run(ledger: Ledger, fleet: Fleet, clock: Arc<dyn Clock>, coordinator: Coordinator) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let Coordinator { id, metrics, scale, level_max, log } = coordinator;
        let (mut changes, mut members) = (ledger.watch(), fleet.watch());
        let (mut leads, mut wanted) = (false, Wanted::new(scale));
        // Whoever stands by counts the time as well, so another leader changes no deadline.
        let (begun, mut deadlines) = (Instant::now(), Deadlines::new(fleet.is_alone()));
        loop {
            changes.mark_unchanged();
            members.mark_unchanged();
            if leads != fleet.is_leader(id) {
                leads = !leads;
                tracing::info!(leads, "this coordinator {}", if leads { "decides from now on" } else { "stands by" });
            }
            let now = Moment { clock_ms: clock.now_ms(), passed_ms: begun.elapsed().as_millis() as u64 };
            let beats = fleet.live();
            let level = fleet.level().map(|level| level.min(level_max));
            let (log_seen, decision, on, nodes_wanted) = ledger.read(|state: &State| {
                let (live, cpu_s_per_byte) = (planned(&beats), cpu_s_per_byte(&beats));
                let nodes = Nodes { live, lost: fleet.lost_of(state.holders()), cpu_s_per_byte };
                deadlines.look(state, now);
                let mut decision = decide(state, &nodes, &deadlines, now);
                // Before all others: they may need it.
                if let Some(level) = level.filter(|level| *level > state.level()) {
                    decision.records.insert(0, Record::LevelRaised { level, log, at_ms: now.clock_ms });
                }
                // At the first level the first alone is still valid once it is appended; the state's change brings us back.
                decision.records.truncate(if state.level() < 2 { 1 } else { usize::MAX });
                let on: Vec<Decided> = decision.records.iter().map(|record| state.decided(record)).collect();
                let (sequence, foreign) = (state.sequence(), state.foreign());
                let log_seen = LogSeen { sequence, foreign, is_followed: ledger.fault().is_none() };
                (log_seen, decision, on, wanted.step(state, &nodes, now.passed_ms))
            });
            metrics.see(leads, fleet.counts(), log_seen);
            show_wanted(&metrics, &fleet, nodes_wanted, leads);
            if leads && !decision.records.is_empty() {
                let records = decision.records.into_iter().zip(on);
                let each = records.map(|(record, on)| carry_out(&ledger, &metrics, &decision.explanations, record, on));
                let ends = join_all(each).await;
                if ends.contains(&End::Stopped) {
                    return;
                }
                if ends.contains(&End::InVain) {
                    tokio::time::sleep(RETRY).await;
                }
                continue;
            }
            let wanted_ms = wanted.look_again_ms().map(|at| at.saturating_sub(now.passed_ms).max(1));
            let look_again_ms = decision.look_again_ms.into_iter().chain(wanted_ms).min();
            let until_then = look_again_ms.map(Duration::from_millis);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                changed = members.changed() => if changed.is_err() { return },
                () = sleep_for(until_then) => {}
            }
        }
    })
}

/// How the attempt to carry a decision out has ended.
#[derive(PartialEq)]
enum End {
    /// It is carried out, or something has happened meanwhile and it is to be taken anew.
    Over,
    /// It would fail again at once.
    InVain,
    /// The ledger's writer has ended.
    Stopped,
}

async fn carry_out(
    ledger: &Ledger,
    metrics: &Metrics,
    explanations: &[Explanation],
    record: Record,
    on: Decided,
) -> End {
    tracing::info!(?record, why = explained(explanations, &record), "decide");
    match ledger.decide(record.clone(), on).await {
        Ok(Outcome::Ignored(why)) => {
            // The state refuses what was decided on it: without a pause this would fill the log.
            tracing::error!(why, "a decision changed nothing");
            End::InVain
        }
        Ok(_) => {
            metrics.count(&record);
            End::Over
        }
        Err(LedgerError::Stale { .. }) => End::Over,
        Err(LedgerError::Stopped) => End::Stopped,
        Err(error) => {
            tracing::warn!(%error, "append decision");
            End::InVain
        }
    }
}

/// Shows how many nodes are wanted: a line and a heartbeat when that changes.
fn show_wanted(metrics: &Metrics, fleet: &Fleet, wanted: Option<u64>, leads: bool) {
    let Some(now) = wanted.filter(|now| metrics.wanted() != Some(*now)) else { return };
    let before = metrics.wanted();
    metrics.want(now);
    if leads {
        tracing::info!(wanted = now, before, live = fleet.counts().live, "the number of nodes wanted has changed");
    }
    fleet.say_now();
}

/// Nodes that take work, as the planner sees them.
pub fn planned(beats: &[NodeBeat]) -> Vec<Node> {
    let zones = Zones::of(beats);
    let node = |beat: &NodeBeat| Node {
        node: beat.node,
        cores: beat.cores.into(),
        memory_bytes: beat.memory_bytes,
        link_bytes_per_s: beat.link_bytes_per_s,
        zone: zones.number(beat),
    };
    beats.iter().filter(|beat| !beat.draining).map(node).collect()
}

/// What nodes measured of their functions: the mean of those that have.
fn cpu_s_per_byte(beats: &[NodeBeat]) -> f64 {
    let measured: Vec<f64> = beats.iter().map(|beat| beat.cpu_s_per_byte).filter(|cpu| *cpu > 0.0).collect();
    if measured.is_empty() { 0.0 } else { measured.iter().sum::<f64>() / measured.len() as f64 }
}

/// Why a record places its round where it does, as one line of JSON.
fn explained(explanations: &[Explanation], record: &Record) -> String {
    let placed = match record {
        Record::RoundOpened { uid, .. } | Record::RoundPlaced { uid, .. } => *uid,
        _ => return String::new(),
    };
    let found = explanations.iter().find(|explanation| explanation.key.uid == placed);
    found.and_then(|explanation| serde_json::to_string(explanation).ok()).unwrap_or_default()
}

async fn sleep_for(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
