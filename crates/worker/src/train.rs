//! Local training: mini-batch SGD on the cross-entropy, as *FedAvg*'s `ClientUpdate` (McMahan et al., 2017,
//! algorithm 1), with momentum that starts anew in every round, because a client keeps nothing between rounds.

use crate::data::Samples;
use crate::model::{Model, ModelError};
use candle_core::{Tensor, backprop::GradStore};
use rand::rngs::ChaCha8Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};

/// How a client trains in one round. Fields that a job's client configuration names override the defaults; fields
/// this version does not know are left to others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainConfig {
    /// Passes over the client's samples.
    pub local_epochs: u32,
    /// Step size of SGD.
    pub learning_rate: f64,
    /// Samples of one step.
    pub batch_size: usize,
    /// Share of the last step that goes into the next; 0 for plain SGD.
    pub momentum: f64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self { local_epochs: 3, learning_rate: 0.05, batch_size: 16, momentum: 0.9 }
    }
}

/// Why training did not give a result.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A field of the configuration is outside its range.
    #[error("{field} is {found}: {expected}")]
    Config {
        /// Which field.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// There is nothing to train on.
    #[error("no samples to work on")]
    NoSamples,
    /// The parameters became NaN or infinite.
    #[error("training diverged at learning rate {learning_rate}: the loss is {loss}; use a smaller one")]
    Diverged {
        /// The step size.
        learning_rate: f64,
        /// The loss of the last epoch.
        loss: f64,
    },
    /// The caller asked to stop.
    #[error("training was cancelled")]
    Cancelled,
    /// The model or the tensor library failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl From<candle_core::Error> for TrainError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}

impl TrainConfig {
    /// Checks every field. A configuration may come from a server.
    pub fn check(&self) -> Result<(), TrainError> {
        let bad = |field, found: String, expected| Err(TrainError::Config { field, found, expected });
        if !(1..=1000).contains(&self.local_epochs) {
            return bad("local_epochs", self.local_epochs.to_string(), "a whole number of 1 to 1000");
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0 && self.learning_rate <= 10.0) {
            return bad("learning_rate", self.learning_rate.to_string(), "above 0 and at most 10");
        }
        if !(1..=4096).contains(&self.batch_size) {
            return bad("batch_size", self.batch_size.to_string(), "a whole number of 1 to 4096");
        }
        if !(0.0..1.0).contains(&self.momentum) {
            return bad("momentum", self.momentum.to_string(), "at least 0 and below 1");
        }
        Ok(())
    }
}

/// How well a model does on some samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Metrics {
    /// Mean cross-entropy, in nats.
    pub loss: f64,
    /// Part of the samples whose largest logit is their class, 0 to 1.
    pub accuracy: f64,
    /// Number of samples.
    pub samples: usize,
}

/// SGD with momentum, as PyTorch defines it (velocity ← momentum · velocity + gradient; parameter −= rate · velocity).
/// Candle's own SGD has none.
struct Sgd {
    learning_rate: f64,
    momentum: f64,
    velocities: Vec<Option<Tensor>>,
}

impl Sgd {
    fn new(config: &TrainConfig, model: &Model) -> Self {
        let velocities = vec![None; model.variables().count()];
        Self { learning_rate: config.learning_rate, momentum: config.momentum, velocities }
    }

    fn step(&mut self, model: &Model, gradients: &GradStore) -> candle_core::Result<()> {
        for (variable, velocity) in model.variables().zip(&mut self.velocities) {
            let Some(gradient) = gradients.get(variable.as_tensor()) else { continue };
            let step = match velocity.take() {
                Some(previous) if self.momentum > 0.0 => ((previous * self.momentum)? + gradient)?,
                _ => gradient.clone(),
            };
            // Detached on both sides: a velocity that remembered its gradient's graph would grow with every batch.
            let step = step.detach();
            variable.set(&(variable.as_tensor().detach() - (&step * self.learning_rate)?)?)?;
            *velocity = Some(step);
        }
        Ok(())
    }
}

