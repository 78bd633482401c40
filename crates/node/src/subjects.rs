//! Subjects of events on the bus. On a server they lie under the cluster's prefix: `catchment.v1.…`.

use catchment_types::{JobSpec, NodeId};

fn of(spec: &JobSpec, what: &str) -> String {
    format!("v1.{}.{}.{what}", spec.namespace, spec.name)
}

/// An update was accepted; the payload is its descriptor. No node listens: who holds it knows.
pub fn accepted(spec: &JobSpec) -> String {
    of(spec, "update.accepted")
}

/// A model was published; the payload is its description as JSON.
pub fn model_published(spec: &JobSpec) -> String {
    of(spec, "model.published")
}

/// Where a node answers check-ins that others pass on. The underscore keeps it apart from every namespace.
pub fn checkin(node: NodeId) -> String {
    format!("v1._checkin.{node}")
}

/// Where a small update may be sent as a request:
/// `v1.<namespace>.<job>.ingest.<round>.<client>`.
pub const EVERY_INGEST: &str = "v1.*.*.ingest.*.*";
