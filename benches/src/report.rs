//! Everything at once, as the documentation shows it.

use crate::model::Model;
use crate::{download, idle, round};
use anyhow::Result;
use std::path::Path;

/// Prints every table as it is ready; with `peers`, a Python that has `flwr`, the peers too.
pub fn all(peers: Option<&Path>) -> Result<()> {
    let rounds = [
        (Model::Resnet18, 16, 6, 16, peers),
        (Model::Resnet18, 16, 6, 4, None),
        (Model::Resnet152, 8, 4, 8, None),
        (Model::Flat152, 8, 4, 8, None),
    ];
    for (model, clients, rounds, window, peers) in rounds {
        let arguments = round::Arguments { model, clients, rounds, window, peers: peers.map(Path::to_path_buf) };
        println!("{}", round::run(&arguments)?);
    }
    println!("{}", download::run(&download::Arguments { model: Model::Resnet152, clients: 64, rounds: 4 })?);
    println!("{}", idle::run(&idle::Arguments { jobs: 100, seconds: 30 })?);
    Ok(())
}
