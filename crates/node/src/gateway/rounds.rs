//! Rounds, check-ins and receipts.

use super::jobs::propose;
use super::opening;
use super::path::At;
use super::problem::Failure;
use super::text::Text;
use crate::context::{Context, Ending};
use crate::desk::check_in;
use crate::shape::shape;
use axum::Json;
use axum::extract::{Path, Query, State};
use catchment_fleet::beat_of;
use catchment_ledger::{Job, Outcome};
use catchment_planner::Levels;
use catchment_types::{
    CheckIn, ClientId, CloseReason, Code, DurationText, NodeId, Problem, Receipt, ReceiptId, Record, RoundView, Task,
    TaskKind, read_object,
};
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait of one call.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Waiting for a change.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct Waiting {
    /// How long to wait for a change, like `30s`; at most 60s.
    wait: Option<String>,
    /// The revision that the caller knows: the call returns at once when there is a newer one.
    after: Option<u64>,
}

/// The job's newest round. With `wait` and `after`, waits for the next change: a round that opens, closes or ends, or
/// a job that changes its state. Single updates do not count as changes. A node that is told to end answers at once, with
/// what is known; ask again then, as after any answer without news.
#[utoipa::path(get, path = "/{job}/round", tag = "rounds", params(("job" = String, Path), Waiting,
        ("uid" = Option<String>, Query, description = "the job's identity: 404 when the name is another job's by now")),
    responses((status = 200, body = RoundView), (status = 404, body = Problem)))]
pub async fn round(
    State(context): State<Arc<Context>>,
    at: At,
    Query(waiting): Query<Waiting>,
) -> Result<Json<RoundView>, Failure> {
    let wait = match waiting.wait.as_deref().map(str::parse::<DurationText>).transpose() {
        Ok(wait) => wait.map_or(Duration::ZERO, |wait| Duration::from_millis(wait.ms())).min(WAIT_MAX),
        Err(error) => return Err(Problem::new(Code::BadRequest, format!("wait: {error}")).into()),
    };
    let look = || {
        context.ledger.read(|state| {
            let job = at.find(state)?;
            Ok::<_, Failure>(seen_from_here(&context, job, job.round_view()))
        })
    };
    if wait.is_zero() {
        opening::read_on(&context).await;
    }
    let first = look()?;
    let after = waiting.after.unwrap_or(first.revision);
    if wait.is_zero() || first.revision > after {
        return Ok(Json(first));
    }
    // Who asks a node that drains already knows no other yet: it waits for as long as the node is there.
    let Ending { drain, stop } = &context.ending;
    let leaves = if drain.is_cancelled() { stop.cancelled() } else { drain.cancelled() };
    let mut revisions = context.ledger.watch_job(first.uid);
    let changed = async {
        loop {
            let view = look()?;
            if view.revision > after || revisions.changed().await.is_err() {
                return Ok(view);
            }
        }
    };
    tokio::select! {
        biased;
        view = changed => view.map(Json),
        () = tokio::time::sleep(wait) => look().map(Json),
        // Nothing has changed as far as this node knows, and another one may be asked for what comes.
        () = leaves => look().map(Json),
    }
}

/// A round's view with what this node knows of the others.
pub fn seen_from_here(context: &Context, job: &Job, mut view: RoundView) -> RoundView {
    view.gateway = job.active_round().and_then(|round| context.peers.gateway(round, None));
    let live = context.peers.fleet.live();
    // A node alone merges with nobody.
    let round = job.active_round().filter(|_| view.nodes.len() > 1);
    let merges = match round.and_then(|round| Some(shape(&live, job, round, round.top()?))) {
        Some(Levels::Tree(merges)) => merges,
        _ => Vec::new(),
    };
    let into: HashMap<NodeId, NodeId> =
        merges.iter().flat_map(|merge| merge.from.iter().map(|from| (*from, merge.into))).collect();
    for node in &mut view.nodes {
        let Ok(id) = node.node.parse() else { continue };
        node.name = beat_of(&live, id).map(|beat| beat.name.clone());
        node.into = into.get(&id).map(NodeId::to_string);
    }
    view
}

/// What the job's function hands clients beside the model for a round, if anything: control variates, masks, stacks.
#[utoipa::path(get, path = "/{job}/rounds/{round}/broadcast", tag = "rounds",
    params(("job" = String, Path), ("round" = u64, Path),
        ("uid" = Option<String>, Query, description = "the job's identity: 404 when the name is another job's by now")),
    responses((status = 404, body = Problem, description = "the function hands out nothing beside the model")))]
pub async fn broadcast(State(context): State<Arc<Context>>, at: At) -> Result<(), Failure> {
    let round = at.number("round")?;
    context.ledger.read(|state| {
        let job = at.find(state)?;
        let detail = match job.round_numbered(round) {
            Some(_) => format!("function `{}` hands out nothing beside the model", job.spec.function_name()),
            None => format!("job `{}` has no round {round}, or keeps it no longer", job.spec.name),
        };
        Err(Problem::new(Code::NotFound, detail).into())
    })
}

