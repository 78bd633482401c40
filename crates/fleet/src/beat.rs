//! What members say of themselves.

use catchment_types::{NodeId, NodeView};
use serde::{Deserialize, Serialize};

/// Largest heartbeat that is read.
pub(crate) const BEAT_BYTES_MAX: usize = 16 << 10;

/// Longest address of a node.
const ADDRESS_BYTES_MAX: usize = 512;

/// A heartbeat, as JSON on the bus: fields may be added, and unknown ones are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "member", rename_all = "snake_case")]
pub enum Beat {
    /// Of a node.
    Node(NodeBeat),
    /// Of a coordinator.
    Coordinator(CoordinatorBeat),
}

/// A node, as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeBeat {
    /// Its name in the event log.
    pub node: NodeId,
    /// Its name for people.
    pub name: String,
    /// Where its gateway is reached, by other nodes and by clients: `http://host:port`.
    pub url: String,
    /// What other nodes show it to be let in: drawn anew at each start.
    pub pass: String,
    /// Where it stands; empty when nobody said. Nodes of one zone are near each other.
    #[serde(default)]
    pub zone: String,
    /// Cores that fold.
    #[serde(default)]
    pub cores: u32,
    /// Shared memory it may use, in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Of that, bytes not in use.
    #[serde(default)]
    pub memory_free_bytes: u64,
    /// Bytes a second that its link brings in.
    #[serde(default)]
    pub link_bytes_per_s: f64,
    /// Seconds of CPU that its functions have taken for each byte of updates, as its meter counts them; 0 before the first.
    #[serde(default)]
    pub cpu_s_per_byte: f64,
    /// Whether it ends soon, and wants no more work.
    #[serde(default)]
    pub draining: bool,
    /// The feature level that it reads of the event log. The first release does not say so.
    #[serde(default = "first_level")]
    pub level: u32,
}

fn first_level() -> u32 {
    1
}

impl From<&NodeBeat> for NodeView {
    fn from(beat: &NodeBeat) -> Self {
        Self {
            node: beat.node.to_string(),
            name: beat.name.clone(),
            url: beat.url.clone(),
            zone: beat.zone.clone(),
            cores: beat.cores,
            memory_bytes: beat.memory_bytes,
            memory_free_bytes: beat.memory_free_bytes,
            draining: beat.draining,
        }
    }
}

impl Beat {
    /// Whether what it says can be acted on. Other nodes call the address and clients are sent to it, so it is held to what
    /// a node's address can be.
    pub(crate) fn is_usable(&self) -> bool {
        match self {
            Self::Node(beat) => is_address(&beat.url),
            Self::Coordinator(_) => true,
        }
    }
}

/// Whether this may be a node's address: `http://`, a host, and perhaps a port and a path. Nodes speak nothing else to each
/// other. Nothing in it is for somebody else: no user, no query, nothing that would end a line.
pub fn is_address(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let in_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    let in_path = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let has_host = !host.is_empty() && !host.starts_with(':');
    url.len() <= ADDRESS_BYTES_MAX && has_host && host.bytes().all(in_host) && path.bytes().all(in_path)
}

/// What a node says of itself, in a list by name.
pub fn beat_of(beats: &[NodeBeat], node: NodeId) -> Option<&NodeBeat> {
    beats.binary_search_by_key(&node, |beat| beat.node).ok().map(|at| &beats[at])
}

/// Where nodes stand, as numbers: the same for nodes of one zone.
pub struct Zones<'a>(Vec<&'a str>);

impl<'a> Zones<'a> {
    /// The zones of these nodes.
    pub fn of(beats: &'a [NodeBeat]) -> Self {
        let mut zones: Vec<&str> = beats.iter().map(|beat| beat.zone.as_str()).collect();
        zones.sort_unstable();
        zones.dedup();
        Self(zones)
    }

    /// The number of the zone of one of them.
    pub fn number(&self, beat: &NodeBeat) -> u32 {
        self.0.partition_point(|zone| *zone < beat.zone.as_str()) as u32
    }
}

/// A coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoordinatorBeat {
    /// Its name, drawn at its start; the least of those alive decides.
    pub id: u64,
    /// Nodes that the open rounds want, as far as it knows.
    #[serde(default)]
    pub wanted: Option<u64>,
    /// The feature level that it reads of the event log, as of a node.
    #[serde(default = "first_level")]
    pub level: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_address_is_http_and_a_host() {
        for good in
            ["http://10.0.0.7:7070", "http://[fd00::7]:7070", "http://node-1.example.com", "http://my_host:1/a/b"]
        {
            assert!(is_address(good), "{good}");
        }
        let long = format!("http://{}", "a".repeat(ADDRESS_BYTES_MAX));
        for bad in [
            "",
            "10.0.0.7:7070",
            "https://10.0.0.7:7070",
            "file:///etc/passwd",
            "HTTP://10.0.0.7",
            "http://",
            "http:///etc",
            "http://:7070",
            "http://user:secret@10.0.0.7",
            "http://10.0.0.7?a=b",
            "http://10.0.0.7/a?b",
            "http://10.0.0.7#a",
            "http://10.0.0.7\r\nHost: b",
            "http://10.0.0.7 b",
            " http://10.0.0.7",
            "http://\u{e9}",
            &long,
        ] {
            assert!(!is_address(bad), "{bad:?}");
        }
    }
}
