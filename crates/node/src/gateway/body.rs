//! A body as it arrives, with limits on its size and its slowness.

use super::connection::Lent;
use crate::context::Pace;
use axum::body::BodyDataStream;
use bytes::Bytes;
use catchment_ingest::{Scatter, UpdateDigest};
use catchment_types::{Code, Problem};
use futures::StreamExt;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A refused body of at most this many bytes is read to its end, so that a client which writes before it reads gets
/// its answer instead of a broken connection.
pub(super) const DRAIN_BYTES_MAX: u64 = 16 << 20;
/// How long that may take.
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(3);

enum Source {
    Stream(BodyDataStream),
    Whole(Option<Bytes>),
    Socket(Lent),
}

/// A body as it arrives.
pub struct Body {
    source: Source,
    declared: Option<u64>,
    received: u64,
    limit: u64,
    begun: Instant,
    /// When this side began to do something else than wait for bytes.
    busy_since: Instant,
    pace: Pace,
}

impl Body {
    /// A body that comes over HTTP; `declared` is its Content-Length.
    pub fn stream(body: axum::body::Body, declared: Option<u64>, pace: Pace) -> Self {
        Self::new(Source::Stream(body.into_data_stream()), declared, pace)
    }

    /// A body of `length` bytes that is still on its socket.
    pub fn socket(lent: Lent, length: u64, pace: Pace) -> Self {
        Self::new(Source::Socket(lent), Some(length), pace)
    }

    /// A body that is there already.
    pub fn whole(bytes: Bytes, pace: Pace) -> Self {
        let declared = Some(bytes.len() as u64);
        Self::new(Source::Whole(Some(bytes)), declared, pace)
    }

    fn new(source: Source, declared: Option<u64>, pace: Pace) -> Self {
        let now = Instant::now();
        Self { source, declared, received: 0, limit: u64::MAX, begun: now, busy_since: now, pace }
    }

    /// Its length, when it was declared.
    pub fn length(&self) -> Option<u64> {
        self.declared
    }

    /// Refuses a body that is declared larger than `limit`, and one that turns out to be.
    pub fn check_length(&mut self, limit: u64) -> Result<(), Problem> {
        self.limit = limit;
        if self.declared.is_some_and(|declared| declared > limit) { Err(self.too_large(limit)) } else { Ok(()) }
    }

    /// The refusal of a body over `limit` bytes.
    pub fn too_large(&self, limit: u64) -> Problem {
        let size = self.declared.unwrap_or(self.received);
        Problem::new(Code::TooLarge, format!("the body has {size} bytes or more, the limit is {limit}"))
            .with("limit", limit)
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let until = self.until();
        let chunk = match &mut self.source {
            Source::Whole(bytes) => Ok(bytes.take().map(Ok)),
            Source::Stream(stream) => timeout_at(until, stream.next()).await.map(|chunk| chunk.map(broken)),
            Source::Socket(lent) => timeout_at(until, lent.chunk()).await.map(|chunk| broken(chunk).transpose()),
        };
        self.busy_since = Instant::now();
        let chunk = chunk.map_err(|_| self.too_slow())?.transpose().map_err(|error| self.broke_off(&error))?;
        self.count(chunk.as_ref().map_or(0, Bytes::len))?;
        Ok(chunk)
    }

    /// Brings the next bytes of the data to their place in `memory`, digested and screened. From a socket they are
    /// received there; otherwise they are copied. Returns whether there were any.
    pub async fn receive(
        &mut self,
        scatter: &mut Scatter,
        memory: &mut [u8],
        digest: &mut UpdateDigest,
    ) -> Result<bool, Problem> {
        let until = self.until();
        if let Source::Socket(lent) = &mut self.source {
            let taken = timeout_at(until, lent.receive(scatter, memory, digest)).await.map(broken);
            self.busy_since = Instant::now();
            let taken = taken.map_err(|_| self.too_slow())?.map_err(|error| self.broke_off(&error))??;
            self.count(taken)?;
            return Ok(taken > 0);
        }
        let Some(chunk) = self.next().await? else { return Ok(false) };
        digest.feed(&chunk);
        scatter.feed(&chunk, memory)?;
        Ok(true)
    }

    /// Reads all of it for its digest alone.
    pub async fn digest(&mut self) -> Result<UpdateDigest, Problem> {
        let mut digest = UpdateDigest::default();
        while let Some(chunk) = self.next().await? {
            digest.feed(&chunk);
        }
        Ok(digest)
    }

    /// When what has come so far will have been too slow. Only time spent waiting for bytes counts: what this side takes
    /// to find room for gigabytes, or to write them down, is not the sender's doing.
    fn until(&mut self) -> Instant {
        let now = Instant::now();
        self.begun += now - self.busy_since;
        self.busy_since = now;
        let earned = Duration::from_secs_f64(self.received as f64 / self.pace.rate_min.max(1) as f64);
        self.begun + self.pace.grace + earned
    }

    fn count(&mut self, bytes: usize) -> Result<(), Problem> {
        self.received += bytes as u64;
        if self.received > self.limit { Err(self.too_large(self.limit)) } else { Ok(()) }
    }

    fn too_slow(&self) -> Problem {
        let detail = format!(
            "the body came too slowly: {} bytes in {:.1} s; the least is {} bytes a second after {} s",
            self.received,
            self.begun.elapsed().as_secs_f64(),
            self.pace.rate_min,
            self.pace.grace.as_secs_f64()
        );
        Problem::new(Code::TooSlow, detail)
    }

    fn broke_off(&self, error: &str) -> Problem {
        Problem::new(Code::Truncated, format!("the body broke off after {} bytes: {error}", self.received))
    }

    /// Reads on to the end of a refused body, if that is not too much.
    pub async fn drain(mut self) {
        // Its connection drains it.
        if matches!(self.source, Source::Socket(_)) {
            return;
        }
        let left = self.declared.map(|declared| declared - self.received.min(declared));
        if left.is_some_and(|left| left > DRAIN_BYTES_MAX) {
            return;
        }
        self.limit = self.received + DRAIN_BYTES_MAX;
        let rest = async { while let Ok(Some(_)) = self.next().await {} };
        tokio::time::timeout(DRAIN_TIME, rest).await.ok();
    }
}

fn broken<T>(result: Result<T, impl std::fmt::Display>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}
