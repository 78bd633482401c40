//! A body that is still on its socket, lent to the handler that wants it.

use crate::gateway::body::{DRAIN_BYTES_MAX, DRAIN_TIME};
use bytes::{Bytes, BytesMut};
use catchment_ingest::{Scatter, UpdateDigest};
use catchment_types::Problem;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

/// Bytes received at one time: what was just received is digested and screened while it is in the second-level cache.
const RECEIVE_BYTES: usize = 256 << 10;
/// Bytes read at one time where they are not received in place.
const CHUNK_BYTES: usize = 64 << 10;
/// Bytes of tensors that nobody stores, at one time.
const SINK_BYTES: usize = 16 << 10;

/// A request's body on its socket.
#[derive(Debug)]
pub struct Incoming {
    socket: TcpStream,
    /// Bytes that were read together with the head: of the body, and perhaps of what follows it.
    ahead: BytesMut,
    /// Bytes of the body that nobody has taken.
    left: u64,
    /// The client waits for "100 Continue".
    waits: bool,
}

impl Incoming {
    /// A body of `body_bytes` bytes.
    pub fn new(socket: TcpStream, ahead: BytesMut, body_bytes: u64, waits: bool) -> Self {
        // One that has begun to send waits no longer.
        let waits = waits && ahead.is_empty() && body_bytes > 0;
        Self { socket, ahead, left: body_bytes, waits }
    }

    /// The socket, to answer on.
    pub fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// The socket, and what was read of it beyond the body.
    pub fn into_socket(self) -> (TcpStream, BytesMut) {
        (self.socket, self.ahead)
    }

    async fn begin(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.waits) {
            self.socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        Ok(())
    }

    /// The next bytes; `None` at the end.
    async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.begin().await?;
        if self.ahead.is_empty() {
            self.ahead.reserve(CHUNK_BYTES);
            if self.socket.read_buf(&mut self.ahead).await? == 0 {
                return Err(ended());
            }
        }
        let take = self.ahead.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= take as u64;
        Ok(Some(self.ahead.split_to(take).freeze()))
    }

    /// Receives what there is to where it belongs. Returns how much that was.
    async fn receive(&mut self, scatter: &Scatter, memory: &mut [u8], sink: &mut [u8]) -> io::Result<usize> {
        let bytes_max = RECEIVE_BYTES.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut room = scatter.room(memory, sink, bytes_max);
        let socket = &self.socket;
        let receive = || rustix::io::readv(socket, &mut room).map_err(io::Error::from);
        let taken = socket.async_io(Interest::READABLE, receive).await?;
        if taken == 0 {
            return Err(ended());
        }
        self.left -= taken as u64;
        Ok(taken)
    }

    /// Reads on to the end of a body that nobody wants, if that is not too much. Returns whether the next request
    /// may follow.
    pub async fn drain(&mut self) -> bool {
        if self.left == 0 {
            return true;
        }
        if self.waits || self.left > DRAIN_BYTES_MAX {
            return false;
        }
        let rest = async { while let Ok(Some(_)) = self.chunk().await {} };
        tokio::time::timeout(DRAIN_TIME, rest).await.ok();
        self.left == 0
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended")
}

/// Where a lent body comes back to. Travels with the request.
#[derive(Debug, Clone)]
pub struct Home(Arc<Mutex<Option<Incoming>>>);

impl Home {
    /// Holds `incoming` until it is borrowed.
    pub fn new(incoming: Incoming) -> Self {
        Self(Arc::new(Mutex::new(Some(incoming))))
    }

    /// Takes it for good; `None` while it is lent.
    pub fn take(&self) -> Option<Incoming> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Lends it.
    pub fn lend(&self) -> Option<Lent> {
        let incoming = self.take()?;
        Some(Lent { incoming: Some(incoming), home: self.clone(), sink: Box::new([0; SINK_BYTES]) })
    }
}

/// A lent body. It goes home when it is dropped.
#[derive(Debug)]
pub struct Lent {
    incoming: Option<Incoming>,
    home: Home,
    sink: Box<[u8; SINK_BYTES]>,
}

impl Lent {
    fn incoming(&mut self) -> &mut Incoming {
        self.incoming.as_mut().expect("at home only once dropped")
    }

    /// The next bytes; `None` at the end.
    pub async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        self.incoming().chunk().await
    }

    /// Receives the next bytes right into `memory` and digests and screens them there. Returns how many that were; 0
    /// at the end.
    pub async fn receive(
        &mut self,
        scatter: &mut Scatter,
        memory: &mut [u8],
        digest: &mut UpdateDigest,
    ) -> io::Result<Result<usize, Problem>> {
        let Self { incoming, sink, .. } = self;
        let incoming = incoming.as_mut().expect("at home only once dropped");
        if incoming.left == 0 {
            return Ok(Ok(0));
        }
        if !incoming.ahead.is_empty() {
            let chunk = incoming.chunk().await?.unwrap_or_default();
            digest.feed(&chunk);
            return Ok(scatter.feed(&chunk, memory).map(|()| chunk.len()));
        }
        let taken = incoming.receive(scatter, memory, &mut sink[..]).await?;
        let landed = scatter.landed(taken, memory, &sink[..], |bytes| digest.feed(bytes));
        Ok(landed.map(|()| taken))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        *self.home.0.lock().unwrap_or_else(PoisonError::into_inner) = self.incoming.take();
    }
}
