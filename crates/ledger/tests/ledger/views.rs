//! What callers see of a round on many nodes, and what it costs those who wait for the lock meanwhile.

use crate::common::*;
use catchment_ledger::Outcome;
use catchment_types::{Accept, NodeId, Place, Record};
use std::time::{Duration, Instant};

/// A round planned for `nodes` nodes, of which each second one has an update of another size.
fn spread_over(nodes: u64) -> Fixture {
    let mut fixture = Fixture::waiting(r#","goal":1000000,"deadline":null"#);
    assert_eq!(fixture.put_model(), Outcome::Done);
    let places = (0..nodes).map(|node| Place { node: NodeId(node), updates: node + 1 }).collect();
    let opened = Record::RoundOpened { uid: JOB, round: 1, deadline_ms: None, places, at_ms: 0 };
    assert_eq!(fixture.apply(opened), Outcome::Done);
    let accepts =
        (0..nodes).step_by(2).map(|node| Accept { node: NodeId(node), bytes: node, ..accept(JOB, 1, node, 0) });
    assert!(matches!(fixture.apply(Record::Accepted(accepts.collect())), Outcome::Accepts(_)));
    fixture
}

fn time_of_view(fixture: &Fixture) -> Duration {
    let time = |_| {
        let begun = Instant::now();
        let nodes = fixture.round().nodes_view();
        let took = begun.elapsed();
        drop(nodes);
        took
    };
    (0..5).map(time).min().unwrap()
}

#[test]
fn nodes_are_shown_with_what_is_planned_and_what_is_there() {
    let fixture = spread_over(6);
    let shown: Vec<_> =
        fixture.round().nodes_view().into_iter().map(|n| (n.node, n.top, n.planned, n.received, n.bytes)).collect();
    let id = |node: u64| NodeId(node).to_string();
    let expected = [
        (4, true, 5, 1, 4),
        (2, false, 3, 1, 2),
        (0, false, 1, 1, 0),
        (1, false, 2, 0, 0),
        (3, false, 4, 0, 0),
        (5, false, 6, 0, 0),
    ];
    assert_eq!(shown, expected.map(|(node, top, planned, received, bytes)| (id(node), top, planned, received, bytes)));
}

/// Sixteen times the nodes take sixteen times as long, and a bit: 256 times as long if each looked at every other.
#[test]
fn each_node_is_looked_at_once() {
    let (few, many) = (time_of_view(&spread_over(500)), time_of_view(&spread_over(8000)));
    assert!(many < 80 * few, "{few:?} for 500 nodes, {many:?} for 8000");
}
