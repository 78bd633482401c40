//! The client itself: where the server is, how long to wait, and the calls that belong to no job.

use crate::attempts::{Attempts, Repeat, RetryPolicy};
use crate::call::{Call, Payload};
use crate::error::ClientError;
use crate::job::{JobClient, JobInfo};
use crate::pacer::{Pacer, SystemPacer};
use bytes::Bytes;
use catchment_types::{CheckIn, ClientId, FunctionView, Name, NodesView, Page, Receipt, ReceiptId, Task, TaskKind};
use reqwest::{Method, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// How long an answer, or its next piece, is waited for.
const ANSWER_TIME: Duration = Duration::from_secs(30);
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// When to ask for work again, if the server does not say.
const RETRY_TIME: Duration = Duration::from_secs(1);

/// Calls a Catchment server. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    pub(crate) http: reqwest::Client,
    pub(crate) base: Url,
    /// Asked before `base`, while it can be reached.
    pub(crate) gateway: Option<Url>,
    pub(crate) answer_time: Duration,
    policy: RetryPolicy,
    pacer: Arc<dyn Pacer>,
}

/// Makes a [`Client`].
pub struct Builder {
    url: String,
    policy: RetryPolicy,
    pacer: Arc<dyn Pacer>,
    answer_time: Duration,
}

impl Builder {
    /// How often and how long calls are tried.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Where time and randomness come from.
    #[must_use]
    pub fn pacer(mut self, pacer: impl Pacer) -> Self {
        self.pacer = Arc::new(pacer);
        self
    }

    /// How long an answer, or its next piece, is waited for; 30 s by default. Uploads get more by their size.
    #[must_use]
    pub fn answer_time(mut self, limit: Duration) -> Self {
        self.answer_time = limit;
        self
    }

    /// The client. No connection is made yet.
    pub fn build(self) -> Result<Client, ClientError> {
        let bad = |why: &str| ClientError::Argument(format!("server address `{}`: {why}", self.url));
        let base = address(&self.url)?;
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIME)
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .build()
            .map_err(|error| bad(&error.to_string()))?;
        let Self { answer_time, policy, pacer, .. } = self;
        Ok(Client { http, base, gateway: None, answer_time, policy, pacer })
    }
}

