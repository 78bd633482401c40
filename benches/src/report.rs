//! Everything at once, as the documentation shows it.

use crate::model::Model;
use crate::{download, idle, round};
use anyhow::Result;

/// Prints every table as it is ready.
pub fn all() -> Result<()> {
    let rounds = [
        round::Arguments { model: Model::Resnet18, clients: 16, rounds: 6, window: 16 },
        round::Arguments { model: Model::Resnet18, clients: 16, rounds: 6, window: 4 },
        round::Arguments { model: Model::Resnet152, clients: 8, rounds: 4, window: 8 },
        round::Arguments { model: Model::Flat152, clients: 8, rounds: 4, window: 8 },
    ];
    for arguments in rounds {
        println!("{}", round::run(&arguments)?);
    }
    println!("{}", download::run(&download::Arguments { model: Model::Resnet152, clients: 64, rounds: 4 })?);
    println!("{}", idle::run(&idle::Arguments { jobs: 100, seconds: 30 })?);
    Ok(())
}
