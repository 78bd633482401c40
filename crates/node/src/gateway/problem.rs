//! Problems as HTTP answers.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use catchment_types::{Code, FieldError, Problem};

/// An answer that is an error.
#[derive(Debug)]
pub struct Failure(pub Problem);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl Failure {
    /// A refusal that names every bad field.
    pub fn fields(errors: &[FieldError]) -> Self {
        let list: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        let fields = serde_json::to_value(errors).unwrap_or_default();
        Self(Problem::new(Code::InvalidSpec, list.join("; ")).with("fields", fields))
    }

    /// An inside failure: the log says what, the caller only that.
    pub fn internal(doing: &'static str, error: impl std::fmt::Display) -> Self {
        tracing::error!(%error, doing, "answer a request");
        Self(Problem::new(Code::Internal, format!("the node failed to {doing}; its log says why")))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = (status, text).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(crate::submit::RETRY_AFTER_S));
        }
        response
    }
}

/// Bytes of a plain text answer that is turned into a problem.
const PLAIN_BYTES_MAX: usize = 4 << 10;

/// Turns the plain text with which the framework refuses a query or body into a problem like every other refusal.
pub async fn explain(response: Response) -> Response {
    let plain =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    let code = match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Code::TooLarge,
        status if status.is_client_error() => Code::BadRequest,
        _ => return response,
    };
    if !plain {
        return response;
    }
    let text = axum::body::to_bytes(response.into_body(), PLAIN_BYTES_MAX).await.unwrap_or_default();
    Failure(Problem::new(code, String::from_utf8_lossy(&text))).into_response()
}
