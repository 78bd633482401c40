//! Models: the initial one in, every version out.

use super::body::Body as Incoming;
use super::encoding;
use super::jobs::propose;
use super::opening;
use super::path::At;
use super::problem::Failure;
use super::stretch::Stretch;
use crate::aggregate::taken;
use crate::context::Context;
use crate::drafts::DraftPlace;
use crate::head::{ReadHead, read_head};
use crate::layouts::ModelLayout;
use crate::owner::owner;
use crate::peers::models::{ensure, spread};
use crate::submit::RETRY_AFTER_S;
use crate::upload::with_room;
use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use catchment_ingest::Scatter;
use catchment_slab::SlabMut;
use catchment_types::{
    Code, Footprint, JobSpec, JobState, JobUid, ModelCommit, ModelView, Page, Problem, Record, RoundView,
};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;

/// The initial model, and the round that it opened.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct StoredModel {
    #[serde(flatten)]
    model: ModelView,
    /// The job's newest round: open, as a rule. Its state is `none` while none has opened yet, after two seconds.
    current_round: RoundView,
}

/// Stores the initial model and opens the first round. The answer comes when that is open.
#[utoipa::path(put, path = "/{job}/model", tag = "models", params(("job" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = StoredModel, headers(
            ("Retry-After" = u64, description = "when to ask for the round; absent when it is open"))),
        (status = 404, body = Problem), (status = 408, body = Problem), (status = 413, body = Problem),
        (status = 429, body = Problem), (status = 503, body = Problem),
        (status = 409, body = Problem, description = "`wrong_state`: the job has a model already"),
        (status = 422, body = Problem, description = "`invalid_safetensors`, `not_finite`, `out_of_range`, `layout`")))]
pub async fn put(
    State(context): State<Arc<Context>>,
    at: At,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let (body, declared) = encoding::decoded(&context, &headers, body).await?;
    let mut body = Incoming::stream(body, declared, &context);
    match store(&context, &at, &mut body).await {
        Ok((uid, model)) => stored(&context, uid, model).await,
        Err(failure) => {
            body.drain().await;
            Err(failure)
        }
    }
}

/// Answers when the round is open, or says when to ask for it.
async fn stored(context: &Context, uid: JobUid, model: ModelView) -> Result<Response, Failure> {
    opening::settled(context, uid).await;
    let found = context.ledger.read(|state| state.job(uid).map(|job| (job.round_view(), opening::is_opening(job))));
    let (current_round, is_opening) = found.ok_or_else(gone)?;
    let mut response = (StatusCode::CREATED, Json(StoredModel { model, current_round })).into_response();
    if is_opening {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    }
    Ok(response)
}

async fn store(context: &Arc<Context>, at: &At, body: &mut Incoming) -> Result<(JobUid, ModelView), Failure> {
    let (uid, spec, state) =
        context.ledger.read(|state| at.find(state).map(|job| (job.uid, job.spec.clone(), job.state)))?;
    if state != JobState::WaitingForModel {
        return same_again(context, uid, &spec, body).await.map(|known| (uid, known));
    }
    let (model, needs) = receive(context, uid, &spec, body).await?;
    let (etag, at_ms) = (model.etag, context.clock.now_ms());
    spread(context, uid, 0, etag).await;
    propose(context, Record::ModelPut { uid, model, needs, at_ms }).await?;
    let stored = context.ledger.read(|state| initial(state, uid));
    let view = stored.ok_or_else(|| Failure(gone()));
    if !view.as_ref().is_ok_and(|view| view.etag == etag) {
        // Another model was first, or the job is gone: this file is nobody's.
        let is_another = |version, found| version != 0 || found != etag;
        if let Err(error) = context.models.prune(uid, is_another) {
            tracing::debug!(%error, "remove a model that came too late");
        }
        if view.is_err() {
            context.forget_job(uid);
        }
    }
    let view = view?;
    if view.etag == etag { Ok((uid, view)) } else { Err(has_its_model(&spec, state)) }
}

/// The initial model may be sent again, as after an answer that was lost; another one may not.
async fn same_again(context: &Context, uid: JobUid, spec: &JobSpec, body: &mut Incoming) -> Result<ModelView, Failure> {
    let known = context.ledger.read(|state| state.job(uid).map(|job| (job.state, initial(state, uid))));
    let (state, known) = known.ok_or_else(gone)?;
    let Some(known) = known else { return Err(has_its_model(spec, state)) };
    body.check_length(spec.limits.update_bytes)?;
    let digest = body.digest(known.bytes).await?;
    if digest.is_some_and(|digest| digest.body() == known.etag) { Ok(known) } else { Err(has_its_model(spec, state)) }
}

