//! What it takes to start: a function, an instance of it, a runner process, and the first fold after idling.

use crate::first;
use crate::hop::processes;
use crate::lanes::{FedAvg, folds, wasm};
use crate::memory::{Memory, Update};
use crate::observe::Series;
use anyhow::Result;
use catchment_proxy::Mode;
use catchment_runtime::{Dtype, Limits, Runtime, RuntimeConfig};
use std::fmt::Write;
use std::time::Instant;

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Arguments {
    /// How often.
    #[arg(long, default_value_t = 10)]
    pub rounds: usize,
    /// How long nothing happens before a first fold.
    #[arg(long, default_value_t = 65)]
    pub idle_seconds: u64,
}

/// Instances of one series.
const INSTANCES: usize = 200;

/// Measures and makes Markdown tables.
pub fn run(arguments: &Arguments) -> Result<String> {
    let Arguments { rounds, idle_seconds } = *arguments;
    let mut table = format!("Starts, medians (least–most) of {rounds} rounds\n\n| what | |\n|---|---|\n");
    let mut row = |what: &str, series: &Series, unit: &str, scale: f64, digits: usize| {
        writeln!(table, "| {what} | {} {unit} |", series.map(|s| s * scale).show(digits)).expect("a string grows");
    };
    let Parts { compile, map, instance, process, order_cold, order_warm } = parts(rounds)?;
    row("cold: compile the module", &compile, "ms", 1e3, 0);
    row("warm: map what was compiled", &map, "ms", 1e3, 2);
    row("instance: instantiate and init", &instance, "µs", 1e6, 1);
    row("runner process, until it takes orders", &process, "ms", 1e3, 1);
    row("its first order, with the function mapped and an instance made", &order_cold, "ms", 1e3, 2);
    row("its next order", &order_warm, "µs", 1e6, 1);
    table.push('\n');
    table.push_str(&first::run(rounds, idle_seconds)?);
    Ok(table)
}

#[derive(Default)]
struct Parts {
    compile: Series,
    map: Series,
    instance: Series,
    process: Series,
    order_cold: Series,
    order_warm: Series,
}

fn parts(rounds: usize) -> Result<Parts> {
    let mut parts = Parts::default();
    let (fedavg, wasm, config) = (FedAvg::load()?, wasm()?, serde_json::json!({}));
    let memory = Memory::open(64 << 20, 0)?;
    let updates = [Update { slab: memory.numbers(512, crate::fold::number)?, weight: 1.0, dtype: Dtype::F32 }];
    let mut sum = memory.blocks(512)?;
    for _ in 0..rounds {
        let runtime = Runtime::new(RuntimeConfig::default())?;
        let begun = Instant::now();
        let function = runtime.load(&wasm)?;
        parts.compile.push(begun.elapsed().as_secs_f64());
        let compiled = function.compiled()?;
        let begun = Instant::now();
        drop(fedavg.runtime.load_compiled(compiled)?);
        parts.map.push(begun.elapsed().as_secs_f64());

        let mut taken_s = 0.0;
        for _ in 0..INSTANCES {
            let begun = Instant::now();
            let instance = fedavg.function.instantiate(&config, Limits::default())?;
            taken_s += begun.elapsed().as_secs_f64();
            drop(instance);
        }
        parts.instance.push(taken_s / INSTANCES as f64);

        let begun = Instant::now();
        let processes = processes(memory.store(), 2, Mode::Off)?;
        parts.process.push(begun.elapsed().as_secs_f64());
        for series in [&mut parts.order_cold, &mut parts.order_warm] {
            let calls = folds(&updates, &sum, 512)?;
            let begun = Instant::now();
            fedavg.run(&processes, 1, calls)?;
            series.push(begun.elapsed().as_secs_f64());
            sum.flip();
        }
    }
    Ok(parts)
}
