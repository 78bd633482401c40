//! A worker against a server that keeps a small job and has bad moments. The platform itself is tested with real
//! workers elsewhere; here every refusal comes exactly when it should.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use candle_core::Device;
use catchment_client::{Client, RetryPolicy};
use catchment_types::{Code, Digest, JobState, Problem};
use catchment_worker::data::digits;
use catchment_worker::model::{Architecture, Model};
use catchment_worker::participate::{Event, Participant, ParticipateError};
use catchment_worker::split::Split;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const UID: &str = "000102030405060708090a0b0c0d0e0f";
const ROUNDS: u64 = 3;

/// A job of three rounds that takes one update of each client a round and publishes the first of them.
struct Job {
    clients: usize,
    round: u64,
    revision: u64,
    state: &'static str,
    config: Value,
    models: Vec<Vec<u8>>,
    received: BTreeMap<String, Vec<u8>>,
    /// Answers given to submissions instead of taking them.
    refusals: VecDeque<Problem>,
    /// Task kinds handed out before real ones.
    first_tasks: VecDeque<&'static str>,
    measured: Vec<(u64, String)>,
    headers: Vec<HeaderMap>,
}

type Shared = Arc<Mutex<Job>>;

impl Job {
    fn model(&self) -> &Vec<u8> {
        self.models.last().unwrap()
    }

    fn etag(&self) -> String {
        Digest::from(blake3::hash(self.model())).to_string()
    }

    fn view(&self) -> Value {
        json!({"uid": UID, "revision": self.revision, "round": self.round, "state": "open", "job_state": self.state,
            "model_version": self.models.len() - 1, "goal": self.clients, "received": self.received.len(), "folded": 0,
            "deadline_at": null})
    }

    fn close_when_full(&mut self) {
        if self.received.len() == self.clients {
            let published = self.received.values().next().unwrap().clone();
            self.models.push(published);
            self.received.clear();
            self.revision += 1;
            if self.round == ROUNDS { self.state = "completed" } else { self.round += 1 }
        }
    }
}

fn refuse(problem: &Problem) -> Response {
    (StatusCode::from_u16(problem.status).unwrap(), serde_json::to_vec(problem).unwrap()).into_response()
}

