//! One bad update never ends a job: what alone is too large is refused at the door, what only the sum is too large for gives
//! up its round, and the job goes on.

use catchment_tests::{Answer, Bus, Cluster, Job, Server, Setup, Tensor, file, on_both_buses, read};
use half::f16;
use serde_json::{Value, json};

fn f16s(values: &[f32]) -> Vec<u8> {
    let bits: Vec<u16> = values.iter().map(|value| f16::from_f32(*value).to_bits()).collect();
    file(&[Tensor::f16("w", &[values.len()], &bits)])
}

fn f32s(values: &[f32]) -> Vec<u8> {
    file(&[Tensor::f32("w", &[values.len()], values)])
}

fn f64s(values: &[f64]) -> Vec<u8> {
    file(&[Tensor::f64("w", &[values.len()], values)])
}

/// The numbers of a model of F16.
fn f16s_of(model: &[u8], count: usize) -> Vec<f32> {
    let data = &model[model.len() - 2 * count..];
    data.as_chunks::<2>().0.iter().map(|bits| f16::from_le_bytes(*bits).to_f32()).collect()
}

/// Sends a delta of a model version to a round, or in asynchronous jobs to that version.
async fn delta(job: &Job, (version, number): (u64, u64), client: &str, query: &str, body: &[u8]) -> Answer {
    let model = job.call("GET", &format!("/model?version={version}")).await;
    let etag = model.header("etag").to_owned();
    job.submit_with(number, client, query, &[("catchment-base", &etag)], body).await
}

fn receipt(answer: Answer) -> Value {
    answer.expect(202).json()["receipt"].clone()
}

#[track_caller]
fn assert_refused(answer: &Answer, tensor: &str, index: u64, says: &[&str]) {
    let problem = answer.problem(422, "out_of_range");
    assert_eq!((problem["tensor"].as_str(), problem["index"].as_u64()), (Some(tensor), Some(index)), "{problem}");
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(says.iter().all(|said| detail.contains(said)), "{detail}");
}

/// Waits until a receipt says that its round was given up, and checks that it says why.
async fn assert_given_up(job: &Job, receipt: &Value, round: u64, says: &str) {
    let receipt = job.api.receipt_in(receipt, "discarded").await;
    assert_eq!(receipt["code"], "round_given_up", "{receipt}");
    let reason = receipt["reason"].as_str().expect("a reason");
    let begins = format!("round {round} was given up");
    assert!(reason.starts_with(&begins) && reason.contains(says) && reason.contains("stands"), "{reason}");
}

/// Two F64 updates that are fine alone and whose weighted sum is not.
async fn spoil(job: &Job, round: u64) -> [Value; 2] {
    job.open_round(round).await;
    let query = "weight=1e8";
    [
        job.accepted(round, "a", query, &f64s(&[1.0, 1e300])).await,
        job.accepted(round, "b", query, &f64s(&[1.0, 1e300])).await,
    ]
}

async fn begin_f64(server: &Server, spec: Value) -> Job {
    let mut whole = json!({"goal": 2, "rounds": 2});
    whole.as_object_mut().expect("an object").extend(spec.as_object().expect("an object").clone());
    server.api().begin("spoilt", whole, &f64s(&[0.0, 0.0])).await
}

