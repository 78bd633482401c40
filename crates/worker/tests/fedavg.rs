//! Federated averaging works on this data, with these models and this split: the claim behind the demo, without the
//! platform. The same loop runs through the real server elsewhere; if that one falls short and this one does not, the
//! platform lost or mixed something up.

use candle_core::Device;
use catchment_worker::baseline::Baseline;
use catchment_worker::data::digits;
use catchment_worker::model::{Architecture, Model};
use catchment_worker::rng::stream;
use catchment_worker::split::Split;
use catchment_worker::threads;
use catchment_worker::train::{TrainConfig, evaluate, train};
use std::sync::atomic::AtomicBool;

const SEED: u64 = 42;
const CLIENTS: usize = 10;
const ROUNDS: u64 = 20;

/// The weighted mean of models, in double precision (McMahan et al., 2017, algorithm 1).
fn average(like: &[u8], updates: &[(Vec<u8>, f64)]) -> Vec<u8> {
    let total: f64 = updates.iter().map(|(_, weight)| weight).sum();
    let files: Vec<_> =
        updates.iter().map(|(bytes, weight)| (safetensors::SafeTensors::deserialize(bytes).unwrap(), weight)).collect();
    let like = safetensors::SafeTensors::deserialize(like).unwrap();
    let mut means = Vec::new();
    for (name, tensor) in like.tensors() {
        let mut sums = vec![0f64; tensor.data().len() / 4];
        for (file, weight) in &files {
            let tensor = file.tensor(&name).unwrap();
            for (sum, word) in sums.iter_mut().zip(tensor.data().as_chunks::<4>().0) {
                *sum += *weight * f64::from(f32::from_le_bytes(*word));
            }
        }
        let bytes: Vec<u8> = sums.iter().flat_map(|sum| ((sum / total) as f32).to_le_bytes()).collect();
        means.push((name, tensor.shape().to_vec(), bytes));
    }
    let views = means.iter().map(|(name, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// The accuracy on the hold-out after every round.
fn federated(architecture: Architecture, config: &TrainConfig, split: &Split, seed: u64) -> Vec<f64> {
    let never = AtomicBool::new(false);
    let mut global = Model::initial(architecture, seed, &Device::Cpu).unwrap().to_safetensors().unwrap();
    (1..=ROUNDS)
        .map(|round| {
            let updates: Vec<_> = split
                .clients
                .iter()
                .enumerate()
                .map(|(client, samples)| {
                    let model = Model::from_safetensors(&global, &Device::Cpu).unwrap();
                    let rng = stream(seed, "shuffle", &[client as u64, round]);
                    train(&model, samples, config, rng, &never).unwrap();
                    (model.to_safetensors().unwrap(), samples.len() as f64)
                })
                .collect();
            global = average(&global, &updates);
            let model = Model::from_safetensors(&global, &Device::Cpu).unwrap();
            evaluate(&model, &split.holdout).unwrap().accuracy
        })
        .collect()
}

#[test]
fn ten_mlp_clients_beat_each_alone() {
    threads::limit(1).unwrap();
    let (architecture, config) = (Architecture::Mlp, TrainConfig::default());
    let all = digits().unwrap();
    let split = Split::new(&all, CLIENTS, SEED).unwrap();
    let accuracies = federated(architecture, &config, &split, SEED);
    let reached = *accuracies.last().unwrap();
    let baseline = Baseline { architecture, seed: SEED, rounds: ROUNDS, config };
    let local = baseline.all_local(&split, &Device::Cpu).unwrap();
    let pooled = baseline.pooled(&all, &Device::Cpu).unwrap().holdout.accuracy;
    println!("federated {accuracies:.3?}, pooled {pooled:.3}, local {local:.3?}");
    assert!(reached >= 0.94, "federated reached {reached}");
    assert!(reached >= local.mean_accuracy + 0.1, "federated {reached}, mean local {}", local.mean_accuracy);
    assert!(reached >= local.best_accuracy, "federated {reached}, best local {}", local.best_accuracy);
    assert!(pooled >= reached - 0.02, "pooled reached {pooled}, federated {reached}");
}

#[test]
fn ten_cnn_clients_reach_the_same() {
    threads::limit(1).unwrap();
    let split = Split::new(&digits().unwrap(), CLIENTS, SEED).unwrap();
    let accuracies = federated(Architecture::Cnn, &TrainConfig::default(), &split, SEED);
    println!("federated {accuracies:.3?}");
    assert!(*accuracies.last().unwrap() >= 0.94, "{accuracies:.3?}");
}
