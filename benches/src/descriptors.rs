//! How fast descriptors reach a runner process: through the kernel, over a Unix socket, and through a broker's process.
//!
//! Every way has the same work: find the target by the route, count descriptor and payload, deliver to another process.
//! The broker is a process with a map and TCP connections over loopback to node and runner. Answers come back the way
//! that descriptors went. Short slices of all ways are measured in turn, and each figure is the median of the slices, so
//! that they can be compared although the machine may be busy with something else.

mod broker;
mod measure;
mod way;

use anyhow::Result;
use measure::{Figures, Station};
use std::fmt::Write;
use way::Way;

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Arguments {
    /// How often each way is measured.
    #[arg(long, default_value_t = 20)]
    pub rounds: usize,
}

/// What a process beside this one is to be.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Role {
    /// One that takes descriptors.
    Runner {
        /// What it does with them.
        mode: measure::Mode,
    },
    /// One that passes them on.
    Broker,
}

/// Is that process.
pub fn child(role: &Role) -> Result<()> {
    match role {
        Role::Runner { mode } => measure::runner(*mode)?,
        Role::Broker => broker::run()?,
    }
    Ok(())
}

/// One way, and what was measured of it.
struct Column {
    name: &'static str,
    rounds: Vec<Figures>,
}

/// Measures and makes Markdown tables. Where the kernel program may not be loaded, they are of the others alone.
pub fn run(arguments: &Arguments) -> Result<String> {
    let mut tables = String::new();
    let before = rustix::thread::sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| before.is_set(*core)).take(2).collect();
    if let Err(why) = way::permitted() {
        writeln!(tables, "The kernel's way is missing here: {why}\n")?;
    }
    let (first, second) = (&cores[..1], &cores[1..]);
    // What is started inherits the cores of who starts it.
    let places = [
        ("Node and runner on one core", first, first),
        ("Node on one core, runner (and broker) on another", second, first),
        ("On two cores, wherever the scheduler puts them", &cores[..], &cores[..]),
    ];
    for (title, runners, node) in &places[..if second.is_empty() { 1 } else { places.len() }] {
        let columns = measured(arguments.rounds, runners, node);
        rustix::thread::sched_setaffinity(None, &before)?;
        table(&mut tables, title, arguments.rounds, &columns?);
    }
    Ok(tables)
}

fn measured(rounds: usize, runners: &[usize], node: &[usize]) -> Result<Vec<Column>> {
    way::pin(runners)?;
    let mut kernel = way::permitted().is_ok().then(|| Station::new(Way::Kernel)).transpose()?;
    let mut others = [Station::new(Way::Socket)?, Station::new(Way::Broker)?];
    way::pin(node)?;
    let names = kernel.iter().flat_map(|_| ["kernel", "kernel, metered"]).chain(["Unix socket", "broker"]);
    let mut columns: Vec<Column> = names.map(|name| Column { name, rounds: Vec::new() }).collect();
    // The first round only warms up.
    for round in 0..=rounds {
        let mut figures = Vec::new();
        if let Some(kernel) = &mut kernel {
            figures.push(kernel.measure()?);
            let metering = way::meter(kernel.runners())?;
            figures.push(kernel.measure()?);
            drop(metering);
        }
        for station in &mut others {
            figures.push(station.measure()?);
        }
        if round > 0 {
            columns.iter_mut().zip(figures).for_each(|(column, figures)| column.rounds.push(figures));
        }
    }
    Ok(columns)
}

fn table(to: &mut String, title: &str, rounds: usize, columns: &[Column]) {
    type Row = (&'static str, fn(&Figures) -> f64);
    let rows: [Row; 8] = [
        ("round trip, µs", |figures| figures.trip_us),
        ("its 99th percentile, µs", |figures| figures.trip_99_us),
        ("CPU of a round trip, µs", |figures| figures.trip_cpu_us),
        ("one way, µs each", |figures| 1e6 / figures.rate),
        ("CPU of one, µs", |figures| figures.rate_cpu_us),
        ("one way, 16 a write, µs each", |figures| 1e6 / figures.batch_rate),
        ("CPU of one, µs", |figures| figures.batch_cpu_us),
        ("one way with 200 µs of work, µs each", |figures| 1e6 / figures.work_rate),
    ];
    let mut lines = format!(
        "Descriptors. {title}; medians of {rounds} rounds, in brackets how many times the first way's\n\n| |{}\n|---|{}\n",
        columns.iter().map(|column| format!(" {} |", column.name)).collect::<String>(),
        "---|".repeat(columns.len()),
    );
    for (name, figure) in rows {
        let medians = columns.iter().map(|column| crate::observe::median(column.rounds.iter().map(figure)));
        let medians: Vec<f64> = medians.collect();
        let cells = medians.iter().map(|median| format!(" {median:.2} ({:.2}) |", median / medians[0]));
        writeln!(lines, "| {name} |{}", cells.collect::<String>()).expect("a string grows");
    }
    to.push_str(&lines);
    to.push('\n');
}
