//! Routes and their description, from one place, so that the two cannot differ.

use super::{evaluations, jobs, models, nodes, rounds, runners, system, updates, uploads};
use crate::context::Context;
use axum::routing::get;
use std::sync::Arc;
use utoipa::openapi::{InfoBuilder, OpenApiBuilder, Tag};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Calls on a job; they exist under `/v1/jobs` and under `/v1/namespaces/{namespace}/jobs`.
pub fn job_routes() -> OpenApiRouter<Arc<Context>> {
    OpenApiRouter::new()
        .routes(routes!(jobs::create, jobs::list))
        .routes(routes!(jobs::get, jobs::patch, jobs::delete))
        .routes(routes!(jobs::pause))
        .routes(routes!(jobs::resume))
        .routes(routes!(jobs::stop))
        .routes(routes!(models::put, models::get))
        .routes(routes!(models::list))
        .routes(routes!(evaluations::put))
        .routes(routes!(rounds::round))
        .routes(routes!(rounds::broadcast))
        .routes(routes!(rounds::close))
        .routes(routes!(updates::put, uploads::head, uploads::patch))
}

/// Every other call.
pub fn other_routes() -> OpenApiRouter<Arc<Context>> {
    OpenApiRouter::new()
        .routes(routes!(rounds::checkin))
        .routes(routes!(rounds::receipt))
        .routes(routes!(system::functions))
        .routes(routes!(system::function))
        .routes(routes!(nodes::list))
        .routes(routes!(runners::list))
        .routes(routes!(runners::place))
        .routes(routes!(system::healthz))
        .routes(routes!(system::readyz))
        .routes(routes!(system::metrics))
        .routes(routes!(system::openapi))
        .route("/", get(system::index))
}

/// The description as JSON, as it is committed under `docs/`.
pub fn openapi_json() -> String {
    let (_, mut api) =
        OpenApiRouter::<Arc<Context>>::new().nest("/v1/jobs", job_routes()).merge(other_routes()).split_for_parts();
    let info = InfoBuilder::new()
        .title("Catchment")
        .version("1")
        .description(Some(
            "Aggregation for federated learning. Every address under /v1/jobs exists under \
             /v1/namespaces/{namespace}/jobs too; /v1/jobs means the namespace `default`. Errors are RFC 9457 problem \
             details with a `code`; enums are open, clients ignore values they do not know.",
        ))
        .build();
    let tags = ["jobs", "models", "rounds", "clients", "functions", "system"].map(Tag::new);
    let described = OpenApiBuilder::new().info(info).tags(Some(tags)).build();
    api.info = described.info;
    api.tags = described.tags;
    let mut text = api.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}
