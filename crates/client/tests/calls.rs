//! Every call against a real HTTP server: what goes out, what comes back, and what is done again when it fails.

mod support;

use axum::body::{Body, Bytes};
use axum::http::{Method, Response};
use catchment_client::{ClientError, Measurement, Paging, Update, UpdateBody, Waiting};
use catchment_types::{CheckIn, Code, Digest, JobState, Problem, RoundState, TaskKind};
use std::collections::HashMap;
use std::time::Duration;
use support::{Seen, Server, client, job, json, problem};

const UID: &str = "000102030405060708090a0b0c0d0e0f";

fn receipt(state: &str, digest: &str) -> String {
    format!(
        r#"{{"receipt":"{UID}","uid":"{UID}","namespace":"default","job":"digits","round":3,"client":"c-1",
        "digest":"{digest}","weight":5.0,"state":"{state}","accepted_at":"2026-01-01T00:00:00.000Z","new_field":1}}"#
    )
}

fn round(revision: u64) -> String {
    format!(
        r#"{{"uid":"{UID}","revision":{revision},"round":3,"state":"open","job_state":"running","model_version":2,
        "goal":10,"received":1,"folded":0,"deadline_at":null}}"#
    )
}

fn job_info(state: &str) -> String {
    format!(
        r#"{{"uid":"{UID}","spec":{{"name":"digits","a_later_field":1}},"state":"{state}","reason":null,
        "created_at":"2026-01-01T00:00:00.000Z","model_version":2,"round":{}}}"#,
        round(7)
    )
}

fn model(bytes: &[u8], etag: &str, sent: Body) -> Option<Response<Body>> {
    let head = Response::builder().header("etag", format!("\"{etag}\"")).header("catchment-model-version", 4);
    Some(head.header("content-length", bytes.len()).body(sent).unwrap())
}

fn update(body: impl Into<UpdateBody>) -> Update {
    Update {
        weight: Some(5.0),
        num_samples: Some(7),
        task: Some(UID.parse().unwrap()),
        metrics: [("loss".to_owned(), 0.25)].into(),
        base: Some(Digest::from_bytes([0xab; 32])),
        ..Update::new(3, "c-1".parse().unwrap(), body)
    }
}

