//! Writes the answer to a request that hyper did not read.

use super::soon_after;
use crate::slack::Slack;
use axum::response::Response;
use bytes::Bytes;
use catchment_types::TimeMs;
use futures::Stream;
use http::{HeaderValue, header};
use std::any::Any;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Bytes of an answer that does not come from a file.
const BODY_BYTES_MAX: usize = 16 << 20;
/// Bytes the kernel is asked to send at one time.
const SEND_BYTES: usize = 1 << 20;
/// Bytes read at one time where this process has to.
const READ_BYTES: usize = 256 << 10;

/// An answer's body that lies in a file. Where nobody can have the kernel send it, the body itself is read.
#[derive(Debug, Clone)]
pub struct FileBody {
    /// The file.
    pub file: Arc<File>,
    /// First byte.
    pub begin: u64,
    /// Byte after the last.
    pub end: u64,
    /// What keeps the bytes as they are meanwhile.
    pub _kept: Kept,
}

/// Something that is kept for as long as bytes of it are being sent.
pub type Kept = Option<Arc<dyn Any + Send + Sync>>;

impl FileBody {
    /// The same, read piece by piece.
    pub fn stream(self) -> impl Stream<Item = io::Result<Bytes>> {
        futures::stream::try_unfold(self, |mut rest| async move {
            let take = READ_BYTES.min((rest.end - rest.begin) as usize);
            if take == 0 {
                return Ok(None);
            }
            let read = move || {
                let mut bytes = vec![0; take];
                rest.file.read_exact_at(&mut bytes, rest.begin)?;
                rest.begin += take as u64;
                Ok(Some((Bytes::from(bytes), rest)))
            };
            tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
        })
    }
}

/// Who reads an answer, and how fast it must.
pub struct Reader<'s> {
    slack: Slack,
    stop: &'s CancellationToken,
}

impl<'s> Reader<'s> {
    /// One that has as much time as `slack` says, and little once the process is to `stop`.
    pub fn new(slack: Slack, stop: &'s CancellationToken) -> Self {
        Self { slack, stop }
    }

    /// Waits until the reader has made room for some bytes.
    async fn takes(&mut self, some: impl Future<Output = io::Result<usize>>) -> io::Result<usize> {
        let until = self.slack.wait();
        let taken = tokio::select! {
            biased;
            taken = some => taken?,
            () = tokio::time::sleep_until(until) => return Err(io::ErrorKind::TimedOut.into()),
            // Who reads on has what there is time for; who reads nothing holds nobody up.
            () = soon_after(self.stop) => return Err(io::ErrorKind::TimedOut.into()),
        };
        self.slack.gain(taken);
        Ok(taken)
    }
}

/// Sends an answer at `now_ms`; `ends` tells the client that the connection ends with it.
pub async fn send(
    socket: &mut TcpStream,
    mut response: Response,
    ends: bool,
    now_ms: TimeMs,
    reader: &mut Reader<'_>,
) -> io::Result<()> {
    let file = response.extensions_mut().remove::<FileBody>();
    let body = match &file {
        Some(_) => Bytes::new(),
        None => {
            let body = std::mem::take(response.body_mut());
            axum::body::to_bytes(body, BODY_BYTES_MAX).await.map_err(io::Error::other)?
        }
    };
    let length = file.as_ref().map_or(body.len() as u64, |file| file.end - file.begin);
    let mut message = head(&response, length, ends, now_ms);
    message.extend_from_slice(&body);
    let mut rest = &message[..];
    while !rest.is_empty() {
        let sent = reader.takes(socket.write(rest)).await?;
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        rest = &rest[sent..];
    }
    match file {
        Some(file) => send_file(socket, &file, reader).await,
        None => Ok(()),
    }
}

fn head(response: &Response, length: u64, ends: bool, now_ms: TimeMs) -> Vec<u8> {
    let status = response.status();
    let mut head = Vec::with_capacity(1024);
    let reason = status.canonical_reason().unwrap_or_default();
    head.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
    let mut field = |name: &[u8], value: &[u8]| {
        for part in [name, b": ", value, b"\r\n"] {
            head.extend_from_slice(part);
        }
    };
    for (name, value) in response.headers() {
        field(name.as_str().as_bytes(), value.as_bytes());
    }
    let has_body = !status.is_informational()
        && status != http::StatusCode::NO_CONTENT
        && status != http::StatusCode::NOT_MODIFIED;
    if has_body && !response.headers().contains_key(header::CONTENT_LENGTH) {
        field(b"content-length", HeaderValue::from(length).as_bytes());
    }
    if !response.headers().contains_key(header::DATE) {
        field(b"date", httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(now_ms)).as_bytes());
    }
    if ends {
        field(b"connection", b"close");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Has the kernel send a part of a file: no byte of it passes through this process.
async fn send_file(socket: &TcpStream, body: &FileBody, reader: &mut Reader<'_>) -> io::Result<()> {
    let mut offset = body.begin;
    while offset < body.end {
        let count = SEND_BYTES.min((body.end - offset) as usize);
        let send = || rustix::fs::sendfile(socket, &*body.file, Some(&mut offset), count).map_err(io::Error::from);
        let sent = reader.takes(socket.async_io(Interest::WRITABLE, send)).await?;
        if sent == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was"));
        }
    }
    Ok(())
}
