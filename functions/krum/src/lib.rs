//! Krum and Multi-Krum: only updates that many others are close to have a say.
//!
//! Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
//! NeurIPS 2017, section 4: of `n` updates, at most `f` of them wrong, each has as score the sum of its squared
//! distances to the `n − f − 2` closest others. Krum takes the update with the lowest score, Multi-Krum the mean of the
//! `m` lowest. It needs `n ≥ 2f + 3`.
//!
//! Distances are over the averaged tensors; the chosen are averaged alike, whatever their weights. Among equal scores
//! the earlier update wins; the host keeps them in an order that depends on nothing but the clients' names.
#![cfg_attr(target_arch = "wasm32", no_std)]
#![deny(unsafe_code)]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use catchment_sdk::{Choose, Combine, Config, ConfigField, Description, Measure, Rule, TwoPhase, kernels};

/// Krum and Multi-Krum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Krum {
    byzantine: usize,
    select: usize,
}

/// Coordinates whose distances are taken together: 256 updates of them are 512 KiB.
const BLOCK: usize = 256;

impl TwoPhase for Krum {
    const DESCRIPTION: Description = Description {
        name: "krum",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Krum and Multi-Krum (Blanchard et al. 2017)",
        config: &[
            ConfigField {
                name: "byzantine",
                help: "how many updates may be wrong, 0 (default) to 126; a round needs 2 · byzantine + 3 updates",
            },
            ConfigField { name: "select", help: "how many updates are averaged, 1 (default, Krum) to 256" },
        ],
        ..Description::DEFAULT
    };

    fn init(config: &Config) -> Result<Self, String> {
        let byzantine = config.integer("byzantine", 0..=126)?.unwrap_or(0) as usize;
        let select = config.integer("select", 1..=256)?.unwrap_or(1) as usize;
        Ok(Self { byzantine, select })
    }

    /// A square of distances, of which the upper triangle is used.
    fn scalars(&self, updates: usize) -> usize {
        updates * updates
    }

    fn measure(&self, call: Measure<'_>) {
        if call.rule != Rule::Mean {
            return;
        }
        let count = call.updates.len();
        let mut rows = vec![0.0; count * BLOCK];
        for start in (0..call.elements).step_by(BLOCK) {
            let width = BLOCK.min(call.elements - start);
            for (row, update) in rows.chunks_exact_mut(BLOCK).zip(call.updates) {
                update.values.read(start, &mut row[..width]);
                row[width..].iter_mut().for_each(|x| *x = 0.0);
            }
            for i in 0..count {
                for j in i + 1..count {
                    let (a, b) = (&rows[i * BLOCK..][..BLOCK], &rows[j * BLOCK..][..BLOCK]);
                    call.sums[i * count + j] += kernels::squared_distance(a, b);
                }
            }
        }
    }

    fn choose(&self, call: Choose<'_>) -> Result<(), String> {
        let count = call.updates.len();
        let Self { byzantine, select } = *self;
        let needed = 2 * byzantine + 3;
        if count < needed {
            return Err(format!(
                "with config.byzantine {byzantine} a round needs {needed} updates, this one has {count}"
            ));
        }
        let distances = call.totals();
        let mut scores: Vec<(f64, usize)> = (0..count)
            .map(|i| {
                let mut others: Vec<f64> =
                    (0..count).filter(|j| *j != i).map(|j| distances[i.min(j) * count + i.max(j)]).collect();
                others.sort_unstable_by(f64::total_cmp);
                (others[..count - byzantine - 2].iter().sum(), i)
            })
            .collect();
        scores.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for (_, i) in &scores[..select.min(count)] {
            call.weights[*i] = 1.0;
        }
        Ok(())
    }

    fn combine(&self, call: Combine<'_>) -> Result<(), String> {
        match call.rule {
            Rule::Mean => kernels::weighted_mean(call),
            Rule::Max => kernels::largest(call),
        }
    }
}

catchment_sdk::export!(Krum: TwoPhase);
