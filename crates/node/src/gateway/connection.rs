//! One client connection: decides for each request who reads it, and gets the socket back afterwards.
//!
//! Most requests are served by hyper. Two kinds are not, because hyper would copy their payload through its buffers:
//! an update with a known length is received from the socket right into shared memory ([`lent`]), and a model leaves by
//! the kernel from its file ([`answer`]). Both go through the same router and handlers as everything else; only who
//! moves the bytes differs. Whatever is unusual (chunked, compressed, HTTP/1.0, upgrades, what does not parse) is
//! hyper's.

mod answer;
mod gate;
mod lent;
mod unread;

pub use answer::{FileBody, Kept};
pub use lent::{Home, Lent};

use crate::context::Ending;
use axum::Router;
use bytes::BytesMut;
use catchment_ingest::{Way, classify};
use catchment_types::Clock;
use http::{HeaderValue, header};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lent::Incoming;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// How long a request's head may take.
const HEAD_TIME: Duration = Duration::from_secs(15);
/// How long a connection may wait for its next request.
const IDLE_TIME: Duration = Duration::from_secs(75);
/// Bytes that a request's head may have here; hyper judges longer ones.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Bytes hyper reads from a connection at one time; also the most that the head of a request may have there.
const READ_BYTES: usize = 512 << 10;
/// How long a client may go on sending what nobody reads, before its connection is cut and it may miss its answer.
const LINGER_TIME: Duration = Duration::from_secs(2);

/// Serves one connection until it ends; once the node is `ending`, until its open request is answered.
///
/// # Errors
/// A connection that broke; there is nobody left to tell.
pub async fn serve(mut socket: TcpStream, router: Router, clock: Arc<dyn Clock>, ending: Ending) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut ahead = BytesMut::new();
    // Who connects to a node that drains knows no other yet, and is served once.
    let mut ends = &ending.stop;
    loop {
        let Some(way) = next_request(&mut socket, &mut ahead, ends).await? else { return Ok(()) };
        ends = &ending.drain;
        match way {
            Way::Direct { request, body_bytes, expects } => {
                let incoming = Incoming::new(socket, ahead, body_bytes, expects);
                let done = direct(&router, *request, incoming, clock.as_ref(), ends).await?;
                let Some(done) = done else { return Ok(()) };
                (socket, ahead) = done;
            }
            Way::Hyper { request_bytes: Some(request_bytes) } => {
                let gate = gate::Gate::new(socket, ahead, request_bytes);
                let Some(done) = through_hyper(&router, gate, ends).await? else { return Ok(()) };
                (socket, ahead) = done;
            }
            Way::Hyper { request_bytes: None } => {
                return rest_through_hyper(&router, socket, ahead, &ending.stop).await;
            }
        }
        if ends.is_cancelled() {
            return Ok(());
        }
    }
}

/// Reads until a request's head is there. `None`: the connection has ended, or may end.
async fn next_request(
    socket: &mut TcpStream,
    ahead: &mut BytesMut,
    stop: &CancellationToken,
) -> io::Result<Option<Way>> {
    if ahead.is_empty() {
        // No buffer while nothing comes: thousands of idle connections should cost next to nothing.
        *ahead = BytesMut::new();
        let ready = tokio::select! {
            ready = tokio::time::timeout(IDLE_TIME, socket.readable()) => ready,
            () = stop.cancelled() => return Ok(None),
        };
        match ready {
            Ok(ready) => ready?,
            Err(_) => return Ok(None),
        }
    }
    let read = async {
        // Bytes known not to hold the end of the head: a head that comes byte by byte is not parsed at each.
        let mut seen = 0;
        loop {
            if ahead[seen..].windows(4).any(|bytes| bytes == b"\r\n\r\n")
                && let Some(way) = classify(ahead)
            {
                return Ok(Some(way));
            }
            seen = ahead.len().saturating_sub(3);
            let is_idle = ahead.is_empty();
            let taken = tokio::select! {
                taken = socket.read_buf(ahead), if ahead.len() < HEAD_BYTES_MAX => taken?,
                // A new socket may call itself readable before anything has come.
                () = stop.cancelled(), if is_idle => return Ok(None),
                else => 0,
            };
            if taken == 0 {
                let is_over = ahead.is_empty();
                return Ok((!is_over).then_some(Way::Hyper { request_bytes: None }));
            }
        }
    };
    match tokio::time::timeout(HEAD_TIME, read).await {
        Ok(way) => way,
        Err(_) => Ok(None),
    }
}

/// Serves a request whose body stays on the socket until its handler asks for it.
async fn direct(
    router: &Router,
    request: http::Request<()>,
    incoming: Incoming,
    clock: &dyn Clock,
    stop: &CancellationToken,
) -> io::Result<Option<(TcpStream, BytesMut)>> {
    let home = Home::new(incoming);
    let mut request = request.map(|()| axum::body::Body::empty());
    request.extensions_mut().insert(home.clone());
    let Ok(response) = router.clone().oneshot(request).await;
    let mut incoming = home.take().ok_or_else(|| io::Error::other("the handler kept the body"))?;
    // A client that was told to wait for "100 Continue" and never was may send its body or not: nobody knows what the
    // next bytes are.
    let ends = !incoming.drain().await || stop.is_cancelled();
    answer::send(incoming.socket(), response, ends, clock.now_ms()).await?;
    if ends {
        linger(incoming.into_socket().0).await;
        return Ok(None);
    }
    Ok(Some(incoming.into_socket()))
}

/// Serves one request, all of whose bytes the gate lets through, and takes the socket back.
async fn through_hyper(
    router: &Router,
    gate: gate::Gate,
    stop: &CancellationToken,
) -> io::Result<Option<(TcpStream, BytesMut)>> {
    let answered = gate.answered();
    let router = router.clone();
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (answer, answered) = (unread::answer(router.clone(), request), answered.clone());
        async move {
            let mut response = answer.await.map(|response| answered.watch(response))?;
            if stop.is_cancelled() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = builder().serve_connection(TokioIo::new(gate), service);
    let parts = connection.without_shutdown().await.map_err(io::Error::other)?;
    let gate = parts.io.into_inner();
    if gate.is_done() && parts.read_buf.is_empty() {
        return Ok(Some(gate.into_parts()));
    }
    linger(gate.into_parts().0).await;
    Ok(None)
}

/// Leaves the connection to hyper for good.
async fn rest_through_hyper(
    router: &Router,
    socket: TcpStream,
    ahead: BytesMut,
    stop: &CancellationToken,
) -> io::Result<()> {
    let io = TokioIo::new(gate::Gate::open(socket, ahead));
    let service = service_fn(|request| unread::answer(router.clone(), request));
    let connection = builder().serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    result.map_err(io::Error::other)
}

fn builder() -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(READ_BYTES);
    builder
}

/// Ends a connection whose client may still be sending: closing it at once would reset it, and the answer with it.
async fn linger(mut socket: TcpStream) {
    use tokio::io::AsyncWriteExt;
    if socket.shutdown().await.is_err() {
        return;
    }
    let mut scrap = vec![0; 64 << 10];
    let rest = async { while socket.read(&mut scrap).await.is_ok_and(|taken| taken > 0) {} };
    tokio::time::timeout(LINGER_TIME, rest).await.ok();
}
