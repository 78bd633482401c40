//! One stream from another node, gone on with when it breaks off, and checked against its digest.

use super::{Peers, READ_TIME, Wanted};
use crate::aggregate::Order;
use crate::slack::Slack;
use catchment_fleet::NodeBeat;
use catchment_types::{Digest, NodeId};
use http::header;
use reqwest::{Response, StatusCode};
use std::time::{Duration, Instant};

/// Attempts in a row that bring nothing, after which another node counts as out of reach.
const ATTEMPTS: u32 = 4;
/// Before the second; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(250);
/// How long another node may take to make a piece. After that it is no help.
const ORDER_TIME: Duration = Duration::from_secs(120);
/// Least bytes a second that a stream must bring, beside what [`READ_TIME`] leaves free.
const RATE_MIN: u64 = 16 << 10;
/// Names the digest of a whole stream, as its ETag.
const ETAG_LENGTH: usize = 66;

/// Why a stream did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody is known by this name, or has been for too long.
    #[error("node {0:?} is not heard")]
    Unknown(NodeId),
    /// It does not have, or does not give, what was asked for.
    #[error("node `{name}` refuses: {why}")]
    Refused {
        /// Its name.
        name: String,
        /// What it said.
        why: String,
    },
    /// It cannot be reached, or its connection broke time and again.
    #[error("node `{name}` at {url}: {why}")]
    Unreachable {
        /// Its name.
        name: String,
        /// Where it was looked for.
        url: String,
        /// What happened.
        why: String,
    },
    /// What came is not what it said it would be.
    #[error("what node `{0}` sent does not have the digest it declared")]
    Damaged(String),
    /// It could not be put away.
    #[error("put away what came: {0}")]
    Sink(#[from] std::io::Error),
}

/// What is said before the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// How many there are.
    pub bytes: u64,
    /// What is said of an update's slab.
    pub slab_meta: Option<Vec<u8>>,
}

/// Where bytes go.
pub trait Sink: Send {
    /// Told once, before the first of them.
    fn begin(&mut self, head: &Head) -> std::io::Result<()>;
    /// Takes the next ones.
    fn take(&mut self, bytes: &[u8]) -> std::io::Result<()>;
}

enum Broken {
    /// It makes sense to go on.
    Connection(String),
    Final(FetchError),
}

/// A stream, as far as it has come.
struct Stream<'a> {
    peers: &'a Peers,
    path: String,
    etag: Option<String>,
    done: u64,
    bytes: u64,
    hasher: blake3::Hasher,
}