/// Ends an open round with the updates that it has: its model is made of them, however few. For its owner, when clients
/// that were waited for do not come.
#[utoipa::path(post, path = "/{job}/rounds/{round}/close", tag = "rounds",
    params(("job" = String, Path), ("round" = u64, Path),
        ("uid" = Option<String>, Query, description = "the job's identity: 404 when the name is another job's by now")),
    responses((status = 200, body = RoundView), (status = 404, body = Problem),
        (status = 409, body = Problem, description = "`wrong_state`: it is not open, or has no update"),
        (status = 410, body = Problem, description = "`round_closed`: it is over")))]
pub async fn close(State(context): State<Arc<Context>>, at: At) -> Result<Json<RoundView>, Failure> {
    let number = at.number("round")?;
    let (uid, is_over, level) = context.ledger.read(|state| {
        let job = at.find(state)?;
        let is_over = job.round_numbered(number).is_some_and(|round| !round.is_active());
        Ok::<_, Failure>((job.uid, is_over || number < job.round_number(), state.level()))
    })?;
    if is_over {
        return Err(Problem::new(Code::RoundClosed, format!("round {number} is over")).into());
    }
    let record = Record::RoundClosed { uid, round: number, reason: CloseReason::Asked, at_ms: context.clock.now_ms() };
    if record.level() > level {
        let detail = "some member of the cluster is of a release that cannot close a round early: upgrade it first";
        return Err(Problem::new(Code::WrongState, detail).into());
    }
    if let Outcome::Ignored(why) = propose(&context, record).await? {
        return Err(Problem::new(Code::WrongState, format!("round {number} cannot be closed: {why}")).into());
    }
    opening::settled(&context, uid).await;
    context.ledger.read(|state| {
        let job = state.job(uid).ok_or_else(|| Problem::new(Code::NotFound, "the job was deleted meanwhile"))?;
        Ok(Json(seen_from_here(&context, job, job.round_view())))
    })
}

/// Asks for work: to train, to measure a model, or when to ask again. Asking again changes nothing: a task in hand is
/// the same task, for some more time, and an appointment stays.
#[utoipa::path(post, path = "/v1/clients/{client}/checkin", tag = "clients", params(("client" = String, Path)),
    request_body = CheckIn, responses((status = 200, body = Task), (status = 404, body = Problem)))]
pub async fn checkin(
    State(context): State<Arc<Context>>,
    Path(client): Path<String>,
    Text(body): Text,
) -> Result<Json<Task>, Failure> {
    let client: ClientId = client.parse().map_err(|error| Problem::new(Code::BadRequest, format!("{error}")))?;
    let checkin: CheckIn = if body.is_empty() {
        CheckIn::default()
    } else {
        read_object(&body)
            .map_err(|error| Problem::new(Code::BadRequest, format!("the check-in does not parse: {error}")))?
    };
    let Some(task) = check_in(&context, &client, &checkin).await else {
        let name = checkin.job.map_or_else(String::new, |name| name.to_string());
        return Err(Problem::new(Code::NotFound, format!("there is no job `{name}` to work for")).into());
    };
    let gateway = gateway(&context, &client, &task).await;
    Ok(Json(Task { gateway, ..task }))
}

/// The node that a task's update is best sent to; `None`: this one, or any.
async fn gateway(context: &Context, client: &ClientId, task: &Task) -> Option<String> {
    let uid = task.uid.filter(|_| task.task == TaskKind::Train)?;
    let look = || {
        context.ledger.read(|state| {
            let job = state.job(uid)?;
            let round = job.active_round()?;
            Some((job.address_of(round), context.peers.gateway(round, Some(client))))
        })
    };
    let mut found = look();
    if found.as_ref().map(|(address, _)| *address) != task.round {
        // Whoever gave the task has read on further in the log than this node, which knows only where the last round was.
        context.refresh().await;
        found = look();
    }
    found.and_then(|(_, gateway)| gateway)
}

/// What became of an update.
#[utoipa::path(get, path = "/v1/receipts/{receipt}", tag = "clients", params(("receipt" = String, Path)),
    responses((status = 200, body = Receipt), (status = 404, body = Problem)))]
pub async fn receipt(State(context): State<Arc<Context>>, Path(id): Path<String>) -> Result<Json<Receipt>, Failure> {
    let id: ReceiptId = id.parse().map_err(|error| Problem::new(Code::BadRequest, format!("{error}")))?;
    let look = || context.ledger.read(|state| state.receipt(id));
    let mut receipt = look();
    if receipt.is_none() {
        context.refresh().await;
        receipt = look();
    }
    let gone = || Problem::new(Code::NotFound, format!("there is no receipt {id}, or its retention has passed")).into();
    receipt.map(Json).ok_or_else(gone)
}