/// Trains `model` in place. The result is what the last epoch saw while it trained.
///
/// Deterministic: the same model, samples, configuration and generator give the same parameters on one machine
/// (another machine's vector instructions may round differently). `cancel` is looked at before every batch.
pub fn train(
    model: &Model,
    samples: &Samples,
    config: &TrainConfig,
    mut rng: ChaCha8Rng,
    cancel: &AtomicBool,
) -> Result<Metrics, TrainError> {
    config.check()?;
    if samples.is_empty() {
        return Err(TrainError::NoSamples);
    }
    let mut sgd = Sgd::new(config, model);
    let mut order: Vec<usize> = (0..samples.len()).collect();
    let mut epoch = Sums::default();
    for _ in 0..config.local_epochs {
        order.shuffle(&mut rng);
        epoch = Sums::default();
        for indices in order.chunks(config.batch_size) {
            if cancel.load(Ordering::Relaxed) {
                return Err(TrainError::Cancelled);
            }
            let (images, labels) = samples.batch(indices, model.device())?;
            let logits = model.forward(&images)?;
            let loss = candle_nn::loss::cross_entropy(&logits, &labels)?;
            epoch.add(&loss, &logits, &labels)?;
            sgd.step(model, &loss.backward()?)?;
        }
    }
    let metrics = epoch.metrics();
    let finite = model.values()?.iter().all(|(_, values)| values.iter().all(|value| value.is_finite()));
    if !(finite && metrics.loss.is_finite()) {
        return Err(TrainError::Diverged { learning_rate: config.learning_rate, loss: metrics.loss });
    }
    Ok(metrics)
}

/// Measures `model` on `samples`.
pub fn evaluate(model: &Model, samples: &Samples) -> Result<Metrics, TrainError> {
    const BATCH: usize = 256;
    if samples.is_empty() {
        return Err(TrainError::NoSamples);
    }
    let mut sums = Sums::default();
    let order: Vec<usize> = (0..samples.len()).collect();
    for indices in order.chunks(BATCH) {
        let (images, labels) = samples.batch(indices, model.device())?;
        let logits = model.forward(&images)?.detach();
        sums.add(&candle_nn::loss::cross_entropy(&logits, &labels)?, &logits, &labels)?;
    }
    Ok(sums.metrics())
}

/// Sums over batches, which need not be of one size.
#[derive(Default)]
struct Sums {
    loss: f64,
    correct: usize,
    samples: usize,
}

impl Sums {
    fn add(&mut self, loss: &Tensor, logits: &Tensor, labels: &Tensor) -> candle_core::Result<()> {
        let labels: Vec<u32> = labels.to_vec1()?;
        let guesses: Vec<u32> = logits.detach().argmax(1)?.to_vec1()?;
        self.loss += f64::from(loss.detach().to_scalar::<f32>()?) * labels.len() as f64;
        self.correct += labels.iter().zip(&guesses).filter(|(label, guess)| label == guess).count();
        self.samples += labels.len();
        Ok(())
    }

