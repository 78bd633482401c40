//! How fast updates are folded, beside how fast this machine reads memory and what the same sum takes natively.
//!
//! The work is cut as a node cuts it; updates and accumulators lie in a slab store. A round measures everything once,
//! turn and turn about, and shares are taken within a round.

use crate::lanes::{FedAvg, folds};
use crate::memory::{Blocks, Memory, Update, floats, floats_mut};
use crate::model::Model;
use crate::native::{self, Width};
use crate::observe::Series;
use anyhow::{Result, ensure};
use catchment_runner::InProcess;
use catchment_runtime::Dtype;
use catchment_slab::SlabMut;
use std::fmt::Write;
use std::time::Instant;

/// Updates of one call that are measured.
const BATCHES: [usize; 4] = [1, 4, 8, 16];
/// Slabs that are read at a time for the ceiling; the best counts.
const STREAMS: [usize; 2] = [1, 4];

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Arguments {
    /// The model.
    #[arg(long, value_enum, default_value = "resnet152")]
    pub model: Model,
    /// Updates, a multiple of 16.
    #[arg(long, default_value_t = 16)]
    pub updates: usize,
    /// How often everything is measured.
    #[arg(long, default_value_t = 7)]
    pub rounds: usize,
    /// A tiny model: says nothing about speed, but takes a second.
    #[arg(long)]
    pub small: bool,
}

/// One size of batch.
pub struct Line {
    /// Updates a call.
    pub batch: usize,
    read_s: Series,
    wasm_s: Series,
    native_s: Series,
}

/// What was measured.
pub struct Report {
    what: String,
    pages: &'static str,
    threads: usize,
    elements: usize,
    updates: usize,
    /// By size of batch.
    pub lines: Vec<Line>,
}

impl Report {
    fn update_gb(&self) -> f64 {
        (self.updates * self.elements * 4) as f64 / 1e9
    }

    /// Bytes of accumulator that batches of this size read and write, in GB.
    fn partial_gb(&self, batch: usize) -> f64 {
        (self.updates.div_ceil(batch) * self.elements * 16) as f64 / 1e9
    }

    /// Share of the read ceiling, update bytes alone.
    pub fn share(&self, line: &Line) -> Series {
        line.read_s.over(&line.wasm_s)
    }

    /// Share of the read ceiling, with what is read and written of the accumulator.
    pub fn share_with_partial(&self, line: &Line) -> Series {
        let all = (self.update_gb() + self.partial_gb(line.batch)) / self.update_gb();
        self.share(line).map(|share| share * all)
    }

    /// Its name in charts.
    pub fn name(&self) -> &str {
        &self.what
    }

    /// A Markdown table.
    pub fn table(&self) -> String {
        let gb = self.update_gb();
        let rate = |seconds: &Series| seconds.map(|s| gb / s);
        let mut table = format!(
            "Fold, {}, F32, {} threads, {}, native with {}; GB/s of update bytes, medians (least–most) of {} rounds; \
             shares within a round\n\n\
             | updates a call | read ceiling | wasm | native | share of ceiling | with the accumulator | share of native |\n\
             |---|---|---|---|---|---|---|\n",
            self.what,
            self.threads,
            self.pages,
            Width::detect().name(),
            self.lines[0].wasm_s.count(),
        );
        for line in &self.lines {
            writeln!(
                table,
                "| {} | {} | {} | {} | {} | {} | {} |",
                line.batch,
                rate(&line.read_s).show(1),
                rate(&line.wasm_s).show(1),
                rate(&line.native_s).show(1),
                self.share(line).show(2),
                self.share_with_partial(line).show(2),
                line.native_s.over(&line.wasm_s).show(2),
            )
            .expect("a string grows");
        }
        table
    }
}

