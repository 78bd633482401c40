//! What other nodes ask for: models, partials, updates, modules of functions, and pieces of rounds. Whoever does not show this node's own pass finds nothing here.

use super::path::At;
use super::problem::Failure;
use super::stretch::Stretch;
use crate::aggregate::offered::{self, Ordered};
use crate::aggregate::{ORDER_BYTES_MAX, Order};
use crate::context::Context;
use crate::functions::Maker;
use crate::peers::{Excerpt, hex, models::ensure_from};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use catchment_types::{BadId, Code, Digest, JobUid, NodeId, Problem, read_object};
use serde::Deserialize;
use std::io;
use std::sync::Arc;

/// Calls between nodes. They are no part of the interface and may change with any version.
pub fn routes(context: Arc<Context>) -> Router<Arc<Context>> {
    Router::new()
        .route("/v1/peer/models/{uid}/{version}/{etag}", get(model).put(keep_model))
        .route("/v1/peer/partials/{uid}/{round}/{leaf}/{contribution}", get(partial))
        .route("/v1/peer/functions/{digest}", get(function))
        .route("/v1/peer/updates/{receipt}", get(update))
        .route("/v1/peer/updates/{receipt}/{segment}/{first}/{elements}", get(excerpt))
        .route("/v1/peer/pieces/{name}", get(piece).put(order).layer(DefaultBodyLimit::max(ORDER_BYTES_MAX)))
        .layer(from_fn_with_state(context, admit))
}

async fn admit(State(context): State<Arc<Context>>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if context.peers.admits(shown) {
        return next.run(request).await;
    }
    let detail = format!("there is nothing at {}", request.uri().path());
    Failure(Problem::new(Code::NotFound, detail)).into_response()
}

async fn model(State(context): State<Arc<Context>>, at: At, headers: HeaderMap) -> Result<Response, Failure> {
    let (uid, version, etag): (JobUid, u64, Digest) = (at.part("uid")?, at.number("version")?, at.part("etag")?);
    let file = context.models.file(uid, version, etag).map_err(|error| missing(&error))?;
    let end = file.metadata().map_err(|error| missing(&error))?.len();
    Ok(Stretch::new(file, 0, end, etag).answer(&headers))
}

/// Who has a model.
#[derive(Deserialize)]
struct From {
    from: String,
}

async fn keep_model(
    State(context): State<Arc<Context>>,
    at: At,
    Query(from): Query<From>,
) -> Result<StatusCode, Failure> {
    let bad = |error: BadId| Problem::new(Code::BadRequest, format!("from: {error}"));
    let node: NodeId = from.from.parse().map_err(bad)?;
    let uid: JobUid = at.part("uid")?;
    if context.ledger.read(|state| state.job(uid).is_none()) {
        // The other node may just have created it, and of a job that is gone no file is begun.
        context.refresh().await;
    }
    ensure_from(&context, uid, at.number("version")?, at.part("etag")?, node).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who must have made a partial. Nodes of the first release do not say.
#[derive(Deserialize)]
struct MadeBy {
    function: Option<Digest>,
    abi: Option<u32>,
}

async fn partial(
    State(context): State<Arc<Context>>,
    at: At,
    Query(made_by): Query<MadeBy>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let leaf = u32::try_from(at.number("leaf")?).map_err(|error| missing(&error))?;
    let (uid, round, contribution) = (at.part("uid")?, at.number("round")?, at.part("contribution")?);
    let maker = made_by.function.zip(made_by.abi).map(|(function, abi)| Maker { function, abi });
    Ok(offered::partial(&context, uid, round, leaf, contribution, maker).await?.answer(&headers))
}

async fn function(State(context): State<Arc<Context>>, at: At, headers: HeaderMap) -> Result<Response, Failure> {
    let digest: Digest = at.part("digest")?;
    let opened = tokio::task::spawn_blocking(move || {
        let file = context.functions.file(digest)?;
        let end = file.metadata()?.len();
        Ok::<_, io::Error>(Stretch::new(file, 0, end, digest))
    });
    let opened = opened.await.map_err(|error| Failure::internal("read a function's module", error))?;
    Ok(opened.map_err(|error| missing(&error))?.answer(&headers))
}

async fn update(State(context): State<Arc<Context>>, at: At, headers: HeaderMap) -> Result<Response, Failure> {
    let sent = offered::update(&context, at.part("receipt")?).await?;
    with_meta(sent, &headers)
}

async fn excerpt(State(context): State<Arc<Context>>, at: At, headers: HeaderMap) -> Result<Response, Failure> {
    let segment = u32::try_from(at.number("segment")?).map_err(|error| missing(&error))?;
    let excerpt = Excerpt { segment, first: at.number("first")?, elements: at.number("elements")? };
    let sent = offered::excerpt(&context, at.part("receipt")?, excerpt).await?;
    with_meta(sent, &headers)
}

fn with_meta((stretch, meta): (Stretch, Vec<u8>), headers: &HeaderMap) -> Result<Response, Failure> {
    let mut response = stretch.answer(headers);
    let meta = HeaderValue::from_str(&hex(&meta)).map_err(|error| Failure::internal("send an update", error))?;
    response.headers_mut().insert("catchment-slab-meta", meta);
    Ok(response)
}

async fn order(State(context): State<Arc<Context>>, at: At, body: Bytes) -> Result<StatusCode, Failure> {
    let order: Order =
        read_object(&body).map_err(|error| Problem::new(Code::BadRequest, format!("read an order: {error}")))?;
    Ok(match offered::order(&context, at.part("name")?, order).await? {
        Ordered::Made => StatusCode::NO_CONTENT,
        Ordered::StillAtIt => StatusCode::ACCEPTED,
    })
}

async fn piece(State(context): State<Arc<Context>>, at: At, headers: HeaderMap) -> Result<Response, Failure> {
    Ok(offered::piece(&context, at.part("name")?)?.answer(&headers))
}

fn missing(error: &dyn std::fmt::Display) -> Problem {
    Problem::new(Code::NotFound, format!("this node does not have it: {error}"))
}
