//! Lets hyper have exactly one request of a connection.
//!
//! hyper keeps a connection for itself and reads ahead. Here it sees the bytes of one request, then nothing until it has
//! written the whole answer, then the end: so it finishes without closing the socket and without telling the client that
//! it will be closed.

use crate::slack::Slack;
use axum::response::Response;
use bytes::{Buf, BytesMut};
use http_body::{Body, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep_until};

/// A socket, seen through what may be read of it.
pub struct Gate {
    socket: TcpStream,
    ahead: BytesMut,
    /// Bytes of the request that hyper has not seen; `None`: everything to the end of the connection.
    left: Option<u64>,
    answered: Answered,
    /// The answer has been handed to the kernel.
    flushed: bool,
    /// How long the client may take to read more of it.
    slack: Slack,
    /// Runs while the client reads nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// Set once hyper needs no more of the answer.
#[derive(Clone, Default)]
pub struct Answered(Arc<AtomicBool>);

impl Gate {
    /// Lets `request_bytes` bytes through.
    pub fn new(socket: TcpStream, ahead: BytesMut, request_bytes: u64, slack: Slack) -> Self {
        Self { left: Some(request_bytes), ..Self::open(socket, ahead, slack) }
    }

    /// Lets everything through.
    pub fn open(socket: TcpStream, ahead: BytesMut, slack: Slack) -> Self {
        Self { socket, ahead, left: None, answered: Answered::default(), flushed: false, slack, stalled: None }
    }

    /// What to watch answers with.
    pub fn answered(&self) -> Answered {
        self.answered.clone()
    }

    /// Whether the request was read and answered to its end, so that the next one may follow.
    pub fn is_done(&self) -> bool {
        self.left == Some(0) && self.flushed
    }

    /// The socket, and what was read of it beyond the request.
    pub fn into_parts(self) -> (TcpStream, BytesMut) {
        (self.socket, self.ahead)
    }

    /// Ends a write whose client reads too slowly.
    fn written(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                self.slack.gain(bytes);
                self.stalled = None;
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let until = self.slack.wait();
                let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(until)));
                ready!(stalled.as_mut().poll(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        written
    }

    /// Between the request's last byte and the answer's, all that may come is the end of the connection.
    fn poll_hang_up(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.flushed {
            return Poll::Ready(Ok(()));
        }
        let mut byte = [0];
        match ready!(self.socket.poll_peek(cx, &mut ReadBuf::new(&mut byte))) {
            Ok(0) => Poll::Ready(Ok(())),
            // The next request. The flush wakes us.
            Ok(_) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncRead for Gate {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let left = self.left.unwrap_or(u64::MAX);
        if left == 0 {
            return self.poll_hang_up(cx);
        }
        let room = buf.remaining().min(usize::try_from(left).unwrap_or(usize::MAX));
        let taken = if self.ahead.is_empty() {
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut part))?;
            let taken = part.filled().len();
            buf.advance(taken);
            taken
        } else {
            let taken = room.min(self.ahead.len());
            buf.put_slice(&self.ahead[..taken]);
            self.ahead.advance(taken);
            taken
        };
        self.left = self.left.map(|left| left - taken as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gate {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.written(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        // hyper flushes when its own buffer is empty.
        if !self.flushed && self.answered.0.load(Ordering::Acquire) {
            self.flushed = true;
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl Answered {
    /// The same answer; its end will be noticed.
    pub fn watch(&self, response: Response) -> Response {
        response.map(|body| axum::body::Body::new(Watched { body, answered: self.clone() }))
    }
}

struct Watched {
    body: axum::body::Body,
    answered: Answered,
}

impl Body for Watched {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.answered.0.store(true, Ordering::Release);
    }
}
