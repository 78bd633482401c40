//! What it costs to be there and do nothing.

use crate::observe::{cpu_seconds, pss_bytes};
use crate::platform::Platform;
use anyhow::Result;
use serde_json::json;
use std::time::Duration;

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Arguments {
    /// Jobs that are defined.
    #[arg(long, default_value_t = 100)]
    pub jobs: usize,
    /// How long to watch.
    #[arg(long, default_value_t = 30)]
    pub seconds: u64,
}

/// Measures and makes a Markdown table.
pub fn run(arguments: &Arguments) -> Result<String> {
    let Arguments { jobs, seconds } = *arguments;
    let platform = Platform::start(256)?;
    let mut api = platform.connect()?;
    let header = r#"{"w":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}"#;
    let model = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4000]].concat();
    for i in 0..jobs {
        let spec = json!({"name": format!("job-{i}"), "function": "fedavg"});
        api.json("POST", "/v1/jobs", spec.to_string().as_bytes())?;
        api.json("PUT", &format!("/v1/jobs/job-{i}/model"), &model)?;
    }
    std::thread::sleep(Duration::from_secs(3));
    let cpu = cpu_seconds(platform.pid())?;
    std::thread::sleep(Duration::from_secs(seconds));
    let cpu = cpu_seconds(platform.pid())? - cpu;
    Ok(format!(
        "Idle, {jobs} jobs with an open round each, {seconds} s\n\n| CPU, share of one core | memory (PSS) MB |\n|---|---|\n\
         | {:.2}% | {:.1} |\n",
        100.0 * cpu / seconds as f64,
        pss_bytes(platform.pid())? as f64 / 1e6
    ))
}