on_both_buses! {
    /// A delta that alone takes an element out of the range of F16: the job went on failing for ever with it.
    async fn a_delta_that_alone_is_too_large_is_refused(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"update": "delta", "goal": 2, "rounds": 2}), &f16s(&[3.0, 60000.0])).await;
        receipt(delta(&job, (0, 1), "a", "", &f16s(&[0.0, 1.0])).await);
        let answer = delta(&job, (0, 1), "b", "", &f16s(&[0.0, 65504.0])).await;
        assert_refused(&answer, "w", 1, &["65504", "60000", "F16"]);
        // What is as large and goes the other way is fine, and so is what fits beside its own element.
        receipt(delta(&job, (0, 1), "b", "", &f16s(&[65500.0, -65504.0])).await);
        job.published(1).await;
        assert_eq!(f16s_of(&job.model(1).await, 2), [32752.0, 27248.0]);
        // The next round's deltas are beside the next model.
        job.open_round(2).await;
        assert_refused(&delta(&job, (1, 2), "a", "", &f16s(&[40000.0, 0.0])).await, "w", 0, &["40000", "32752"]);
        receipt(delta(&job, (1, 2), "a", "", &f16s(&[0.0, 35000.0])).await);
        receipt(delta(&job, (1, 2), "b", "", &f16s(&[0.0, 35000.0])).await);
        job.in_state("completed").await;
        server.holds_no_slabs().await;
    }

    /// By one client, over two rounds: the first is fine, and the second would be too much.
    async fn two_deltas_of_3e38_by_one_client_do_no_harm(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"update": "delta", "goal": 1, "rounds": 2}), &f32s(&[0.5])).await;
        receipt(delta(&job, (0, 1), "a", "", &f32s(&[3e38])).await);
        job.open_round(2).await;
        assert_refused(&delta(&job, (1, 2), "a", "", &f32s(&[3e38])).await, "w", 0, &["3.0", "F32"]);
        receipt(delta(&job, (1, 2), "a", "", &f32s(&[-3e38])).await);
        job.in_state("completed").await;
        assert_eq!(read(&job.model(2).await)["w"][0], 0.0);
    }

    /// Weights of a wider type than the model's, whole, in pieces and compressed.
    async fn weights_that_the_models_type_cannot_hold_are_refused(bus: Bus) {
        let server = Server::start(bus).await;
        for (dtype, fits, beyond) in [("F16", 65519.0, 65520.0), ("BF16", 3.39e38, 3.4e38), ("F8_E4M3", 464.0, 465.0), ("F8_E5M2", 61439.0, 61440.0)] {
            let width = if dtype.starts_with("F8") { 1 } else { 2 };
            let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[3],"data_offsets":[0,{}]}}}}"#, 3 * width);
            let model = catchment_tests::raw_file(&header, &vec![0; 3 * width]);
            let name = format!("job-{}", dtype.to_lowercase().replace('_', "-"));
            for (function, name) in [("fedavg", name.clone()), ("median", format!("{name}-median"))] {
                let spec = json!({"function": function, "goal": 2, "rounds": 1, "update_dtypes": ["F32", "F64"]});
                let job = server.api().begin(&name, spec, &model).await;
                let bad = f64s(&[0.0, 1.0, -beyond]);
                assert_refused(&job.submit(1, "a", "", &bad).await, "w", 2, &[dtype, "does not fit the model"]);
                let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                std::io::Write::write_all(&mut packed, &bad).expect("compress");
                let packed = packed.finish().expect("compress");
                assert_refused(&job.submit_with(1, "a", "", &[("content-encoding", "gzip")], &packed).await, "w", 2, &[dtype]);
                job.accepted(1, "a", "", &f64s(&[0.0, 1.0, -fits])).await;
                job.submit(1, "b", "", &f64s(&[0.0, 1.0, f64::NAN])).await.problem(422, "not_finite");
                job.accepted(1, "b", "", &f64s(&[0.0, 1.0, -fits])).await;
                job.in_state("completed").await;
            }
        }
        server.holds_no_slabs().await;
    }

    /// Sums of F64 numbers are f64 as well: what leaves that range with its weight is refused, and says with which it would not.
    async fn an_f64_that_leaves_the_range_with_its_weight_is_refused(bus: Bus) {
        let server = Server::start(bus).await;
        let job = begin_f64(&server, json!({"limits": {"weight_max": 1e12}})).await;
        let answer = job.submit(1, "a", "weight=1e12", &f64s(&[0.0, 1e300])).await;
        assert_refused(&answer, "w", 1, &["1e300", "weight", "1.79"]);
        job.accepted(1, "a", "weight=1e7", &f64s(&[0.0, 1e300])).await;
        job.accepted(1, "b", "weight=1e7", &f64s(&[0.0, 1e300])).await;
        job.published(1).await;
        let mean = read(&job.model(1).await)["w"][1];
        assert!((mean / 1e300 - 1.0).abs() < 1e-12, "{mean}");
    }

    /// What only the sum is too large for: the round is given up, every receipt says why, and the round is asked again.
    async fn a_sum_that_is_too_large_gives_up_the_round(bus: Bus) {
        let server = Server::start(bus).await;
        let job = begin_f64(&server, json!({})).await;
        for receipt in spoil(&job, 1).await {
            assert_given_up(&job, &receipt, 1, "element 1 of tensor `w` is NaN or infinite").await;
        }
        let view = job.view().await;
        assert_eq!((view["state"].as_str(), view["model_version"].as_u64()), (Some("running"), Some(0)));
        assert_eq!(view["spec"]["rounds"], 3, "it makes as many models as before");
        let open = job.open_round(2).await;
        for reason in [&job.view().await["reason"], &open["reason"]] {
            assert!(reason.as_str().is_some_and(|reason| reason.contains("round 1 was given up")), "{reason}");
        }
        // The same call again finds the same receipt; the round's number is not used again.
        let again = job.submit(1, "a", "weight=1e8", &f64s(&[1.0, 1e300])).await.expect(200).json();
        assert_eq!(again["state"], "discarded");
        assert_eq!(job.submit(1, "c", "", &f64s(&[0.0, 0.0])).await.problem(410, "round_closed")["next_round"], 2);
        for round in [2, 3] {
            job.open_round(round).await;
            for client in ["a", "b"] {
                job.accepted(round, client, "", &f64s(&[round as f64, 1e300])).await;
            }
        }
        let view = job.in_state("completed").await;
        assert_eq!((view["model_version"].as_u64(), &view["reason"]), (Some(2), &Value::Null));
        assert_eq!(read(&job.model(2).await)["w"], [3.0, 1e300]);
        // Each is counted a moment after it can be seen.
        catchment_tests::until("the rounds are counted", async || {
            let metrics = server.api().metrics().await;
            let rounds = |outcome| metrics.sum("catchment_rounds_total", &[("outcome", outcome)]);
            assert_eq!(rounds("skipped"), 0.0);
            ((rounds("given_up"), rounds("committed")) == (1.0, 2.0)).then_some(())
        })
        .await;
        server.holds_no_slabs().await;
    }

    /// Three in a row pause the job and say why; resumed, it goes on, and the count begins anew. A death in between changes
    /// nothing of it.
    async fn the_third_round_given_up_pauses_the_job(bus: Bus) {
        let mut server = Server::start(bus).await;
        let mut job = begin_f64(&server, json!({"topology": {"tree": {"leaves": 2, "middles": 1}}})).await;
        let mut round = 0;
        for half in [1, 2] {
            for _ in 0..3 {
                round += 1;
                let receipts = spoil(&job, round).await;
                assert_given_up(&job, &receipts[1], round, "element 1 of tensor `w`").await;
                if round == 2 {
                    server.kill9();
                    server.start_again().await;
                    job = job.through(&server.api());
                    assert_given_up(&job, &receipts[0], round, "element 1 of tensor `w`").await;
                }
            }
            let view = job.in_state("paused").await;
            let reason = view["reason"].as_str().expect("a reason");
            for says in ["3 rounds in a row", &format!("round {round}"), "element 1 of tensor `w`", "resume"] {
                assert!(reason.contains(says), "{says}: {reason}");
            }
            job.submit(round + 1, "c", "", &f64s(&[0.0, 0.0])).await.problem(409, "wrong_state");
            if half == 1 {
                server.kill9();
                server.start_again().await;
                job = job.through(&server.api());
                assert_eq!(job.view().await["reason"], reason);
            }
            let resumed = job.call("POST", "/resume").await.expect(200).json();
            assert_eq!(resumed["state"], "running");
        }
        for round in [round + 1, round + 2] {
            job.open_round(round).await;
            for client in ["a", "b"] {
                job.accepted(round, client, "", &f64s(&[1.0, 1.0])).await;
            }
        }
        assert_eq!(job.in_state("completed").await["model_version"], 2);
        server.holds_no_slabs().await;
    }

    /// A buffer that is given up: the next trains from the same version, and takes the same clients' updates again.
    async fn a_buffer_is_given_up_like_a_round(bus: Bus) {
        let server = Server::start(bus).await;
        let mode = json!({"async": {"buffer": 2, "staleness": "constant"}});
        let spec = json!({"update": "delta", "rounds": 2, "mode": mode});
        let job = server.api().begin("a", spec, &f64s(&[0.0])).await;
        let mut receipts = Vec::new();
        for client in ["a", "b"] {
            receipts.push(receipt(delta(&job, (0, 0), client, "weight=1e8", &f64s(&[1e300])).await));
        }
        for receipt in &receipts {
            assert_given_up(&job, receipt, 1, "element 0 of tensor `w`").await;
        }
        job.open_round(2).await;
        // The very same bytes may come again: they are for the next buffer now.
        for (client, value) in [("a", 1.0), ("b", 2.0)] {
            receipt(delta(&job, (0, 0), client, "", &f64s(&[value])).await);
        }
        job.published(1).await;
        assert_eq!(read(&job.model(1).await)["w"], [1.5]);
        for client in ["a", "b"] {
            receipt(delta(&job, (1, 1), client, "", &f64s(&[1.0])).await);
        }
        assert_eq!(job.in_state("completed").await["model_version"], 2);
        server.holds_no_slabs().await;
    }

    /// Functions that hold their updates leave out the one that is to blame, and the round goes on with the others.
    async fn a_culprit_is_left_out_where_updates_are_held(bus: Bus) {
        let server = Server::start(bus).await;
        let model = f16s(&[60000.0, 1.0]);
        for (function, config, values) in [
            ("median", json!({"trim": 0.0}), [1.0, 60000.0, 3.0]),
            ("krum", json!({"select": 3}), [1.0, 60000.0, 3.0]),
        ] {
            let spec = json!({"function": function, "config": config, "update": "delta", "goal": 3, "min_updates": 2, "rounds": 1});
            let job = server.api().begin(function, spec, &model).await;
            let mut receipts = Vec::new();
            for (client, value) in ["a", "b", "c"].iter().zip(values) {
                receipts.push(receipt(delta(&job, (0, 1), client, "", &f16s(&[value, 1.0])).await));
            }
            let culprit = server.api().receipt_in(&receipts[1], "discarded").await;
            assert_eq!(culprit["code"], "function_trap", "{culprit}");
            let reason = culprit["reason"].as_str().expect("a reason");
            assert!(reason.contains("this update alone") && reason.contains("element 0 of tensor `w`"), "{reason}");
            if function == "krum" {
                // Krum needs three updates, so with two the round is asked again.
                assert_given_up(&job, &receipts[0], 1, "needs 3 updates, this one has 2").await;
                continue;
            }
            job.in_state("completed").await;
            assert_eq!(server.api().receipt(&receipts[0]).await["state"], "committed");
            assert_eq!(f16s_of(&job.model(1).await, 2), [60000.0, 2.0]);
        }
        // All of them: none is to blame more than another.
        let spec = json!({"function": "median", "update": "delta", "goal": 2, "rounds": 1});
        let job = server.api().begin("all", spec, &model).await;
        for client in ["a", "b"] {
            let receipt = receipt(delta(&job, (0, 1), client, "", &f16s(&[60000.0, 1.0])).await);
            if client == "b" {
                assert_given_up(&job, &receipt, 1, "element 0 of tensor `w`").await;
            }
        }
        assert_eq!(job.view().await["state"], "running");
    }

    /// Adapters whose product is too large.
    async fn an_adapter_that_is_too_large_is_left_out(bus: Bus) {
        let server = Server::start(bus).await;
        let one = |x: f32| f16::from_f32(x).to_bits();
        let model = file(&[Tensor::f16("l.weight", &[2, 3], &[one(60000.0); 6])]);
        let adapter = |x: f32| {
            let (a, b) = ([one(x); 3], [one(x); 2]);
            file(&[Tensor::f16("l.lora_A.weight", &[1, 3], &a), Tensor::f16("l.lora_B.weight", &[2, 1], &b)])
        };
        let job = server.api().begin("lora", json!({"function": "flora", "goal": 2, "rounds": 2}), &model).await;
        job.accepted(1, "a", "", &adapter(2.0)).await;
        let culprit = job.accepted(1, "b", "", &adapter(200.0)).await;
        let culprit = server.api().receipt_in(&culprit, "discarded").await;
        assert!(culprit["reason"].as_str().is_some_and(|reason| reason.contains("`l.weight`")), "{culprit}");
        job.open_round(2).await;
        let both = [job.accepted(2, "a", "", &adapter(200.0)).await, job.accepted(2, "b", "", &adapter(200.0)).await];
        for receipt in &both {
            assert_given_up(&job, receipt, 2, "`l.weight`").await;
        }
        job.open_round(3).await;
        job.accepted(3, "a", "", &adapter(1.0)).await;
        job.accepted(3, "b", "", &adapter(1.0)).await;
        assert_eq!(job.in_state("completed").await["model_version"], 2);
        server.holds_no_slabs().await;
    }

    /// A mistake in the program is that step's error: told, counted, shown, and tried again.
    async fn a_panic_is_told_and_the_step_tried_again(bus: Bus) {
        for (step, times) in [("Planned", 4), ("Flipped", 1), ("Merged", 1), ("Scratched", 1), ("Kept", 1)] {
            let server = Server::start_to_panic_at(bus, &format!("{step}:{times}")).await;
            let job = server.api().begin("panics", json!({"goal": 2, "rounds": 1}), &f64s(&[0.0])).await;
            job.accepted(1, "a", "", &f64s(&[1.0])).await;
            job.accepted(1, "b", "weight=3", &f64s(&[5.0])).await;
            if times > 1 {
                catchment_tests::until("the job says that a step panicked", async || {
                    let view = job.view().await;
                    let said = view["reason"].as_str().is_some_and(|reason| reason.contains("a panic: CATCHMENT_PANIC_AT"));
                    (said && view["state"] == "running").then_some(())
                })
                .await;
            }
            let view = job.in_state("completed").await;
            assert_eq!((read(&job.model(1).await)["w"][0], &view["reason"]), (4.0, &Value::Null), "{step}");
            let panics = server.api().metrics().await.sum("catchment_job_step_failures_total", &[("job", "panics"), ("kind", "panic")]);
            assert_eq!(panics, f64::from(times), "{step}");
            let log = server.log();
            assert!(log.contains("a step of the aggregation panicked") && log.contains("panics"), "{step}: {log}");
            server.holds_no_slabs().await;
        }
    }
}

