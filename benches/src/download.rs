//! A model to many clients at once.

use crate::clients::Clients;
use crate::model::Model;
use crate::observe::{cpu_seconds, median};
use crate::platform::Platform;
use crate::sink::Sink;
use anyhow::Result;
use serde_json::json;
use std::time::Instant;

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Arguments {
    /// The model.
    #[arg(long, value_enum, default_value = "resnet152")]
    pub model: Model,
    /// Client processes.
    #[arg(long, default_value_t = 64)]
    pub clients: usize,
    /// Times it is fetched by all.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
}

/// Measures and makes a Markdown table.
pub fn run(arguments: &Arguments) -> Result<String> {
    let Arguments { model, clients: count, rounds } = *arguments;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("model.safetensors");
    let bytes = model.write(&file)?;
    let platform = Platform::start((bytes * 12) >> 20)?;
    let mut api = platform.connect()?;
    let spec = json!({"name": "bench", "function": "fedavg", "limits": {"update_bytes": bytes * 2}});
    api.json("POST", "/v1/jobs", spec.to_string().as_bytes())?;
    api.json("PUT", "/v1/jobs/bench/model", &std::fs::read(&file)?)?;
    let sink = Sink::start(Some(&file))?;
    let total_gb = bytes as f64 * count as f64 / 1e9;
    let mut rows = Vec::new();
    for (name, address, pid) in
        [("bare sendfile server", &sink.address, sink.pid()), ("Catchment", &platform.address, platform.pid())]
    {
        let mut clients = Clients::start(count, address, None)?;
        let mut taken = Vec::new();
        for _ in 0..rounds {
            let (cpu, begun) = (cpu_seconds(pid)?, Instant::now());
            clients.call(|_| "/v1/jobs/bench/model".to_owned())?;
            taken.push((begun.elapsed().as_secs_f64(), cpu_seconds(pid)? - cpu));
        }
        let wall = median(taken[1..].iter().map(|taken| taken.0));
        rows.push((name, total_gb / wall, median(taken[1..].iter().map(|taken| taken.1))));
    }
    let lines: String = rows.iter().map(|(name, rate, cpu)| format!("| {name} | {rate:.2} | {cpu:.2} |\n")).collect();
    Ok(format!(
        "A model of {:.0} MB to {count} clients, median of {} rounds\n\n| | GB/s | server CPU s |\n|---|---|---|\n{lines}\
         | **ratio** | **{:.2}** | **{:.2}** |\n",
        bytes as f64 / 1e6,
        rounds - 1,
        rows[1].1 / rows[0].1,
        rows[1].2 / rows[0].2
    ))
}
