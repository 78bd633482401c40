//! Bad input and bad days. Each ends with a clear answer, a server that is alive, and nothing lost or leaked.

mod bodies;
mod bus;
mod clients;
mod disk;
mod doors;
mod encodings;
mod endings;
mod holders;
mod mistakes;
mod room;
mod start;

use catchment_tests::{Api, Job, Observed, Server, Tensor, file, until};
use serde_json::json;

/// Elements of the model these tests train.
const ELEMENTS: usize = 1000;

/// A model or update of [`ELEMENTS`] numbers around `value`.
fn update(value: f32) -> Vec<u8> {
    let values: Vec<f32> = (0..ELEMENTS).map(|i| value + i as f32 / 64.0).collect();
    file(&[Tensor::f32("w", &[ELEMENTS], &values)])
}

/// What `update` would be after a round of these values, equally weighted.
fn mean_of(values: &[f32]) -> Vec<f64> {
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64;
    (0..ELEMENTS).map(|i| mean + i as f64 / 64.0).collect()
}

/// Waits until the server has let go of connections and of whatever they brought.
async fn holds_no_more_than(server: &Server, before: Observed) {
    server.holds_no_slabs().await;
    until("no more open files than before", async || (server.observe().files <= before.files + 2).then_some(())).await;
}

/// A job of its own goes through: the server lives, and serves others.
async fn lives_on(api: &Api) {
    let job: Job = api.begin("afterwards", json!({"goal": 2, "rounds": 1}), &update(0.0)).await;
    job.accepted(1, "c", "", &update(1.0)).await;
    job.accepted(1, "d", "", &update(2.0)).await;
    job.in_state("completed").await;
    job.call("DELETE", "").await.expect(204);
}
