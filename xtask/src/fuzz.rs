//! Builds the fuzz targets with coverage instrumentation and runs each for a while.
//!
//! The flags are those of the coverage-guided fuzzer's own documentation; the stable compiler takes them, so neither a
//! nightly toolchain nor another tool is needed.

use crate::workspace::{root, target_dir};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// Which targets, and for how long.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Seconds for each target.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only this target.
    #[arg(long)]
    target: Option<String>,
}

const TARGETS: [&str; 7] =
    ["safetensors_header", "codec", "job_spec", "http_request", "http_update", "zstd_frames", "archive"];
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";
/// Bytes of one input.
const INPUT_BYTES_MAX: &str = "-max_len=4096";

/// Runs the targets; a finding is an error that names its input.
pub fn run(arguments: &Arguments) -> Result<()> {
    let dir = root().join("fuzz");
    let target = target_dir().join("fuzz");
    // The triple keeps the flags away from build scripts and macros.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let built = Command::new("cargo")
        .args(["build", "--release", "--target", &triple])
        .current_dir(&dir)
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("run cargo")?;
    if !built.success() {
        bail!("the fuzz targets do not build");
    }
    let wanted = |name: &str| arguments.target.as_deref().is_none_or(|target| target == name);
    for name in TARGETS.into_iter().filter(|name| wanted(name)) {
        fuzz(&target.join(&triple).join("release").join(name), name, &dir, arguments.seconds)?;
    }
    Ok(())
}

fn fuzz(program: &Path, name: &str, dir: &Path, seconds: u64) -> Result<()> {
    println!("fuzzing {name} for {seconds} s");
    let corpus = target_dir().join("fuzz/corpus").join(name);
    let (seeds, artifacts) = (dir.join("seeds").join(name), dir.join("artifacts"));
    for folder in [&corpus, &seeds, &artifacts] {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let output = Command::new(program)
        .args([&corpus, &seeds])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/{name}-", artifacts.display()))
        .args([INPUT_BYTES_MAX, "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1", "-verbosity=0"])
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{name} found something:\n{text}");
    }
    let executed = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    println!("  {} inputs, nothing found", executed.map_or("?", str::trim));
    Ok(())
}