/// The rounds of a cluster: whoever holds a part gives it back, and every gateway refuses what alone is too large.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_gives_back_what_it_held_of_a_round_given_up() {
    catchment_tests::run(async {
        let cluster = Cluster::start(Setup { nodes: 2, coordinators: 1, ..Setup::default() }).await;
        let apis = cluster.apis();
        let job = apis[0].begin("a", json!({"update": "delta", "goal": 2, "rounds": 2}), &f64s(&[1.7e308, 0.0])).await;
        let jobs = cluster.through(&job);
        for job in &jobs {
            job.open_round(1).await;
            assert_refused(&delta(job, (0, 1), "c", "", &f64s(&[1e308, 0.0])).await, "w", 0, &["1e308", "1.7e308"]);
        }
        let mut receipts = Vec::new();
        for (job, client) in jobs.iter().zip(["a", "b"]) {
            receipts.push(receipt(delta(job, (0, 1), client, "weight=2", &f64s(&[0.0, 8e307])).await));
        }
        for receipt in &receipts {
            assert_given_up(&jobs[1], receipt, 1, "element 1 of tensor `w`").await;
        }
        for (round, version) in [(2, 0), (3, 1)] {
            for (job, client) in jobs.iter().zip(["a", "b"]) {
                job.open_round(round).await;
                receipt(delta(job, (version, round), client, "", &f64s(&[0.0, 1.0])).await);
            }
        }
        cluster.completed(&job).await;
        assert_eq!(read(&jobs[1].model(2).await)["w"], [1.7e308, 2.0]);
        cluster.holds_no_slabs().await;
    })
    .await;
}
