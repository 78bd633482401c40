//! Which node answers a job's check-ins.

use catchment_types::{JobUid, NodeId};

/// The node among `nodes` at whose desk a job's clients are known: by rendezvous hashing (Thaler and Ravishankar, *Using
/// Name-Based Mappings to Increase Hit Rates*, IEEE/ACM ToN 1998), so that everybody who knows the same nodes names the
/// same one, and a node that leaves moves only its own jobs. `None` without nodes.
pub fn home(uid: JobUid, nodes: impl IntoIterator<Item = NodeId>) -> Option<NodeId> {
    let score = |node: &NodeId| {
        let mut hasher = blake3::Hasher::new_derive_key("catchment v1 home of a job");
        hasher.update(uid.as_bytes()).update(&node.0.to_le_bytes());
        (*hasher.finalize().as_bytes(), *node)
    };
    nodes.into_iter().max_by_key(score)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs() -> impl Iterator<Item = JobUid> {
        (0..1000u32).map(|n| {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&n.to_le_bytes());
            JobUid::from_bytes(bytes)
        })
    }

    #[test]
    fn homes_are_spread_and_move_only_with_their_node() {
        let nodes = [1, 2, 3, 4].map(NodeId);
        assert_eq!(home(JobUid::from_bytes([0; 16]), []), None);
        for node in nodes {
            let count = jobs().filter(|uid| home(*uid, nodes) == Some(node)).count();
            assert!((200..300).contains(&count), "{count} of 1000 jobs on one of four nodes");
        }
        let left: Vec<NodeId> = nodes.into_iter().filter(|node| node.0 != 3).rev().collect();
        for uid in jobs() {
            let before = home(uid, nodes).unwrap();
            let after = home(uid, left.iter().copied()).unwrap();
            assert!(before == after || before == NodeId(3));
        }
    }
}
