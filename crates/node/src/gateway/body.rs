//! A body as it arrives, with limits on its size and its slowness.

use super::connection::Lent;
use crate::buffers::ends;
use crate::context::{Context, Pace};
use crate::holders::Holding;
use crate::slack::Slack;
use axum::body::BodyDataStream;
use bytes::Bytes;
use catchment_ingest::{Scatter, UpdateDigest};
use catchment_types::{Code, Problem};
use futures::StreamExt;
use std::error::Error;
use std::io;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// A refused body of at most this many bytes is read to its end, so that a client which writes before it reads gets
/// its answer instead of a broken connection.
pub(super) const DRAIN_BYTES_MAX: u64 = 16 << 20;
/// How long that may take.
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(3);
/// How long a body may be silent once the node ends.
const LAST_SILENCE: Duration = Duration::from_millis(300);
/// How long it may go on then: its answer is to leave before the connection is cut.
const LAST_TIME: Duration = Duration::from_secs(3);

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
    wait: Wait,
}

/// How long a body waits for its sender.
struct Wait {
    pace: Pace,
    slack: Slack,
    /// What it gains while it holds shared memory.
    holding: Option<Holding>,
    stop: CancellationToken,
    /// When it noticed that the node ends.
    stopped: Option<Instant>,
}

/// Why a wait ended in vain.
enum Late {
    Slow,
    Ends,
}

impl Wait {
    /// Waits for what the sender has next; `count` says how many bytes that is.
    async fn until_there<T>(
        &mut self,
        next: impl Future<Output = T>,
        count: impl FnOnce(&T) -> Option<usize>,
    ) -> Result<T, Late> {
        let until = self.slack.wait();
        if let Some(holding) = &mut self.holding {
            holding.wait();
        }
        let next = tokio::select! {
            biased;
            next = next => Ok(next),
            () = sleep_until(until) => Err(Late::Slow),
            () = last_wait(&self.stop, &mut self.stopped) => Err(Late::Ends),
        };
        let bytes = next.as_ref().ok().and_then(count).unwrap_or_default();
        self.slack.gain(bytes);
        if let Some(holding) = &mut self.holding {
            holding.gain(bytes);
        }
        next
    }
}

/// Ends when a body may be waited for no longer, because the node ends.
async fn last_wait(stop: &CancellationToken, stopped: &mut Option<Instant>) {
    stop.cancelled().await;
    let now = Instant::now();
    let end = *stopped.get_or_insert(now) + LAST_TIME;
    sleep_until(end.min(now + LAST_SILENCE)).await;
}

impl Body {
    /// A body that comes over HTTP; `declared` is its Content-Length.
    pub fn stream(body: axum::body::Body, declared: Option<u64>, context: &Context) -> Self {
        Self::new(Source::Stream(body.into_data_stream()), declared, context)
    }

    /// A body of `length` bytes that is still on its socket.
    pub fn socket(lent: Lent, length: u64, context: &Context) -> Self {
        Self::new(Source::Socket(lent), Some(length), context)
    }

    /// A body that is there already.
    pub fn whole(bytes: Bytes, context: &Context) -> Self {
        let declared = Some(bytes.len() as u64);
        Self::new(Source::Whole(Some(bytes)), declared, context)
    }

    fn new(source: Source, declared: Option<u64>, context: &Context) -> Self {
        let (pace, stop) = (context.config.pace, context.ending.stop.clone());
        let slack = Slack::new(pace.grace, pace.rate_min, pace.silence);
        let wait = Wait { pace, slack, holding: None, stop, stopped: None };
        Self { source, declared, received: 0, limit: u64::MAX, wait }
    }

    /// Its length, when it was declared.
    pub fn length(&self) -> Option<u64> {
        self.declared
    }

