//! Functions that fail, on purpose: each hurts its own update or its own job, says why, and nobody else notices.

use catchment_tests::{Bus, Job, Server, Tensor, file, on_both_buses, read};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The version of the function contract that the server speaks.
const CONTRACT: u32 = 4;
const HOSTILE_MEDIAN: &str = include_str!("../functions/hostile_median.wat");
const HOSTILE: &str = include_str!("../functions/hostile.wat");

/// The hostile function, saying that it is of this class and version of the contract.
fn hostile(class: &str, contract: u32) -> Vec<u8> {
    built(HOSTILE, class, contract)
}

fn built(text: &str, class: &str, contract: u32) -> Vec<u8> {
    let description = json!({"name": "hostile", "version": "1.0.0", "class": class, "partial": "F64",
        "summary": "Fails when told to", "config": [], "needs_previous": false, "exact": false,
        "update_layout": "as_model"})
    .to_string();
    let text = text
        .replace("$LENGTH", &description.len().to_string())
        .replace("$DESCRIPTION", &description.replace('"', "\\\""))
        .replace("(result i32) (i32.const $CONTRACT))", &format!("(result i32) (i32.const {contract}))"));
    wat::parse_str(text).expect("the function's text")
}

/// A folder of functions, good and bad.
fn functions() -> TempDir {
    let dir = TempDir::new().expect("make a folder");
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("write a function");
    write("hostile.wasm", &hostile("additive", CONTRACT));
    write("hostile-median.wasm", &built(HOSTILE_MEDIAN, "coordinate-wise", CONTRACT));
    write("half.wasm", &hostile("coordinate-wise", CONTRACT));
    write("tomorrow.wasm", &hostile("additive", CONTRACT + 1));
    write("garbage.wasm", b"no module at all");
    write("cut-off.wasm", &hostile("additive", CONTRACT)[..200]);
    write("empty.wasm", &wat::parse_str("(module (memory (export \"memory\") 1))").expect("text"));
    let clock =
        "(module (import \"wasi_snapshot_preview1\" \"clock_time_get\" (func (param i32 i64 i32) (result i32))))";
    write("curious.wasm", &wat::parse_str(clock).expect("text"));
    write("notes.txt", b"no function");
    dir
}

fn update(first: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[100], &[&[first][..], &[2.0; 99]].concat())])
}

async fn begin(server: &Server, name: &str, spec: Value) -> Job {
    let mut whole = json!({"function": "hostile", "rounds": 1, "limits": {"cpu_ms": 200}});
    whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
    server.api().begin(name, whole, &update(0.0)).await
}

async fn start(bus: Bus, functions: &TempDir) -> Server {
    Server::start_with(bus, &[("--functions", &functions.path().display().to_string())]).await
}

/// The server lives, and a job of an honest function goes through beside whatever happened.
async fn lives_on(server: &Server) {
    server.holds_no_slabs().await;
    let job = server.api().begin("honest", json!({"goal": 2, "rounds": 1}), &update(0.0)).await;
    job.accepted(1, "c", "", &update(666.0)).await;
    job.accepted(1, "d", "", &update(888.0)).await;
    job.in_state("completed").await;
    assert_eq!(read(&job.model(1).await)["w"][0], 777.0);
    server.holds_no_slabs().await;
}

