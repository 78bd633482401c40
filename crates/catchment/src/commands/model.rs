//! `catchment model …`.

use crate::connection::Session;
use crate::progress;
use crate::text;
use anyhow::{Result, bail};
use catchment_client::{JobClient, Paging};
use catchment_types::{ModelView, Name};
use clap::Subcommand;
use indicatif::BinaryBytes;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Versions asked for at one time.
const PAGE: usize = 1000;

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Fetch a model version as a safetensors file.
    ///
    /// The file is checked against the digest that the server names and appears whole or not at all; an existing one
    /// is replaced. PyTorch's names, integer tensors and metadata are as the initial model had them.
    #[command(after_help = "\
Examples:
  catchment model get digits --out model.safetensors
  catchment model get digits --version 3 --out v3.safetensors")]
    Get {
        /// The job.
        name: Name,
        /// Where to write.
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
        /// The version; 0 is the initial model [default: the newest].
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// Give a job its initial model, which opens the first round. Repeating it with the same file is fine.
    #[command(after_help = "\
Examples:
  catchment model put digits initial.safetensors")]
    Put {
        /// The job.
        name: Name,
        /// A safetensors file, any dtype.
        file: PathBuf,
    },
    /// List a job's model versions, newest first.
    #[command(after_help = "\
Examples:
  catchment model list digits
  catchment model list digits --output json | jq -r '[.version, .metrics.accuracy] | @tsv'")]
    List {
        /// The job.
        name: Name,
    },
}

impl ModelCommand {
    /// Runs it.
    pub async fn run(self, session: &Session) -> Result<()> {
        match self {
            Self::Get { name, out, version } => get(session, &name, &out, version).await,
            Self::Put { name, file } => {
                let model = progress::sending(&file, session.job(&name).put_model_file(&file)).await?;
                session.output.item(&model, || format!("job `{name}` has its initial model, {}", size(model.bytes)))
            }
            Self::List { name } => list(session, &name).await,
        }
    }
}

async fn get(session: &Session, name: &Name, out: &Path, version: Option<u64>) -> Result<()> {
    if out.is_dir() {
        bail!("{} is a directory; --out names the file to write", out.display());
    }
    let job = session.job(name);
    let length = length(&job, version).await?;
    let model = progress::receiving(out, length, job.model_to_file(version, out)).await?;
    let got = json!({"file": out, "version": model.version, "etag": model.etag, "bytes": model.bytes});
    session.output.item(&got, || format!("{}: version {}, {}", out.display(), model.version, size(model.bytes)))
}

/// The length of a version's file, for the progress bar; unknown when the list does not show it.
async fn length(job: &JobClient, version: Option<u64>) -> Result<Option<u64>> {
    // The list goes from new to old, so a version is what comes after the one above it.
    let cursor = version.map(|version| version.saturating_add(1).to_string());
    let page = job.models(&Paging { limit: Some(1), cursor }).await?;
    let wanted = |model: &&ModelView| version.is_none_or(|version| version == model.version);
    Ok(page.items.first().filter(wanted).map(|model| model.bytes))
}

async fn list(session: &Session, name: &Name) -> Result<()> {
    let job = session.job(name);
    let (mut models, mut paging) = (Vec::new(), Paging { limit: Some(PAGE), cursor: None });
    loop {
        let page = job.models(&paging).await?;
        models.extend(page.items);
        paging.cursor = page.cursor;
        if paging.cursor.is_none() {
            break;
        }
    }
    let head = ["VERSION", "CREATED", "UPDATES", "SIZE", "METRICS", "ETAG", "KEPT"];
    let row = |model: &ModelView| {
        [
            model.version.to_string(),
            model.created_at.clone(),
            model.contributors.to_string(),
            size(model.bytes),
            text::metrics(&model.metrics),
            text::short(model.etag),
            if model.available { "yes" } else { "no" }.to_owned(),
        ]
    };
    let empty = format!("job `{name}` has no model yet: `catchment model put {name} FILE` gives it one");
    session.output.list(&models, head, row, &empty)
}

fn size(bytes: u64) -> String {
    BinaryBytes(bytes).to_string()
}
