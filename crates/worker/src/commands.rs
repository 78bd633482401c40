//! What each subcommand does.

use crate::cli::{Baseline as BaselineCommand, Evaluate, Init, Output, Run, Train};
use anyhow::Context;
use catchment_client::{Client, RetryPolicy};
use catchment_worker::baseline::Baseline;
use catchment_worker::data::digits;
use catchment_worker::model::Model;
use catchment_worker::participate::{Event, Participant};
use catchment_worker::split::Split;
use catchment_worker::train::evaluate as measure;
use serde::Serialize;
use serde_json::json;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// Prints a result: as JSON, or as the text that `text` makes.
fn print(output: Output, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let line = match output {
        Output::Json => serde_json::to_string(value).context("write JSON")?,
        Output::Text => text(),
    };
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("print the result"),
        _ => Ok(()), // whoever read this has had enough; the work goes on
    }
}

pub fn init(arguments: &Init, output: Output) -> anyhow::Result<()> {
    let model = Model::initial(arguments.model.into(), arguments.seed, &candle_core::Device::Cpu)?;
    let bytes = model.to_safetensors()?;
    std::fs::write(&arguments.out, &bytes).with_context(|| format!("write {}", arguments.out.display()))?;
    let parameters: usize = model.values()?.iter().map(|(_, values)| values.len()).sum();
    let facts = json!({
        "file": arguments.out, "model": model.architecture(), "parameters": parameters, "bytes": bytes.len(),
        "digest": blake3::hash(&bytes).to_hex().as_str(),
    });
    print(output, &facts, || {
        format!(
            "{}: {} with {parameters} parameters, {} bytes",
            arguments.out.display(),
            model.architecture(),
            bytes.len()
        )
    })
}

pub fn evaluate(arguments: &Evaluate, output: Output) -> anyhow::Result<()> {
    let path = arguments.model_file.display();
    let bytes = std::fs::read(&arguments.model_file).with_context(|| format!("read {path}"))?;
    let model = Model::from_safetensors(&bytes, &arguments.device.open()?).with_context(|| format!("read {path}"))?;
    let metrics = measure(&model, &Split::holdout(&digits()?, arguments.seed))?;
    let facts = json!({
        "model": model.architecture(), "accuracy": metrics.accuracy, "loss": metrics.loss, "samples": metrics.samples,
    });
    print(output, &facts, || {
        let (accuracy, loss) = (metrics.accuracy, metrics.loss);
        format!(
            "{} on {} held-out digits: accuracy {accuracy:.4}, loss {loss:.4}",
            model.architecture(),
            metrics.samples
        )
    })
}

fn baseline_of(run: &Run) -> Baseline {
    Baseline { architecture: run.model.into(), seed: run.seed, rounds: run.rounds, config: run.config() }
}

pub fn baseline(command: &BaselineCommand, output: Output) -> anyhow::Result<()> {
    let all = digits()?;
    match command {
        BaselineCommand::Pooled { run } => {
            let outcome = baseline_of(run).pooled(&all, &run.device.open()?)?;
            print(output, &outcome, || format!("pooled: accuracy {:.4}", outcome.holdout.accuracy))
        }
        BaselineCommand::Local { index: Some(index), clients, run } => {
            let split = Split::new(&all, *clients, run.seed)?;
            let outcome = baseline_of(run).local(&split, *index, &run.device.open()?)?;
            print(output, &outcome, || {
                let (accuracy, samples) = (outcome.holdout.accuracy, outcome.train_samples);
                format!("client {index} alone with {samples} digits: accuracy {accuracy:.4}")
            })
        }
        BaselineCommand::Local { index: None, clients, run } => {
            let split = Split::new(&all, *clients, run.seed)?;
            let outcomes = baseline_of(run).all_local(&split, &run.device.open()?)?;
            print(output, &outcomes, || {
                let (mean, best) = (outcomes.mean_accuracy, outcomes.best_accuracy);
                format!("{clients} clients, each alone: mean accuracy {mean:.4}, best {best:.4}")
            })
        }
    }
}

/// Takes part in a job until it is over.
pub async fn train(arguments: &Train, output: Output) -> anyhow::Result<()> {
    let split = Split::new(&digits()?, arguments.clients, arguments.seed)?;
    let samples = Arc::new(split.client(arguments.index)?.clone());
    let patience = RetryPolicy {
        attempts_max: u32::MAX,
        deadline: Duration::from_secs(arguments.patience),
        ..RetryPolicy::default()
    };
    let server = Client::builder(&arguments.url).retry(patience).build()?;
    let id = match &arguments.client {
        Some(id) => id.clone(),
        None => format!("client-{}", arguments.index).parse()?,
    };
    tracing::info!(client = %id, samples = samples.len(), labels = ?samples.label_counts(), "takes part");
    let participant = Participant {
        job: server.job(arguments.namespace.clone(), arguments.job.clone()),
        server,
        id,
        index: arguments.index as u64,
        seed: arguments.seed,
        samples,
        device: arguments.device.open()?,
        architecture: arguments.model.map(Into::into),
    };
    let mut printed = Ok(());
    participant
        .run(&mut |event| {
            if let Err(error) = print(output, &event, || describe(&event)) {
                printed = Err(error);
            }
        })
        .await?;
    printed
}

fn describe(event: &Event) -> String {
    match event {
        Event::Submitted { round, known, train_ms, metrics, .. } => format!(
            "round {round}: trained on {} digits in {train_ms} ms, loss {:.4}, accuracy {:.4}, {}",
            metrics.samples,
            metrics.loss,
            metrics.accuracy,
            if *known { "known already" } else { "accepted" }
        ),
        Event::Measured { model_version, metrics } => format!(
            "model {model_version}: measured on {} digits, loss {:.4}, accuracy {:.4}",
            metrics.samples, metrics.loss, metrics.accuracy
        ),
        Event::Refused { round, code, detail } => format!("round {round}: not taken ({code}): {detail}"),
        Event::Ended { state } => format!("the job is over: {state:?}").to_lowercase(),
    }
}
