//! Everything at once, as the documentation shows it.

use crate::chart::{Bar, Bars, Chart, Panel};
use crate::model::Model;
use crate::{cluster, descriptors, download, fold, hop, idle, kernels, log, many, plan, round, start, waiting};
use anyhow::Result;
use std::path::PathBuf;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// A Python with `flwr` and `numpy`, to measure those beside.
    #[arg(long)]
    peers: Option<PathBuf>,
    /// Where to draw rounds and folds; the round of very many clients and the cluster go beside it, as
    /// `…-many.svg` and `…-cluster.svg`.
    #[arg(long)]
    svg: Option<PathBuf>,
}

/// Prints every table as it is ready, and draws the charts that were asked for.
pub fn all(arguments: &Arguments) -> Result<()> {
    let peers = arguments.peers.clone();
    let round = |model, clients, rounds, window, peers: Option<PathBuf>| {
        let superlink = peers.is_some();
        let report = round::run(&round::Arguments { model, clients, rounds, window, peers, superlink })?;
        println!("{}", report.table());
        anyhow::Ok(report)
    };
    let with_peers = round(Model::Resnet18, 16, 8, 16, peers)?;
    round(Model::Resnet18, 16, 8, 4, None)?;
    round(Model::Resnet152, 8, 6, 8, None)?;
    round(Model::Flat152, 8, 6, 8, None)?;
    let mut folds = Vec::new();
    for (model, updates) in [(Model::Resnet152, 16), (Model::Resnet18, 64)] {
        let report = fold::run(&fold::Arguments { model, updates, rounds: 7, small: false })?;
        println!("{}", report.table());
        folds.push(report);
    }
    if let Some(svg) = &arguments.svg {
        std::fs::write(svg, chart(&with_peers, &folds).svg())?;
    }
    for model in [Model::Resnet152, Model::Resnet18] {
        let arguments = kernels::Arguments { model, rounds: 9, threads: None, beside: None, small: false };
        println!("{}", kernels::run(&arguments)?);
    }
    println!("{}", descriptors::run(&descriptors::Arguments { rounds: 20 })?);
    println!("{}", hop::run(&hop::Arguments { rounds: 9, small: false })?);
    let beside = |what: &str| {
        let svg = arguments.svg.as_ref()?;
        Some(svg.with_file_name(format!("{}-{what}.svg", svg.file_stem()?.to_string_lossy())))
    };
    println!("{}", many::run(&many::Arguments { clients: 1000, connections: 4, slab_mib: 640, svg: beside("many") })?);
    println!("{}", download::run(&download::Arguments { model: Model::Resnet152, clients: 64, rounds: 4 })?);
    println!("{}", idle::run(&idle::Arguments { jobs: 100, seconds: 30 })?);
    println!("{}", start::run(&start::Arguments { rounds: 10, idle_seconds: 65 })?);
    println!("{}", plan::run(&plan::Arguments { runs: 15 })?);
    let writers = vec![1, 3, 8, 16];
    println!("{}", log::run(&log::Arguments { writers, clients: 16, seconds: 2.0, rounds: 5 })?);
    println!("{}", waiting::run(&waiting::Arguments { clients: 10_000, seconds: 20, rounds: 3 })?);
    let svg = beside("cluster");
    let (repeats, jobs, rounds, clients, kib, seconds) = (3, 3, 8, 12, 4096, 7.0);
    let cluster = cluster::Arguments { repeats, jobs, rounds, clients, kib, seconds, idle_seconds: 10, seed: 1, svg };
    println!("{}", cluster::run(&cluster)?);
    Ok(())
}

/// One picture of what matters: what a round takes beside others, and how near folding is to the machine's limit.
fn chart(round: &round::Report, folds: &[fold::Report]) -> Chart {
    let of_round = |title: &str, value: fn(&round::Row) -> f64| {
        let bar =
            |row: &round::Row| Bar { name: row.name.to_owned(), value: value(row), is_ours: row.name == "Catchment" };
        let title = format!("{title}: {}", round.what);
        Panel::Bars(Bars { title, digits: 2, bars: round.rows.iter().map(bar).collect(), mark: None })
    };
    let of_fold = |report: &fold::Report| {
        let mut bars = Vec::new();
        for line in &report.lines {
            let name = |what: &str| format!("{} a call, {what}", line.batch);
            let (share, with) = (report.share(line).median(), report.share_with_partial(line).median());
            bars.push(Bar { name: name("update bytes"), value: share, is_ours: true });
            bars.push(Bar { name: name("with accumulator"), value: with, is_ours: false });
        }
        let title = format!("Fold, share of the read ceiling (dashed): {}", report.name());
        Panel::Bars(Bars { title, digits: 2, bars, mark: Some(1.0) })
    };
    let mut panels = vec![
        of_round("Wall seconds of a round", |row| row.wall.median()),
        of_round("Server CPU seconds of a round", |row| row.cpu.median()),
    ];
    panels.extend(folds.iter().map(of_fold));
    Chart { title: "Catchment beside its peers and the machine's limits".to_owned(), panels }
}
