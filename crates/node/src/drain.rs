//! Leaving a cluster without leaving anything behind.
//!
//! A node that drains says so. Rounds then open elsewhere, open ones send whoever has not come elsewhere, and clients are
//! told of other gateways; the node itself goes on as ever, so that what it holds of active rounds is folded and taken by
//! those rounds' tops. It ends as soon as it holds nothing, or when its time is over.

use crate::context::{Context, Ending};
use catchment_ledger::State;
use catchment_types::NodeId;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether uploads are under way, of which no log tells.
const LOOK: Duration = Duration::from_millis(100);

impl Ending {
    /// Ends now: what is in progress is finished.
    pub fn end(&self) {
        self.drain.cancel();
        self.stop.cancel();
    }
}

/// Once the node is asked to drain, ends it when nothing holds it any more, and after the configured time at the latest.
pub(crate) async fn run(context: Arc<Context>) {
    let ending = &context.ending;
    tokio::select! {
        () = ending.drain.cancelled() => {}
        () = ending.stop.cancelled() => return,
    }
    let limit = context.config.drain_time;
    if !limit.is_zero() && others_take_over(&context) {
        tracing::info!(?limit, "draining: new work goes to other nodes");
        // What is parked would keep its client here; it is sent whole elsewhere.
        context.parking.close();
        context.peers.fleet.say_now();
        let emptied = async {
            tokio::select! {
                why = emptied(&context) => why,
                () = ending.stop.cancelled() => "told to end at once",
            }
        };
        let why = tokio::time::timeout(limit, emptied).await.unwrap_or("the time is over");
        let held = context.ledger.read(|state| held(state, context.node));
        tracing::info!(why, held = held.join(", "), "drained");
    }
    ending.end();
}

/// Waits until the node holds nothing, or nobody is there to take anything over.
async fn emptied(context: &Context) -> &'static str {
    let (mut changes, mut members) = (context.ledger.watch(), context.peers.fleet.watch());
    loop {
        changes.mark_unchanged();
        members.mark_unchanged();
        if !others_take_over(context) {
            return "no other node is there";
        }
        if is_empty(context) && closed(context) {
            return "nothing is held here";
        }
        let changed = tokio::select! {
            changed = changes.changed() => changed,
            changed = members.changed() => changed,
            () = tokio::time::sleep(LOOK) => Ok(()),
        };
        if changed.is_err() {
            return "nothing changes any more";
        }
    }
}

/// Takes no more updates, so that none can slip in between a last look and the end. Returns whether none has.
fn closed(context: &Context) -> bool {
    context.holdings.close();
    // Whoever holds something now did so before it was closed.
    is_empty(context)
}

fn is_empty(context: &Context) -> bool {
    !context.holdings.is_busy() && context.ledger.read(|state| held(state, context.node).is_empty())
}

/// Whether another node is there that stays.
fn others_take_over(context: &Context) -> bool {
    let fleet = &context.peers.fleet;
    !fleet.is_alone() && fleet.live().iter().any(|beat| beat.node != context.node && !beat.draining)
}

/// What a node has of active rounds, each as `job/round: updates`.
fn held(state: &State, node: NodeId) -> Vec<String> {
    let share = |job: &catchment_ledger::Job| {
        let round = job.active_round()?;
        Some(format!("{}/{}: {}", job.spec.name, round.number, round.share(node)?.updates))
    };
    state.jobs_by_name().filter_map(share).collect()
}