/// A server's address.
fn address(text: &str) -> Result<Url, ClientError> {
    let bad = |why: &str| ClientError::Argument(format!("server address `{text}`: {why}"));
    // Of `localhost:7070` the host would be read as the scheme.
    let is_bare = |(host, port): (&str, &str)| !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok();
    let bare = text.trim_end_matches('/');
    let whole = match bare.rsplit_once(':').is_some_and(is_bare) {
        true => format!("http://{bare}"),
        false => text.to_owned(),
    };
    let url: Url = whole.parse().map_err(|_| bad("not a URL; expected one like http://127.0.0.1:7070"))?;
    if url.scheme() != "http" || url.cannot_be_a_base() {
        return Err(bad("this client speaks plain http; expected one like http://127.0.0.1:7070"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("a server address has no query and no fragment"));
    }
    Ok(url)
}

/// Which part of a list.
#[derive(Debug, Clone, Default)]
pub struct Paging {
    /// Items of the page; the server's choice when absent.
    pub limit: Option<usize>,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

impl Client {
    /// A client of the server at `url`, with the default retries.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        Self::builder(url).build()
    }

    /// A client with other than the default habits.
    pub fn builder(url: &str) -> Builder {
        Builder {
            url: url.to_owned(),
            policy: RetryPolicy::default(),
            pacer: Arc::new(SystemPacer::new()),
            answer_time: ANSWER_TIME,
        }
    }

    /// The server's address.
    pub fn url(&self) -> &str {
        self.base.as_str()
    }

    /// The same client, which asks another gateway first, as a task or a round may advise. Where that cannot be reached, or
    /// is no address, it asks the server it knows.
    #[must_use]
    pub fn through(&self, gateway: Option<&str>) -> Self {
        let gateway = gateway.and_then(|gateway| address(gateway).ok()).filter(|gateway| *gateway != self.base);
        Self { gateway, ..self.clone() }
    }

    /// Calls on one job. Nothing is sent yet, the job need not exist.
    pub fn job(&self, namespace: Name, name: Name) -> JobClient {
        JobClient::new(self.clone(), namespace, name)
    }

    /// Creates a job from a spec, in the namespace that the spec names.
    ///
    /// Not repeated after a failure that may have created it. A `503` is: the server says that it stored nothing for
    /// sure, so an `exists` after one may be this call's own work.
    ///
    /// # Errors
    /// `exists`; `invalid_spec` with every bad field in the member `fields`; `function_refused`.
    pub async fn create_job(&self, spec: &impl Serialize) -> Result<JobInfo, ClientError> {
        let call = Call::new(Method::POST, &["v1", "jobs"]).payload(json(spec)?);
        self.json(&call, Repeat::UnlessActed).await
    }

    /// Jobs of a namespace, in the order of their names.
    pub async fn jobs(&self, namespace: &Name, paging: &Paging) -> Result<Page<JobInfo>, ClientError> {
        let call = Call::new(Method::GET, &["v1", "namespaces", namespace.as_str(), "jobs"]);
        self.json(&paged(call, paging), Repeat::Safe).await
    }

    /// Asks for work.
    pub async fn checkin(&self, client: &ClientId, checkin: &CheckIn) -> Result<Task, ClientError> {
        let call = Call::new(Method::POST, &["v1", "clients", client.as_str(), "checkin"]).payload(json(checkin)?);
        self.json(&call, Repeat::Safe).await
    }

    /// Asks for work until there is some, each time when the server says; returns what is not to wait.
    pub async fn next_task(&self, client: &ClientId, checkin: &CheckIn) -> Result<Task, ClientError> {
        loop {
            let task = self.checkin(client, checkin).await?;
            if !matches!(task.task, TaskKind::Wait | TaskKind::Other) {
                return Ok(task);
            }
            self.rest(&task).await;
        }
    }

    /// Waits as long as a task says. The server spreads its clients over time, so asking sooner gains nothing.
    pub async fn rest(&self, task: &Task) {
        self.pacer.sleep(task.retry_after_ms.map_or(RETRY_TIME, Duration::from_millis)).await;
    }

    /// What became of an update.
    ///
    /// # Errors
    /// `not_found` when there is no such receipt, or its retention has passed.
    pub async fn receipt(&self, receipt: ReceiptId) -> Result<Receipt, ClientError> {
        self.json(&Call::new(Method::GET, &["v1".to_owned(), "receipts".to_owned(), receipt.to_string()]), Repeat::Safe)
            .await
    }

    /// The functions that jobs can name.
    pub async fn functions(&self) -> Result<Vec<FunctionView>, ClientError> {
        let page: Page<FunctionView> = self.json(&Call::new(Method::GET, &["v1", "functions"]), Repeat::Safe).await?;
        Ok(page.items)
    }

    /// The nodes of the server's cluster that were heard lately, and how many are wanted.
    pub async fn nodes(&self) -> Result<NodesView, ClientError> {
        self.json(&Call::new(Method::GET, &["v1", "nodes"]), Repeat::Safe).await
    }

    /// One function.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn function(&self, name: &str) -> Result<FunctionView, ClientError> {
        self.json(&Call::new(Method::GET, &["v1", "functions", name]), Repeat::Safe).await
    }

    /// Returns once the server can accept updates, as long as the retries reach.
    pub async fn ready(&self) -> Result<(), ClientError> {
        let call = Call::new(Method::GET, &["readyz"]);
        let mut attempts = self.attempts(Repeat::Safe);
        while let Err(error) = self.exchange(&call).await {
            attempts.after(error).await?;
        }
        Ok(())
    }

    pub(crate) fn attempts(&self, repeat: Repeat) -> Attempts<'_> {
        Attempts::new(&self.policy, &*self.pacer, repeat)
    }

    /// A call that answers with JSON, as many times as it takes.
    pub(crate) async fn json<T: DeserializeOwned>(&self, call: &Call, repeat: Repeat) -> Result<T, ClientError> {
        let mut attempts = self.attempts(repeat);
        loop {
            match self.exchange_json(call).await {
                Ok((_, value)) => return Ok(value),
                Err(error) => attempts.after(error).await?,
            }
        }
    }
}

pub(crate) fn json(value: &impl Serialize) -> Result<Payload, ClientError> {
    let text = serde_json::to_vec(value).map_err(|error| ClientError::Argument(format!("write JSON: {error}")))?;
    Ok(Payload::Json(Bytes::from(text)))
}

pub(crate) fn paged(call: Call, paging: &Paging) -> Call {
    call.query("limit", paging.limit).query("cursor", paging.cursor.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_s_address_may_leave_its_scheme_out() {
        for (text, url) in [
            ("http://127.0.0.1:7070", "http://127.0.0.1:7070/"),
            ("localhost:7070", "http://localhost:7070/"),
            ("127.0.0.1:7070/", "http://127.0.0.1:7070/"),
            ("[::1]:7070", "http://[::1]:7070/"),
            ("http://example.com/catchment/", "http://example.com/catchment/"),
        ] {
            assert_eq!(address(text).expect(text).as_str(), url);
        }
        for text in ["nowhere", ":7070", "7070", "https://localhost:7070", "ftp://localhost", "http://a?b", ""] {
            let error = address(text).expect_err(text).to_string();
            assert!(error.contains(&format!("server address `{text}`")), "{error}");
        }
    }
}
