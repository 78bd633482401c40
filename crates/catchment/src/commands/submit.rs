//! `catchment submit`.

use crate::connection::Session;
use crate::exit::Failure;
use crate::progress;
use crate::text;
use anyhow::Result;
use catchment_client::{Client, Update, Waiting};
use catchment_types::{ClientId, Digest, JobState, JobUid, Name, Receipt, ReceiptState, RoundState, TaskId};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How long one call waits for the next round to open.
const OPENING: Duration = Duration::from_secs(30);
/// Times between looks at a receipt: short at first, because rounds may be.
const LOOK_FIRST: Duration = Duration::from_millis(200);
const LOOK_MAX: Duration = Duration::from_secs(2);

/// Submit an update and print its receipt.
///
/// The same file, weight, samples and metrics from the same client for the same round are counted once, however often
/// they are sent: the receipt is the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catchment submit digits --client phone-7 --file update.safetensors --num-samples 120
  catchment submit digits --client phone-7 --file u.safetensors --metrics '{\"loss\": 0.21}' --wait
  catchment submit lora --client phone-7 --file delta.safetensors --round 3 \\
    --base $(catchment model list lora --output json | head -1 | jq -r .etag)")]
pub struct Submit {
    /// The job.
    name: Name,
    /// Who trained the update: 1 to 128 of A-Z, a-z, 0-9, '_' and '-'.
    #[arg(long, value_name = "ID")]
    client: ClientId,
    /// The update, a safetensors file with the model's tensors.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// The round it was trained for [default: the open round, or the next to open].
    #[arg(long, value_name = "N")]
    round: Option<u64>,
    /// Its weight in the mean [default: the number of samples, else 1].
    #[arg(long, value_name = "W", value_parser = weight)]
    weight: Option<f64>,
    /// Samples it was trained on.
    #[arg(long, value_name = "N")]
    num_samples: Option<u64>,
    /// What the client measured: a JSON object of finite numbers.
    #[arg(long, value_name = "JSON", value_parser = metrics, default_value = "{}", hide_default_value = true)]
    metrics: Metrics,
    /// ETag of the model it was trained from; required for deltas.
    #[arg(long, value_name = "ETAG", value_parser = etag)]
    base: Option<Digest>,
    /// The job it was trained for, as its round names it [default: the one of this name now, unless --round is given].
    #[arg(long, value_name = "UID")]
    uid: Option<JobUid>,
    /// The task it answers, as the check-in named it.
    #[arg(long, value_name = "ID")]
    task: Option<TaskId>,
    /// Wait until the update is in a model, or is left out (status 4); prints the receipt at each change.
    #[arg(long)]
    wait: bool,
}

/// Numbers by name; a type of its own, because clap would take a bare map for many arguments.
#[derive(Debug, Clone, Default, PartialEq)]
struct Metrics(BTreeMap<String, f64>);

fn weight(text: &str) -> Result<f64, String> {
    let positive = |weight: &f64| weight.is_finite() && *weight > 0.0;
    text.parse().ok().filter(positive).ok_or_else(|| "a weight is a finite positive number".to_owned())
}

fn metrics(text: &str) -> Result<Metrics, String> {
    let expected = |error| format!("metrics are a JSON object of finite numbers, like '{{\"loss\": 0.21}}': {error}");
    serde_json::from_str(text).map(Metrics).map_err(expected)
}

/// A digest, also in the quotes that an ETag header has.
fn etag(text: &str) -> Result<Digest, String> {
    text.trim_matches('"').parse().map_err(|error| format!("{error}"))
}

/// What is printed of a submission.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    receipt: &'a Receipt,
    /// Whether the server had it before.
    known: bool,
}

impl Submit {
    /// Submits, and waits if asked to.
    pub async fn run(self, session: &Session) -> Result<()> {
        let (uid, round) = match self.round {
            // Whoever names a round by hand may name the job, too; without, the server says when it must.
            Some(round) => (self.uid, round),
            None => open_round(session, &self.name, self.uid).await?,
        };
        let update = Update {
            weight: self.weight,
            num_samples: self.num_samples,
            task: self.task,
            metrics: self.metrics.0.clone(),
            base: self.base,
            ..Update::new(round, self.client.clone(), self.file.clone())
        };
        // Asking for the round has shown that the server is there; without that, this call is the first.
        let job = if self.round.is_none() { session.patient_job(&self.name) } else { session.job(&self.name) };
        let job = job.identified(uid);
        let sent = progress::sending(&self.file, job.submit(&update)).await?;
        let show = |receipt: &Receipt| {
            session.output.item(&Shown { receipt, known: sent.known }, || sentence(receipt, sent.known))
        };
        show(&sent.receipt)?;
        if self.wait { settle(&session.patient, sent.receipt, show).await } else { Ok(()) }
    }
}