on_both_buses! {
    /// Otherwise the tests below would show nothing.
    async fn the_hostile_function_is_a_good_one_when_left_alone(bus: Bus) {
        let functions = functions();
        let server = start(bus, &functions).await;
        let tree = json!({"goal": 3, "topology": {"tree": {"leaves": 2, "middles": 1}}});
        for (name, spec) in [("flat", json!({"goal": 3})), ("tree", tree)] {
            let job = begin(&server, name, spec).await;
            for (client, weight, value) in [("c", 1, 1.0), ("d", 2, 4.0), ("e", 1, 3.0)] {
                job.accepted(1, client, &format!("weight={weight}"), &update(value)).await;
            }
            job.in_state("completed").await;
            let model = read(&job.model(1).await);
            assert_eq!((model["w"][0], model["w"][99]), (3.0, 2.0), "{name}");
        }
    }

    /// A trap, a panic and an endless loop: the culprits are named, another client takes each one's place.
    async fn an_update_that_the_function_fails_on_is_discarded(bus: Bus) {
        let functions = functions();
        let server = start(bus, &functions).await;
        let job = begin(&server, "a", json!({"goal": 2})).await;
        for (client, value, says) in [("trap", 666.0, "unreachable"), ("panic", 555.0, "I cannot bear 555"), ("loop", 777.0, "200 ms")] {
            let receipt = job.accepted(1, client, "", &update(value)).await;
            let discarded = server.api().receipt_in(&receipt, "discarded").await;
            assert_eq!(discarded["code"], "function_trap", "{discarded}");
            let reason = discarded["reason"].as_str().expect("a reason");
            assert!(reason.contains("hostile") && reason.contains(says), "{reason}");
            let round = job.round().await;
            assert_eq!(round["received"], 0);
            let why = round["reason"].as_str().unwrap_or_default();
            assert!(why.contains("every update that came was discarded") && why.contains(says), "{round}");
            // What trapped once would trap again.
            let again = job.submit(1, client, "", &update(value)).await.expect(200).json();
            assert_eq!((&again["receipt"], &again["state"]), (&receipt, &json!("discarded")));
        }
        // The place of a discarded one is free.
        job.accepted(1, "trap", "", &update(1.0)).await;
        assert_eq!(job.round().await["reason"], json!(null));
        job.accepted(1, "d", "", &update(3.0)).await;
        job.in_state("completed").await;
        assert_eq!(read(&job.model(1).await)["w"][0], 2.0);
        lives_on(&server).await;
    }

    /// The culprits come in the middle of a full round, whose batches hold good updates too.
    async fn culprits_are_found_among_good_updates(bus: Bus) {
        let functions = functions();
        let server = start(bus, &functions).await;
        let job = begin(&server, "a", json!({"goal": 12, "min_updates": 9, "deadline": "5s"})).await;
        let values = [1.0, 2.0, 666.0, 3.0, 4.0, 777.0, 5.0, 6.0, 555.0, 7.0, 8.0, 9.0];
        let calls = values.iter().enumerate().map(|(k, value)| {
            let job = job.clone();
            async move { (*value, job.accepted(1, &format!("c{k}"), "", &update(*value)).await) }
        });
        let receipts = futures::future::join_all(calls).await;
        job.in_state("completed").await;
        for (value, receipt) in &receipts {
            let expected = if *value > 500.0 { "discarded" } else { "committed" };
            assert_eq!(server.api().receipt(receipt).await["state"], expected, "{value}");
        }
        assert_eq!(job.call("GET", "/models?limit=1").await.json()["items"][0]["contributors"], 9);
        assert_eq!(read(&job.model(1).await)["w"][0], 5.0);
        lives_on(&server).await;
    }

    async fn a_round_of_culprits_alone_ends_as_the_spec_says(bus: Bus) {
        let functions = functions();
        let server = start(bus, &functions).await;
        let job = begin(&server, "a", json!({"goal": 2, "deadline": "1s", "on_shortfall": "fail"})).await;
        for client in ["c", "d"] {
            job.accepted(1, client, "", &update(666.0)).await;
        }
        let failed = job.in_state("failed").await;
        assert!(failed["reason"].as_str().is_some_and(|reason| reason.contains("0 updates")), "{failed}");
        lives_on(&server).await;
    }

    /// What a function makes of a sum comes from what clients sent: their round is given up, and not the job.
    async fn a_failure_in_finalise_gives_up_the_round_with_its_reason(bus: Bus) {
        let functions = functions();
        let server = start(bus, &functions).await;
        for (name, value, says) in [("trap", 888.0, "unreachable"), ("refuse", 999.0, "no model begins with 999")] {
            let job = begin(&server, name, json!({"goal": 2})).await;
            for round in [1, 2, 3] {
                job.open_round(round).await;
                let first = job.accepted(round, "c", "", &update(value)).await;
                job.accepted(round, "d", "", &update(value)).await;
                let dropped = server.api().receipt_in(&first, "discarded").await;
                assert_eq!(dropped["code"], "round_given_up");
                let reason = dropped["reason"].as_str().expect("a reason");
                assert!(reason.contains("hostile") && reason.contains(says) && reason.contains("finalise"), "{reason}");
            }
            let paused = job.in_state("paused").await;
            assert!(paused["reason"].as_str().is_some_and(|reason| reason.contains(says)), "{paused}");
            assert_eq!(paused["model_version"], 0);
            job.call("POST", "/resume").await.expect(200);
            job.open_round(4).await;
            for client in ["c", "d"] {
                job.accepted(4, client, "", &update(1.0)).await;
            }
            assert_eq!(job.in_state("completed").await["model_version"], 1);
        }
        lives_on(&server).await;
    }

    /// A function that takes all updates at once: those that it fails on alone are left out, and the round goes on.
    async fn culprits_are_found_in_a_gathered_round(bus: Bus) {
        let functions = functions();
        let server = start(bus, &functions).await;
        let spec = json!({"function": "hostile-median", "goal": 4, "min_updates": 2});
        let job = begin(&server, "a", spec.clone()).await;
        let mut receipts = Vec::new();
        for (client, first) in [("a", 666.0), ("b", 3.0), ("c", 666.0), ("d", 4.0)] {
            receipts.push((first, job.accepted(1, client, "", &update(first)).await));
        }
        job.in_state("completed").await;
        for (first, receipt) in &receipts {
            let receipt = server.api().receipt(receipt).await;
            assert_eq!(receipt["state"], if *first == 666.0 { "discarded" } else { "committed" }, "{receipt}");
        }
        assert_eq!(read(&job.model(1).await)["w"][0], 3.0);

        // Together they are too much, and none is to blame.
        let job = begin(&server, "b", spec).await;
        for client in ["a", "b", "c", "d"] {
            job.accepted(1, client, "", &update(2000.0)).await;
        }
        job.open_round(2).await;
        let view = job.view().await;
        let reason = view["reason"].as_str().expect("a reason");
        assert!(reason.contains("hostile-median") && reason.contains("combine"), "{reason}");
        lives_on(&server).await;
    }

    async fn a_file_that_is_no_function_is_refused_with_its_reason(bus: Bus) {
        let functions = functions();
        let server = start(bus, &functions).await;
        let api = server.api();
        for (name, says) in [
            ("garbage", "wasm"), ("cut-off", "wasm"), ("empty", "catchment_abi"), ("curious", "clock_time_get"),
            ("tomorrow", "version"), ("half", "catchment_combine"),
        ] {
            let problem = api.post("/v1/jobs", &json!({"name": "a", "function": name})).await.problem(422, "function_refused");
            let detail = problem["detail"].as_str().expect("a detail");
            assert!(detail.contains(&format!("`{name}`")) && detail.contains(says), "{detail}");
        }
        let list = api.get("/v1/functions").await.expect(200).json();
        let names: Vec<&str> = list["items"].as_array().expect("items").iter().filter_map(|f| f["name"].as_str()).collect();
        assert_eq!(names, ["fedavg", "flora", "hostile", "hostile-median", "krum", "median"]);
        lives_on(&server).await;
    }
}
