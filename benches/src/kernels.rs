//! What each dtype and exact sums cost, in sixteens, as a node folds them.
//!
//! One update's numbers in every dtype, folded turn and turn about; shares are taken within a round. Another build of the
//! function can be measured beside.

use crate::lanes::{FedAvg, folds, wasm};
use crate::memory::{Blocks, Memory, Update};
use crate::model::Model;
use crate::observe::Series;
use anyhow::Result;
use catchment_runner::InProcess;
use catchment_runtime::{BATCH_MAX, Dtype, Exact};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Instant;

/// Numbers below a half, weights of at most sixteen.
const EXACT: Exact = Exact { exponent: 40, weight_max: BATCH_MAX as f64 };

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The model.
    #[arg(long, value_enum, default_value = "resnet18")]
    pub model: Model,
    /// How often everything is measured.
    #[arg(long, default_value_t = 15)]
    pub rounds: usize,
    /// Threads, one instance each [default: one for each processor].
    #[arg(long)]
    pub threads: Option<usize>,
    /// Another build of federated averaging (a .wasm file), to be measured beside.
    #[arg(long)]
    pub beside: Option<PathBuf>,
    /// A tiny model: says nothing about speed, but takes a second.
    #[arg(long)]
    pub small: bool,
}

/// One kernel of one build.
struct Kernel {
    build: &'static str,
    dtype: Dtype,
    fedavg: FedAvg,
    runners: InProcess,
    taken_s: Series,
}

impl Kernel {
    fn is_exact(&self) -> bool {
        self.fedavg.blueprint.exact.is_some()
    }
}

/// Measures and makes a Markdown table.
pub fn run(arguments: &Arguments) -> Result<String> {
    let Arguments { model, rounds, threads, beside, small } = arguments;
    let elements = if *small { 300_000 } else { model.elements() as usize };
    let threads = threads.map_or_else(|| std::thread::available_parallelism().map(usize::from), Ok)?;
    let memory = Memory::open((BATCH_MAX as u64 * 8 + 40) * elements as u64 + (256 << 20), 0)?;
    let mut kernels = Vec::new();
    let mut builds = vec![("", wasm()?)];
    if let Some(path) = beside {
        builds.push(("the other build, ", std::fs::read(path)?));
    }
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for exact in [None, Some(EXACT)] {
            for (build, wasm) in &builds {
                let fedavg = FedAvg::with(wasm, exact)?;
                kernels.push(Kernel {
                    build,
                    dtype,
                    fedavg,
                    runners: InProcess::default(),
                    taken_s: Series::default(),
                });
            }
        }
    }
    let rounded = |dtype| updates(&memory, elements, dtype);
    let updates = [rounded(Dtype::F32)?, rounded(Dtype::Bf16)?, rounded(Dtype::F16)?];
    let mut sum = memory.blocks(elements)?;
    for round in 0..=*rounds {
        for kernel in &mut kernels {
            let updates = updates.iter().find(|updates| updates[0].dtype == kernel.dtype).expect("there are three");
            let taken_s = fold(kernel, updates, &mut sum, elements as u64, threads)?;
            // The first round makes instances and touches memory.
            if round > 0 {
                kernel.taken_s.push(taken_s);
            }
        }
    }
    Ok(table(&kernels, *model, elements, threads))
}

fn updates(memory: &Memory, elements: usize, dtype: Dtype) -> Result<Vec<Update>> {
    let first = match dtype {
        Dtype::F16 => memory.numbers(elements, f16_below_a_half)?,
        Dtype::Bf16 => memory.numbers(elements, |i| (crate::fold::number(i).to_bits() >> 16) as u16)?,
        _ => memory.numbers(elements, crate::fold::number)?,
    };
    let mut updates = vec![Update { slab: first, weight: 1.0, dtype }];
    for k in 1..BATCH_MAX {
        let slab = memory.copy(updates[0].bytes()?)?;
        updates.push(Update { slab, weight: 1.0 + k as f64, dtype });
    }
    Ok(updates)
}

/// Any sign and fraction, and an exponent below that of a half: one in fourteen is subnormal.
fn f16_below_a_half(i: usize) -> u16 {
    let bits = (i as u32).wrapping_mul(2_654_435_761) >> 16;
    let exponent = ((bits >> 10) & 31) % 14;
    ((bits & 0x83ff) | (exponent << 10)) as u16
}

fn fold(kernel: &Kernel, updates: &[Update], sum: &mut Blocks, elements: u64, threads: usize) -> Result<f64> {
    let calls = folds(updates, sum, elements)?;
    let begun = Instant::now();
    kernel.fedavg.run(&kernel.runners, threads, calls)?;
    let taken_s = begun.elapsed().as_secs_f64();
    sum.flip();
    Ok(taken_s)
}

fn table(kernels: &[Kernel], model: Model, elements: usize, threads: usize) -> String {
    let mut table = format!(
        "Kernels, {}, {BATCH_MAX} updates a call, {threads} threads; medians (least–most) of {} rounds; speeds in numbers, \
         shares within a round\n\n\
         | | GB/s of update bytes | 10⁹ numbers/s | to plain F32 | exact to plain |\n|---|---|---|---|---|\n",
        model.name(),
        kernels[0].taken_s.count()
    );
    for kernel in kernels {
        let plain = |dtype: Dtype| {
            kernels.iter().find(|other| other.build == kernel.build && other.dtype == dtype && !other.is_exact())
        };
        let over =
            |other: Option<&Kernel>| other.map(|other| other.taken_s.over(&kernel.taken_s).show(2)).unwrap_or_default();
        let numbers = (BATCH_MAX * elements) as f64 / 1e9;
        let rate = kernel.taken_s.map(|s| numbers / s);
        let bytes = kernel.dtype.bytes() as f64;
        writeln!(
            table,
            "| {}{}{} | {} | {} | {} | {} |",
            kernel.build,
            kernel.dtype.as_str(),
            if kernel.is_exact() { ", exact" } else { "" },
            rate.map(|rate| rate * bytes).show(1),
            rate.show(2),
            over(plain(Dtype::F32)),
            if kernel.is_exact() { over(plain(kernel.dtype)) } else { String::new() },
        )
        .expect("a string grows");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_one_runs() {
        let arguments = Arguments { model: Model::Resnet18, rounds: 1, threads: None, beside: None, small: true };
        assert!(run(&arguments).unwrap().contains("| F16, exact |"));
    }
}