async fn round(State(job): State<Shared>, Query(query): Query<HashMap<String, String>>) -> Response {
    let after: Option<u64> = query.get("after").map(|text| text.parse().unwrap());
    for _ in 0..200 {
        let view = job.lock().unwrap().view();
        if after.is_none_or(|after| view["revision"].as_u64().unwrap() > after) {
            return view.to_string().into_response();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let view = job.lock().unwrap().view();
    view.to_string().into_response()
}

async fn checkin(State(job): State<Shared>, Path(client): Path<String>) -> Response {
    let mut job = job.lock().unwrap();
    let task = match job.first_tasks.pop_front() {
        Some("evaluate") => json!({"task": "evaluate", "round": job.round, "model_version": job.models.len() - 1,
            "etag": job.etag(), "config": job.config}),
        Some(kind) => json!({"task": kind, "retry_after_ms": 10}),
        None if job.state != "running" => json!({"task": "stop"}),
        None if job.received.contains_key(&client) => json!({"task": "wait", "retry_after_ms": 10}),
        None => json!({"task": "train", "task_id": UID, "round": job.round, "model_version": job.models.len() - 1,
            "etag": job.etag(), "config": job.config}),
    };
    task.to_string().into_response()
}

async fn model(State(job): State<Shared>) -> Response {
    let job = job.lock().unwrap();
    let headers =
        [("etag", format!("\"{}\"", job.etag())), ("catchment-model-version", (job.models.len() - 1).to_string())];
    (headers, job.model().clone()).into_response()
}

async fn update(
    State(job): State<Shared>,
    Path((round, client)): Path<(u64, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut job = job.lock().unwrap();
    if let Some(problem) = job.refusals.pop_front() {
        return refuse(&problem);
    }
    assert_eq!((round, headers["catchment-base"].to_str().unwrap()), (job.round, &*job.etag()));
    let receipt = json!({"receipt": UID, "uid": UID, "namespace": "default", "job": "digits", "round": round,
        "client": client, "digest": "00".repeat(32), "weight": 1.0, "state": "accepted", "accepted_at": ""});
    job.headers.push(headers);
    job.received.insert(client, body.to_vec());
    job.close_when_full();
    (StatusCode::ACCEPTED, receipt.to_string()).into_response()
}

async fn measured(
    State(job): State<Shared>,
    Path((version, client)): Path<(u64, String)>,
    Query(query): Query<HashMap<String, String>>,
    body: Bytes,
) -> Response {
    let found: BTreeMap<String, f64> = serde_json::from_slice(&body).unwrap();
    assert!(found["loss"] > 0.0 && (0.0..=1.0).contains(&found["accuracy"]) && query["num_samples"] != "0");
    job.lock().unwrap().measured.push((version, client));
    json!({"results": 1, "num_samples": 1, "metrics": found}).to_string().into_response()
}

async fn info(State(job): State<Shared>) -> String {
    let job = job.lock().unwrap();
    json!({"uid": UID, "spec": {}, "state": job.state, "reason": "the function trapped", "created_at": "",
        "model_version": 0, "round": job.view()})
    .to_string()
}

async fn serve(clients: usize, change: impl FnOnce(&mut Job)) -> (String, Shared) {
    let first = Model::initial(Architecture::Mlp, 1, &Device::Cpu).unwrap().to_safetensors().unwrap();
    let mut job = Job {
        clients,
        round: 1,
        revision: 1,
        state: "running",
        config: json!({"local_epochs": 1, "a_later_field": [1]}),
        models: vec![first],
        received: BTreeMap::new(),
        refusals: VecDeque::new(),
        first_tasks: VecDeque::new(),
        measured: Vec::new(),
        headers: Vec::new(),
    };
    change(&mut job);
    let job = Arc::new(Mutex::new(job));
    let base = "/v1/namespaces/default/jobs/digits";
    let router = Router::new()
        .route(base, get(info))
        .route(&format!("{base}/round"), get(round))
        .route(&format!("{base}/model"), get(model))
        .route(&format!("{base}/models/{{version}}/evaluations/{{client}}"), put(measured))
        .route(&format!("{base}/rounds/{{round}}/updates/{{client}}"), put(update))
        .route("/v1/clients/{client}/checkin", post(checkin))
        .with_state(job.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, job)
}

fn participant(url: &str, index: usize, clients: usize) -> Participant {
    let policy = RetryPolicy { attempts_max: 3, delay_first: Duration::from_millis(1), ..RetryPolicy::default() };
    let server = Client::builder(url).retry(policy).build().unwrap();
    let split = Split::new(&digits().unwrap(), clients, 1).unwrap();
    Participant {
        job: server.job("default".parse().unwrap(), "digits".parse().unwrap()),
        server,
        id: format!("c-{index}").parse().unwrap(),
        index: index as u64,
        seed: 1,
        samples: Arc::new(split.client(index).unwrap().clone()),
        device: Device::Cpu,
        architecture: None,
    }
}

async fn run(participant: Participant) -> (Result<JobState, ParticipateError>, Vec<Event>) {
    let mut events = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(60), participant.run(&mut |event| events.push(event))).await;
    (ended.expect("a job of three rounds takes no minute"), events)
}

fn rounds(events: &[Event]) -> Vec<u64> {
    let submitted = |event: &Event| match event {
        Event::Submitted { round, .. } => Some(*round),
        _ => None,
    };
    events.iter().filter_map(submitted).collect()
}

#[tokio::test]
async fn three_clients_finish_a_job() {
    let (url, job) = serve(3, |_| ()).await;
    let tasks: Vec<_> = (0..3).map(|index| tokio::spawn(run(participant(&url, index, 3)))).collect();
    for task in tasks {
        let (ended, events) = task.await.unwrap();
        assert_eq!((ended.unwrap(), rounds(&events)), (JobState::Completed, vec![1, 2, 3]));
        assert_eq!(events.last(), Some(&Event::Ended { state: JobState::Completed }));
    }
    let job = job.lock().unwrap();
    assert_eq!((job.models.len(), job.headers.len()), (4, 9));
    let metrics: HashMap<String, f64> =
        serde_json::from_str(job.headers[0]["catchment-metrics"].to_str().unwrap()).unwrap();
    assert!(metrics["loss"] > 0.0 && (0.0..=1.0).contains(&metrics["accuracy"]));
    assert!(job.models.iter().all(|model| Model::from_safetensors(model, &Device::Cpu).is_ok()));
}

#[tokio::test]
async fn bad_moments_pass() {
    let refusals = [
        Problem::new(Code::LogUnavailable, "the log is away"),
        Problem::new(Code::RoundClosed, "too late").with("next_round", 1),
        Problem::new(Code::StaleBase, "an older model"),
        Problem::new(Code::WrongState, "paused"),
    ];
    let (url, job) = serve(1, |job| {
        job.refusals = refusals.into();
        // Asked for the same measurement again, it has nothing to add.
        job.first_tasks = ["wait", "evaluate", "evaluate", "meditate"].into();
    })
    .await;
    let (ended, events) = run(participant(&url, 0, 1)).await;
    assert_eq!(job.lock().unwrap().measured, [(0, "c-0".to_owned())]);
    let is_measured = |event: &&Event| matches!(event, Event::Measured { model_version: 0, .. });
    assert_eq!(events.iter().filter(is_measured).count(), 1);
    assert_eq!((ended.unwrap(), rounds(&events)), (JobState::Completed, vec![1, 2, 3]));
    let refused: Vec<_> = events
        .iter()
        .filter_map(|event| if let Event::Refused { code, .. } = event { Some(code.as_str()) } else { None })
        .collect();
    assert_eq!(refused, ["round_closed", "stale_base", "wrong_state"]);
}

#[tokio::test]
async fn bad_days_end_it_with_a_reason() {
    let reason = |change: fn(&mut Job)| async move {
        let (url, _) = serve(1, change).await;
        run(participant(&url, 0, 1)).await.0.unwrap_err().to_string()
    };
    let failed = reason(|job| job.state = "failed").await;
    assert!(failed.contains("the function trapped"), "{failed}");
    let layout = reason(|job| job.refusals = [Problem::new(Code::Layout, "tensor `fc1.weight`")].into()).await;
    assert!(layout.contains("fc1.weight"), "{layout}");
    let config = reason(|job| job.config = json!({"learning_rate": -1.0})).await;
    assert!(config.contains("learning_rate is -1"), "{config}");
    let architecture = reason(|job| job.config = json!({"model": "cnn"})).await;
    assert!(architecture.contains("holds a mlp, but cnn was asked for"), "{architecture}");
    let stranger = reason(|job| job.models = vec![b"no model".to_vec()]).await;
    assert!(stranger.contains("not safetensors"), "{stranger}");
}
