//! What the program understands.

use candle_core::Device;
use catchment_types::{ClientId, Name};
use catchment_worker::model::Architecture;
use catchment_worker::train::TrainConfig;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Trains a model on handwritten digits as one client of a Catchment job.
///
/// The data is the UCI handwritten digits (1,797 images of 8×8 pixels), carried in the program. A random fifth is
/// held out for measuring; the rest is divided among the clients so that each has mostly a few of the ten digits.
/// Everything random follows from --seed: workers and baselines with the same seed see the same division.
///
/// Exit status: 0 done, 1 failed, 2 wrong arguments, 3 the server could not be reached, 4 the job failed,
/// 130 or 143 interrupted by SIGINT or SIGTERM.
#[derive(Debug, Parser)]
#[command(name = "catchment-worker", version, max_term_width = 100)]
pub struct Cli {
    /// How results are printed: text for people, json as one object a line.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Threads for the arithmetic. One is best for models this small.
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a fresh model as a safetensors file, for `catchment model put`.
    Init(Init),
    /// Take part in a job until it is over.
    Train(Train),
    /// Measure a model file on the digits that no client saw.
    Evaluate(Evaluate),
    /// Train without federation, for comparison: same model, seed, rounds and epochs.
    #[command(subcommand)]
    Baseline(Baseline),
}

#[derive(Debug, Args)]
pub struct Init {
    /// The network: mlp (64-64-10) or cnn (two 3×3 convolutions and a linear layer).
    #[arg(long, value_enum, default_value_t = ModelName::Mlp)]
    pub model: ModelName,
    /// Seed of the initial weights.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Where to write; an existing file is replaced.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

#[derive(Debug, Args)]
pub struct Train {
    /// The server.
    #[arg(long, env = "CATCHMENT_URL", default_value = "http://127.0.0.1:7070")]
    pub url: String,
    /// The job.
    #[arg(long)]
    pub job: Name,
    /// The job's namespace.
    #[arg(long, default_value = "default")]
    pub namespace: Name,
    /// This client's name [default: client-INDEX].
    #[arg(long, value_name = "ID")]
    pub client: Option<ClientId>,
    /// Which share of the digits this client holds, from 0.
    #[arg(long)]
    pub index: usize,
    /// Among how many clients the digits are divided.
    #[arg(long)]
    pub clients: usize,
    /// Seed of the division and of the shuffling.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Refuse a job that trains another network [default: what the job's model is].
    #[arg(long, value_enum)]
    pub model: Option<ModelName>,
    /// Where to train; cuda needs a program built with `--features cuda`.
    #[arg(long, value_enum, default_value_t = DeviceName::Cpu)]
    pub device: DeviceName,
    /// How many seconds a call is repeated while the server is away or has no room.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub patience: u64,
}

#[derive(Debug, Args)]
pub struct Evaluate {
    /// The safetensors file.
    #[arg(long, value_name = "FILE")]
    pub model_file: PathBuf,
    /// Seed of the division, which decides what is held out.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = DeviceName::Cpu)]
    pub device: DeviceName,
}

#[derive(Debug, Subcommand)]
pub enum Baseline {
    /// Each client trains alone on its share.
    Local {
        /// Only this client [default: all of them, with mean and best].
        #[arg(long)]
        index: Option<usize>,
        /// Among how many clients the digits are divided.
        #[arg(long)]
        clients: usize,
        #[command(flatten)]
        run: Run,
    },
    /// One model trains on what all clients hold together.
    Pooled {
        #[command(flatten)]
        run: Run,
    },
}

#[derive(Debug, Clone, Copy, Args)]
pub struct Run {
    /// The network.
    #[arg(long, value_enum, default_value_t = ModelName::Mlp)]
    pub model: ModelName,
    /// Seed of the division, the initial weights and the shuffling.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Rounds of the federated job; it trains rounds × local epochs.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub rounds: u64,
    /// Epochs a client trains in one round.
    #[arg(long, default_value_t = TrainConfig::default().local_epochs)]
    pub local_epochs: u32,
    /// Step size of SGD.
    #[arg(long, default_value_t = TrainConfig::default().learning_rate)]
    pub learning_rate: f64,
    /// Samples of one step.
    #[arg(long, default_value_t = TrainConfig::default().batch_size)]
    pub batch_size: usize,
    /// Momentum of SGD, begun anew in every round.
    #[arg(long, default_value_t = TrainConfig::default().momentum)]
    pub momentum: f64,
    /// Where to train.
    #[arg(long, value_enum, default_value_t = DeviceName::Cpu)]
    pub device: DeviceName,
}

impl Run {
    /// How each round trains.
    pub fn config(&self) -> TrainConfig {
        TrainConfig {
            local_epochs: self.local_epochs,
            learning_rate: self.learning_rate,
            batch_size: self.batch_size,
            momentum: self.momentum,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModelName {
    Mlp,
    Cnn,
}

impl From<ModelName> for Architecture {
    fn from(name: ModelName) -> Self {
        match name {
            ModelName::Mlp => Self::Mlp,
            ModelName::Cnn => Self::Cnn,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceName {
    Cpu,
    Cuda,
}

impl DeviceName {
    /// The device, if this program and this machine have it.
    pub fn open(self) -> anyhow::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => Device::new_cuda(0).map_err(|error| {
                anyhow::anyhow!("open the GPU: {error}; the program needs `cargo build --features cuda` and a driver")
            }),
        }
    }
}
