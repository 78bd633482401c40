//! FLoRA: LoRA adapters of mixed rank, aggregated without cross terms and merged into the model.
//!
//! Wang, Shen, He, Sun, Wang, Lyu, Li, "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
//! Adaptations", NeurIPS 2024, section 3: stacking the clients' `A_k` (scaled by `p_k`) and `B_k` gives factors whose
//! product is exactly `Σ_k p_k · s_k · B_k · A_k`, whatever the ranks; averaging `A` and `B` apart does not. With
//! `p_k = w_k / Σw` and `s_k = α / r_k`.
//!
//! The stack itself is never published here: its rank grows with the number of clients, and the paper's clients merge
//! it into the base before the next round anyway. So this function merges: `W ← W + Σ_k p_k · s_k · B_k · A_k`, computed
//! in f64 in the order of the clients' names and rounded once. Clients fetch the model and begin with fresh adapters.
//!
//! An update holds `<layer>.lora_A.weight` (r×m) and `<layer>.lora_B.weight` (d×r) for any layers of the model that
//! have a weight of d×m; which is which is told by name, never by shape. The prefix that PEFT puts before every name
//! may be there. A layer that a client leaves out counts as zero, and so does one whose factors have rank 0.
#![cfg_attr(target_arch = "wasm32", no_std)]
#![deny(unsafe_code)]

extern crate alloc;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use catchment_sdk::{Bag, Config, ConfigField, Description, Make, Tensor, TensorTemplate, UpdateLayout, Whole};

/// What PEFT puts before the names of a model's tensors.
const PREFIX: &str = "base_model.model.";
/// Numbers of the block of columns that is summed up at one time: 2 MiB.
const BLOCK_NUMBERS: usize = 256 << 10;

/// FLoRA.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flora {
    alpha: Option<f64>,
}

/// One client's factors of a layer, and what their product counts.
struct Factors<'a> {
    a: Tensor<'a>,
    /// `B`, by columns, each times the product's share.
    b: Vec<f64>,
    rank: usize,
}

impl Whole for Flora {
    const DESCRIPTION: Description = Description {
        name: "flora",
        version: env!("CARGO_PKG_VERSION"),
        summary: "LoRA adapters of mixed rank, merged into the model (Wang et al. 2024)",
        config: &[ConfigField {
            name: "alpha",
            help: "LoRA's α: an update of rank r is scaled by α / r; the scale is 1 when absent",
        }],
        update_layout: UpdateLayout::Template {
            of: TensorTemplate { name: "{}.weight", shape: &["d", "m"] },
            tensors: &[
                TensorTemplate { name: "{}.lora_A.weight", shape: &["r", "m"] },
                TensorTemplate { name: "{}.lora_B.weight", shape: &["d", "r"] },
            ],
            prefix: PREFIX,
            dimension_max: 256,
        },
        ..Description::DEFAULT
    };

    fn init(config: &Config) -> Result<Self, String> {
        Ok(Self { alpha: config.number("alpha", 1e-6..=1e6)? })
    }

    fn make(&self, mut call: Make<'_>) -> Result<(), String> {
        let &[rows, columns] = call.previous.shape else {
            return Err(format!("`{}` is no matrix", call.previous.name));
        };
        let (rows, columns) = (rows as usize, columns as usize);
        let layer = call.previous.name.strip_suffix(".weight").ok_or("the model's tensor is no weight")?;
        let mut factors = Vec::new();
        for update in call.updates {
            factors.extend(self.factors(update, layer, rows, update.weight / call.total_weight)?);
        }
        let width = (BLOCK_NUMBERS / rows.max(1)).clamp(1, columns.max(1));
        let (mut sums, mut piece) = (vec![0.0; rows * width], vec![0.0; width]);
        for start in (0..columns).step_by(width) {
            let count = width.min(columns - start);
            let piece = &mut piece[..count];
            sums.fill(0.0);
            for Factors { a, b, rank } in &factors {
                for r in 0..*rank {
                    a.values.read(r * columns + start, piece);
                    for (sums, share) in sums.chunks_exact_mut(width).zip(&b[r * rows..][..rows]) {
                        for (sum, x) in sums.iter_mut().zip(&*piece) {
                            *sum += share * x;
                        }
                    }
                }
            }
            for (row, sums) in sums.chunks_exact_mut(width).enumerate() {
                let (at, sums) = (row * columns + start, &mut sums[..count]);
                call.previous.values.read(at, piece);
                for (sum, before) in sums.iter_mut().zip(&*piece) {
                    *sum += before;
                }
                call.out.write(at, sums);
            }
        }
        Ok(())
    }
}

impl Flora {
    /// The factors that an update has for a layer. The host has checked that there are both or none, and their shapes.
    fn factors<'a>(
        &self,
        update: &'a Bag<'a>,
        layer: &str,
        rows: usize,
        share: f64,
    ) -> Result<Option<Factors<'a>>, String> {
        let find = |part: &str| {
            let name = format!("{layer}.{part}.weight");
            update.tensors.iter().find(|tensor| tensor.name.strip_prefix(PREFIX).unwrap_or(tensor.name) == name)
        };
        let (a, b) = match (find("lora_A"), find("lora_B")) {
            (Some(a), Some(b)) => (a, b),
            (None, None) => return Ok(None),
            _ => return Err(format!("an update has one of the factors of `{layer}` and not the other")),
        };
        let &[rank, _] = a.shape else { return Err("lora_A is no matrix".to_string()) };
        let rank = rank as usize;
        let scale = share * self.alpha.map_or(1.0, |alpha| alpha / rank.max(1) as f64);
        let mut by_rows = vec![0.0; rows * rank];
        b.values.read(0, &mut by_rows);
        let mut columns = vec![0.0; rows * rank];
        for (i, row) in by_rows.chunks_exact(rank.max(1)).enumerate() {
            for (r, x) in row.iter().enumerate() {
                columns[r * rows + i] = x * scale;
            }
        }
        Ok(Some(Factors { a: *a, b: columns, rank }))
    }
}

catchment_sdk::export!(Flora: Whole);