fn initial(state: &catchment_ledger::State, uid: JobUid) -> Option<ModelView> {
    let job = state.job(uid)?;
    job.model(0).map(|model| job.model_view(model))
}

fn has_its_model(spec: &JobSpec, state: JobState) -> Failure {
    let detail = format!("job `{}` is {} and has another initial model", spec.name, super::state_text(state));
    Problem::new(Code::WrongState, detail).into()
}

/// Writes the body to the checkpoint of version 0, checking it on the way as an update is checked.
async fn receive(
    context: &Arc<Context>,
    uid: JobUid,
    spec: &JobSpec,
    body: &mut Incoming,
) -> Result<(ModelCommit, Footprint), Failure> {
    body.check_length(spec.limits.update_bytes)?;
    let ReadHead { head, header, rest, buffer } = read_head(context, body).await?;
    let file_bytes = header.data_begin + header.data_bytes;
    if file_bytes > spec.limits.update_bytes {
        return Err(body.too_large(spec.limits.update_bytes).into());
    }
    let _place = Shown::new(context, context.drafts.begin(file_bytes)?);
    context.function_ready(uid, spec).await?;
    let (text, rules, takes) = (head.bytes().to_vec(), spec.clone(), context.functions.takes(spec)?);
    // Many tensors and many rules take a while.
    let layout = tokio::task::spawn_blocking(move || ModelLayout::new(text, header, &rules, takes)).await;
    let layout = layout.map_err(|error| Failure::internal("lay the model out", error))?;
    let layout = layout.map_err(|error| Problem::new(Code::Layout, error))?;
    check_room(context, spec, &layout)?;
    // Memory that the system has never handed out takes seconds for each gigabyte.
    let (store, owner, bytes) = (context.store.clone(), owner(spec, uid), layout.own.slab_bytes);
    let grant = move || store.grant(owner, bytes);
    let scratch = with_room(context, || taken(context, bytes, grant.clone())).await?;
    let unique = catchment_types::JobUid::from_bytes(context.entropy.bytes16());
    let disk = |error| disk(context, uid, error);
    let mut draft = context.draft(uid, &format!("put-{unique}")).map_err(disk)?;
    draft.write(head.bytes()).map_err(disk)?;
    drop((head, buffer));
    let taken =
        take(context, uid, body, Scatter::new(layout.own.clone()), scratch, rest, |bytes| draft.write(bytes)).await;
    // It has given its memory back, whatever became of it.
    context.room.notify_waiters();
    taken?.map_err(disk)?;
    let (etag, bytes) = context.models.keep(draft, uid, 0).map_err(disk)?;
    let needs = Footprint {
        class: layout.takes.class(),
        update_bytes: layout.update_bytes_max(spec),
        partial_bytes: layout.layout.elements() * 8,
    };
    let commit = ModelCommit::initial(etag, bytes, context.node);
    Ok((commit, needs))
}

/// Takes a model's data: checks it in `scratch`, and has it written.
async fn take(
    context: &Context,
    uid: JobUid,
    body: &mut Incoming,
    mut scatter: Scatter,
    mut scratch: SlabMut,
    rest: Bytes,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<io::Result<()>, Problem> {
    let holding = context.holders.begin();
    let gives_way = holding.gives_way();
    body.hold(Some(holding));
    let received = async {
        let mut chunk = Some(rest);
        while let Some(bytes) = chunk {
            scatter.feed(&bytes, scratch.bytes_mut())?;
            if let Err(error) = write(&bytes) {
                return Ok(Err(error));
            }
            chunk = body.next().await?;
        }
        scatter.finish(scratch.bytes_mut()).map(Ok)
    };
    let mut changes = context.ledger.watch_job(uid);
    let is_gone =
        async { while context.ledger.read(|state| state.job(uid).is_some()) && changes.changed().await.is_ok() {} };
    tokio::select! {
        biased;
        () = is_gone => Err(gone()),
        () = gives_way.cancelled() => {
            let detail = "the body stands still, and others wait for the memory that it is checked in: send it again";
            Err(Problem::new(Code::TooSlow, detail))
        }
        received = received => received,
    }
}

/// A draft that could not be written down.
fn disk(context: &Context, uid: JobUid, error: io::Error) -> Failure {
    if context.ledger.read(|state| state.job(uid).is_none()) {
        return gone().into();
    }
    Failure::internal("write the model", error)
}

fn gone() -> Problem {
    Problem::new(Code::NotFound, "the job was deleted meanwhile")
}

/// A draft's place, as the metrics show it.
struct Shown<'c> {
    context: &'c Context,
    place: Option<DraftPlace>,
}