    fn metrics(&self) -> Metrics {
        let count = self.samples.max(1) as f64;
        Metrics { loss: self.loss / count, accuracy: self.correct as f64 / count, samples: self.samples }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Architecture;
    use crate::rng::stream;
    use candle_core::Device;

    fn some() -> Samples {
        crate::data::digits().unwrap().select(&(0..200).collect::<Vec<_>>())
    }

    fn trained(architecture: Architecture, config: &TrainConfig, seed: u64) -> (Model, Metrics) {
        let model = Model::initial(architecture, 1, &Device::Cpu).unwrap();
        let metrics = train(&model, &some(), config, stream(seed, "test", &[]), &AtomicBool::new(false)).unwrap();
        (model, metrics)
    }

    #[test]
    fn training_learns_and_repeats_itself() {
        let config = TrainConfig { local_epochs: 12, ..TrainConfig::default() };
        for architecture in Architecture::ALL {
            let before = evaluate(&Model::initial(architecture, 1, &Device::Cpu).unwrap(), &some()).unwrap();
            let (model, _) = trained(architecture, &config, 1);
            let after = evaluate(&model, &some()).unwrap();
            assert!(before.accuracy < 0.4 && after.accuracy > 0.95, "{architecture}: {before:?} {after:?}");
            assert!(after.loss < before.loss / 4.0);
            let (again, _) = trained(architecture, &config, 1);
            assert_eq!(again.to_safetensors().unwrap(), model.to_safetensors().unwrap());
            let (other, _) = trained(architecture, &config, 2);
            assert_ne!(other.to_safetensors().unwrap(), model.to_safetensors().unwrap());
        }
    }

    #[test]
    fn momentum_is_pytorchs() {
        // One parameter of one class seen twice: the second step is gradient₂ + momentum · gradient₁.
        let digits = some();
        let batch: Vec<usize> = (0..8).collect();
        let model = Model::initial(Architecture::Mlp, 1, &Device::Cpu).unwrap();
        let config = TrainConfig { momentum: 0.9, learning_rate: 0.01, ..TrainConfig::default() };
        let mut sgd = Sgd::new(&config, &model);
        let (mut velocity, mut expected) = (0.0, model.values().unwrap()[3].1[4]);
        for _ in 0..3 {
            let (images, labels) = digits.batch(&batch, &Device::Cpu).unwrap();
            let loss = candle_nn::loss::cross_entropy(&model.forward(&images).unwrap(), &labels).unwrap();
            let gradients = loss.backward().unwrap();
            let bias = model.variables().nth(3).unwrap();
            let gradient = gradients.get(bias.as_tensor()).unwrap().to_vec1::<f32>().unwrap()[4];
            velocity = 0.9 * velocity + gradient;
            expected -= 0.01 * velocity;
            sgd.step(&model, &gradients).unwrap();
            let found = model.values().unwrap()[3].1[4];
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn convolution_gradients_match_finite_differences() {
        let digits = some();
        let (images, labels) = digits.batch(&(0..4).collect::<Vec<_>>(), &Device::Cpu).unwrap();
        let model = Model::initial(Architecture::Cnn, 3, &Device::Cpu).unwrap();
        let loss = || {
            let logits = model.forward(&images).unwrap();
            candle_nn::loss::cross_entropy(&logits, &labels).unwrap()
        };
        let gradients = loss().backward().unwrap();
        for variable in model.variables() {
            let analytic = gradients.get(variable.as_tensor()).unwrap().flatten_all().unwrap();
            let analytic = analytic.to_vec1::<f32>().unwrap();
            let values = variable.as_tensor().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for at in [0, values.len() / 2, values.len() - 1] {
                let moved = |by: f32| {
                    let mut values = values.clone();
                    values[at] += by;
                    variable.set(&Tensor::from_vec(values, variable.dims(), &Device::Cpu).unwrap()).unwrap();
                    f64::from(loss().to_scalar::<f32>().unwrap())
                };
                let numeric = (moved(1e-3) - moved(-1e-3)) / 2e-3;
                moved(0.0);
                assert!((numeric - f64::from(analytic[at])).abs() < 2e-3, "{at}: {numeric} {}", analytic[at]);
            }
        }
    }

    #[test]
    fn bad_days_are_named() {
        let model = Model::initial(Architecture::Mlp, 1, &Device::Cpu).unwrap();
        let run = |samples: &Samples, config: &TrainConfig, cancel: bool| {
            train(&model, samples, config, stream(1, "test", &[]), &AtomicBool::new(cancel)).unwrap_err().to_string()
        };
        let good = TrainConfig::default();
        assert!(run(&Samples::default(), &good, false).contains("no samples"));
        assert!(run(&some(), &good, true).contains("cancelled"));
        assert!(run(&some(), &TrainConfig { learning_rate: f64::NAN, ..good }, false).contains("learning_rate is NaN"));
        assert!(run(&some(), &TrainConfig { batch_size: 0, ..good }, false).contains("batch_size is 0"));
        assert!(run(&some(), &TrainConfig { momentum: 1.0, ..good }, false).contains("momentum is 1"));
        assert!(run(&some(), &TrainConfig { local_epochs: 0, ..good }, false).contains("local_epochs is 0"));
    }
}
