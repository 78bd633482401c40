//! The baselines differ from Catchment in what makes them baselines, and every figure is what it says.
#![forbid(unsafe_code)]

use catchment_simulator::{Policy, Report, Scenario, simulate, svg, table};
use std::collections::BTreeMap;

fn run_all(scenario: &Scenario) -> BTreeMap<String, Report> {
    let run = |policy: &Policy| (policy.name.clone(), simulate(scenario, policy).expect("no violation"));
    Policy::all().iter().map(run).collect()
}

#[test]
fn each_baseline_differs_where_it_should() {
    let scenario = Scenario::small(7);
    let reports = run_all(&scenario);
    let ours = &reports["catchment"];
    assert_eq!(ours.rounds, 90);

    let least = &reports["least connections"];
    assert!(least.between_nodes_bytes > 3 * ours.between_nodes_bytes, "placement saves what crosses the network");
    assert!(least.nodes_per_round > 2.0 * ours.nodes_per_round && least.node_s > 1.5 * ours.node_s);
    assert!(least.tail_s.mean > ours.tail_s.mean);

    let threshold = &reports["threshold scaling"];
    assert!(threshold.node_s > 1.3 * ours.node_s, "it never scales to zero");

    let lazy = &reports["lazy folding"];
    assert!(lazy.tail_s.mean > 1.2 * ours.tail_s.mean, "what was not folded is folded at the end");
    assert!(lazy.memory_most_bytes > 2 * ours.memory_most_bytes, "and lies in memory until then");
    assert!(lazy.cpu_s < ours.cpu_s, "in larger batches");

    let (fresh, containers) = (&reports["no reuse"], &reports["no reuse, containers"]);
    assert!(fresh.cold_starts > ours.cold_starts && fresh.tail_s.mean > ours.tail_s.mean);
    assert!(fresh.tail_s.mean < 2.0 * ours.tail_s.mean, "a runner's start is short");
    assert!(containers.tail_s.mean > fresh.tail_s.mean + 0.9, "a container's is not");

    let serverless = &reports["serverless, broker"];
    assert!(serverless.completion_s.mean > 1.2 * ours.completion_s.mean && serverless.cpu_s > 2.0 * ours.cpu_s);

    let always = &reports["always-on server"];
    assert_eq!(always.cold_starts, 0);
    assert!((always.node_s - 8.0 * always.took_s).abs() < 1e-3, "eight nodes, all the time");
}

/// One update, worked out by hand: link, receiving, log, instance, fold, finish.
#[test]
fn one_update_takes_what_its_parts_take() {
    let mut scenario = Scenario::at_once(1, 1);
    scenario.workloads[0].rounds = 1;
    let report = simulate(&scenario, &Policy::catchment()).unwrap();
    let (costs, update) = (&scenario.costs, 233e6);
    let receive_s = update / 1.25e9 + update / costs.ingest_bytes_per_s + costs.log_s;
    // The planner counts a sixteenth of the accumulator's traffic with each update: 86 ms, so two for 50 ms.
    let lanes = 2.0;
    let fold_s = costs.order_s + (update + costs.fold_partials * 2.0 * update) / costs.fold_bytes_per_s / lanes;
    let finish_s = (costs.publish_s + 3.0 * update / costs.merge_bytes_per_s) / 40.0;
    let expected_s = receive_s + costs.instance_start_s + fold_s + finish_s;
    let took_s = report.completion_s.mean;
    assert!((took_s - expected_s).abs() < 0.001, "{took_s} s, by hand {expected_s} s");
    assert_eq!((report.between_nodes_bytes, report.updates), (0, 1));
}

/// Two nodes that each have half of a round: one partial crosses the network.
#[test]
fn one_partial_less_than_there_are_nodes_crosses_the_network() {
    let mut scenario = Scenario::at_once(1, 60);
    scenario.workloads[0].rounds = 3;
    let report = simulate(&scenario, &Policy::all()[1]).unwrap();
    assert_eq!(report.nodes_per_round, 5.0);
    assert_eq!(report.between_nodes_bytes, 3 * 4 * 2 * 233_000_000);
}

#[test]
fn the_table_and_the_picture_have_every_policy() {
    let mut scenario = Scenario::small(1);
    scenario.workloads.iter_mut().for_each(|load| load.rounds = 1);
    let reports: Vec<Report> = run_all(&scenario).into_values().collect();
    let (table, svg) = (table(&reports), svg("a < b", &reports));
    for report in &reports {
        assert!(table.contains(&format!("| {} |", report.policy)) && svg.contains(&report.policy));
    }
    assert!(svg.contains("a &lt; b") && !svg.contains("NaN") && !table.contains("NaN"));
}
