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
use crate::slack::Slack;
use axum::Router;
use bytes::BytesMut;
use catchment_ingest::{Way, classify};
use catchment_types::Clock;
use http::{HeaderValue, StatusCode, header};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lent::Incoming;
use std::future::poll_fn;
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
/// The same, and how long what has begun to come may take, once the node ends.
const LAST_TIME: Duration = Duration::from_millis(200);

/// What connections are served with.
#[derive(Clone)]
pub struct Served {
    /// Who answers.
    pub router: Router,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How the process is told to end.
    pub ending: Ending,
    /// How fast answers must be read.
    pub pace: ReadPace,
}

/// How fast a client must read an answer, over any time longer than `silence`, which is the most it may read nothing.
#[derive(Debug, Clone, Copy)]
pub struct ReadPace {
    /// Bytes a second.
    pub rate_min: u64,
    /// The longest silence.
    pub silence: Duration,
}

impl ReadPace {
    fn slack(&self) -> Slack {
        let mut slack = Slack::new(self.silence, self.rate_min, self.silence);
        // Nothing is there to be read yet.
        slack.gain(0);
        slack
    }
}

/// Serves one connection until it ends; once the node is `ending`, until its open request is answered.
///
/// # Errors
/// A connection that broke; there is nobody left to tell.
pub async fn serve(served: Served, mut socket: TcpStream) -> io::Result<()> {
    let Served { router, clock, ending, pace } = served;
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
                let done = direct(&router, *request, incoming, clock.as_ref(), (ends, &ending.stop), pace).await?;
                let Some(done) = done else { return Ok(()) };
                (socket, ahead) = done;
            }
            Way::Hyper { request_bytes: Some(request_bytes) } => {
                let gate = gate::Gate::new(socket, ahead, request_bytes, pace.slack());
                let Some(done) = through_hyper(&router, gate, ends, &ending.stop).await? else { return Ok(()) };
                (socket, ahead) = done;
            }
            Way::Hyper { request_bytes: None } => {
                let gate = gate::Gate::open(socket, ahead, pace.slack());
                return rest_through_hyper(&router, gate, &ending.stop).await;
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
    tokio::select! {
        biased;
        way = read => way,
        () = tokio::time::sleep(HEAD_TIME) => Ok(None),
        () = soon_after(stop) => Ok(None),
    }
}

/// Ends a moment after `stop` does.
async fn soon_after(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(LAST_TIME).await;
}

/// Serves a request whose body stays on the socket until its handler asks for it.
async fn direct(
    router: &Router,
    request: http::Request<()>,
    incoming: Incoming,
    clock: &dyn Clock,
    (ends, stop): (&CancellationToken, &CancellationToken),
    pace: ReadPace,
) -> io::Result<Option<(TcpStream, BytesMut)>> {
    let home = Home::new(incoming);
    let mut request = request.map(|()| axum::body::Body::empty());
    request.extensions_mut().insert(home.clone());
    let Ok(response) = router.clone().oneshot(request).await;
    let mut incoming = home.take().ok_or_else(|| io::Error::other("the handler kept the body"))?;
    // A client that was told to wait for "100 Continue" and never was may send its body or not: nobody knows what the
    // next bytes are.
    let is_drained = match response.status() {
        // It was waited for long enough.
        StatusCode::REQUEST_TIMEOUT => false,
        _ => tokio::select! {
            biased;
            is_drained = incoming.drain() => is_drained,
            () = soon_after(stop) => false,
        },
    };
    let ends = !is_drained || ends.is_cancelled();
    answer::send(incoming.socket(), response, ends, clock.now_ms(), &mut answer::Reader::new(pace.slack(), stop))
        .await?;
    if ends {
        linger(incoming.into_socket().0, stop).await;
        return Ok(None);
    }
    Ok(Some(incoming.into_socket()))
}

/// Serves one request, all of whose bytes the gate lets through, and takes the socket back.
async fn through_hyper(
    router: &Router,
    gate: gate::Gate,
    ends: &CancellationToken,
    stop: &CancellationToken,
) -> io::Result<Option<(TcpStream, BytesMut)>> {
    let answered = gate.answered();
    let router = router.clone();
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (answer, answered) = (unread::answer(router.clone(), request), answered.clone());
        async move {
            let mut response = answer.await.map(|response| answered.watch(response))?;
            if ends.is_cancelled() {
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
    linger(gate.into_parts().0, stop).await;
    Ok(None)
}

/// Leaves the connection to hyper for good.
async fn rest_through_hyper(router: &Router, gate: gate::Gate, stop: &CancellationToken) -> io::Result<()> {
    let io = TokioIo::new(gate);
    let service = service_fn(|request| Box::pin(unread::answer(router.clone(), request)));
    let mut connection = builder().serve_connection(io, service);
    let served = tokio::select! {
        served = poll_fn(|cx| connection.poll_without_shutdown(cx)) => served,
        () = stop.cancelled() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    served.map_err(io::Error::other)?;
    linger(connection.into_parts().io.into_inner().into_parts().0, stop).await;
    Ok(())
}

fn builder() -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(READ_BYTES);
    builder
}

/// Ends a connection whose client may still be sending: closing it at once would reset it, and the answer with it.
async fn linger(mut socket: TcpStream, stop: &CancellationToken) {
    use tokio::io::AsyncWriteExt;
    if socket.shutdown().await.is_err() {
        return;
    }
    let mut scrap = vec![0; 64 << 10];
    let rest = async { while socket.read(&mut scrap).await.is_ok_and(|taken| taken > 0) {} };
    tokio::select! {
        () = rest => {}
        () = tokio::time::sleep(LINGER_TIME) => {}
        () = soon_after(stop) => {}
    }
}