impl<'c> Shown<'c> {
    fn new(context: &'c Context, place: DraftPlace) -> Self {
        let shown = Self { context, place: Some(place) };
        shown.show();
        shown
    }

    fn show(&self) {
        let taken = self.context.drafts.taken();
        self.context.metrics.drafts.set(taken.count as i64);
        self.context.metrics.draft_bytes.set(taken.bytes as i64);
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.place.take();
        self.show();
    }
}

/// Refuses a model whose rounds could never be aggregated in the shared memory that this node may use.
fn check_room(context: &Context, spec: &JobSpec, layout: &ModelLayout) -> Result<(), Problem> {
    let needed = crate::aggregate::bytes_needed(context, spec, layout);
    let budget = context.config.slab_budget_bytes;
    if needed <= budget {
        return Ok(());
    }
    let detail = format!(
        "aggregating this model takes {needed} bytes of shared memory, this node may use {budget}: start it with a \
         larger --slab-mib, or choose a topology with fewer accumulators (or, where the function takes all updates at \
         once, a smaller goal)"
    );
    Err(Problem::new(Code::InvalidSpec, detail))
}

/// Which version.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct Version {
    /// The version; the newest when absent.
    version: Option<u64>,
}

/// A model version's file. `Range` and `If-None-Match` are honoured.
#[utoipa::path(get, path = "/{job}/model", tag = "models", params(("job" = String, Path), Version,
        ("uid" = Option<String>, Query, description = "the job's identity: 404 when the name is another job's by now")),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>), (status = 206), (status = 304),
        (status = 404, body = Problem), (status = 416)))]
pub async fn get(
    State(context): State<Arc<Context>>,
    at: At,
    Query(version): Query<Version>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let (uid, commit) = context.ledger.read(|state| find_version(&at, state, version.version))?;
    ensure(&context, uid, &commit).await?;
    let file = context
        .models
        .file(uid, commit.version, commit.etag)
        .map_err(|error| Failure::internal("read the model", error))?;
    let mut response = Stretch::new(file, 0, commit.bytes, commit.etag).answer(&headers);
    response.headers_mut().insert("catchment-model-version", commit.version.into());
    Ok(response)
}

fn find_version(
    at: &At,
    state: &catchment_ledger::State,
    version: Option<u64>,
) -> Result<(JobUid, ModelCommit), Failure> {
    let job = at.find(state)?;
    let name = &job.spec.name;
    let Some(newest) = job.newest_model() else {
        let detail = format!("job `{name}` has no model yet: PUT the initial one to this address");
        return Err(Problem::new(Code::NotFound, detail).into());
    };
    let newest_version = newest.commit.version;
    let wanted = version.unwrap_or(newest_version);
    match job.model(wanted).filter(|_| job.keeps(wanted)) {
        Some(model) => Ok((job.uid, model.commit.clone())),
        None => {
            let detail =
                format!("job `{name}` has no version {wanted}, or keeps it no longer; the newest is {newest_version}");
            Err(Problem::new(Code::NotFound, detail).into())
        }
    }
}

/// The versions, newest first: all whose files are kept, and what is known of the last 10,000.
#[utoipa::path(get, path = "/{job}/models", tag = "models", params(("job" = String, Path), super::jobs::Paging),
    responses((status = 200, body = Page<ModelView>), (status = 404, body = Problem)))]
pub async fn list(
    State(context): State<Arc<Context>>,
    at: At,
    Query(paging): Query<super::jobs::Paging>,
) -> Result<Json<Page<ModelView>>, Failure> {
    opening::read_on(&context).await;
    context.ledger.read(|state| {
        let job = at.find(state)?;
        let before = paging.cursor().and_then(|cursor| cursor.parse::<u64>().ok()).unwrap_or(u64::MAX);
        let limit = paging.limit();
        let older = job.models.iter().rev().filter(|model| model.commit.version < before);
        let mut items: Vec<ModelView> = older.take(limit + 1).map(|model| job.model_view(model)).collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let cursor = items.last().filter(|_| more).map(|model| model.version.to_string());
        Ok(Json(Page { items, cursor }))
    })
}