#[tokio::test]
async fn an_update_says_all_there_is_to_say() {
    let server = Server::start(|_| json(202, receipt("accepted", &"ab".repeat(32)))).await;
    let sent = job(&server.url).0.submit(&update(b"tensors".to_vec())).await.unwrap();
    assert!(!sent.known && sent.receipt.round == 3);
    let Seen { method, uri, headers, body } = server.last();
    assert_eq!((method, uri.path()), (Method::PUT, "/v1/namespaces/default/jobs/digits/rounds/3/updates/c-1"));
    assert_eq!(uri.query().unwrap(), format!("weight=5&num_samples=7&task={UID}"));
    assert_eq!(headers["catchment-metrics"], r#"{"loss":0.25}"#);
    assert_eq!(headers["catchment-base"], "ab".repeat(32));
    assert_eq!(headers["catchment-digest"], blake3::hash(b"tensors").to_hex().as_str());
    assert_eq!((headers["content-length"].to_str().unwrap(), &body[..]), ("7", &b"tensors"[..]));
}

#[tokio::test]
async fn a_file_is_streamed_with_its_length_on_every_attempt() {
    let mut first = true;
    let server = Server::start(move |_| {
        if std::mem::take(&mut first) {
            return problem(&Problem::new(Code::Checksum, "damaged"), None);
        }
        json(202, receipt("accepted", &"ab".repeat(32)))
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("update.safetensors");
    let bytes: Vec<u8> = (0..1_500_000u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    job(&server.url).0.submit(&update(path)).await.unwrap();
    assert_eq!(server.count(), 2);
    for seen in server.seen.lock().unwrap().iter() {
        assert_eq!(seen.headers["content-length"], "1500000");
        assert!(!seen.headers.contains_key("transfer-encoding") && seen.body == bytes);
        assert_eq!(seen.headers["catchment-digest"], blake3::hash(&bytes).to_hex().as_str());
    }
    let gone = job(&server.url).0.submit(&update(dir.path().join("none"))).await.unwrap_err();
    assert!(matches!(gone, ClientError::File { doing: "read", .. }) && server.count() == 2);
}

#[tokio::test]
async fn a_full_server_is_tried_again_when_it_says() {
    let mut left = 2;
    let server = Server::start(move |_| {
        if left > 0 {
            left -= 1;
            return problem(&Problem::new(Code::LogUnavailable, "the log is away"), Some(2));
        }
        json(202, receipt("accepted", &"ab".repeat(32)))
    })
    .await;
    let (job, pacer) = job(&server.url);
    job.submit(&update(b"x".to_vec())).await.unwrap();
    // Two seconds as asked, and half of 100 and 200 ms of jitter on top.
    assert_eq!(pacer.delays_ms(), [2050, 2100]);
    assert_eq!(server.count(), 3);
}

#[tokio::test]
async fn waiting_past_the_deadline_is_not_begun() {
    let server = Server::start(|_| problem(&Problem::new(Code::NoRoom, "full"), Some(3600))).await;
    let (job, pacer) = job(&server.url);
    let error = job.submit(&update(b"x".to_vec())).await.unwrap_err();
    assert!(error.is(Code::NoRoom) && error.retry_after() == Some(Duration::from_secs(3600)));
    assert_eq!((server.count(), pacer.delays_ms()), (1, vec![]));
}

#[tokio::test]
async fn attempts_are_counted() {
    let server = Server::start(|_| problem(&Problem::new(Code::Internal, "oh"), None)).await;
    let (job, pacer) = job(&server.url);
    assert!(job.submit(&update(b"x".to_vec())).await.unwrap_err().is(Code::Internal));
    assert_eq!((server.count(), pacer.delays_ms()), (5, vec![50, 100, 200, 400]));
}

#[tokio::test]
async fn refusals_are_not_repeated() {
    for (code, member) in [
        (Code::Conflict, "receipt"),
        (Code::StaleBase, "etag"),
        (Code::RoundClosed, "next_round"),
        (Code::Layout, "tensor"),
        (Code::NotFound, "x"),
    ] {
        let refusal = Problem::new(code, "no").with(member, 4);
        let server = Server::start(move |_| problem(&refusal, None)).await;
        let (job, pacer) = job(&server.url);
        let error = job.submit(&update(b"x".to_vec())).await.unwrap_err();
        assert!(error.is(code) && !error.is_retryable() && error.status() == Some(code.status()));
        assert_eq!(error.problem().unwrap().extra[member], 4);
        assert_eq!((server.count(), pacer.delays_ms()), (1, vec![]), "{code}");
    }
}

#[tokio::test]
async fn an_update_whose_answer_was_lost_is_counted_once() {
    // The server keeps the update under its digest and then breaks the connection, once.
    let mut kept: HashMap<String, u32> = HashMap::new();
    let server = Server::start(move |seen| {
        if seen.method == Method::HEAD {
            return json(404, "");
        }
        let digest = seen.headers["catchment-digest"].to_str().unwrap().to_owned();
        let times = kept.entry(digest.clone()).or_default();
        *times += 1;
        match times {
            1 => None,
            _ => json(200, receipt("folded", &digest)),
        }
    })
    .await;
    let sent = job(&server.url).0.submit(&update(b"x".to_vec())).await.unwrap();
    // It asks how far the server is, which keeps no part of it, and sends it whole again.
    assert!(sent.known && server.count() == 3);
    assert_eq!(sent.receipt.digest, Digest::from(blake3::hash(b"x")));
}

/// A server that breaks the first upload off, says that `offset` bytes of it are there, and answers PATCH with `then`.
async fn breaks_off_at(
    offset: u64,
    length: u64,
    mut then: impl FnMut() -> Option<Response<Body>> + Send + 'static,
) -> Server {
    let mut first = true;
    Server::start(move |seen| match seen.method {
        Method::HEAD => {
            let head = Response::builder().status(204).header("upload-offset", offset).header("upload-length", length);
            Some(head.header("upload-complete", "?0").body(Body::empty()).unwrap())
        }
        Method::PATCH => then(),
        _ if std::mem::take(&mut first) => None,
        _ => json(200, receipt("accepted", &"ab".repeat(32))),
    })
    .await
}

fn methods(server: &Server) -> Vec<String> {
    server.seen.lock().unwrap().iter().map(|seen| seen.method.to_string()).collect()
}

#[tokio::test]
async fn an_update_that_broke_off_goes_on_where_the_server_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("update.safetensors");
    std::fs::write(&path, b"tensors").unwrap();
    for body in [UpdateBody::from(b"tensors".to_vec()), path.into()] {
        let server = breaks_off_at(3, 7, || json(202, receipt("accepted", &"ab".repeat(32)))).await;
        assert!(!job(&server.url).0.submit(&update(body)).await.unwrap().known);
        assert_eq!(methods(&server), ["PUT", "HEAD", "PATCH"]);
        let Seen { uri, headers, body, .. } = server.last();
        assert_eq!((uri.query(), &body[..]), (None, &b"sors"[..]));
        assert!(headers["upload-offset"] == "3" && headers["upload-complete"] == "?1");
        assert!(headers["content-length"] == "4" && headers["content-type"] == "application/partial-upload");
        assert_eq!(headers["catchment-digest"], blake3::hash(b"tensors").to_hex().as_str());
    }
}

#[tokio::test]
async fn an_update_that_cannot_go_on_is_sent_whole() {
    for code in [Code::WrongOffset, Code::NotFound, Code::Checksum] {
        let server = breaks_off_at(3, 7, move || problem(&Problem::new(code, "no"), None)).await;
        assert!(job(&server.url).0.submit(&update(b"tensors".to_vec())).await.unwrap().known);
        assert_eq!(methods(&server), ["PUT", "HEAD", "PATCH", "PUT"], "{code}");
        assert_eq!(&server.last().body[..], b"tensors");
    }
    // What is there is another update's.
    for (offset, length) in [(3, 8), (9, 7)] {
        let server = breaks_off_at(offset, length, || unreachable!("no PATCH")).await;
        job(&server.url).0.submit(&update(b"tensors".to_vec())).await.unwrap();
        assert_eq!(methods(&server), ["PUT", "HEAD", "PUT"]);
    }
}

#[tokio::test]
async fn an_update_that_breaks_off_again_and_again_is_given_up() {
    let server = breaks_off_at(3, 7, || None).await;
    let error = job(&server.url).0.submit(&update(b"tensors".to_vec())).await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { .. }), "{error}");
    assert_eq!(methods(&server), ["PUT", "HEAD", "PATCH", "HEAD", "PATCH", "HEAD", "PATCH", "HEAD", "PATCH"]);
}

#[tokio::test]
async fn a_refusal_of_the_rest_is_the_updates() {
    let refusal = || problem(&Problem::new(Code::NotFinite, "NaN"), None);
    let server = breaks_off_at(3, 7, refusal).await;
    assert!(job(&server.url).0.submit(&update(b"tensors".to_vec())).await.unwrap_err().is(Code::NotFinite));
    assert_eq!(methods(&server), ["PUT", "HEAD", "PATCH"]);
}

#[tokio::test]
async fn a_model_cut_in_the_middle_is_fetched_again() {
    let bytes: Vec<u8> = (0..200_000u32).map(|i| (i % 253) as u8).collect();
    let etag = blake3::hash(&bytes).to_hex().to_string();
    let (whole, name) = (bytes.clone(), etag.clone());
    let mut attempt = 0;
    let server = Server::start(move |_| {
        attempt += 1;
        let damaged: Vec<u8> = whole.iter().map(|byte| byte ^ 1).collect();
        match attempt {
            1 => {
                let parts = [Ok(Bytes::from(whole[..70_000].to_vec())), Err(std::io::Error::other("cut"))];
                model(&whole, &name, Body::from_stream(futures::stream::iter(parts)))
            }
            2 => model(&whole, &name, Body::from(damaged)),
            _ => model(&whole, &name, Body::from(whole.clone())),
        }
    })
    .await;
    let (job, pacer) = job(&server.url);
    let got = job.model(Some(4)).await.unwrap();
    assert_eq!((got.version, got.etag.to_string(), &got.bytes[..]), (4, etag, &bytes[..]));
    assert_eq!((server.count(), pacer.delays_ms().len()), (3, 2));
    assert_eq!(server.last().uri, "/v1/namespaces/default/jobs/digits/model?version=4");
}

#[tokio::test]
async fn a_model_file_appears_whole_or_not_at_all() {
    let good = b"a model".to_vec();
    let etag = blake3::hash(&good).to_hex().to_string();
    let mut damaged = true;
    let server = Server::start(move |_| {
        let body = if std::mem::take(&mut damaged) { b"a modem".to_vec() } else { good.clone() };
        model(&good, &etag, Body::from(body))
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let file = job(&server.url).0.model_to_file(None, &path).await.unwrap();
    assert_eq!((file.version, file.bytes, std::fs::read(&path).unwrap()), (4, 7, b"a model".to_vec()));

    let other = Server::start(|_| model(b"1234567", &"00".repeat(32), Body::from("1234567"))).await;
    let path = dir.path().join("never.safetensors");
    let error = job(&other.url).0.model_to_file(None, &path).await.unwrap_err();
    assert!(matches!(error, ClientError::Damaged { .. }), "{error}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["m.safetensors"]);
}

#[tokio::test]
async fn a_known_model_is_not_sent_again() {
    let server = Server::start(|seen| {
        assert_eq!(seen.headers["if-none-match"], format!("\"{}\"", "00".repeat(32)));
        json(304, "")
    })
    .await;
    assert_eq!(job(&server.url).0.model_unless(Some(4), Digest::from_bytes([0; 32])).await.unwrap(), None);
}

#[tokio::test]
async fn the_initial_model_may_be_sent_twice_but_not_changed() {
    let view = |etag: &str| {
        format!(
            r#"{{"version":0,"etag":"{etag}","bytes":5,"created_at":"","parent":null,"function":null,"contributors":0,
            "metrics":{{}},"available":true}}"#
        )
    };
    let etag = blake3::hash(b"first").to_hex().to_string();
    let server = Server::start(move |seen| match seen.uri.path().ends_with("/models") {
        true => json(200, format!(r#"{{"items":[{}]}}"#, view(&etag))),
        false => problem(&Problem::new(Code::WrongState, "has its model already"), None),
    })
    .await;
    let job = job(&server.url).0;
    assert_eq!(job.put_model(b"first".to_vec()).await.unwrap().version, 0);
    assert!(job.put_model(b"other".to_vec()).await.unwrap_err().is(Code::WrongState));
}

#[tokio::test]
async fn creating_is_repeated_only_when_nothing_can_have_happened() {
    let server = Server::start(|_| None).await;
    let (lost, _) = client(&server.url);
    let spec = serde_json::json!({"name": "digits", "function": "fedavg"});
    assert!(matches!(lost.create_job(&spec).await, Err(ClientError::Broken { .. })));
    assert_eq!(server.count(), 1);

    let mut first = true;
    let server = Server::start(move |_| match std::mem::take(&mut first) {
        true => problem(&Problem::new(Code::NotReady, "starting"), Some(1)),
        false => json(201, job_info("waiting_for_model")),
    })
    .await;
    let made = client(&server.url).0.create_job(&spec).await.unwrap();
    assert_eq!((made.state, made.spec["a_later_field"].as_u64()), (JobState::WaitingForModel, Some(1)));
    assert_eq!((server.last().uri.path(), server.last().method), ("/v1/jobs", Method::POST));
    assert_eq!(server.last().headers["content-type"], "application/json");

    let invalid = Problem::new(Code::InvalidSpec, "goal: 0").with("fields", serde_json::json!([{"field": "goal"}]));
    let server = Server::start(move |_| problem(&invalid, None)).await;
    let error = client(&server.url).0.create_job(&spec).await.unwrap_err();
    assert_eq!(error.problem().unwrap().extra["fields"][0]["field"], "goal");
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_no_failure() {
    let mut calls = 0;
    let server = Server::start(move |seen| {
        calls += 1;
        match (calls, seen.method.as_str()) {
            (1, _) => None,
            (_, "GET") => json(200, job_info("paused")),
            _ => problem(&Problem::new(Code::WrongState, "the job is paused"), None),
        }
    })
    .await;
    assert_eq!(job(&server.url).0.pause().await.unwrap().state, JobState::Paused);
    // Without a lost answer before it, the refusal stands; and so does one for another state.
    assert!(job(&server.url).0.pause().await.unwrap_err().is(Code::WrongState));

    let mut calls = 0;
    let server = Server::start(move |_| {
        calls += 1;
        if calls == 1 { None } else { problem(&Problem::new(Code::NotFound, "no such job"), None) }
    })
    .await;
    job(&server.url).0.delete().await.unwrap();
    assert!(job(&server.url).0.delete().await.unwrap_err().is(Code::NotFound));
}

#[tokio::test]
async fn nobody_there() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (job, pacer) = job(&url);
    let error = job.get().await.unwrap_err();
    assert!(matches!(&error, ClientError::Unreachable { .. }) && error.is_retryable() && !error.may_have_acted());
    assert!(error.to_string().contains("is the server running?"), "{error}");
    assert_eq!(pacer.delays_ms().len(), 4);
}

#[tokio::test]
async fn silence_is_noticed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let quick = catchment_client::Client::builder(&url).retry(catchment_client::RetryPolicy::once());
    let error = quick.answer_time(Duration::from_millis(200)).build().unwrap().ready().await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { .. }), "{error}");
}

#[tokio::test]
async fn strangers_answers_are_shown() {
    let server = Server::start(|_| json(502, "<html>bad gateway</html>")).await;
    let (job, pacer) = job(&server.url);
    let error = job.get().await.unwrap_err();
    assert!(error.to_string().contains("502") && error.to_string().contains("bad gateway"), "{error}");
    assert_eq!(pacer.delays_ms().len(), 4);
    let server = Server::start(|_| json(200, "[]")).await;
    assert!(matches!(support::job(&server.url).0.get().await, Err(ClientError::Answer { .. })));
    let server = Server::start(|_| json(200, "no headers")).await;
    assert!(matches!(support::job(&server.url).0.model(None).await, Err(ClientError::Answer { .. })));
}

#[tokio::test]
async fn rounds_lists_tasks_and_receipts() {
    let server = Server::start(|seen| match seen.uri.path() {
        path if path.ends_with("/round") => json(200, round(8)),
        path if path.ends_with("/checkin") => {
            assert_eq!(&seen.body[..], br#"{"job":"digits","namespace":null,"labels":{},"num_samples":9}"#);
            json(200, r#"{"task":"meditate","retry_after_ms":250,"later":true}"#)
        }
        "/v1/namespaces/default/jobs" => {
            json(200, format!(r#"{{"items":[{}],"cursor":"digits"}}"#, job_info("running")))
        }
        path if path.starts_with("/v1/receipts/") => json(200, receipt("discarded", &"ab".repeat(32))),
        "/readyz" => json(200, "ready\n"),
        "/v1/functions" => json(200, r#"{"items":[]}"#),
        path => panic!("{path}"),
    })
    .await;
    let (client, _) = client(&server.url);
    let job = client.job("default".parse().unwrap(), "digits".parse().unwrap());
    let view = job.round(Some(Waiting { after: 7, wait: Duration::from_millis(1500) })).await.unwrap();
    assert_eq!((view.revision, view.state, view.job_state), (8, RoundState::Open, JobState::Running));
    assert_eq!(server.last().uri.query(), Some("wait=1500ms&after=7"));
    let checkin = CheckIn { job: Some("digits".parse().unwrap()), num_samples: Some(9), ..CheckIn::default() };
    let task = client.checkin(&"c-1".parse().unwrap(), &checkin).await.unwrap();
    assert_eq!((task.task, task.retry_after_ms), (TaskKind::Other, Some(250)));
    let paging = Paging { limit: Some(1), cursor: Some("a".to_owned()) };
    let page = client.jobs(&"default".parse().unwrap(), &paging).await.unwrap();
    assert_eq!((page.items.len(), page.cursor.as_deref()), (1, Some("digits")));
    assert_eq!(server.last().uri.query(), Some("limit=1&cursor=a"));
    assert_eq!(client.receipt(UID.parse().unwrap()).await.unwrap().round, 3);
    client.ready().await.unwrap();
    assert!(client.functions().await.unwrap().is_empty());
}

#[tokio::test]
async fn work_is_waited_for_as_long_as_the_server_says() {
    let mut asked = 0;
    let server = Server::start(move |_| {
        asked += 1;
        json(
            200,
            match asked {
                1 => r#"{"task":"wait","retry_after_ms":1234}"#,
                2 => r#"{"task":"meditate"}"#,
                _ => r#"{"task":"evaluate","model_version":3,"gateway":"http://10.0.0.1:7070"}"#,
            },
        )
    })
    .await;
    let (client, pacer) = client(&server.url);
    let task = client.next_task(&"c-1".parse().unwrap(), &CheckIn::default()).await.unwrap();
    assert_eq!((task.task, task.model_version), (TaskKind::Evaluate, Some(3)));
    assert_eq!(task.gateway.as_deref(), Some("http://10.0.0.1:7070"));
    assert_eq!(pacer.delays_ms(), [1234, 1000]);
}

#[tokio::test]
async fn measurements_are_reported_and_a_gateway_that_is_away_is_passed_over() {
    let answer = r#"{"results":2,"num_samples":40,"metrics":{"loss":0.5}}"#;
    let server = Server::start(move |seen| {
        assert_eq!(seen.uri.path(), "/v1/namespaces/default/jobs/digits/models/3/evaluations/c-1");
        assert_eq!((seen.uri.query(), &seen.body[..]), (Some("num_samples=30"), &br#"{"loss":0.25}"#[..]));
        json(201, answer)
    })
    .await;
    let measured = Measurement {
        version: 3,
        client: "c-1".parse().unwrap(),
        num_samples: Some(30),
        metrics: [("loss".to_owned(), 0.25)].into(),
    };
    let (job, _) = job(&server.url);
    let other = Server::start(move |_| json(201, answer)).await;
    // A port on which nobody listens, an address that is none, and the server itself.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for gateway in [None, Some(format!("http://{gone}")), Some("nonsense".to_owned()), Some(server.url.clone())] {
        let found = job.through(gateway.as_deref()).report(&measured).await.unwrap();
        assert_eq!((found.results, found.metrics["loss"]), (2, 0.5));
    }
    assert_eq!((server.count(), other.count()), (4, 0));
    job.through(Some(&other.url)).report(&measured).await.unwrap();
    assert_eq!((server.count(), other.count()), (4, 1));
    for metrics in [Default::default(), [("loss".to_owned(), f64::NAN)].into()] {
        let refused = job.report(&Measurement { metrics, ..measured.clone() }).await;
        assert!(matches!(refused, Err(ClientError::Argument(_))));
    }
}

#[tokio::test]
async fn nonsense_is_not_sent() {
    let server = Server::start(|_| json(200, "{}")).await;
    let job = job(&server.url).0;
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let update = Update { weight: Some(weight), ..update(b"x".to_vec()) };
        assert!(matches!(job.submit(&update).await, Err(ClientError::Argument(_))));
    }
    assert_eq!(server.count(), 0);
    assert_eq!(
        catchment_client::Client::new("127.0.0.1:7070").expect("an address is enough").url(),
        "http://127.0.0.1:7070/"
    );
    for bad in ["https://example.org", "http://a/?b", "ftp://a", ""] {
        assert!(matches!(catchment_client::Client::new(bad), Err(ClientError::Argument(_))), "{bad}");
    }
}
