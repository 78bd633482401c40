//! What must hold of every plan, for any fleet and any rounds.
#![forbid(unsafe_code)]

mod world;

use catchment_planner::{Class, Config, Fleet, Levels, NoRoom, Placement, Settle};
use catchment_types::NodeId;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use world::{World, demand, world};

/// Holds every round that can be placed, and gives them.
fn place_all(world: &World) -> (Fleet, Vec<Result<Placement, NoRoom>>) {
    let mut fleet = Fleet::new(Config::default(), world.nodes.clone());
    let placed = world.demands.iter().map(|demand| fleet.place(demand).map(|placed| placed.0)).collect();
    (fleet, placed)
}

/// Memory kept on each node, counted from the placements alone.
fn memory<'a>(placements: impl IntoIterator<Item = &'a Placement>) -> BTreeMap<NodeId, u64> {
    let mut memory = BTreeMap::new();
    for share in placements.into_iter().flat_map(|placement| &placement.shares) {
        *memory.entry(share.node).or_default() += share.memory_bytes;
    }
    memory
}

/// Every partial comes to the top once, after everything below it.
fn check_levels(placement: &Placement) {
    let nodes: BTreeSet<NodeId> = placement.nodes().into_iter().collect();
    assert_eq!(nodes.len(), placement.shares.len(), "a node is named twice");
    match &placement.levels {
        Levels::One => assert_eq!(placement.shares.len(), 1),
        Levels::Slices(slices) => {
            let mut end = 0;
            for (slice, share) in slices.iter().zip(&placement.shares) {
                assert_eq!((slice.node, slice.begin, slice.of), (share.node, end, placement.updates()));
                end = slice.end;
            }
            assert_eq!(end, placement.updates());
        }
        Levels::Tree(merges) => {
            let mut gone = BTreeSet::new();
            let mut level_of: BTreeMap<NodeId, u32> = BTreeMap::new();
            for merge in merges {
                assert!(!gone.contains(&merge.into), "what was handed up gets no more");
                for from in &merge.from {
                    assert!(nodes.contains(from) && *from != merge.into && gone.insert(*from), "handed up twice");
                    assert!(level_of.get(from).copied().unwrap_or(0) < merge.level, "merged before it was whole");
                }
                level_of.insert(merge.into, merge.level);
            }
            assert_eq!(merges.last().map(|merge| merge.into), Some(placement.top()));
            assert_eq!(gone.len() + 1, nodes.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_is_never_exceeded_and_every_update_is_placed(world in world()) {
        let (fleet, placed) = place_all(&world);
        let used = memory(placed.iter().flatten());
        for node in &world.nodes {
            let used = used.get(&node.node).copied().unwrap_or(0);
            prop_assert!(used <= node.memory_bytes, "{used} of {}", node.memory_bytes);
            let free = fleet.free(node.node).unwrap();
            prop_assert_eq!(free.memory_bytes, node.memory_bytes - used);
        }
        for (placed, demand) in placed.iter().zip(&world.demands) {
            let Ok(placement) = placed else { continue };
            prop_assert_eq!(placement.updates(), demand.updates);
            prop_assert!(placement.shares.iter().all(|share| share.updates > 0 && share.window > 0));
            prop_assert!((placement.parts().map(|(_, part)| part).sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(demand.class.can_spread() || placement.shares.len() == 1);
            check_levels(placement);
        }
    }

    /// Every share has room for what its class keeps there, counted here by its definition.
    #[test]
    fn what_is_kept_for_a_share_is_enough_for_it(world in world()) {
        for (placement, demand) in place_all(&world).1.iter().zip(&world.demands) {
            let Ok(placement) = placement else { continue };
            let (update, partial) = (demand.update_bytes as f64, demand.partial_bytes as f64);
            for share in &placement.shares {
                let (own, all) = (share.updates as f64, demand.updates as f64);
                let needs = match demand.class {
                    // Two blocks and a partial that comes in; finishing; the window.
                    Class::Additive => 3.0 * partial + 2.0 * update + share.window as f64 * update,
                    // Its own, and of all others what falls into its slice.
                    Class::CoordinateWise => own * update + (all - own) * update * (own / all) + partial,
                    Class::TwoPhase | Class::Whole => all * update + partial,
                };
                prop_assert!(share.memory_bytes as f64 >= needs * (1.0 - 1e-9), "{share:?} needs {needs}");
            }
        }
    }

    /// Cores and links of rounds that are in time, counted here by their definition, stay within what may be planned.
    #[test]
    fn rounds_in_time_never_take_more_than_there_is(world in world()) {
        let (config, (_, placed)) = (Config::default(), place_all(&world));
        let mut used: BTreeMap<NodeId, (f64, f64)> = BTreeMap::new();
        for (placement, demand) in placed.iter().zip(&world.demands) {
            let Some(placement) = placement.as_ref().ok().filter(|placement| placement.in_time) else { continue };
            let rate = demand.rate_per_s(&config);
            for (node, part) in placement.parts() {
                let (cores, link) = used.entry(node).or_default();
                *cores += rate * part * demand.service_s;
                *link += rate * part * demand.update_bytes as f64;
            }
        }
        for node in &world.nodes {
            let (cores, link) = used.get(&node.node).copied().unwrap_or_default();
            prop_assert!(cores <= node.cores * config.utilisation * (1.0 + 1e-6), "{cores} of {}", node.cores);
            prop_assert!(link <= node.link_bytes_per_s * config.utilisation * (1.0 + 1e-6) + 1.0);
        }
    }

    #[test]
    fn a_round_that_is_refused_truly_has_no_room(world in world()) {
        let mut fleet = Fleet::new(Config::default(), world.nodes.clone());
        for demand in &world.demands {
            let before: Vec<u64> = world.nodes.iter().map(|n| fleet.free(n.node).unwrap().memory_bytes).collect();
            if fleet.place(demand).is_err() {
                let (partial, update, all) = (demand.partial_bytes, demand.update_bytes, demand.updates);
                let has_room = match demand.class {
                    Class::Additive => before.iter().any(|free| *free >= 3 * partial + 3 * update),
                    Class::TwoPhase | Class::Whole => before.iter().any(|free| *free >= partial + all * update),
                    // Two updates' worth for each is more than a share ever needs.
                    Class::CoordinateWise => before.iter().map(|free| {
                        free.saturating_sub(partial) / update / 2
                    }).sum::<u64>() >= all,
                };
                prop_assert!(!has_room, "{demand:?} with {before:?}");
            }
        }
    }

    #[test]
    fn the_same_question_has_the_same_answer_in_any_order_of_nodes(world in world()) {
        let mut other = world.clone();
        other.nodes.reverse();
        prop_assert_eq!(place_all(&world).1, place_all(&other).1);
    }

    #[test]
    fn more_nodes_never_make_a_round_in_time_use_more_of_them(world in world(), more in 1..4usize) {
        let (few, all) = world.nodes.split_at(world.nodes.len().saturating_sub(more).max(1));
        for demand in &world.demands {
            let mut fleet = Fleet::new(Config::default(), few.to_vec());
            let Ok((before, _)) = fleet.place(demand) else { continue };
            if !before.in_time {
                continue;
            }
            fleet.release(demand.key);
            all.iter().for_each(|node| fleet.join(*node));
            let (after, _) = fleet.place(demand).unwrap();
            prop_assert!(after.shares.len() <= before.shares.len());
        }
    }

    /// No smaller set of nodes would have done, tried by hand.
    #[test]
    fn a_round_is_on_as_few_nodes_as_can_be(world in world()) {
        let demand = &world.demands[0];
        let mut fleet = Fleet::new(Config::default(), world.nodes.clone());
        let Ok((placement, _)) = fleet.place(demand) else { return Ok(()) };
        let (count, nodes) = (world.nodes.len(), &world.nodes);
        if !placement.in_time || count > 8 {
            return Ok(());
        }
        for set in 0u32..1 << count {
            if (set.count_ones() as usize) < placement.shares.len() {
                let some = (0..count).filter(|i| set >> i & 1 == 1).map(|i| nodes[i]);
                let fewer = Fleet::new(Config::default(), some).place(demand);
                prop_assert!(!fewer.is_ok_and(|(placement, _)| placement.in_time), "{set:b} would do");
            }
        }
    }

    #[test]
    fn what_is_given_back_is_what_was_taken(world in world()) {
        let (mut fleet, placed) = place_all(&world);
        placed.iter().flatten().for_each(|placement| fleet.release(placement.key));
        let empty = Fleet::new(Config::default(), world.nodes.clone());
        for node in &world.nodes {
            prop_assert_eq!(fleet.free(node.node), empty.free(node.node));
        }
    }

    #[test]
    fn when_nothing_changes_nothing_moves(world in world()) {
        let (mut fleet, placed) = place_all(&world);
        let free = |fleet: &Fleet| world.nodes.iter().map(|n| fleet.free(n.node)).collect::<Vec<_>>();
        let before = free(&fleet);
        for (placement, demand) in placed.iter().zip(&world.demands) {
            let Ok(placement) = placement else { continue };
            prop_assert_eq!(fleet.replan(placement, demand, |_| 0), Ok(None));
            prop_assert_eq!(free(&fleet), before.clone());
        }
    }

    #[test]
    fn when_a_node_is_lost_only_its_part_moves(
        world in world(),
        which in any::<prop::sample::Index>(),
        slower in 0.5..1.0f64,
    ) {
        let (mut fleet, placed) = place_all(&world);
        let lost = which.get(&world.nodes).node;
        let touched: BTreeSet<_> = fleet.leave(lost).into_iter().collect();
        for (before, demand) in placed.iter().zip(&world.demands) {
            let Ok(before) = before else { continue };
            prop_assert_eq!(touched.contains(&before.key), before.nodes().contains(&lost));
            if !before.nodes().contains(&lost) {
                continue;
            }
            // Even if others could take more of it than they do.
            let mut now = demand.clone();
            now.arrivals_per_s *= slower;
            let taken: BTreeMap<_, _> = before.shares.iter().map(|share| (share.node, share.updates / 2)).collect();
            let Ok(Some((after, _))) = fleet.replan(before, &now, |node| taken[&node]) else { continue };
            prop_assert_eq!(after.updates(), demand.updates);
            check_levels(&after);
            // What was late and can now be in time may move for that.
            let stays = before.in_time || !after.in_time;
            for share in before.shares.iter().filter(|share| stays && share.node != lost) {
                let now = after.shares.iter().find(|now| now.node == share.node);
                prop_assert!(now.is_some_and(|now| now.updates >= share.updates), "{share:?} became {now:?}");
            }
        }
        for (node, used) in memory(placed.iter().flatten()).into_iter().filter(|(node, _)| *node != lost) {
            let has = world.nodes.iter().find(|known| known.node == node).unwrap().memory_bytes;
            prop_assert!(used <= has);
        }
    }

    /// A node that left and came back is empty: nobody counts on what was there, and nothing is kept there twice.
    #[test]
    fn a_node_that_comes_back_is_a_new_one(
        world in world(),
        which in any::<prop::sample::Index>(),
        taken in 0..5000u64,
    ) {
        let (mut fleet, mut placed) = place_all(&world);
        let lost = *which.get(&world.nodes);
        fleet.leave(lost.node);
        fleet.join(lost);
        for (placed, demand) in placed.iter_mut().zip(&world.demands) {
            let Ok(before) = placed else { continue };
            // Whatever callers say was taken, memory is not exceeded.
            match fleet.replan(before, demand, |node| if node == lost.node { 0 } else { taken }) {
                Ok(None) => {}
                Ok(Some((after, _))) => *placed = Ok(after),
                Err(refused) => *placed = before.left_on(|node| node != lost.node).ok_or(refused),
            }
        }
        let used = memory(placed.iter().flatten());
        for node in &world.nodes {
            let used = used.get(&node.node).copied().unwrap_or(0);
            prop_assert_eq!(fleet.free(node.node).unwrap().memory_bytes, node.memory_bytes - used);
        }
    }

    #[test]
    fn what_a_node_has_taken_stays_there_whatever_the_load(world in world(), factor in 0.01..20.0f64) {
        let (mut fleet, placed) = place_all(&world);
        for (before, demand) in placed.iter().zip(&world.demands) {
            let Ok(before) = before else { continue };
            let taken: BTreeMap<_, _> = before.shares.iter().map(|share| (share.node, share.updates.div_ceil(2))).collect();
            let mut now = demand.clone();
            now.arrivals_per_s *= factor;
            let Ok(Some((after, why))) = fleet.replan(before, &now, |node| taken[&node]) else { continue };
            prop_assert_eq!(after.top(), before.top(), "{:?}", why);
            for share in &before.shares {
                let has = after.shares.iter().find(|known| known.node == share.node).map_or(0, |known| known.updates);
                prop_assert!(has >= taken[&share.node], "{has} of {}", taken[&share.node]);
            }
        }
    }

    #[test]
    fn every_node_gets_exactly_its_share_of_a_round(world in world()) {
        for placement in place_all(&world).1.iter().flatten().filter(|placement| placement.updates() < 3000) {
            let mut got: BTreeMap<NodeId, u64> = BTreeMap::new();
            let route = placement.route();
            (0..placement.updates()).for_each(|order| *got.entry(route.node_for(order)).or_default() += 1);
            for share in &placement.shares {
                prop_assert_eq!(got.get(&share.node).copied().unwrap_or(0), share.updates);
            }
        }
    }

    #[test]
    fn what_is_wanted_is_there_at_once_and_no_more_than_was_wanted_lately(
        steps in prop::collection::vec((0..20u64, 0..90_000u64), 1..60),
    ) {
        let (config, mut settle, mut now) = (Config::default(), Settle::default(), 0);
        let mut asked: Vec<(u64, u64)> = Vec::new();
        for (wanted, after_ms) in steps {
            now += after_ms;
            let held = settle.step(wanted, now, &config);
            asked.push((now, wanted));
            prop_assert!(held >= wanted);
            // Wanted until the next was asked for, or until now.
            let until = asked.iter().skip(1).map(|(at, _)| *at).chain([now]);
            let lately = asked.iter().zip(until).filter(|(_, until)| until + config.settle_ms >= now);
            let most = lately.map(|((_, wanted), _)| *wanted).max().unwrap();
            prop_assert!(held == most || (most == 0 && held == 1), "{held}, {most} were wanted lately");
        }
    }
}

/// The properties above would hold for an empty choice of cases; this says that all kinds of placements are among them.
#[test]
fn the_worlds_have_everything_in_them() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..400 {
        let world = world().new_tree(&mut runner).unwrap().current();
        for (placed, demand) in place_all(&world).1.iter().zip(&world.demands) {
            let what = match placed {
                Err(_) => format!("{:?} refused", demand.class),
                Ok(placement) if !placement.in_time => format!("{:?} late", demand.class),
                Ok(placement) => {
                    format!("{:?} {} height {}", demand.class, placement.levels.name(), placement.levels.height())
                }
            };
            *seen.entry(what).or_default() += 1;
        }
    }
    let wanted = [
        "Additive late",
        "Additive one height 0",
        "Additive refused",
        "Additive tree height 1",
        "Additive tree height 2",
        "CoordinateWise late",
        "CoordinateWise refused",
        "CoordinateWise slices height 1",
        "TwoPhase late",
        "TwoPhase one height 0",
        "Whole refused",
    ];
    let missing: Vec<_> = wanted.iter().filter(|what| !seen.contains_key(**what)).collect();
    assert!(missing.is_empty(), "never seen: {missing:?} in {seen:#?}");
}

#[test]
fn an_explanation_is_one_line() {
    let mut fleet = Fleet::new(Config::default(), [world::node(7, 16.0, 64, 0)]);
    let (_, explanation) = fleet.place(&demand(1, Class::Additive, 1000, 15.0)).unwrap();
    let line = serde_json::to_string(&explanation).unwrap();
    assert!(line.contains(r#""why":"fits_one_node""#) && !line.contains('\n'), "{line}");
}
