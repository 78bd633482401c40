//! What operators and tools ask for: metrics, the interface's description, probes, functions.

use crate::{model, update};
use catchment_tests::{Bus, Server, on_both_buses, root, until};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Every metric with its labels. A label that could name a client would cost more memory than the clients' updates.
const METRICS: [(&str, &[&str]); 23] = [
    ("catchment_updates_received_total", &["job", "namespace"]),
    ("catchment_update_bytes_total", &["job", "namespace"]),
    ("catchment_updates_rejected_total", &["job", "namespace", "reason"]),
    ("catchment_uploads_parked", &["job", "namespace"]),
    ("catchment_uploads_stored", &["job", "namespace"]),
    ("catchment_round_duration_seconds_count", &["job", "namespace"]),
    ("catchment_round_duration_seconds_sum", &["job", "namespace"]),
    ("catchment_aggregation_seconds_count", &["job", "namespace"]),
    ("catchment_aggregation_seconds_sum", &["job", "namespace"]),
    ("catchment_function_instances", &["job", "level", "namespace", "state"]),
    ("catchment_cold_starts_total", &["job", "namespace"]),
    ("catchment_cold_start_seconds_count", &[]),
    ("catchment_queue_depth", &["job", "namespace"]),
    ("catchment_job_stalled", &["job", "namespace"]),
    ("catchment_data_dir_writable", &[]),
    ("catchment_slab_bytes", &["state"]),
    ("catchment_slab_large_files", &["pages"]),
    ("catchment_accept_to_commit_seconds_count", &["job", "namespace"]),
    ("catchment_accept_to_commit_seconds_sum", &["job", "namespace"]),
    ("catchment_rounds_total", &["job", "namespace", "outcome"]),
    ("catchment_last_commit_timestamp_seconds", &["job", "namespace"]),
    ("catchment_job_metric", &["job", "name", "namespace"]),
    ("catchment_build_info", &["version"]),
];

