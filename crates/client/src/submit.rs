//! Updates out. Sent with their digest, so that damage on the way is refused and not averaged.

use crate::attempts::Repeat;
use crate::call::{Call, Payload};
use crate::error::ClientError;
use crate::job::JobClient;
use crate::model::digest_file;
use bytes::Bytes;
use catchment_types::{ClientId, Code, Digest, Receipt, TaskId};
use reqwest::{Method, StatusCode};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Most bytes of an update's metrics as JSON.
pub const METRICS_BYTES_MAX: usize = 4 << 10;

/// Where an update's safetensors file is.
#[derive(Debug, Clone)]
pub enum UpdateBody {
    /// In memory.
    Bytes(Bytes),
    /// On disk; read twice, for its digest and to be sent.
    File(PathBuf),
}

impl From<Bytes> for UpdateBody {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Vec<u8>> for UpdateBody {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<PathBuf> for UpdateBody {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

/// An update and what is said of it.
#[derive(Debug, Clone)]
pub struct Update {
    /// The round it was trained for.
    pub round: u64,
    /// Who trained it.
    pub client: ClientId,
    /// The safetensors file.
    pub body: UpdateBody,
    /// Its weight in the mean; `num_samples` when absent, else 1.
    pub weight: Option<f64>,
    /// Samples it was trained on.
    pub num_samples: Option<u64>,
    /// The task it answers.
    pub task: Option<TaskId>,
    /// What the client measured, such as `loss` and `accuracy`.
    pub metrics: BTreeMap<String, f64>,
    /// ETag of the model it was trained from; required for deltas.
    pub base: Option<Digest>,
}

impl Update {
    /// An update of which nothing more is said.
    pub fn new(round: u64, client: ClientId, body: impl Into<UpdateBody>) -> Self {
        Self {
            round,
            client,
            body: body.into(),
            weight: None,
            num_samples: None,
            task: None,
            metrics: BTreeMap::new(),
            base: None,
        }
    }

    /// The `Catchment-Metrics` header, checked as the server will.
    fn metrics_text(&self) -> Result<Option<String>, ClientError> {
        if self.metrics.is_empty() { Ok(None) } else { metrics_json(&self.metrics).map(|text| Some(escape(&text))) }
    }
}

/// Metrics as JSON, checked as the server will.
pub(crate) fn metrics_json(metrics: &BTreeMap<String, f64>) -> Result<String, ClientError> {
    if let Some((name, value)) = metrics.iter().find(|(_, value)| !value.is_finite()) {
        return Err(ClientError::Argument(format!("metric `{name}` is {value}, not a finite number")));
    }
    let text =
        serde_json::to_string(metrics).map_err(|error| ClientError::Argument(format!("write metrics: {error}")))?;
    if text.len() > METRICS_BYTES_MAX {
        let why = format!("the metrics have {} bytes as JSON, the limit is {METRICS_BYTES_MAX}", text.len());
        return Err(ClientError::Argument(why));
    }
    Ok(text)
}

/// A header carries ASCII; everything else in a name is written as JSON escapes.
fn escape(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

/// An update that the server has.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    /// Its receipt.
    pub receipt: Receipt,
    /// Whether the server had it before: an earlier attempt, of this call or another, got through.
    pub known: bool,
}

impl JobClient {
    /// Submits an update. Repeated as often as the retries allow: the same update is counted once. When the connection
    /// breaks, only what the server does not have is sent again, as long as it keeps the rest.
    ///
    /// # Errors
    /// `round_closed`, with the member `next_round`; `conflict` when this client sent another update for the round;
    /// `stale_base`; `layout`, `not_finite`, `out_of_range` naming the tensor; `too_large`, `wrong_state`; `uid_required`
    /// when another job had the name, and neither identity ([`JobClient::identified`]), task nor base is said.
    pub async fn submit(&self, update: &Update) -> Result<Submitted, ClientError> {
        if let Some(weight) = update.weight
            && !(weight.is_finite() && weight > 0.0)
        {
            return Err(ClientError::Argument(format!("weight {weight} is not a finite positive number")));
        }
        let metrics = update.metrics_text()?;
        let (payload, digest) = match &update.body {
            UpdateBody::Bytes(bytes) => (Payload::Bytes(bytes.clone()), Digest::from(blake3::hash(bytes))),
            UpdateBody::File(path) => {
                let (digest, length) = digest_file(path).await?;
                (Payload::File(path.clone(), 0..length), digest)
            }
        };
        // A task says the job, too, and older servers know no `uid` here.
        let job = if update.task.is_some() { self.identified(None) } else { self.clone() };
        let whole = job
            .on_update(Method::PUT, update)
            .query("weight", update.weight)
            .query("num_samples", update.num_samples)
            .query("task", update.task)
            .header("catchment-base", update.base)
            .header("catchment-metrics", metrics)
            .header("catchment-digest", Some(digest))
            .payload(payload.clone());
        let mut attempts = self.client.attempts(Repeat::Safe);
        let mut broke_off = false;
        loop {
            let begun = attempts.now();
            let rest = if broke_off { self.rest(update, &payload, digest).await } else { Ok(None) };
            let is_part = matches!(rest, Ok(Some(_)));
            let sent = match rest {
                Ok(rest) => self.client.exchange_json(rest.as_ref().unwrap_or(&whole)).await,
                Err(error) => Err(error),
            };
            match sent {
                Ok((status, receipt)) => return Ok(Submitted { receipt, known: status == StatusCode::OK }),
                // Nothing is kept any more, or somebody else went on with it.
                Err(error) if is_part && is_gone(&error) => broke_off = false,
                Err(error) => {
                    if breaks_off(&error) {
                        attempts.excuse_since(begun);
                        broke_off = true;
                    }
                    // Damaged bytes are not gone on with.
                    broke_off &= !error.is(Code::Checksum);
                    attempts.after(error).await?;
                }
            }
        }
    }

