//! Plain HTTP, as any client would speak it.

use crate::{Answer, Metrics, PATIENCE};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longest time of one call.
const CALL_TIME_MAX: Duration = Duration::from_secs(60);

/// A client with its own keep-alive connections.
#[derive(Debug, Clone)]
pub struct Api {
    client: reqwest::Client,
    base: String,
}

impl Api {
    /// A client of the server at `address` (`host:port`).
    pub fn new(address: &str) -> Self {
        Self::impatient(address, CALL_TIME_MAX)
    }

    /// The same, whose calls fail when they take longer than this.
    pub fn impatient(address: &str, call_time_max: Duration) -> Self {
        let client = reqwest::Client::builder().timeout(call_time_max).no_proxy().build().expect("make a client");
        Self { client, base: format!("http://{address}") }
    }

    /// Makes a call; the error is one of the connection.
    ///
    /// # Errors
    /// No answer came.
    pub async fn try_call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Answer, reqwest::Error> {
        let method: Method = method.parse().expect("a method");
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes().await? })
    }

    /// Makes a call that must be answered.
    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<Vec<u8>>) -> Answer {
        let answer = self.try_call(method, path, headers, body).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], None).await
    }

    /// POST of a JSON text.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, &[("content-type", "application/json")], Some(body.to_string().into())).await
    }

    /// PATCH with a JSON text.
    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.call("PATCH", path, &[("content-type", "application/json")], Some(body.to_string().into())).await
    }

    /// One scrape of the server's metrics.
    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").await.expect(200).text())
    }

    /// The receipt of this name.
    pub async fn receipt(&self, id: &Value) -> Value {
        let id = id.as_str().expect("a receipt's name");
        self.get(&format!("/v1/receipts/{id}")).await.expect(200).json()
    }

    /// Waits until a receipt says `state`.
    pub async fn receipt_in(&self, id: &Value, state: &str) -> Value {
        crate::until(&format!("receipt {id} is {state}"), async || {
            Some(self.receipt(id).await).filter(|receipt| receipt["state"] == state)
        })
        .await
    }

    /// A client's check-in.
    pub async fn checkin(&self, client: &str, body: &Value) -> Answer {
        self.post(&format!("/v1/clients/{client}/checkin"), body).await
    }

    /// Creates a job of the function `fedavg`; `spec` adds to it or overrides.
    pub async fn create(&self, name: &str, spec: Value) -> Job {
        let mut whole = json!({"name": name, "function": "fedavg"});
        let members = whole.as_object_mut().expect("an object");
        members.extend(spec.as_object().expect("an object").clone());
        let created = self.post("/v1/jobs", &whole).await.expect(201).json();
        let namespace = created["spec"]["namespace"].as_str().expect("a namespace").to_owned();
        Job { api: self.clone(), path: format!("/v1/namespaces/{namespace}/jobs/{name}"), created }
    }

    /// Creates a job, gives it its initial model and waits for its first round.
    pub async fn begin(&self, name: &str, spec: Value, model: &[u8]) -> Job {
        let job = self.create(name, spec).await;
        job.put_model(model).await.expect(201);
        job.open_round(1).await;
        job
    }
}

/// A job, seen from outside.
#[derive(Debug, Clone)]
pub struct Job {
    /// The client that calls it.
    pub api: Api,
    /// Its address.
    pub path: String,
    /// The answer to its creation.
    pub created: Value,
}

impl Job {
    /// The same job, called through another client.
    pub fn through(&self, api: &Api) -> Self {
        Self { api: api.clone(), ..self.clone() }
    }

    /// The job as it is now.
    pub async fn view(&self) -> Value {
        self.api.get(&self.path).await.expect(200).json()
    }

    /// A call on one of its addresses.
    pub async fn call(&self, method: &str, path: &str) -> Answer {
        self.api.call(method, &format!("{}{path}", self.path), &[], None).await
    }

    /// Stores its initial model.
    pub async fn put_model(&self, body: &[u8]) -> Answer {
        self.api.call("PUT", &format!("{}/model", self.path), &[], Some(body.to_vec())).await
    }

    /// A model's file.
    pub async fn model(&self, version: u64) -> Vec<u8> {
        self.call("GET", &format!("/model?version={version}")).await.expect(200).body.to_vec()
    }

    /// The newest round.
    pub async fn round(&self) -> Value {
        self.call("GET", "/round").await.expect(200).json()
    }

    /// Follows the round by long-polls until `look` is content with it.
    pub async fn round_when(&self, what: &str, look: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        let mut round = self.round().await;
        while !look(&round) {
            assert!(begun.elapsed() < PATIENCE, "still not so after {PATIENCE:?}: {what}; the round is {round}");
            let after = round["revision"].as_u64().expect("a revision");
            round = self.call("GET", &format!("/round?wait=1s&after={after}")).await.expect(200).json();
        }
        round
    }

    /// Waits until this round takes updates.
    pub async fn open_round(&self, number: u64) -> Value {
        self.round_when(&format!("round {number} is open"), |r| r["round"] == number && r["state"] == "open").await
    }

    /// Waits until this version is published.
    pub async fn published(&self, version: u64) {
        let has = |round: &Value| {
            let trained_from = round["model_version"].as_u64().unwrap_or(0);
            trained_from >= version || (round["state"] == "committed" && trained_from + 1 >= version)
        };
        self.round_when(&format!("model {version} is published"), has).await;
    }

    /// Waits until the job is in this state.
    pub async fn in_state(&self, state: &str) -> Value {
        self.round_when(&format!("the job is {state}"), |round| round["job_state"] == state).await;
        self.view().await
    }

    /// The address of an update.
    pub fn update_path(&self, round: u64, client: &str, query: &str) -> String {
        format!("{}/rounds/{round}/updates/{client}?{query}", self.path)
    }

    /// Sends an update.
    pub async fn submit(&self, round: u64, client: &str, query: &str, body: &[u8]) -> Answer {
        self.submit_with(round, client, query, &[], body).await
    }

    /// Sends an update with headers.
    pub async fn submit_with(
        &self,
        round: u64,
        client: &str,
        query: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.api.call("PUT", &self.update_path(round, client, query), headers, Some(body.to_vec())).await
    }

    /// Sends an update that must be accepted, and gives its receipt's name.
    pub async fn accepted(&self, round: u64, client: &str, query: &str, body: &[u8]) -> Value {
        self.submit(round, client, query, body).await.expect(202).json()["receipt"].clone()
    }
}