impl Peers {
    /// Fetches `wanted` from a node. Its digest is checked at the end: what the sink has before that is not to be
    /// trusted.
    ///
    /// # Errors
    /// Every [`FetchError`].
    pub async fn fetch(&self, node: NodeId, wanted: &Wanted, sink: &mut dyn Sink) -> Result<Digest, FetchError> {
        let (path, hasher) = (wanted.path(), blake3::Hasher::new());
        let mut stream = Stream { peers: self, path, etag: None, done: 0, bytes: 0, hasher };
        let (mut attempt, mut pause) = (0, PAUSE);
        loop {
            // Asked for each time: it may have come back at another address.
            let beat = self.fleet.node(node).ok_or(FetchError::Unknown(node))?;
            let (before, begun) = (stream.done, Instant::now());
            let why = match stream.go_on(&beat, sink).await {
                Ok(()) => return stream.check(beat.name),
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Connection(why)) => why,
            };
            // A trickle is as good as nothing.
            let least = RATE_MIN * begun.elapsed().as_secs();
            if stream.done > before + least {
                (attempt, pause) = (0, PAUSE);
            }
            attempt += 1;
            if attempt == ATTEMPTS {
                return Err(FetchError::Unreachable { name: beat.name, url: beat.url, why });
            }
            tracing::debug!(node = beat.name, path = stream.path, done = stream.done, why, "go on with a stream");
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Has another node make a piece of a round, and waits until it has.
    ///
    /// # Errors
    /// As [`Peers::fetch`].
    pub async fn order(&self, node: NodeId, order: &Order) -> Result<(), FetchError> {
        let (path, body) = (Wanted::Piece(order.name()).path(), order.encode());
        let (mut attempt, begun) = (0, Instant::now());
        loop {
            let beat = self.fleet.node(node).ok_or(FetchError::Unknown(node))?;
            if begun.elapsed() > ORDER_TIME {
                let (name, url) = (beat.name.clone(), beat.url.clone());
                return Err(FetchError::Unreachable { name, url, why: format!("not done after {ORDER_TIME:?}") });
            }
            let sent = self.http.put(format!("{}{path}", beat.url)).bearer_auth(&beat.pass).body(body.clone());
            match sent.send().await {
                Ok(answer) if answer.status() == StatusCode::ACCEPTED => attempt = 0,
                Ok(answer) if answer.status().is_success() => return Ok(()),
                Ok(answer) => return Err(refused(&beat, answer).await),
                Err(error) if attempt + 1 == ATTEMPTS => return Err(unreachable(&beat, &error)),
                Err(_) => {
                    attempt += 1;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Has another node fetch `wanted` from this one.
    ///
    /// # Errors
    /// As [`Peers::fetch`].
    pub async fn offer(&self, beat: &NodeBeat, wanted: &Wanted) -> Result<(), FetchError> {
        let url = format!("{}{}?from={}", beat.url, wanted.path(), self.node);
        let sent = self.http.put(url).bearer_auth(&beat.pass).send().await;
        let answer = sent.map_err(|error| unreachable(beat, &error))?;
        if answer.status().is_success() { Ok(()) } else { Err(refused(beat, answer).await) }
    }
}

impl Stream<'_> {
    async fn go_on(&mut self, beat: &NodeBeat, sink: &mut dyn Sink) -> Result<(), Broken> {
        let mut request = self.peers.http.get(format!("{}{}", beat.url, self.path)).bearer_auth(&beat.pass);
        if let Some(etag) = &self.etag {
            request = request.header(header::RANGE, format!("bytes={}-", self.done)).header(header::IF_RANGE, etag);
        }
        let broken = |error: reqwest::Error| Broken::Connection(causes(&error));
        let mut answer = request.send().await.map_err(broken)?;
        match (answer.status(), &self.etag) {
            (StatusCode::OK, None) => self.begin(beat, &answer, sink)?,
            (StatusCode::PARTIAL_CONTENT, Some(_)) => {}
            (StatusCode::OK, Some(_)) => {
                let why = "it has something else now".to_owned();
                return Err(Broken::Final(FetchError::Refused { name: beat.name.clone(), why }));
            }
            (status, _) if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE => {
                return Err(Broken::Connection(status.to_string()));
            }
            _ => return Err(Broken::Final(refused(beat, answer).await)),
        }
        let mut slack = Slack::new(READ_TIME, RATE_MIN, READ_TIME);
        loop {
            let until = slack.wait();
            let next = tokio::time::timeout_at(until, answer.chunk()).await;
            let next = next.map_err(|_| Broken::Connection("it sends too slowly".to_owned()))?.map_err(broken)?;
            let Some(bytes) = next else { break };
            slack.gain(bytes.len());
            if bytes.len() as u64 > self.bytes - self.done {
                return Err(Broken::Final(FetchError::Damaged(beat.name.clone())));
            }
            self.hasher.update(&bytes);
            sink.take(&bytes).map_err(|error| Broken::Final(error.into()))?;
            self.done += bytes.len() as u64;
        }
        if self.done < self.bytes { Err(Broken::Connection("it ended early".to_owned())) } else { Ok(()) }
    }

    fn begin(&mut self, beat: &NodeBeat, answer: &Response, sink: &mut dyn Sink) -> Result<(), Broken> {
        let text = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let etag = text("etag").filter(|etag| etag.len() == ETAG_LENGTH);
        let bytes = text("content-length").and_then(|text| text.parse().ok());
        let slab_meta = text("catchment-slab-meta").map(unhex);
        let (Some(etag), Some(bytes), None | Some(Some(_))) = (etag, bytes, &slab_meta) else {
            return Err(Broken::Final(FetchError::Damaged(beat.name.clone())));
        };
        self.etag = Some(etag.to_owned());
        self.bytes = bytes;
        let head = Head { bytes, slab_meta: slab_meta.flatten() };
        sink.begin(&head).map_err(|error| Broken::Final(error.into()))
    }

    fn check(self, name: String) -> Result<Digest, FetchError> {
        let digest: Digest = self.hasher.finalize().into();
        let declared = self.etag.unwrap_or_default();
        if declared == format!("\"{digest}\"") { Ok(digest) } else { Err(FetchError::Damaged(name)) }
    }
}

async fn refused(beat: &NodeBeat, answer: Response) -> FetchError {
    let status = answer.status();
    let problem: Option<serde_json::Value> = answer.json().await.ok();
    let detail = problem.as_ref().and_then(|problem| problem["detail"].as_str()).map(str::to_owned);
    FetchError::Refused { name: beat.name.clone(), why: detail.unwrap_or_else(|| status.to_string()) }
}

fn unreachable(beat: &NodeBeat, error: &reqwest::Error) -> FetchError {
    FetchError::Unreachable { name: beat.name.clone(), url: beat.url.clone(), why: causes(error) }
}

/// An error with what caused it: the outer one alone says only what was tried.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// Bytes as text for a header.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok().filter(|p| p.len() == 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_through_a_header_and_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        for bad in ["0", "0g", "\u{e9}", "+1"] {
            assert!(unhex(bad).is_none_or(|bytes| bad == "+1" && bytes == [1]), "{bad}");
        }
    }
}
