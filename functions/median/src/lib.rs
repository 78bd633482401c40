//! The coordinate-wise median and trimmed mean: means that a minority of wrong updates cannot carry away.
//!
//! Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML
//! 2018: definition 1 (median of each coordinate) and definition 2 (`β`-trimmed mean: of each coordinate's `n` values
//! the `⌊β·n⌋` largest and smallest are left out, the rest is averaged). Every update counts once, whatever its
//! weight: a weight is a client's own claim.
//!
//! Values are sorted, so the result does not depend on the order of updates.
#![cfg_attr(target_arch = "wasm32", no_std)]
#![deny(unsafe_code)]

extern crate alloc;

use alloc::string::String;
use alloc::vec;
use catchment_sdk::{Combine, Config, ConfigField, CoordinateWise, Description, Rule, kernels};
use core::ops::Range;

/// The median, or a trimmed mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Median {
    /// The middle value, or the mean of the two in the middle.
    Median,
    /// The mean without this share of the values at either end.
    Trimmed(f64),
}

impl Median {
    /// Which of `count` sorted values are averaged.
    fn kept(self, count: usize) -> Range<usize> {
        match self {
            Self::Median => (count - 1) / 2..count / 2 + 1,
            Self::Trimmed(share) => {
                let cut = ((share * count as f64) as usize).min((count - 1) / 2);
                cut..count - cut
            }
        }
    }
}

/// Coordinates that are sorted together: 256 updates of them are 128 KiB.
const BLOCK: usize = 64;

impl CoordinateWise for Median {
    const DESCRIPTION: Description = Description {
        name: "median",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Coordinate-wise median or trimmed mean (Yin et al. 2018)",
        config: &[ConfigField {
            name: "trim",
            help: "a number from 0 to 0.49: leave this share of the values out at either end and average the rest; \
                   the median when absent",
        }],
        ..Description::DEFAULT
    };

    fn init(config: &Config) -> Result<Self, String> {
        Ok(config.number("trim", 0.0..=0.49)?.map_or(Self::Median, Self::Trimmed))
    }

    fn combine(&self, mut call: Combine<'_>) -> Result<(), String> {
        let count = call.updates.len();
        let kept = match call.rule {
            Rule::Mean => self.kept(count),
            Rule::Max => count - 1..count,
        };
        let (mut rows, mut middle) = (vec![0.0; count * BLOCK], [0.0; BLOCK]);
        for start in (0..call.out.len()).step_by(BLOCK) {
            let width = BLOCK.min(call.out.len() - start);
            for (row, update) in rows.chunks_exact_mut(BLOCK).zip(call.updates) {
                update.values.read(start, &mut row[..width]);
            }
            kernels::sort_rows(&mut rows, BLOCK);
            let middle = &mut middle[..width];
            middle.fill(0.0);
            for row in rows.chunks_exact(BLOCK).take(kept.end).skip(kept.start) {
                for (sum, x) in middle.iter_mut().zip(row) {
                    *sum += *x;
                }
            }
            for sum in &mut *middle {
                *sum /= kept.len() as f64;
            }
            call.write(start, middle)?;
        }
        Ok(())
    }
}

catchment_sdk::export!(Median: CoordinateWise);
