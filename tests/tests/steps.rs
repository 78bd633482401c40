//! The node, or a runner, dies right after each single step of an update's way. The models have the same bits as those
//! of a life without death, and every receipt tells the truth.

use catchment_tests::{Api, Bus, Job, PATIENCE, Server, Tensor, file, on_both_buses, run};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Of one update on its way in, as `types::Step` names them.
const OF_ARRIVAL: [&str; 4] = ["Granted", "Received", "Frozen", "Logged"];
/// Of one update or batch, as `types::Step` names them.
const OF_UPDATE: [&str; 6] = ["Planned", "Called", "Flipped", "Batched", "Folded", "Released"];
const OF_ROUND: [&str; 6] = ["Scratched", "Merged", "Finalized", "Kept", "Committed", "Published"];
const OF_RUNNER: [&str; 3] = ["RunnerTook", "RunnerCalled", "RunnerAnswered"];
const CLIENTS: u64 = 5;
const ROUNDS: u64 = 2;

/// Several ranges, so that there is something between them.
fn tensors(value: f32) -> Vec<u8> {
    let wide: Vec<f32> = (0..70_000).map(|i| value + (i % 97) as f32 * 0.37).collect();
    let precise: Vec<f64> = (0..3000).map(|i| f64::from(value) * 3.1 + f64::from(i % 89)).collect();
    file(&[
        Tensor::f32("wide", &[70_000], &wide),
        Tensor::f64("precise", &[3000], &precise),
        Tensor::f32("peak", &[9], &[value; 9]),
    ])
}

fn update(round: u64, client: u64) -> Vec<u8> {
    tensors((round * 31 % 17) as f32 + client as f32 * 0.7)
}

fn spec() -> Value {
    json!({"goal": CLIENTS, "rounds": ROUNDS, "topology": {"tree": {"leaves": 2, "middles": 1}},
        "exact": {"bound": 1000.0, "weight_max": 10.0, "updates_max": 8},
        "tensors": [{"match": "peak", "rule": "max"}]})
}

/// A definite answer for one client's update of a round; the server is started again when it has died.
async fn submit(server: &mut Server, job: &mut Job, round: u64, client: u64) -> Option<String> {
    let begun = Instant::now();
    loop {
        let path = job.update_path(round, &format!("c{client}"), &format!("weight={}", client + 1));
        match job.api.try_call("PUT", &path, &[], Some(update(round, client))).await {
            Ok(answer) if [200, 202].contains(&answer.status) => {
                return answer.json()["receipt"].as_str().map(str::to_owned);
            }
            Ok(answer) => assert!([429, 503, 404].contains(&answer.status), "{}: {}", answer.status, answer.text()),
            Err(_) => revive(server, job).await,
        }
        assert!(begun.elapsed() < PATIENCE, "no definite answer for client {client} in round {round}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn revive(server: &mut Server, job: &mut Job) {
    if server.has_ended() {
        server.start_again().await;
    }
    job.api = Api::new(server.address());
}

/// Runs the job to its end; gives both models. `ends`: a step after which the first life ends.
async fn models(bus: Bus, runners: &str, ends: Option<&str>) -> Vec<Vec<u8>> {
    // Whoever runs the tests may ask for the kernel's routing; without runners there is nothing to route to.
    let settings = [("--runners", runners), ("--ebpf", "off")];
    let settings = if runners == "0" { &settings[..] } else { &settings[..1] };
    let mut server = match ends {
        Some(step) => Server::start_to_end_at(bus, settings, step).await,
        None => Server::start_with(bus, settings).await,
    };
    let mut job = server.api().begin("steps", spec(), &tensors(0.0)).await;
    let mut receipts = Vec::new();
    for round in 1..=ROUNDS {
        for client in 0..CLIENTS {
            receipts.extend(submit(&mut server, &mut job, round, client).await);
        }
    }
    let begun = Instant::now();
    loop {
        match job.api.try_call("GET", &job.path, &[], None).await {
            Ok(answer) if answer.json()["state"] == "completed" => break,
            Ok(answer) => assert!(begun.elapsed() < PATIENCE, "the job does not complete: {}", answer.text()),
            Err(_) => revive(&mut server, &mut job).await,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Its last steps may come after the job is complete.
    tokio::time::sleep(Duration::from_millis(100)).await;
    revive(&mut server, &mut job).await;
    if let Some(step) = ends {
        let of_runner = step.starts_with("Runner");
        let died = if of_runner { server.log().contains("a runner has ended") } else { server.lives() > 2 };
        assert!(died, "the step was never done");
    }
    assert_eq!(receipts.len() as u64, CLIENTS * ROUNDS);
    for receipt in &receipts {
        let receipt = job.api.receipt(&json!(receipt)).await;
        assert_eq!(receipt["state"], "committed", "{receipt}");
    }
    let mut models = Vec::new();
    for version in 1..=ROUNDS {
        models.push(job.model(version).await);
    }
    models
}

async fn each_may_be_the_last(bus: Bus, runners: &str, steps: &[&str]) {
    let expected = models(bus, "0", None).await;
    for step in steps {
        for count in [1, 2] {
            eprintln!("ends after {step}, done {count} times");
            let found = models(bus, runners, Some(&format!("{step}:{count}"))).await;
            assert!(found == expected, "other bits after a death at {step}:{count}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_that_people_get_has_no_such_hooks() {
    run(async {
        let skew = tempfile::NamedTempFile::new().expect("make a file");
        std::fs::write(skew.path(), (1_000_000_000_000_u64).to_string()).expect("write a file");
        let skew = skew.path().to_str().expect("a path in UTF-8");
        let mut server =
            Server::start_in(Bus::Embedded, &[("CATCHMENT_END_AT", "Granted"), ("CATCHMENT_CLOCK_SKEW_FILE", skew)])
                .await;
        let job = server.api().begin("steps", json!({"goal": 1, "rounds": 1}), &tensors(0.0)).await;
        job.accepted(1, "c", "", &update(1, 1)).await;
        let view = job.in_state("completed").await;
        assert!(server.is_alive());
        // 31 years ahead, if somebody believed the file.
        let created = view["created_at"].as_str().expect("a time");
        assert!(created < "2050", "{created}");
        let mut server = Server::start_in(Bus::Embedded, &[("CATCHMENT_PANIC_AT", "Planned")]).await;
        let job = server.api().begin("steps", json!({"goal": 1, "rounds": 1}), &tensors(0.0)).await;
        job.accepted(1, "c", "", &update(1, 1)).await;
        job.in_state("completed").await;
        assert!(server.is_alive() && !server.log().contains("panic"), "{}", server.log());
    })
    .await;
}

on_both_buses! {
    async fn of_an_arrival(bus: Bus) {
        each_may_be_the_last(bus, "0", &OF_ARRIVAL).await;
    }

    async fn of_an_update(bus: Bus) {
        each_may_be_the_last(bus, "0", &OF_UPDATE).await;
    }

    async fn of_an_update_with_runners(bus: Bus) {
        each_may_be_the_last(bus, "2", &OF_UPDATE).await;
    }

    async fn of_a_round(bus: Bus) {
        each_may_be_the_last(bus, "0", &OF_ROUND).await;
    }

    async fn of_a_runner(bus: Bus) {
        each_may_be_the_last(bus, "2", &OF_RUNNER).await;
    }
}