/// Measures.
pub fn run(arguments: &Arguments) -> Result<Report> {
    let Arguments { model, updates: count, rounds, small } = *arguments;
    ensure!(count > 0 && count.is_multiple_of(16), "updates come in sixteens");
    let elements = if small { 300_000 } else { model.elements() as usize };
    let threads = std::thread::available_parallelism()?.get();
    let bytes = elements as u64 * 4;
    let memory = Memory::open((count as u64 + 9) * (bytes + (4 << 20)), 0)?;
    let first = memory.numbers(elements, number)?;
    let mut updates = vec![Update { slab: first, weight: 1.0, dtype: Dtype::F32 }];
    for k in 1..count {
        let slab = memory.copy(updates[0].bytes()?)?;
        updates.push(Update { slab, weight: 1.0 + k as f64, dtype: Dtype::F32 });
    }
    let fedavg = FedAvg::load()?;
    let mut wasm = Wasm { fedavg, runners: InProcess::default(), sum: memory.blocks(elements)?, threads };
    let mut native =
        Native { from: memory.zeros(elements as u64 * 8)?, to: memory.zeros(elements as u64 * 8)?, threads };
    let slabs = updates.iter().map(Update::bytes).collect::<Result<Vec<_>>>()?;
    let mut lines: Vec<Line> = BATCHES
        .iter()
        .map(|batch| Line {
            batch: *batch,
            read_s: Series::default(),
            wasm_s: Series::default(),
            native_s: Series::default(),
        })
        .collect();
    for round in 0..=rounds {
        for line in &mut lines {
            let wasm_s = timed(|| wasm.fold(&updates, line.batch, elements as u64))?;
            // Beside each other, because what other machines on the same host leave of its memory changes by the second.
            let mut read_s = f64::INFINITY;
            for streams in STREAMS {
                let read = || native::read_shared(threads, streams, &slabs);
                read_s = read_s.min(timed(|| {
                    read();
                    Ok(())
                })?);
            }
            let native_s = timed(|| native.fold(&updates, line.batch))?;
            // The first round touches everything for the first time.
            if round > 0 {
                line.read_s.push(read_s);
                line.wasm_s.push(wasm_s);
                line.native_s.push(native_s);
            }
        }
    }
    ensure!(wasm.sum.holds(floats(native.from.bytes_mut())?)?, "wasm and native sums are the same bits");
    let what = match small {
        true => format!("{count} small updates"),
        false => format!("{}, {count} × {:.0} MB", model.name(), bytes as f64 / 1e6),
    };
    let pages = if memory.store().huge_files().0 > 0 { "huge pages" } else { "small pages" };
    Ok(Report { what, pages, threads, elements, updates: count, lines })
}

/// Ordinary numbers.
pub fn number(i: usize) -> f32 {
    (i as u32).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32 - 0.5
}

fn timed(run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    run()?;
    Ok(begun.elapsed().as_secs_f64())
}

struct Wasm {
    fedavg: FedAvg,
    runners: InProcess,
    sum: Blocks,
    threads: usize,
}

impl Wasm {
    fn fold(&mut self, updates: &[Update], batch: usize, elements: u64) -> Result<()> {
        for batch in updates.chunks(batch) {
            self.fedavg.run(&self.runners, self.threads, folds(batch, &self.sum, elements)?)?;
            self.sum.flip();
        }
        Ok(())
    }
}

struct Native {
    from: SlabMut,
    to: SlabMut,
    threads: usize,
}

impl Native {
    fn fold(&mut self, updates: &[Update], batch: usize) -> Result<()> {
        for batch in updates.chunks(batch) {
            let terms = batch.iter().map(|update| Ok((floats::<f32>(update.bytes()?)?, update.weight)));
            let terms = terms.collect::<Result<Vec<_>>>()?;
            native::fold_shared(self.threads, floats(self.from.bytes_mut())?, floats_mut(self.to.bytes_mut())?, &terms);
            std::mem::swap(&mut self.from, &mut self.to);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_one_runs_and_both_sums_are_the_same_bits() {
        let arguments = Arguments { model: Model::Resnet18, updates: 16, rounds: 1, small: true };
        assert!(run(&arguments).unwrap().table().contains("| 16 |"));
    }
}
