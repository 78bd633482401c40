//! Exact sums, end to end: the published file is the same bytes whatever the order of arrival, the shape of the
//! aggregation, the batches and the crashes in between; and it is the mean, as closely as is promised.

use catchment_tests::{Bus, Job, Server, Tensor, file, on_both_buses, read};
use serde_json::{Value, json};

const CLIENTS: usize = 24;
/// Elements of the wide tensor: two ranges of coordinates.
const WIDE: usize = 300_000;

/// Numbers of very different size, so that plain sums depend on their order.
fn value(client: usize, i: usize) -> f32 {
    let x = (client * 7919 + i * 104_729) as u64;
    let unit = (x.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
    unit * [1.0, 1e-3, 7.0, 1e-6][(client + i) % 4]
}

fn weight(client: usize) -> f64 {
    [1.0, 0.1, 37.0, 250.5][client % 4] + client as f64 / 3.0
}

fn update(client: usize) -> Vec<u8> {
    let wide: Vec<f32> = (0..WIDE).map(|i| value(client, i)).collect();
    let precise: Vec<f64> = (0..500).map(|i| f64::from(value(client, i)) / 3.0).collect();
    file(&[
        Tensor::f32("wide", &[WIDE], &wide),
        Tensor::f64("precise", &[500], &precise),
        Tensor::f32("peak", &[3], &[if client.is_multiple_of(2) { 0.0 } else { -0.0 }; 3]),
    ])
}

fn spec(more: Value) -> Value {
    let mut spec = json!({"goal": CLIENTS, "rounds": 1, "exact": {"bound": 4, "weight_max": 300, "updates_max": 100},
        "tensors": [{"match": "peak", "rule": "max"}]});
    spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    spec
}

async fn submit(job: &Job, clients: impl IntoIterator<Item = usize>) {
    let etag = job.call("GET", "/model").await.header("etag").to_owned();
    for client in clients {
        let query = format!("weight={}", weight(client));
        let headers = [("catchment-base", etag.as_str())];
        let answer = job.submit_with(1, &format!("c{client}"), &query, &headers, &update(client)).await;
        answer.expect(202);
    }
}

async fn submit_at_once(job: &Job) {
    let calls = (0..CLIENTS).rev().map(|client| submit(job, [client]));
    futures::future::join_all(calls).await;
}

async fn published(job: &Job) -> Vec<u8> {
    job.in_state("completed").await;
    job.model(1).await
}

/// How far the published mean is from the float64 one, in units of what is promised.
fn worst(model: &[u8]) -> f64 {
    let model = read(model);
    let total: f64 = (0..CLIENTS).map(weight).sum();
    // bound · weight_max is 1200, so s is 40.
    let promised = CLIENTS as f64 * 2f64.powi(-41) / total;
    let distance = |i: usize| {
        let sum: f64 = (0..CLIENTS).map(|c| weight(c) * (f64::from(value(c, i)) / 3.0)).sum();
        // The mean is rounded to the model's dtype, and so is the reference.
        ((model["precise"][i] - sum / total).abs() - 1e-15).max(0.0) / promised
    };
    (0..500).map(distance).fold(0.0, f64::max)
}

on_both_buses! {
    async fn the_model_is_the_same_bytes_in_any_order_and_tree(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let job = api.begin("flat", spec(json!({})), &update(99)).await;
        submit(&job, 0..CLIENTS).await;
        let expected = published(&job).await;
        assert!(worst(&expected) <= 1.0, "{} times the promised error", worst(&expected));
        let job = api.begin("reversed", spec(json!({})), &update(99)).await;
        submit(&job, (0..CLIENTS).rev()).await;
        assert_eq!(published(&job).await, expected, "the other way round");
        for (name, leaves, middles) in [("tree", 5, 2), ("wide", 11, 0)] {
            let tree = json!({"topology": {"tree": {"leaves": leaves, "middles": middles}}});
            let job = api.begin(name, spec(tree), &update(99)).await;
            submit_at_once(&job).await;
            assert_eq!(published(&job).await, expected, "{name}, all at once");
        }
        // The same numbers without exact sums: were they equal too, this test would show nothing.
        let mut plain = Vec::new();
        for turn in 0..6 {
            let job = api.begin(&format!("plain-{turn}"), spec(json!({"exact": false})), &update(99)).await;
            submit(&job, (0..CLIENTS).map(|c| (c + 5 * turn) % CLIENTS)).await;
            plain.push(published(&job).await);
        }
        assert!(plain.iter().any(|model| *model != plain[0]), "plain sums do not depend on the order");
        server.holds_no_slabs().await;
    }

    async fn deltas_and_kills_change_no_bit(bus: Bus) {
        let mut server = Server::start(bus).await;
        let delta = json!({"update": "delta"});
        let job = server.api().begin("calm", spec(delta.clone()), &update(99)).await;
        submit(&job, 0..CLIENTS).await;
        let expected = published(&job).await;
        let job = server.api().begin("stormy", spec(delta), &update(99)).await;
        let mut order: Vec<usize> = (0..CLIENTS).collect();
        order.rotate_left(9);
        for (kill, part) in order.chunks(7).enumerate() {
            submit(&job.through(&server.api()), part.iter().copied()).await;
            if kill < 3 {
                server.kill9();
                server.start_again().await;
            }
        }
        assert_eq!(published(&job.through(&server.api())).await, expected);
        server.holds_no_slabs().await;
    }

    async fn what_is_out_of_range_is_named(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let tensor = |values: &[f32]| file(&[Tensor::f32("w", &[2, 3], values), Tensor::i64("n", &[], &[7])]);
        let exact = json!({"bound": 4, "weight_max": 10, "updates_max": 3});
        let job = api.begin("a", json!({"goal": 2, "rounds": 1, "exact": exact}), &tensor(&[100.0; 6])).await;
        let beyond = job.submit(1, "c", "", &tensor(&[0.0, 4.0, -4.0, 1.0, 4.0000005, 9.0])).await;
        let problem = beyond.problem(422, "out_of_range");
        assert_eq!((problem["tensor"].as_str(), problem["index"].as_u64()), (Some("w"), Some(4)), "{problem}");
        let heavy = job.submit(1, "c", "weight=10.5", &tensor(&[0.0; 6])).await.problem(422, "out_of_range");
        assert!(heavy["detail"].as_str().is_some_and(|text| text.contains("exact.weight_max of 10")), "{heavy}");
        job.submit(1, "c", "", &tensor(&[f32::NAN; 6])).await.problem(422, "not_finite");
        job.accepted(1, "c", "weight=10", &tensor(&[4.0; 6])).await;
        job.accepted(1, "d", "weight=10", &tensor(&[-4.0; 6])).await;
        job.in_state("completed").await;
        assert_eq!(read(&job.model(1).await)["w"], [0.0; 6]);

        let few = json!({"name": "b", "function": "fedavg", "goal": 3, "exact": exact});
        let problem = api.post("/v1/jobs", &few).await.problem(422, "invalid_spec");
        assert_eq!(problem["fields"][0]["field"], "exact.updates_max", "{problem}");
        let job = api.create("c", json!({"goal": 2, "exact": exact})).await;
        assert_eq!(job.view().await["spec"]["exact"]["bound"], 4.0);
        api.patch(&job.path, &json!({"goal": 3})).await.problem(422, "invalid_spec");
        let uniform = json!({"name": "d", "function": "fedavg", "config": {"weighting": "uniform"},
            "exact": {"bound": 4, "weight_max": 0.5, "updates_max": 100}});
        api.post("/v1/jobs", &uniform).await.problem(422, "invalid_spec");
    }
}
