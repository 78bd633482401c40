//! Federated averaging: the model is the weighted mean of the clients' models.
//!
//! McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
//! Decentralized Data", AISTATS 2017, section 2, Algorithm 1: `w ← Σ_k (n_k / n) · w_k`, where `n_k` is client `k`'s
//! number of training examples and `n` their sum. The weight an update was submitted with takes the place of `n_k`,
//! and `"weighting": "uniform"` counts every client once.
//!
//! Sums are kept in `f64` and divided once at the end, so the published mean is rounded a single time. Updates that
//! are differences to the model are averaged in the same way and added to it (the two are equal but for rounding).
//!
//! In a job with `exact`, the sums are integers and the model is the same bits in any order.
//!
//! Where the job's spec asks for the maximum, it is the largest value of any client; of differences, the largest
//! difference, which leads to the same model.
#![cfg_attr(target_arch = "wasm32", no_std)]
#![deny(unsafe_code)]

extern crate alloc;

use alloc::format;
use alloc::string::{String, ToString};
use catchment_sdk::{Additive, Config, ConfigField, Description, Finalize, Fold, Kind, Merge, Rule, Update, kernels};

/// Federated averaging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FedAvg {
    weighting: Weighting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weighting {
    /// By the weight each update was submitted with.
    Weight,
    /// Every update counts once.
    Uniform,
}

impl FedAvg {
    /// What an update counts in the sum.
    fn weight(&self, update: &Update<'_>) -> f64 {
        match self.weighting {
            Weighting::Weight => update.weight,
            Weighting::Uniform => 1.0,
        }
    }
}

impl Additive for FedAvg {
    const DESCRIPTION: Description = Description {
        name: "fedavg",
        version: env!("CARGO_PKG_VERSION"),
        summary: "Weighted mean of the clients' models (McMahan et al. 2017)",
        config: &[ConfigField {
            name: "weighting",
            help: "\"weight\" (default): by the weight each update was submitted with; \"uniform\": all alike",
        }],
        exact: true,
        ..Description::DEFAULT
    };

    fn init(config: &Config) -> Result<Self, String> {
        let options = [("weight", Weighting::Weight), ("uniform", Weighting::Uniform)];
        let weighting = config.choice("weighting", &options)?.unwrap_or(Weighting::Weight);
        match config.exact() {
            Some(exact) if weighting == Weighting::Uniform && exact.weight_max < 1.0 => {
                let max = exact.weight_max;
                Err(format!("config.weighting: `uniform` counts every update as 1, over exact.weight_max of {max}"))
            }
            _ => Ok(Self { weighting }),
        }
    }

    fn fold(&self, call: Fold<'_>) {
        match call.rule {
            Rule::Mean => {
                let terms = call.updates.iter().map(|update| (update.values, self.weight(update)));
                kernels::weighted_sum(call.acc_in, call.acc_out, terms);
            }
            Rule::Max => kernels::max(call.acc_in, call.acc_out, call.updates.iter().map(|update| update.values)),
        }
    }

    fn merge(&self, call: Merge<'_>) {
        match call.rule {
            Rule::Mean => kernels::merge_sum(call.acc_in, call.acc_out, call.partials),
            Rule::Max => kernels::merge_max(call.acc_in, call.acc_out, call.partials),
        }
    }

    fn finalize(&self, call: Finalize<'_>) -> Result<(), String> {
        let divisor = match (call.rule, self.weighting) {
            (Rule::Max, _) => 1.0,
            (Rule::Mean, Weighting::Weight) => call.total_weight,
            (Rule::Mean, Weighting::Uniform) => call.updates as f64,
        };
        if !(divisor > 0.0 && divisor.is_finite()) {
            return Err("the updates' weights do not add up to a positive finite number".to_string());
        }
        let previous = match call.kind {
            Kind::Weights => None,
            Kind::Delta => Some(call.previous.ok_or("deltas need the previous model")?),
        };
        kernels::scale(call.partial, divisor, previous, call.out);
        Ok(())
    }
}

catchment_sdk::export!(FedAvg: Additive);
