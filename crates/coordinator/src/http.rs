//! What operators ask a coordinator: probes, metrics, and who is there.
//!
//! It answers from the start of the process on, before the event log could be reached, so that a probe can tell one that
//! waits from one that is gone.

use crate::metrics::Metrics;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use catchment_fleet::Fleet;
use catchment_ledger::Ledger;
use catchment_types::{Code, Problem};
use std::sync::{Arc, OnceLock};

/// Seconds after which to ask again.
const RETRY_AFTER_S: &str = "1";

/// What a coordinator shows of itself.
#[derive(Clone)]
pub struct Shown {
    metrics: Metrics,
    running: Arc<OnceLock<(Ledger, Fleet)>>,
}

impl Shown {
    /// A coordinator that does not know its cluster yet.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, running: Arc::default() }
    }

    /// Notes that the log was read to its end, and that the others are listened to.
    pub fn begin(&self, ledger: Ledger, fleet: Fleet) {
        self.running.set((ledger, fleet)).ok();
    }

    /// The interface.
    pub fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .route("/v1/nodes", get(nodes))
            .fallback(elsewhere)
            .with_state(self)
    }

    fn running(&self) -> Result<&(Ledger, Fleet), Refusal> {
        let waits = || Refusal(Problem::new(Code::NotReady, "the event log has not been read yet"));
        self.running.get().ok_or_else(waits)
    }
}

async fn readyz(State(shown): State<Shown>) -> Result<&'static str, Refusal> {
    let (ledger, _) = shown.running()?;
    if let Some(why) = ledger.fault() {
        Err(Refusal(Problem::new(Code::NotReady, format!("the event log cannot be followed: {why}"))))
    } else if ledger.is_reachable() {
        Ok("ready\n")
    } else {
        Err(Refusal(Problem::new(Code::NotReady, "the event log cannot be reached")))
    }
}

async fn metrics(State(shown): State<Shown>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shown.metrics.text()).into_response()
}

async fn nodes(State(shown): State<Shown>) -> Result<Response, Refusal> {
    let (_, fleet) = shown.running()?;
    Ok(Json(fleet.view()).into_response())
}

async fn elsewhere(uri: Uri) -> Refusal {
    let detail = format!("there is nothing at {} on a coordinator; jobs and models are at nodes", uri.path());
    Refusal(Problem::new(Code::NotFound, detail))
}

struct Refusal(Problem);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = serde_json::to_vec(&self.0).unwrap_or_default();
        let kind = (header::CONTENT_TYPE, "application/problem+json");
        match self.0.retryable {
            true => (status, [kind, (header::RETRY_AFTER, RETRY_AFTER_S)], text).into_response(),
            false => (status, [kind], text).into_response(),
        }
    }
}
