//! The log has one line for each event, whatever clients send.

use catchment_tests::{Bus, Server, Tensor, file, on_both_buses};
use serde_json::json;

/// A line that looks like the program's own, and what moves a terminal's cursor.
const BAD: &str = "w\n2026-01-01T00:00:00.000000Z ERROR catchment: forged\r\u{1b}[2J\u{9b}31m\u{2028}";

fn update(name: &str, value: f32) -> Vec<u8> {
    file(&[Tensor::f32(name, &[3], &[value; 3])])
}

on_both_buses! {
    async fn what_clients_send_does_not_break_lines(bus: Bus) {
        let server = Server::start_saying(bus, "debug").await;
        let api = server.api();
        // As the name of a tensor, of the model and of an update, and of one that costs a round.
        let job = api.begin("bad", json!({"goal": 2, "rounds": 3, "tensors": [{"match": BAD, "rule": "mean"}]}), &update(BAD, 0.0)).await;
        job.submit(1, "a", "", &update(&format!("{BAD}x"), 1.0)).await.problem(422, "layout");
        job.submit(1, "a", "", &update(BAD, f32::NAN)).await.problem(422, "not_finite");
        job.submit(1, "a", "", &update(BAD, 3e38)).await.expect(202);
        job.submit(1, "b", "", &update(BAD, 3e38)).await.expect(202);
        job.published(1).await;
        // As the name of a number, a label, a task, and within what is no JSON.
        let name: String = json!(BAD).as_str().expect("text").chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
        let metrics = [("catchment-metrics", &*format!("{{\"{name}\": 1.0}}"))];
        job.submit_with(2, "a", "", &metrics, &update(BAD, 1.0)).await.expect(202);
        api.checkin("a", &json!({"job": "bad", "labels": {BAD: BAD}})).await;
        api.checkin("a", &json!({"job": BAD})).await;
        for (name, spec) in [("config", json!({"config": {BAD: BAD}})), ("function", json!({"function": BAD})), (BAD, json!({}))] {
            let mut spec = spec;
            spec["name"] = json!(name);
            spec["function"] = spec.get("function").cloned().unwrap_or(json!("fedavg"));
            api.post("/v1/jobs", &spec).await;
        }
        let encoded = "a%0A2026%1B%5B2J";
        api.get(&format!("/v1/jobs/{encoded}")).await;
        api.call("PUT", &job.update_path(2, encoded, "weight=%0A1"), &[], Some(update(BAD, 1.0))).await;
        api.call("DELETE", &job.path, &[], None).await.expect(204);
        let log = server.log();
        assert!(log.contains("forged"), "nothing was logged of it");
        for line in log.lines() {
            let is_begun = line.starts_with("20") && line.get(10..11) == Some("T") && !line.starts_with("2026-01-01T00:00:00");
            assert!(is_begun, "a line that no event began: {line:?}");
            assert!(!line.contains(|c: char| c.is_control() || c == '\u{2028}'), "{line:?}");
        }
    }
}
