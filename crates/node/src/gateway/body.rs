//! A body as it arrives, with limits on its size and its slowness.

use crate::context::Pace;
use axum::body::BodyDataStream;
use bytes::Bytes;
use catchment_types::{Code, Problem};
use futures::StreamExt;
use std::time::Duration;
use tokio::time::Instant;

/// A refused body of at most this many bytes is read to its end, so that a client which writes before it reads gets
/// its answer instead of a broken connection.
const DRAIN_BYTES_MAX: u64 = 16 << 20;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(3);

enum Source {
    Stream(BodyDataStream),
    Whole(Option<Bytes>),
}

/// A body as it arrives.
pub struct Body {
    source: Source,
    declared: Option<u64>,
    received: u64,
    limit: u64,
    begun: Instant,
    pace: Pace,
}

impl Body {
    /// A body that comes over HTTP; `declared` is its Content-Length.
    pub fn stream(body: axum::body::Body, declared: Option<u64>, pace: Pace) -> Self {
        Self::new(Source::Stream(body.into_data_stream()), declared, pace)
    }

    /// A body that is there already.
    pub fn whole(bytes: Bytes, pace: Pace) -> Self {
        let declared = Some(bytes.len() as u64);
        Self::new(Source::Whole(Some(bytes)), declared, pace)
    }

    fn new(source: Source, declared: Option<u64>, pace: Pace) -> Self {
        Self { source, declared, received: 0, limit: u64::MAX, begun: Instant::now(), pace }
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
        let stream = match &mut self.source {
            Source::Whole(bytes) => return Ok(bytes.take()),
            Source::Stream(stream) => stream,
        };
        let earned = Duration::from_secs_f64(self.received as f64 / self.pace.rate_min.max(1) as f64);
        let until = self.begun + self.pace.grace + earned;
        let Ok(chunk) = tokio::time::timeout_at(until, stream.next()).await else {
            let detail = format!(
                "the body came too slowly: {} bytes in {:.1} s; the least is {} bytes a second after {} s",
                self.received,
                self.begun.elapsed().as_secs_f64(),
                self.pace.rate_min,
                self.pace.grace.as_secs_f64()
            );
            return Err(Problem::new(Code::TooSlow, detail));
        };
        match chunk {
            None => Ok(None),
            Some(Ok(bytes)) => {
                self.received += bytes.len() as u64;
                if self.received > self.limit { Err(self.too_large(self.limit)) } else { Ok(Some(bytes)) }
            }
            Some(Err(error)) => {
                let detail = format!("the body broke off after {} bytes: {error}", self.received);
                Err(Problem::new(Code::Truncated, detail))
            }
        }
    }

    /// Reads on to the end of a refused body, if that is not too much.
    pub async fn drain(mut self) {
        let left = self.declared.map(|declared| declared - self.received.min(declared));
        if left.is_some_and(|left| left > DRAIN_BYTES_MAX) {
            return;
        }
        self.limit = self.received + DRAIN_BYTES_MAX;
        let rest = async { while let Ok(Some(_)) = self.next().await {} };
        tokio::time::timeout(DRAIN_TIME, rest).await.ok();
    }
}
