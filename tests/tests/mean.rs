//! What a round publishes, checked by a client from outside: written and read back by the `safetensors` package of
//! another language, worked out again in float64.

use catchment_tests::{Bus, Python, Server, on_both_buses};
use serde_json::{Value, json};
use tempfile::TempDir;

const WEIGHTS: [f64; 8] = [1.0, 2.5, 0.125, 37.0, 1000.0, 3.0, 0.75, 12.0];
/// Elements of the floats of the model that `outside.py` writes, and of everything else in it.
const FLOATS: u64 = 61 * 40 + 16 * 24 + 24 + 8 * 24 + 1 + 33 + 2 * 24 + 2 * 40;
const OTHERS: u64 = 1 + 5 + 7 + 7 * 9;
/// Every float type.
const MIXED: [&str; 6] = ["BF16", "F32", "F16", "F8_E5M2", "F64", "F8_E4M3"];

/// Eight outside clients submit at the same time; gives what was published to the outside client for judgement.
async fn published_by(bus: Bus, spec: Value, plan: Value) -> Value {
    let dir = TempDir::new().expect("make a folder");
    let (folder, python) = (dir.path().display().to_string(), Python::find());
    let mut plan = plan;
    (plan["seed"], plan["weights"]) = (20.into(), json!(WEIGHTS));
    plan["tensors"] = spec.get("tensors").cloned().unwrap_or(json!([]));
    python.outside(&["write", &folder, &plan.to_string()]);
    let file = |name: &str| std::fs::read(dir.path().join(name)).expect("a file that Python wrote");

    let server = Server::start(bus).await;
    let mut whole = json!({"goal": 8, "rounds": 1});
    whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
    let job = server.api().begin("outside", whole, &file("base.safetensors")).await;
    let etag = job.call("GET", "/model").await.header("etag").to_owned();
    let updates = WEIGHTS.iter().enumerate().map(|(k, weight)| {
        let (job, etag, body) = (job.clone(), etag.clone(), file(&format!("update-{k}.safetensors")));
        async move {
            let headers = [("catchment-base", etag.as_str())];
            job.submit_with(1, &format!("outside-{k}"), &format!("weight={weight}"), &headers, &body).await
        }
    });
    for answer in futures::future::join_all(updates).await {
        answer.expect(202);
    }
    let ended = job.in_state("completed").await;
    assert_eq!(ended["model_version"], 1);
    std::fs::write(dir.path().join("published.safetensors"), job.model(1).await).expect("keep what was published");
    let verdict = python.outside(&["check", &folder, &plan.to_string()]);
    server.holds_no_slabs().await;
    serde_json::from_str(&verdict).expect("a verdict")
}

/// Everything was looked at, and was right.
fn assert_verdict(verdict: &Value, folded: u64, kept: u64) {
    assert_eq!((verdict["folded"].as_u64(), verdict["kept"].as_u64()), (Some(folded), Some(kept)), "{verdict}");
    assert!(verdict["worst"].as_f64().is_some_and(|worst| worst < 1e-6), "{verdict}");
}

fn tree(leaves: u32, middles: u32) -> Value {
    json!({"topology": {"tree": {"leaves": leaves, "middles": middles}}})
}

on_both_buses! {
    /// Eight weighted clients, mixed dtypes, counters and metadata.
    async fn the_model_is_the_float64_weighted_mean(bus: Bus) {
        assert_verdict(&published_by(bus, json!({}), json!({})).await, FLOATS, OTHERS);
    }

    async fn a_tree_of_leaves_and_middles_publishes_the_same(bus: Bus) {
        assert_verdict(&published_by(bus, tree(4, 2), json!({})).await, FLOATS, OTHERS);
    }

    /// More leaves than updates, and no middles: some leaves stay empty.
    async fn a_tree_with_empty_leaves_publishes_the_same(bus: Bus) {
        assert_verdict(&published_by(bus, tree(11, 0), json!({})).await, FLOATS, OTHERS);
    }

    async fn deltas_are_added_to_the_model(bus: Bus) {
        let spec = json!({"update": "delta"});
        assert_verdict(&published_by(bus, spec, json!({"delta": true})).await, FLOATS, OTHERS);
    }

    async fn updates_may_be_narrower_than_the_model(bus: Bus) {
        let spec = json!({"update_dtypes": ["BF16"]});
        assert_verdict(&published_by(bus, spec, json!({"bf16": true})).await, FLOATS, OTHERS);
    }

    async fn deltas_may_be_narrower_through_a_tree(bus: Bus) {
        let spec = json!({"update": "delta", "update_dtypes": ["BF16", "F16"], "topology": {"tree": {"leaves": 4, "middles": 2}}});
        assert_verdict(&published_by(bus, spec, json!({"delta": true, "bf16": true})).await, FLOATS, OTHERS);
    }

    /// As training in mixed precision leaves updates: some tensors in one type, some in another, each client in its own way.
    async fn one_update_may_have_several_types(bus: Bus) {
        for more in [json!({}), tree(4, 2), json!({"exact": {"bound": 16, "weight_max": 1000, "updates_max": 100}})] {
            let mut spec = json!({"update_dtypes": MIXED});
            spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            assert_verdict(&published_by(bus, spec, json!({"mixed": MIXED})).await, FLOATS, OTHERS);
        }
        let few = ["BF16", "F16"];
        let spec = json!({"update_dtypes": few});
        assert_verdict(&published_by(bus, spec, json!({"mixed": few})).await, FLOATS, OTHERS);
    }

    async fn one_delta_may_have_several_types(bus: Bus) {
        let spec = json!({"update": "delta", "update_dtypes": MIXED, "topology": {"tree": {"leaves": 3, "middles": 1}},
            "tensors": [{"match": "embed.*", "rule": "keep"}, {"match": "head.precise", "rule": "exclude"},
                {"match": "bn.*", "rule": "max"}, {"match": "head.f8", "rule": "max"}]});
        let (left_out, counted) = (61 * 40 + 33, 1);
        let verdict = published_by(bus, spec, json!({"delta": true, "mixed": MIXED})).await;
        assert_verdict(&verdict, FLOATS - left_out + counted, OTHERS + left_out - counted);
    }

    /// Whole numbers of every width, at their ends too, and truth values.
    async fn whole_numbers_have_exact_maxima_and_means_rounded_once(bus: Bus) {
        for rule in ["max", "mean"] {
            let tensors = ["counts.*", "codes", "mask"].map(|name| json!({"match": name, "rule": rule}));
            let spec = json!({"tensors": tensors});
            assert_verdict(&published_by(bus, spec, json!({})).await, FLOATS + OTHERS - 1, 1);
        }
    }

    /// The largest, the previous one although updates carry it, the previous one although updates do not.
    async fn rules_decide_what_becomes_of_a_tensor(bus: Bus) {
        let spec = json!({"tensors": [
            {"match": "*.num_batches_tracked", "rule": "max"},
            {"match": "bn.running_*", "rule": "max"},
            {"match": "head.precise", "rule": "keep"},
            {"match": "embed.*", "rule": "exclude"},
        ]});
        let (left_out, counted) = (61 * 40 + 33, 1);
        let verdict = published_by(bus, spec, json!({})).await;
        assert_verdict(&verdict, FLOATS - left_out + counted, OTHERS + left_out - counted);
    }
}
