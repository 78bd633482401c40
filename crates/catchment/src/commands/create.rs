//! `catchment job create`.

use super::spec::SpecFlags;
use super::watch;
use crate::connection::Session;
use crate::progress;
use crate::text;
use anyhow::{Context as _, Result};
use catchment_types::{JobState, Name};
use serde_json::Value;
use std::path::PathBuf;

/// Create a job.
///
/// The spec comes from a file, from flags, or from both; a flag wins over the file. Everything but a name and a
/// function has a default. The server checks the spec and names every bad field.
///
/// A job opens its first round once it has an initial model: give one with --model, or later with `catchment model put`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  catchment job create digits --function fedavg --rounds 20 --goal 10 --model initial.safetensors
  catchment job create --spec digits.toml --goal 50 --client-config local_epochs=3
  catchment job create lora --function fedavg --update delta --deadline 2h --on-shortfall skip
  echo '{\"function\": \"fedavg\"}' | catchment job create quick --spec - --set limits.cpu_ms=500")]
pub struct Create {
    /// The job's name, a DNS label; may also come from the spec file.
    name: Option<Name>,
    /// Put this safetensors file as the initial model, which opens the first round.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Follow the job until it is over, as `catchment watch` does, with its exit status.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    spec: SpecFlags,
}

impl Create {
    /// Creates the job; shows it as it is after the model was put.
    pub async fn run(self, session: &Session) -> Result<()> {
        let spec = self.spec.merged(self.name.as_ref(), session.namespace.as_ref())?;
        if let Some(path) = &self.model {
            // Before the job exists: a mistyped file name should leave nothing behind.
            std::fs::File::open(path).with_context(|| format!("open the model {}", path.display()))?;
        }
        let mut job = session.brief.create_job(&Value::Object(spec)).await?;
        let (name, namespace) = (text::spec_text(&job, "name").to_owned(), text::spec_text(&job, "namespace"));
        let calls = session.patient.job(namespace.parse()?, name.parse()?);
        if let Some(path) = &self.model {
            let put = progress::sending(path, calls.put_model_file(path)).await;
            put.with_context(|| {
                format!("job `{name}` is created, but has no model (`catchment model put {name} FILE` gives it one)")
            })?;
            job = calls.get().await?;
        }
        session.output.item(&job, || match job.state {
            JobState::WaitingForModel => {
                format!("job `{name}` is created; give it its initial model: catchment model put {name} FILE")
            }
            state => format!("job `{name}` is created and {}", text::word(state)),
        })?;
        if self.wait { watch::follow(&calls, job, 0, &session.output).await } else { Ok(()) }
    }
}
