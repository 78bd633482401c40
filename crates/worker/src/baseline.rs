//! What federated training is measured against: each client alone, and all data in one place.
//!
//! Both run as many epochs as a client does in the whole federated job, in the same rounds and with the same
//! optimiser, so that a difference in accuracy comes from the data alone.

use crate::data::Samples;
use crate::model::{Architecture, Model, ModelError};
use crate::rng::stream;
use crate::split::{Split, SplitError};
use crate::train::{Metrics, TrainConfig, TrainError, evaluate, train};
use candle_core::Device;
use serde::Serialize;
use std::sync::atomic::AtomicBool;

/// One run without federation.
#[derive(Debug, Clone, Copy)]
pub struct Baseline {
    /// The network.
    pub architecture: Architecture,
    /// Seeds the initial model, the split and the shuffling.
    pub seed: u64,
    /// Rounds of the federated job it stands beside.
    pub rounds: u64,
    /// How each round trains.
    pub config: TrainConfig,
}

/// What a run reached.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Outcome {
    /// On the hold-out.
    pub holdout: Metrics,
    /// Samples it trained on.
    pub train_samples: usize,
    /// Epochs it trained.
    pub epochs: u64,
}

/// Many runs, one a client.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LocalOutcomes {
    /// By client index.
    pub clients: Vec<Outcome>,
    /// Accuracy of the best client.
    pub best_accuracy: f64,
    /// Mean accuracy of the clients.
    pub mean_accuracy: f64,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The split cannot be made.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The initial model cannot be made.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Stands for the client index in the shuffling of pooled training.
const POOLED: u64 = u64::MAX;

impl Baseline {
    /// The client at `index` of `split` trains alone.
    pub fn local(&self, split: &Split, index: usize, device: &Device) -> Result<Outcome, BaselineError> {
        self.run(split.client(index)?, &split.holdout, index as u64, device)
    }

    /// Every client of `split` trains alone.
    pub fn all_local(&self, split: &Split, device: &Device) -> Result<LocalOutcomes, BaselineError> {
        let clients =
            (0..split.clients.len()).map(|index| self.local(split, index, device)).collect::<Result<Vec<_>, _>>()?;
        let accuracies = clients.iter().map(|outcome| outcome.holdout.accuracy);
        let mean_accuracy = accuracies.clone().sum::<f64>() / clients.len() as f64;
        Ok(LocalOutcomes { best_accuracy: accuracies.fold(0.0, f64::max), mean_accuracy, clients })
    }

    /// One model trains on everything the clients hold.
    pub fn pooled(&self, all: &Samples, device: &Device) -> Result<Outcome, BaselineError> {
        self.run(&Split::pooled(all, self.seed), &Split::holdout(all, self.seed), POOLED, device)
    }

    fn run(&self, samples: &Samples, holdout: &Samples, who: u64, device: &Device) -> Result<Outcome, BaselineError> {
        let model = Model::initial(self.architecture, self.seed, device)?;
        let never = AtomicBool::new(false);
        for round in 1..=self.rounds {
            train(&model, samples, &self.config, stream(self.seed, "shuffle", &[who, round]), &never)?;
        }
        Ok(Outcome {
            holdout: evaluate(&model, holdout)?,
            train_samples: samples.len(),
            epochs: self.rounds * u64::from(self.config.local_epochs),
        })
    }
}
