//! What operators see of the cluster.

use crate::context::Context;
use axum::Json;
use axum::extract::State;
use catchment_types::{NodeView, Page};
use std::sync::Arc;

/// The nodes that were heard lately, this one among them.
#[utoipa::path(get, path = "/v1/nodes", tag = "system", responses((status = 200, body = Page<NodeView>)))]
pub async fn list(State(context): State<Arc<Context>>) -> Json<Page<NodeView>> {
    let nodes = context.peers.fleet.live().into_iter().map(|beat| NodeView {
        node: beat.node.to_string(),
        name: beat.name,
        url: beat.url,
        zone: beat.zone,
        cores: beat.cores,
        memory_bytes: beat.memory_bytes,
        memory_free_bytes: beat.memory_free_bytes,
        draining: beat.draining,
    });
    Json(Page { items: nodes.collect(), cursor: None })
}
