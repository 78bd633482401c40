//! What operators see of the cluster.

use crate::context::Context;
use axum::Json;
use axum::extract::State;
use catchment_types::NodesView;
use std::sync::Arc;

/// The nodes that were heard lately, this one among them, and how many are wanted.
#[utoipa::path(get, path = "/v1/nodes", tag = "system", responses((status = 200, body = NodesView)))]
pub async fn list(State(context): State<Arc<Context>>) -> Json<NodesView> {
    Json(context.peers.fleet.view())
}
