//! The other nodes of the cluster: who they are, and how bytes come from them.
//!
//! Between nodes move partials, updates of functions that need them all, models, and modules of functions; always by one
//! stream each, asked for by the node that needs it. What is asked for is named by what the event log says it must be, so a node that has
//! something else, because it is ahead, behind or came back from the dead, cannot give it.

mod fetch;
pub mod functions;
pub mod models;

pub use fetch::{FetchError, Head, Sink, hex};

use crate::aggregate::Range;
use crate::functions::Maker;
use catchment_fleet::{Fleet, NodeBeat, beat_of};
use catchment_ledger::Round;
use catchment_types::{ClientId, Digest, JobUid, NodeId, Place, ReceiptId};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// How long a connection to another node may take.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// How long another node may say nothing. It may have to read what it is about to send first.
const READ_TIME: Duration = Duration::from_secs(30);

/// What one node asks another for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A model's file.
    Model {
        /// Its job.
        uid: JobUid,
        /// Its version.
        version: u64,
        /// Its digest.
        etag: Digest,
    },
    /// A leaf's partial.
    Partial {
        /// Its job.
        uid: JobUid,
        /// Its round.
        round: u64,
        /// Which leaf.
        leaf: u32,
        /// What must be in it.
        contribution: Digest,
        /// Who must have made it. The first release's nodes do not know.
        maker: Option<Maker>,
    },
    /// A function's module.
    Function(Digest),
    /// An update as it lies in its slab.
    Update(ReceiptId),
    /// Some elements of it.
    Excerpt {
        /// The update.
        receipt: ReceiptId,
        /// The elements.
        excerpt: Excerpt,
    },
    /// What was ordered by this name.
    Piece(Digest),
}

/// Elements of one segment of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Excerpt {
    /// The segment.
    pub segment: u32,
    /// The first element within it.
    pub first: u64,
    /// How many.
    pub elements: u64,
}

impl Excerpt {
    /// What ranges of one segment, which follow one another, have of it.
    pub fn of(ranges: &[Range]) -> Self {
        let elements = ranges.iter().map(|range| range.elements).sum();
        Self { segment: ranges[0].segment as u32, first: ranges[0].first, elements }
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.segment, self.first, self.elements)
    }
}

impl Wanted {
    /// Where it is asked for.
    pub fn path(&self) -> String {
        match self {
            Self::Model { uid, version, etag } => format!("/v1/peer/models/{uid}/{version}/{etag}"),
            Self::Partial { uid, round, leaf, contribution, maker } => {
                let maker = maker.map(|Maker { function, abi }| format!("?function={function}&abi={abi}"));
                format!("/v1/peer/partials/{uid}/{round}/{leaf}/{contribution}{}", maker.unwrap_or_default())
            }
            Self::Function(digest) => format!("/v1/peer/functions/{digest}"),
            Self::Update(receipt) => format!("/v1/peer/updates/{receipt}"),
            Self::Excerpt { receipt, excerpt } => format!("/v1/peer/updates/{receipt}/{excerpt}"),
            Self::Piece(name) => format!("/v1/peer/pieces/{name}"),
        }
    }
}

/// Models being fetched, by job and version.
type Fetching = HashMap<(JobUid, u64), Arc<Mutex<()>>>;

/// The cluster as one node sees it.
pub struct Peers {
    /// Who is there.
    pub fleet: Fleet,
    /// What other nodes show this one.
    pass: String,
    node: NodeId,
    http: reqwest::Client,
    /// Models being fetched, so that each is fetched once.
    fetching: Mutex<Fetching>,
}

