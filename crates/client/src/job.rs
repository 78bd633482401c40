//! Calls on one job.

use crate::attempts::Repeat;
use crate::call::Call;
use crate::client::{Client, Paging, json, paged};
use crate::error::ClientError;
use catchment_types::{Code, DurationText, JobState, JobUid, ModelView, Name, Page, RoundView, SpecPatch};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Duration;

/// A job as the server shows it. The spec stays JSON, so that a server with more fields than this client knows is
/// still understood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Its identity.
    pub uid: JobUid,
    /// Its spec, defaults filled in.
    pub spec: Map<String, Value>,
    /// What it is doing.
    pub state: JobState,
    /// Why it failed, or what it waits for.
    #[serde(default)]
    pub reason: Option<String>,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// Its newest model.
    #[serde(default)]
    pub model_version: Option<u64>,
    /// Of the measured models, the best one.
    #[serde(default)]
    pub best_version: Option<u64>,
    /// Its current round.
    pub round: RoundView,
}

/// Waiting for a round to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// The revision that the caller knows.
    pub after: u64,
    /// How long to wait for a newer one; the server cuts it to 60 s.
    pub wait: Duration,
}

/// Calls on one job. Cheap to clone.
#[derive(Clone)]
pub struct JobClient {
    pub(crate) client: Client,
    namespace: Name,
    name: Name,
    uid: Option<JobUid>,
}

impl JobClient {
    pub(crate) fn new(client: Client, namespace: Name, name: Name) -> Self {
        Self { client, namespace, name, uid: None }
    }

    /// The same, for the job with this identity and no other: as a check-in or a round names it. A job may be deleted and
    /// another be made with its name; that one takes none of these calls. Work goes out through this, always.
    #[must_use]
    pub fn identified(&self, uid: impl Into<Option<JobUid>>) -> Self {
        Self { uid: uid.into(), ..self.clone() }
    }

    /// The identity of the job it calls, if it calls no other.
    pub fn uid(&self) -> Option<JobUid> {
        self.uid
    }

    /// Whom it calls.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The job's namespace.
    pub fn namespace(&self) -> &Name {
        &self.namespace
    }

    /// The job's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// A call to an address under the job's.
    pub(crate) fn call(&self, method: Method, path: &[&str]) -> Call {
        let job = ["v1", "namespaces", self.namespace.as_str(), "jobs", self.name.as_str()];
        Call::new(method, &[&job, path].concat()).query("uid", self.uid)
    }

    /// The job.
    ///
    /// # Errors
    /// `not_found`, as every call on a job.
    pub async fn get(&self) -> Result<JobInfo, ClientError> {
        self.client.json(&self.call(Method::GET, &[]), Repeat::Safe).await
    }

    /// Changes rounds, goal or deadline.
    pub async fn patch(&self, patch: &SpecPatch) -> Result<JobInfo, ClientError> {
        self.client.json(&self.call(Method::PATCH, &[]).payload(json(patch)?), Repeat::Safe).await
    }

    /// Takes no updates and opens no round until it is resumed.
    pub async fn pause(&self) -> Result<JobInfo, ClientError> {
        self.act("pause", |state| state == JobState::Paused).await
    }

    /// Undoes a pause.
    pub async fn resume(&self) -> Result<JobInfo, ClientError> {
        self.act("resume", |state| matches!(state, JobState::Running | JobState::WaitingForModel)).await
    }

    /// Ends the job; its models stay.
    pub async fn stop(&self) -> Result<JobInfo, ClientError> {
        self.act("stop", |state| state == JobState::Stopped).await
    }

    /// A change of state. When an attempt whose answer was lost did it, the next is told that the state does not
    /// allow it any more; that is success.
    async fn act(&self, action: &str, done: fn(JobState) -> bool) -> Result<JobInfo, ClientError> {
        let call = self.call(Method::POST, &[action]);
        let mut attempts = self.client.attempts(Repeat::Safe);
        loop {
            match self.client.exchange_json(&call).await {
                Ok((_, job)) => return Ok(job),
                Err(error) if error.is(Code::WrongState) && attempts.may_have_acted() => {
                    let job = self.get().await?;
                    return if done(job.state) { Ok(job) } else { Err(error) };
                }
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    /// Ends the job and forgets it, models and receipts included.
    pub async fn delete(&self) -> Result<(), ClientError> {
        let call = self.call(Method::DELETE, &[]);
        let mut attempts = self.client.attempts(Repeat::Safe);
        loop {
            match self.client.exchange(&call).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is(Code::NotFound) && attempts.may_have_acted() => return Ok(()),
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    /// The same, asking another gateway first: see [`Client::through`].
    #[must_use]
    pub fn through(&self, gateway: Option<&str>) -> Self {
        Self { client: self.client.through(gateway), ..self.clone() }
    }

    /// The newest round; with `waiting`, as soon as its revision is newer, or when the time is over.
    pub async fn round(&self, waiting: Option<Waiting>) -> Result<RoundView, ClientError> {
        let mut call = self.call(Method::GET, &["round"]);
        if let Some(Waiting { after, wait }) = waiting {
            let text = DurationText::from_ms(wait.as_millis().min(60_000) as u64);
            call = call.query("wait", Some(text)).query("after", Some(after)).wait(wait);
        }
        self.client.json(&call, Repeat::Safe).await
    }

    /// Ends an open round with the updates that it has. When an attempt whose answer was lost did it, the next is told that
    /// it is not open any more; that is success.
    pub async fn close_round(&self, round: u64) -> Result<RoundView, ClientError> {
        let call = self.call(Method::POST, &["rounds", &round.to_string(), "close"]);
        let mut attempts = self.client.attempts(Repeat::Safe);
        loop {
            match self.client.exchange_json(&call).await {
                Ok((_, round)) => return Ok(round),
                Err(error)
                    if attempts.may_have_acted() && (error.is(Code::WrongState) || error.is(Code::RoundClosed)) =>
                {
                    return self.round(None).await;
                }
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    /// Model versions, newest first.
    pub async fn models(&self, paging: &Paging) -> Result<Page<ModelView>, ClientError> {
        self.client.json(&paged(self.call(Method::GET, &["models"]), paging), Repeat::Safe).await
    }
}