    fn on_update(&self, method: Method, update: &Update) -> Call {
        self.call(method, &["rounds", &update.round.to_string(), "updates", update.client.as_str()])
    }

    /// The call that sends what the server does not have of an update; `None` when it has nothing to go on from.
    async fn rest(&self, update: &Update, payload: &Payload, digest: Digest) -> Result<Option<Call>, ClientError> {
        let is_said = self.uid().is_some() || update.base.is_some();
        let of_job = |method| {
            let call = self.on_update(method, update).query("task", update.task.filter(|_| !is_said));
            call.header("catchment-base", update.base)
        };
        let response = match self.client.exchange(&of_job(Method::HEAD)).await {
            Ok(response) => response,
            Err(error) if error.is_retryable() => return Err(error),
            Err(_) => return Ok(None),
        };
        let number = |name: &str| response.headers().get(name)?.to_str().ok()?.parse::<u64>().ok();
        let is_open = response.headers().get("upload-complete").is_some_and(|value| value == "?0");
        // Of another length, it is another update.
        let is_ours = is_open && number("upload-length") == Some(payload.len());
        let offset = number("upload-offset").filter(|offset| is_ours && *offset <= payload.len());
        Ok(offset.map(|offset| {
            tracing::debug!(offset, "go on with an update");
            of_job(Method::PATCH)
                .header("upload-offset", Some(offset))
                .header("upload-complete", Some("?1"))
                .header("catchment-digest", Some(digest))
                .payload(payload.after(offset))
        }))
    }
}

/// Whether an upload may have come to the server in part.
fn breaks_off(error: &ClientError) -> bool {
    matches!(error, ClientError::Broken { .. }) || error.is(Code::Truncated) || error.is(Code::TooSlow)
}

/// Whether there is nothing to go on with.
fn is_gone(error: &ClientError) -> bool {
    error.is(Code::WrongOffset) || matches!(error.status(), Some(404 | 405))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(metrics: &[(&str, f64)]) -> Update {
        let metrics = metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Update { metrics, ..Update::new(1, "a".parse().unwrap(), Vec::new()) }
    }

    #[test]
    fn metrics_are_ascii_json_of_finite_numbers() {
        assert_eq!(with(&[]).metrics_text().unwrap(), None);
        assert_eq!(with(&[("loss", 0.5)]).metrics_text().unwrap().unwrap(), r#"{"loss":0.5}"#);
        let text = with(&[("größe 🦀", 1.0)]).metrics_text().unwrap().unwrap();
        assert!(text.is_ascii());
        assert_eq!(serde_json::from_str::<BTreeMap<String, f64>>(&text).unwrap()["größe 🦀"], 1.0);
        assert!(with(&[("loss", f64::NAN)]).metrics_text().unwrap_err().to_string().contains("`loss` is NaN"));
        assert!(with(&[(&"x".repeat(METRICS_BYTES_MAX), 1.0)]).metrics_text().is_err());
    }
}
