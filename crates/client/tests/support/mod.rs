//! A real HTTP server whose answers a test writes down, and time that passes at once.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Response, Uri};
use catchment_client::{Builder, Client, JobClient, Pacer, RetryPolicy};
use catchment_types::{Name, Problem};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as the server saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// A server on a free port; the test's function answers every request. `None` breaks the connection.
pub struct Server {
    pub url: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub async fn start(answer: impl FnMut(&Seen) -> Option<Response<Body>> + Send + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (seen.clone(), Arc::new(Mutex::new(answer)));
        let handler = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let request = Seen { method, uri, headers, body };
            let answer = (answer.lock().unwrap())(&request);
            log.lock().unwrap().push(request);
            async move { answer.unwrap_or_else(|| std::panic::resume_unwind(Box::new("break the connection"))) }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(handler);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, seen, task }
    }

    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Remembers every delay and sleeps none of it; the jitter is always half of what it may be.
#[derive(Debug, Clone, Default)]
pub struct Fast {
    pub delays: Arc<Mutex<Vec<Duration>>>,
}

impl Pacer for Fast {
    fn now(&self) -> Duration {
        self.delays.lock().unwrap().iter().sum()
    }

    fn sleep(&self, delay: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.delays.lock().unwrap().push(delay);
        Box::pin(std::future::ready(()))
    }

    fn fraction(&self) -> f64 {
        0.5
    }
}

impl Fast {
    pub fn delays_ms(&self) -> Vec<u64> {
        self.delays.lock().unwrap().iter().map(|delay| delay.as_millis() as u64).collect()
    }
}

pub fn client(url: &str) -> (Client, Fast) {
    let pacer = Fast::default();
    let policy = RetryPolicy { attempts_max: 5, ..RetryPolicy::default() };
    let builder: Builder = Client::builder(url).retry(policy).pacer(pacer.clone()).answer_time(Duration::from_secs(5));
    (builder.build().unwrap(), pacer)
}

pub fn job(url: &str) -> (JobClient, Fast) {
    let (client, pacer) = client(url);
    (client.job(Name::default_namespace(), "digits".parse().unwrap()), pacer)
}

pub fn json(status: u16, text: impl Into<String>) -> Option<Response<Body>> {
    Some(Response::builder().status(status).body(Body::from(text.into())).unwrap())
}

pub fn problem(problem: &Problem, retry_after: Option<u64>) -> Option<Response<Body>> {
    let mut response = Response::builder().status(problem.status).header("content-type", "application/problem+json");
    if let Some(seconds) = retry_after {
        response = response.header("retry-after", seconds);
    }
    Some(response.body(Body::from(serde_json::to_vec(problem).unwrap())).unwrap())
}