on_both_buses! {
    /// One update can be followed through the log from its arrival to its commit.
    async fn every_step_of_an_update_says_whose_it_is(bus: Bus) {
        let server = Server::start_saying(bus, "catchment_node=debug").await;
        let job = server.api().begin("spans", json!({"goal": 2, "rounds": 1}), &update(0.0)).await;
        for client in ["ann", "bob"] {
            job.accepted(1, client, "", &update(1.0)).await;
        }
        job.in_state("completed").await;
        job.submit(1, "eve", "", &update(1.0)).await.problem(410, "round_closed");
        let span = |client: &str| format!("update{{job=spans round=1 client={client}");
        let fold = "fold{job=spans round=1 leaf=0}";
        let mut lines = vec![[span("eve"), "update refused".to_owned()]];
        for client in ["ann", "bob"] {
            lines.push([format!("{} slab=", span(client)), "accepted".to_owned()]);
            lines.push([fold.to_owned(), format!("client={client} slab=")]);
        }
        lines.push(["finish{job=spans round=1}".to_owned(), "model committed".to_owned()]);
        for parts in &lines {
            until(&parts.join(" … "), async || {
                let log = server.log();
                log.lines().any(|line| parts.iter().all(|part| line.contains(part))).then_some(())
            })
            .await;
        }
    }

    async fn a_function_without_a_broadcast_says_so(bus: Bus) {
        let server = Server::start(bus).await;
        let job = server.api().begin("a", json!({}), &update(0.0)).await;
        let problem = job.call("GET", "/rounds/1/broadcast").await.problem(404, "not_found");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("nothing beside the model")), "{problem}");
        job.call("GET", "/rounds/7/broadcast").await.problem(404, "not_found");
    }

    async fn metrics_have_their_names_and_labels_and_count(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let job = api.begin("a", json!({"goal": 2, "rounds": 1, "namespace": "lab"}), &model()).await;
        let body = update(1.0);
        job.submit(1, "the-client", "weight=0", &body).await.problem(422, "out_of_range");
        job.submit_with(1, "the-client", "", &[("catchment-metrics", "{\"loss\":0.5}")], &body).await.expect(202);
        job.accepted(1, "another", "", &body).await;
        job.in_state("completed").await;
        let of_job = [("namespace", "lab"), ("job", "a")];
        let metrics = until("the commit is counted", async || {
            let metrics = api.metrics().await;
            (metrics.sum("catchment_aggregation_seconds_count", &of_job) == 1.0).then_some(metrics)
        })
        .await;
        for (name, labels) in METRICS {
            let sample = metrics.samples.iter().find(|sample| sample.name == name);
            let found: Vec<&str> = sample.unwrap_or_else(|| panic!("no {name}")).labels.keys().map(String::as_str).collect();
            assert_eq!(found, labels, "{name}");
        }
        for sample in &metrics.samples {
            assert!(!sample.labels.values().any(|value| value.contains("client")), "{sample:?}");
        }
        let count = |name: &str| metrics.sum(name, &of_job);
        assert_eq!((count("catchment_updates_received_total"), count("catchment_updates_rejected_total")), (2.0, 1.0));
        assert_eq!(metrics.sum("catchment_updates_rejected_total", &[("reason", "out_of_range")]), 1.0);
        assert!(count("catchment_update_bytes_total") >= 24.0);
        assert_eq!(metrics.sum("catchment_rounds_total", &[("job", "a"), ("outcome", "committed")]), 1.0);
        assert_eq!(count("catchment_accept_to_commit_seconds_count"), 2.0);
        assert_eq!(metrics.sum("catchment_job_metric", &[("job", "a"), ("name", "loss")]), 0.5);
        assert!(count("catchment_cold_starts_total") >= 1.0);
        let levels: BTreeSet<&str> = metrics.samples.iter().filter_map(|s| s.labels.get("level").map(String::as_str)).collect();
        assert!(levels.is_subset(&["leaf", "middle", "top"].into()), "{levels:?}");
    }

    /// Otherwise a year of deleted jobs would fill the scrape.
    async fn a_deleted_jobs_series_are_gone(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let job = api.begin("a", json!({"goal": 1, "rounds": 1}), &model()).await;
        job.submit(1, "c", "weight=0", &update(1.0)).await.problem(422, "out_of_range");
        job.submit_with(1, "c", "", &[("catchment-metrics", "{\"loss\":0.5}")], &update(1.0)).await.expect(202);
        job.in_state("completed").await;
        job.call("DELETE", "").await.expect(204);
        until("no series of the deleted job", async || {
            let metrics = api.metrics().await;
            let left = metrics.samples.iter().any(|sample| sample.labels.get("job").is_some_and(|job| job == "a"));
            (!left).then_some(())
        })
        .await;
    }

    async fn the_interface_is_described_and_the_description_committed(bus: Bus) {
        let server = Server::start(bus).await;
        let served = server.api().get("/openapi.json").await.expect(200);
        let committed = std::fs::read_to_string(root().join("docs/openapi.json")).expect("docs/openapi.json: `make docs` writes it");
        assert!(served.text() == committed, "docs/openapi.json is not what is served: run `make docs`");
        let described = served.json();
        assert!(described["openapi"].as_str().is_some_and(|version| version.starts_with("3.")), "{described}");
        let paths = described["paths"].as_object().expect("paths");
        for (path, methods) in [
            ("/v1/jobs", &["get", "post"][..]),
            ("/v1/jobs/{job}", &["get", "patch", "delete"]),
            ("/v1/jobs/{job}/pause", &["post"]),
            ("/v1/jobs/{job}/model", &["get", "put"]),
            ("/v1/jobs/{job}/models", &["get"]),
            ("/v1/jobs/{job}/round", &["get"]),
            ("/v1/jobs/{job}/rounds/{round}/updates/{client}", &["put"]),
            ("/v1/clients/{client}/checkin", &["post"]),
            ("/v1/receipts/{receipt}", &["get"]),
        ] {
            for method in methods {
                assert!(paths.get(path).is_some_and(|calls| calls.get(method).is_some()), "{method} {path}");
            }
        }
    }

    async fn probes_and_the_front_page_answer(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        assert_eq!(api.get("/healthz").await.expect(200).text(), "ok\n");
        assert_eq!(api.get("/readyz").await.expect(200).text(), "ready\n");
        api.create("shown", json!({})).await;
        let page = api.get("/").await.expect(200);
        assert!(page.header("content-type").starts_with("text/html") && page.text().contains("shown"), "{}", page.text());
        let metrics = api.get("/metrics").await.expect(200);
        assert!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"), "{:?}", metrics.headers);
    }

    async fn functions_describe_themselves(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        let one = api.get("/v1/functions/fedavg").await.expect(200).json();
        assert_eq!((&one["name"], &one["class"]), (&json!("fedavg"), &json!("additive")));
        assert!(one["config_help"].as_str().is_some_and(|help| help.contains("weighting")), "{one}");
        assert_eq!(one["digest"].as_str().map(str::len), Some(64));
        let list = api.get("/v1/functions").await.expect(200).json();
        assert!(list["items"].as_array().is_some_and(|items| items.contains(&one)), "{list}");
        api.get("/v1/functions/nosuch").await.problem(404, "not_found");
    }

    async fn what_is_not_there_is_said_as_a_problem(bus: Bus) {
        let server = Server::start(bus).await;
        let api = server.api();
        for path in ["/v1/nothing", "/v1/jobs/a", "/v1/jobs/a/round", "/v1/jobs/a/models", "/v1/jobs/a/model", "/v2/jobs", "/v1/"] {
            api.get(path).await.problem(404, "not_found");
        }
        for (method, path) in [("DELETE", "/v1/jobs"), ("POST", "/v1/jobs/a/round"), ("PUT", "/metrics"), ("GET", "/v1/jobs/a/pause")] {
            api.call(method, path, &[], None).await.problem(405, "method_not_allowed");
        }
        api.call("POST", "/v1/jobs/a/pause", &[], None).await.problem(404, "not_found");
        assert_eq!(api.get("/v1/jobs").await.expect(200).json(), json!({"items": [], "cursor": Value::Null}));
    }

    /// SIGTERM: what was accepted is there after the next start, and nothing is left behind.
    async fn a_stopped_server_ends_well_and_goes_on(bus: Bus) {
        let mut server = Server::start(bus).await;
        let job = server.api().begin("a", json!({"goal": 2, "rounds": 1}), &model()).await;
        let first = job.accepted(1, "c", "", &update(1.0)).await;
        assert!(server.stop().await.success());
        server.start_again().await;
        let job = job.through(&server.api());
        assert_eq!(job.submit(1, "c", "", &update(1.0)).await.expect(200).json()["receipt"], first);
        job.accepted(1, "d", "", &update(3.0)).await;
        job.in_state("completed").await;
        assert_eq!(job.api.receipt(&first).await["state"], "committed");
        server.holds_no_slabs().await;
    }
}
