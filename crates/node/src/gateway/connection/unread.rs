//! Says that a connection ends when the request on it was not read to its end.
//!
//! hyper then cannot find the next request and closes the connection, but does not tell the client, whose next request
//! on it would fail.

use axum::Router;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tower::ServiceExt;

/// A request's body that notes when it was read to its end.
struct Watched {
    body: Incoming,
    is_read: Arc<AtomicBool>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.is_read.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Has the router answer, and says `Connection: close` where the body was left unread.
pub async fn answer(router: Router, request: Request<Incoming>) -> Result<Response, Infallible> {
    let is_read = Arc::new(AtomicBool::new(request.body().is_end_stream()));
    let watched = request.map(|body| Watched { body, is_read: is_read.clone() });
    let mut response = router.oneshot(watched).await?;
    if !is_read.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}
