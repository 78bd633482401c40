//! Choices that can be checked by hand.
#![forbid(unsafe_code)]

mod world;

use catchment_planner::{Class, Config, Fleet, Levels, Node, Why};
use catchment_types::NodeId;
use world::{demand, node};

/// A gigabyte-a-second fleet of nodes with these cores, in these zones; names from 1.
fn fleet(cores: &[(f64, u32)]) -> Fleet {
    let of =
        |(name, (cores, zone)): (u64, &(f64, u32))| Node { link_bytes_per_s: 1e11, ..node(name, *cores, 64, *zone) };
    Fleet::new(Config::default(), (1..).zip(cores).map(of))
}

fn nodes(names: &[u64]) -> Vec<NodeId> {
    names.iter().copied().map(NodeId).collect()
}

#[test]
fn of_nodes_that_suffice_the_one_with_the_least_left_over_is_taken() {
    // 100 updates at 100 a second within a second of lag are 50 a second: 2.5 cores, of which a node gives 70%.
    let mut fleet = fleet(&[(64.0, 0), (3.0, 0), (4.0, 0), (16.0, 0)]);
    let (placement, why) = fleet.place(&demand(1, Class::Additive, 100, 100.0)).unwrap();
    assert_eq!((placement.nodes(), why.why), (nodes(&[3]), Why::FitsOneNode));
    // Now node 3 has 0.3 left, so the next goes to the one that is next in size.
    let (placement, _) = fleet.place(&demand(2, Class::Additive, 100, 100.0)).unwrap();
    assert_eq!(placement.nodes(), nodes(&[4]));
}

#[test]
fn the_last_of_several_nodes_is_the_smallest_that_does() {
    // 20 cores: 14 of node 1, and for the other 6 node 4 is enough.
    let mut fleet = fleet(&[(20.0, 0), (19.0, 0), (18.0, 0), (9.0, 0), (2.0, 0)]);
    let (placement, why) = fleet.place(&demand(1, Class::Additive, 800, 800.0)).unwrap();
    assert_eq!((placement.nodes(), why.why), (nodes(&[1, 4]), Why::FewestNodes));
}

#[test]
fn one_zone_is_preferred_where_it_takes_no_more_nodes() {
    let mut fleet = fleet(&[(20.0, 0), (16.0, 1), (16.0, 1), (8.0, 0)]);
    let (placement, _) = fleet.place(&demand(1, Class::Additive, 800, 800.0)).unwrap();
    assert_eq!(placement.nodes(), nodes(&[2, 3]));
}

#[test]
fn middles_go_between_where_a_link_would_take_too_long() {
    let slow: Vec<Node> =
        (1..=12).map(|name| Node { link_bytes_per_s: 0.3e9, ..node(name, 8.0, 64, (name % 2) as u32) }).collect();
    let mut demand = demand(1, Class::Additive, 3000, 0.0);
    demand.time_left_s = Some(58.0);
    let (placement, _) = Fleet::new(Config::default(), slow.clone()).place(&demand).unwrap();
    let Levels::Tree(merges) = &placement.levels else { panic!("{placement:?}") };
    // 0.3 GB/s bring three partials of 94 MB in a second.
    assert!(merges.iter().all(|merge| merge.from.len() <= 3), "{merges:?}");
    assert!(placement.shares.len() > 8 && placement.levels.height() >= 2);
    let fast = slow.into_iter().map(|node| Node { link_bytes_per_s: 3e9, ..node });
    let (placement, _) = Fleet::new(Config::default(), fast).place(&demand).unwrap();
    assert!(placement.levels.height() <= 2, "a level for zones is enough");
}

#[test]
fn a_late_round_takes_as_many_nodes_as_make_it_sooner() {
    let link = |name| Node { link_bytes_per_s: 1.25e9, ..node(name, 40.0, 64, 0) };
    // An update of 233 MB at once is 0.19 s of a link, and each node more brings a partial of 466 MB: √(N / 2) nodes.
    let mut at_once = demand(1, Class::Additive, 100, 1e5);
    at_once.update_bytes = 233_000_000;
    at_once.partial_bytes = 466_000_000;
    let mut few = at_once.clone();
    few.updates = 10;
    let place = |demand| Fleet::new(Config::default(), (1..=20).map(link)).place(demand).unwrap().0;
    let (many, few) = (place(&at_once), place(&few));
    assert!(!many.in_time && !few.in_time);
    assert!((5..=10).contains(&many.shares.len()), "{}", many.shares.len());
    assert!((2..=3).contains(&few.shares.len()), "{}", few.shares.len());
    let cut = catchment_planner::Demand { class: Class::CoordinateWise, ..at_once };
    assert_eq!(place(&cut).shares.len(), 20, "slices bring no partials");
}

#[test]
fn a_round_gives_nodes_up_only_when_it_needs_clearly_fewer() {
    let mut fleet = fleet(&[(20.0, 0), (20.0, 0), (20.0, 0)]);
    let mut round = demand(1, Class::Additive, 800, 1000.0);
    let (placement, _) = fleet.place(&round).unwrap();
    assert_eq!(placement.shares.len(), 2);
    // What 14 cores just serve is not yet clearly less.
    round.arrivals_per_s = 400.0;
    assert_eq!(fleet.replan(&placement, &round, |_| 0), Ok(None));
    round.arrivals_per_s = 100.0;
    let (smaller, why) = fleet.replan(&placement, &round, |_| 0).unwrap().unwrap();
    assert_eq!((smaller.nodes(), why.why), (nodes(&[1]), Why::Shrunk));
    // And what has come stays where it is.
    fleet.hold(&placement, &round);
    assert_eq!(fleet.replan(&placement, &round, |_| 1), Ok(None));
}

#[test]
fn a_load_that_grows_takes_nodes_besides_and_moves_none() {
    let mut fleet = fleet(&[(20.0, 0), (20.0, 0), (20.0, 0)]);
    let mut round = demand(1, Class::Additive, 800, 200.0);
    let (placement, _) = fleet.place(&round).unwrap();
    round.arrivals_per_s = 2000.0;
    let (grown, why) = fleet.replan(&placement, &round, |_| 300).unwrap().unwrap();
    assert_eq!((grown.shares.len(), grown.top(), why.why), (3, placement.top(), Why::Grown));
}

#[test]
fn as_many_nodes_are_wanted_as_the_scarcest_thing_asks_for() {
    let config = Config::default();
    let wanted = |demands: &[_]| catchment_planner::nodes_wanted(demands, &node(1, 10.0, 64, 0), &config);
    assert_eq!(wanted(&[]), 0);
    // 19.0 cores of 7 a node, 0.9 GB/s a link: the link asks for more.
    let round = demand(1, Class::Additive, 800, 1e6);
    assert_eq!(wanted(std::slice::from_ref(&round)), (800.0f64 * 47_185_920.0 / (1.25e9 * 0.7)).ceil() as u64);
    let kept = demand(2, Class::Whole, 4000, 0.1);
    assert_eq!(wanted(&[kept]), 3, "180 GB of updates in 64 GiB a node");
}
