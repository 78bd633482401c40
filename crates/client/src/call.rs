//! One HTTP exchange: how a call becomes a request, and an answer a value or an error.

use crate::client::Client;
use crate::error::ClientError;
use bytes::{Bytes, BytesMut};
use catchment_types::Problem;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use reqwest::{Body, Method, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use std::io::SeekFrom;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

/// Largest JSON answer: a page of a thousand jobs, each with a spec, stays below.
const JSON_BYTES_MAX: u64 = 64 << 20;
/// Bytes read of an error's body.
const PROBLEM_BYTES_MAX: u64 = 64 << 10;
/// Bytes read from a file at one time.
const READ_BYTES: usize = 256 << 10;
/// Slowest upload that is waited for, bytes a second.
const UPLOAD_RATE_MIN: u64 = 32 << 10;

/// What a request carries. Can be sent any number of times.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Nothing.
    None,
    /// JSON text.
    Json(Bytes),
    /// A tensor file in memory.
    Bytes(Bytes),
    /// A tensor file on disk from this byte on, up to its length when the call began.
    File(PathBuf, Range<u64>),
}

impl Payload {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Json(bytes) | Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, range) => range.end - range.start,
        }
    }

    /// The same without its first `offset` bytes.
    pub fn after(&self, offset: u64) -> Self {
        match self {
            Self::None => Self::None,
            Self::Json(bytes) => Self::Json(bytes.slice(offset as usize..)),
            Self::Bytes(bytes) => Self::Bytes(bytes.slice(offset as usize..)),
            Self::File(path, range) => Self::File(path.clone(), range.start + offset..range.end),
        }
    }

    async fn body(&self) -> Result<Body, ClientError> {
        match self {
            Self::None => Ok(Body::default()),
            Self::Json(bytes) | Self::Bytes(bytes) => Ok(Body::from(bytes.clone())),
            Self::File(path, range) => {
                let failed = |doing| move |source| ClientError::File { doing, path: path.clone(), source };
                let mut file = tokio::fs::File::open(path).await.map_err(failed("open"))?;
                file.seek(SeekFrom::Start(range.start)).await.map_err(failed("read"))?;
                Ok(Body::wrap_stream(ReaderStream::with_capacity(file.take(self.len()), READ_BYTES)))
            }
        }
    }
}

/// What to ask of the server.
#[derive(Debug, Clone)]
pub struct Call {
    method: Method,
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
    headers: Vec<(HeaderName, String)>,
    payload: Payload,
    wait: Duration,
}

impl Call {
    /// A call to the address made of these path segments.
    pub fn new<S: ToString>(method: Method, path: &[S]) -> Self {
        let path = path.iter().map(S::to_string).collect();
        Self { method, path, query: Vec::new(), headers: Vec::new(), payload: Payload::None, wait: Duration::ZERO }
    }

    /// Adds to the query what is there.
    pub fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|value| (name, value.to_string())));
        self
    }

    /// Adds a header, if there is something to say.
    pub fn header(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.headers.extend(value.map(|value| (HeaderName::from_static(name), value.to_string())));
        self
    }

    /// What it carries.
    pub fn payload(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }

    /// The server may take this long before it answers, beside the usual time.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    fn url(&self, base: &Url) -> Url {
        let mut url = base.clone();
        url.path_segments_mut().expect("checked when the client was made").pop_if_empty().extend(&self.path);
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        url
    }
}

impl Client {
    /// One attempt, up to the head of a successful answer (2xx, or 304).
    pub(crate) async fn exchange(&self, call: &Call) -> Result<Response, ClientError> {
        if let Some(gateway) = &self.gateway {
            match self.exchange_at(gateway, call).await {
                // Nothing was sent: the server that is known takes the call as well.
                Err(error @ ClientError::Unreachable { .. }) => tracing::debug!(%error, "ask the server instead"),
                answer => return answer,
            }
        }
        self.exchange_at(&self.base, call).await
    }

    async fn exchange_at(&self, base: &Url, call: &Call) -> Result<Response, ClientError> {
        let url = call.url(base);
        let shown = shown(&url);
        let mut request = self.http.request(call.method.clone(), url).body(call.payload.body().await?);
        let kind = match call.payload {
            Payload::None => None,
            Payload::Json(_) => Some("application/json"),
            _ if call.method == Method::PATCH => Some("application/partial-upload"),
            Payload::Bytes(_) | Payload::File(..) => Some("application/octet-stream"),
        };
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind).header(CONTENT_LENGTH, call.payload.len());
        }
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        let upload = Duration::from_secs(call.payload.len() / UPLOAD_RATE_MIN);
        let limit = self.answer_time + call.wait + upload;
        let sent = tokio::time::timeout(limit, request.send()).await.map_err(|_| silent(&shown, limit))?;
        let response = sent.map_err(|error| broken(&shown, &error))?;
        if response.status().is_success() || response.status() == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        Err(self.refusal(&shown, response).await)
    }

    /// One attempt at a call that answers with JSON.
    pub(crate) async fn exchange_json<T: DeserializeOwned>(&self, call: &Call) -> Result<(StatusCode, T), ClientError> {
        let response = self.exchange(call).await?;
        let (url, status) = (shown(response.url()), response.status());
        let body = self.collect(response, JSON_BYTES_MAX).await?;
        let value = serde_json::from_slice(&body);
        Ok((status, value.map_err(|error| ClientError::Answer { url, why: error.to_string() })?))
    }

    /// The rest of an answer, up to `limit` bytes.
    pub(crate) async fn collect(&self, mut response: Response, limit: u64) -> Result<Bytes, ClientError> {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(ClientError::TooLarge { limit_bytes: limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// The next piece of an answer.
    pub(crate) async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, ClientError> {
        let url = shown(response.url());
        let next = tokio::time::timeout(self.answer_time, response.chunk()).await;
        next.map_err(|_| silent(&url, self.answer_time))?.map_err(|error| broken(&url, &error))
    }

    async fn refusal(&self, url: &str, response: Response) -> ClientError {
        let status = response.status().as_u16();
        // Seconds only: the other form of this header is a date, and clocks differ.
        let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let retry_after = seconds.map(Duration::from_secs);
        let body = match self.collect(response, PROBLEM_BYTES_MAX).await {
            Ok(body) => body,
            Err(error @ ClientError::Broken { .. }) => return error,
            Err(_) => Bytes::new(),
        };
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => ClientError::Problem { problem: Box::new(Problem { status, ..problem }), retry_after },
            Err(_) => {
                let excerpt = String::from_utf8_lossy(&body).chars().take(200).collect();
                ClientError::Status { url: url.to_owned(), status, excerpt, retry_after }
            }
        }
    }
}

/// An address as errors show it: without its query.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}

fn silent(url: &str, limit: Duration) -> ClientError {
    ClientError::Broken { url: url.to_owned(), why: format!("no answer within {} s", limit.as_secs()) }
}

fn broken(url: &str, error: &reqwest::Error) -> ClientError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let (url, why) = (url.to_owned(), cause.to_string());
    if error.is_connect() { ClientError::Unreachable { url, why } } else { ClientError::Broken { url, why } }
}