impl Peers {
    /// `pass`: what this node's own heartbeats say.
    ///
    /// # Errors
    /// When the system refuses what an HTTP client needs.
    pub fn new(fleet: Fleet, node: NodeId, pass: String) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIME)
            .read_timeout(READ_TIME)
            .no_proxy()
            // A node answers itself or not at all: nobody sends this one, with its pass and its bytes, to somebody else.
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { fleet, pass, node, http, fetching: Default::default() })
    }

    /// Whether a call carries this node's own pass. In constant time: digests are compared.
    pub fn admits(&self, shown: Option<&str>) -> bool {
        let digest = |text: &str| blake3::hash(text.as_bytes());
        shown.and_then(|shown| shown.strip_prefix("Bearer ")).is_some_and(|shown| digest(shown) == digest(&self.pass))
    }

    /// The address of the node that a client's update for this round should go to; `None`: this one. Clients are spread
    /// over the round's nodes by their names, so that each is always sent to the same one. Nodes that are quiet or drain are
    /// left out.
    pub fn gateway(&self, round: &Round, client: Option<&ClientId>) -> Option<String> {
        let beats = self.fleet.live();
        let of = |node: NodeId| beat_of(&beats, node);
        let takes_work = |node: NodeId| of(node).is_some_and(|beat| !beat.draining);
        let places: Vec<&Place> = round.places.iter().filter(|place| takes_work(place.node)).collect();
        let chosen = match client {
            Some(client) => {
                let digest = blake3::hash(client.as_str().as_bytes());
                let drawn = u64::from_le_bytes(*digest.as_bytes().first_chunk().expect("a digest has eight bytes"));
                let all: u64 = places.iter().map(|place| place.updates).sum();
                let mut at = drawn.checked_rem(all).unwrap_or_default();
                let mut takes = |place: &&&Place| match at.checked_sub(place.updates) {
                    Some(rest) => {
                        at = rest;
                        false
                    }
                    None => true,
                };
                places.iter().find(&mut takes).copied()
            }
            // Whoever does not say who it is may as well stay.
            None => places.iter().find(|place| place.node == self.node).or(places.first()).copied(),
        };
        // A round that is nowhere in particular is anywhere else than on a node that drains.
        let is_draining = of(self.node).is_some_and(|beat| beat.draining);
        let elsewhere = || beats.iter().map(|beat| beat.node).find(|node| is_draining && takes_work(*node));
        let node = chosen.map(|place| place.node).or_else(elsewhere).filter(|node| *node != self.node)?;
        of(node).map(|beat| beat.url.clone())
    }

    /// Whether another node was heard lately.
    pub fn has_others(&self) -> bool {
        self.fleet.live().iter().any(|beat| beat.node != self.node)
    }

    /// Other nodes that were heard lately, and before them `first`, if it is another and not lost: it may have been quiet
    /// for a moment and still be the only one that has what is wanted.
    fn others(&self, first: NodeId) -> Vec<NodeBeat> {
        let mut others = self.fleet.live().to_vec();
        others.retain(|beat| beat.node != self.node && beat.node != first);
        others.splice(0..0, self.fleet.node(first).filter(|beat| beat.node != self.node));
        others
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catchment_bus::Bus;
    use catchment_fleet::{Beat, Pace, Speak};
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    struct Nowhere;

    impl Sink for Nowhere {
        fn begin(&mut self, _: &Head) -> io::Result<()> {
            Ok(())
        }

        fn take(&mut self, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
    }

    /// A server that gives everybody this answer, and counts.
    async fn server(answer: String) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, SeqCst);
                let asked = stream.read(&mut [0; 4096]).await.unwrap();
                assert!(asked > 0, "it asks for something");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (url, calls)
    }

    #[tokio::test]
    async fn nobody_sends_a_node_to_somebody_else() {
        let (elsewhere, calls) =
            server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()).await;
        for status in
            ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]
        {
            let head = format!("HTTP/1.1 {status}\r\nlocation: {elsewhere}/v1/jobs\r\n");
            let (url, asked) = server(format!("{head}content-length: 0\r\nconnection: close\r\n\r\n")).await;
            let other = NodeId(2);
            let speak: Speak = Arc::new(move || {
                let beat = serde_json::json!({ "member": "node", "node": other, "name": "n", "url": url, "pass": "p" });
                vec![serde_json::from_value::<Beat>(beat).unwrap()]
            });
            let fleet = Fleet::join(Bus::in_memory().events, speak, Pace::default(), [1; 16]).await.unwrap();
            let mut members = fleet.watch();
            while fleet.node(other).is_none() {
                members.changed().await.unwrap();
            }
            let beat = fleet.node(other).unwrap();
            let peers = Peers::new(fleet, NodeId(1), "own".to_owned()).unwrap();
            let wanted =
                Wanted::Model { uid: JobUid::from_bytes([1; 16]), version: 0, etag: Digest::from_bytes([0; 32]) };
            let error = peers.fetch(other, &wanted, &mut Nowhere).await.unwrap_err();
            assert!(matches!(error, FetchError::Refused { .. }), "{status}: {error}");
            let error = peers.offer(&beat, &wanted).await.unwrap_err();
            assert!(matches!(error, FetchError::Refused { .. }), "{status}: {error}");
            assert_eq!((asked.load(SeqCst), calls.load(SeqCst)), (2, 0), "{status}");
        }
    }
}
