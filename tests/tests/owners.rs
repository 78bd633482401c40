//! Shared memory is used again and again, by one job after another. A function that publishes what it finds there learns
//! nothing of other jobs, whatever its class, and whatever became of the process meanwhile.

use catchment_tests::{Bus, Job, Server, Tensor, file, on_both_buses, read};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The version of the function contract that the server speaks.
const CONTRACT: u32 = 4;
const PRYING: &str = include_str!("../functions/prying.wat");
/// Numbers of a model: two blocks of sums and a model take a page each.
const ELEMENTS: usize = 400;
/// Those of the one that looks behind its own.
const FEW: usize = 150;

/// A way to look at memory: its name, the class of its function, where that looks, and the job's spec.
type Way = (&'static str, &'static str, u32, Value);

fn ways() -> Vec<Way> {
    let tree = json!({"topology": {"tree": {"leaves": 2, "middles": 1}}});
    vec![
        ("fold", "additive", 1, json!({})),
        ("merge", "additive", 2, tree),
        ("finalize", "additive", 3, json!({})),
        ("behind", "additive", 4, json!({})),
        ("combine", "coordinate-wise", 3, json!({})),
        ("choose", "two-phase", 3, json!({})),
        ("make", "whole", 3, json!({})),
    ]
}

fn built((name, class, pries, _): &Way) -> Vec<u8> {
    let description = json!({"name": name, "version": "1.0.0", "class": class, "partial": "F64",
        "summary": "Publishes what it finds", "config": [], "needs_previous": false, "exact": false,
        "update_layout": if *class == "whole" { json!({"free": {"bytes_max": 1 << 20}}) } else { json!("as_model") }})
    .to_string();
    let text = PRYING
        .replace("$LENGTH", &description.len().to_string())
        .replace("$DESCRIPTION", &description.replace('"', "\\\""))
        .replace("(result i32) (i32.const $CONTRACT))", &format!("(result i32) (i32.const {CONTRACT}))"))
        .replace("(i32.const $PRIES)", &format!("(i32.const {pries})"));
    wat::parse_str(text).expect("the function's text")
}

fn update(elements: usize, value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[elements], &vec![value; elements])])
}

async fn start(bus: Bus, functions: &TempDir) -> Server {
    for way in ways() {
        std::fs::write(functions.path().join(format!("{}.wasm", way.0)), built(&way)).expect("write a function");
    }
    Server::start_with(bus, &[("--functions", &functions.path().display().to_string())]).await
}

/// A job of somebody else, which leaves numbers in accumulators, merged partials, new models and updates.
async fn somebody_else(server: &Server, name: &str, goal: usize) -> Job {
    let tree = json!({"tree": {"leaves": 2, "middles": 1}});
    let spec = json!({"namespace": "theirs", "goal": goal, "rounds": 1, "topology": tree});
    let job = server.api().begin(name, spec, &update(ELEMENTS, 0.0)).await;
    for client in 0..3 {
        job.accepted(1, &format!("c{client}"), "weight=3", &update(ELEMENTS, 1234.5)).await;
    }
    job
}

/// What a prying job publishes, other than nothing.
async fn found(server: &Server, way: &Way, name: &str) -> Option<String> {
    let elements = if way.0 == "behind" { FEW } else { ELEMENTS };
    let mut spec = json!({"function": way.0, "namespace": "ours", "goal": 2, "rounds": 1});
    spec.as_object_mut().expect("an object").extend(way.3.as_object().expect("an object").clone());
    let job = server.api().begin(name, spec, &update(elements, 0.0)).await;
    for client in ["c", "d"] {
        job.accepted(1, client, "", &update(elements, 0.0)).await;
    }
    job.in_state("completed").await;
    let model = read(&job.model(1).await);
    let strange: Vec<f64> = model["w"].iter().copied().filter(|value| value.to_bits() != 0).collect();
    (!strange.is_empty()).then(|| format!("{}: {} numbers, such as {}", way.0, strange.len(), strange[0]))
}

on_both_buses! {
    async fn a_function_finds_nothing_of_another_job(bus: Bus) {
        let functions = TempDir::new().expect("make a folder");
        let server = start(bus, &functions).await;
        let mut learned = Vec::new();
        for way in ways() {
            let theirs = somebody_else(&server, way.0, 3).await;
            theirs.in_state("completed").await;
            server.holds_no_slabs().await;
            learned.extend(found(&server, &way, way.0).await);
            server.holds_no_slabs().await;
        }
        assert!(learned.is_empty(), "{learned:#?}");
    }

    /// Who used a file last is forgotten by then.
    async fn nor_after_a_crash(bus: Bus) {
        let functions = TempDir::new().expect("make a folder");
        let mut server = start(bus, &functions).await;
        let mut learned = Vec::new();
        for way in ways() {
            somebody_else(&server, way.0, 3).await.in_state("completed").await;
            server.holds_no_slabs().await;
            server.kill9();
            server.start_again().await;
            learned.extend(found(&server, &way, way.0).await);
        }
        assert!(learned.is_empty(), "{learned:#?}");
    }

    /// The other job's round is open, and its accumulators are found again; then it is deleted.
    async fn nor_after_a_crash_within_a_round(bus: Bus) {
        let functions = TempDir::new().expect("make a folder");
        let mut server = start(bus, &functions).await;
        let mut learned = Vec::new();
        for way in ways() {
            let theirs = somebody_else(&server, way.0, 30).await;
            theirs.round_when("their updates are folded", |round| round["folded"] == 3).await;
            server.kill9();
            server.start_again().await;
            let theirs = theirs.through(&server.api());
            theirs.call("DELETE", "").await.expect(204);
            server.holds_no_slabs().await;
            learned.extend(found(&server, &way, way.0).await);
        }
        assert!(learned.is_empty(), "{learned:#?}");
    }
}