    /// Notes what it gains from now on: it holds shared memory. `None`: no longer.
    pub fn hold(&mut self, holding: Option<Holding>) {
        self.wait.holding = holding;
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
        let chunk = match &mut self.source {
            Source::Whole(bytes) => return Ok(bytes.take()),
            Source::Stream(stream) => {
                let bytes = |chunk: &Option<Result<Bytes, _>>| Some(chunk.as_ref()?.as_ref().ok()?.len());
                let chunk = self.wait.until_there(stream.next(), bytes).await;
                chunk.map(|chunk| chunk.transpose().map_err(Broken::Decoding))
            }
            Source::Socket(lent) => {
                let bytes = |chunk: &io::Result<Option<Bytes>>| Some(chunk.as_ref().ok()?.as_ref()?.len());
                let chunk = self.wait.until_there(lent.chunk(), bytes).await;
                chunk.map(|chunk| chunk.map_err(Broken::Connection))
            }
        };
        let chunk = chunk.map_err(|late| self.late(late))?.map_err(|broken| self.broke_off(broken))?;
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
        if let Source::Socket(lent) = &mut self.source {
            let bytes = |taken: &io::Result<Result<usize, Problem>>| taken.as_ref().ok()?.as_ref().ok().copied();
            let taken = self.wait.until_there(lent.receive(scatter, memory, digest), bytes).await;
            let taken = taken.map_err(|late| self.late(late))?;
            let taken = taken.map_err(|error| self.broke_off(Broken::Connection(error)))??;
            self.count(taken)?;
            return Ok(taken > 0);
        }
        let Some(chunk) = self.next().await? else { return Ok(false) };
        digest.feed(&chunk);
        scatter.feed(&chunk, memory)?;
        Ok(true)
    }

    /// Reads all of it for its digest alone. `None`: it has more than `known` bytes, and the rest is not read.
    pub async fn digest(&mut self, known: u64) -> Result<Option<UpdateDigest>, Problem> {
        if self.declared.is_some_and(|declared| declared != known) {
            return Ok(None);
        }
        let mut digest = UpdateDigest::default();
        while let Some(chunk) = self.next().await? {
            if self.received > known {
                return Ok(None);
            }
            digest.feed(&chunk);
        }
        Ok(Some(digest))
    }

    fn count(&mut self, bytes: usize) -> Result<(), Problem> {
        self.received += bytes as u64;
        if self.received > self.limit { Err(self.too_large(self.limit)) } else { Ok(()) }
    }

    fn late(&self, late: Late) -> Problem {
        match late {
            Late::Ends => ends(),
            Late::Slow => {
                let Pace { grace, rate_min, silence } = self.wait.pace;
                let detail = format!(
                    "the body came too slowly: {} bytes are here; the least is {rate_min} bytes a second after {} s, and no \
                     more than {} s without",
                    self.received,
                    grace.as_secs_f64(),
                    silence.max(grace).as_secs_f64()
                );
                Problem::new(Code::TooSlow, detail)
            }
        }
    }

    fn broke_off(&self, broken: Broken) -> Problem {
        let error = match broken {
            Broken::Connection(error) => error.to_string(),
            Broken::Decoding(error) => match refusal(&error) {
                Some(problem) => return problem.clone(),
                None => error.to_string(),
            },
        };
        Problem::new(Code::Truncated, format!("the body broke off after {} bytes: {error}", self.received))
    }

    /// Reads on to the end of a refused body, if that is not too much.
    pub async fn drain(mut self) {
        self.hold(None);
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

/// What a body ends with before its end.
enum Broken {
    Connection(io::Error),
    /// Of the connection, or of what the bytes are decoded with.
    Decoding(axum::Error),
}

/// The refusal that whoever decodes a body ended it with, if it was not the connection that ended.
fn refusal(error: &axum::Error) -> Option<&Problem> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        if let Some(problem) = inner.and_then(|inner| inner.downcast_ref::<Problem>()) {
            return Some(problem);
        }
        next = error.source();
    }
    None
}