/// The round that takes updates, or the next to: between two rounds, and after the initial model came, a moment passes.
async fn open_round(session: &Session, name: &Name, uid: Option<JobUid>) -> Result<(Option<JobUid>, u64)> {
    let mut view = session.job(name).identified(uid).round(None).await?;
    let job = session.patient_job(name).identified(view.uid);
    loop {
        match (view.job_state, view.state) {
            (JobState::Running, RoundState::Open) => return Ok((Some(view.uid), view.round)),
            (JobState::Running, _) => {
                view = job.round(Some(Waiting { after: view.revision, wait: OPENING })).await?;
            }
            (state, _) => {
                let why = format!("job `{name}` is {} and takes no updates now", text::word(state));
                return Err(Failure::Outcome(why).into());
            }
        }
    }
}

/// Follows a receipt until nothing more can become of it.
async fn settle(client: &Client, mut receipt: Receipt, show: impl Fn(&Receipt) -> Result<()>) -> Result<()> {
    let mut pause = LOOK_FIRST;
    loop {
        match receipt.state {
            ReceiptState::Committed => return Ok(()),
            ReceiptState::Discarded | ReceiptState::Lost => {
                let why = receipt.reason.as_deref().unwrap_or("the server does not say why");
                return Err(Failure::Outcome(format!("the update was {}: {why}", text::word(receipt.state))).into());
            }
            ReceiptState::Accepted | ReceiptState::Folded | ReceiptState::Other => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(LOOK_MAX);
        let now = client.receipt(receipt.receipt).await?;
        if now.state != receipt.state {
            show(&now)?;
        }
        receipt = now;
    }
}

fn sentence(receipt: &Receipt, known: bool) -> String {
    let id = receipt.receipt;
    let whose = format!("client {} for round {} of `{}`", receipt.client, receipt.round, receipt.job);
    match (receipt.state, receipt.model_version) {
        (ReceiptState::Committed, Some(version)) => format!("receipt {id}: in model {version}"),
        (ReceiptState::Accepted, _) if !known => {
            format!("receipt {id}: accepted from {whose}, weight {}", receipt.weight)
        }
        (state, _) if known => format!("receipt {id}: known already from {whose}, now {}", text::word(state)),
        (state, _) => format!("receipt {id}: {}", text::word(state)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(state: ReceiptState) -> Receipt {
        let (id, digest) = ("ab".repeat(16), "cd".repeat(32));
        serde_json::from_value(serde_json::json!({
            "receipt": id, "uid": id, "namespace": "default", "job": "digits", "round": 3, "client": "a",
            "digest": digest, "weight": 2.5, "state": state, "accepted_at": "2026-01-01T00:00:00.000Z",
        }))
        .unwrap()
    }

    #[test]
    fn arguments_are_checked_before_anything_is_sent() {
        assert_eq!(weight("2.5"), Ok(2.5));
        for bad in ["0", "-1", "NaN", "inf", "x", ""] {
            assert!(weight(bad).is_err(), "{bad}");
        }
        assert_eq!(metrics(r#"{"loss": 0.5}"#).unwrap().0["loss"], 0.5);
        for bad in ["[]", r#"{"loss": "low"}"#, r#"{"loss": NaN}"#, "", r#"{"loss": 1e999}"#] {
            assert!(metrics(bad).is_err(), "{bad}");
        }
        let digest = "cd".repeat(32);
        assert_eq!(etag(&format!("\"{digest}\"")), digest.parse().map_err(|_| String::new()));
        assert!(etag("cd").is_err());
    }

    #[test]
    fn receipts_read_as_sentences() {
        let id = "ab".repeat(16);
        let accepted = receipt(ReceiptState::Accepted);
        assert_eq!(
            sentence(&accepted, false),
            format!("receipt {id}: accepted from client a for round 3 of `digits`, weight 2.5")
        );
        assert!(
            sentence(&accepted, true).ends_with("known already from client a for round 3 of `digits`, now accepted")
        );
        let committed = Receipt { model_version: Some(4), ..receipt(ReceiptState::Committed) };
        assert_eq!(sentence(&committed, false), format!("receipt {id}: in model 4"));
        assert_eq!(sentence(&receipt(ReceiptState::Lost), false), format!("receipt {id}: lost"));
    }

    #[test]
    fn the_client_s_word_on_known_lies_beside_the_receipt() {
        let receipt = receipt(ReceiptState::Folded);
        let json = serde_json::to_value(Shown { receipt: &receipt, known: true }).unwrap();
        assert_eq!((json["known"].as_bool(), json["state"].as_str()), (Some(true), Some("folded")));
    }
}
