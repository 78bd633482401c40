//! How fast descriptors reach a runner process: through the kernel, over a Unix socket, and through a broker's process.
//!
//! `cargo run --release -p catchment-proxy --example descriptor_speed -- [rounds]`, as root, after
//! `cargo run --release -p xtask -- ebpf`.
//!
//! Every way has the same work: find the target by the route, count descriptor and payload, deliver to another process.
//! The broker is a process with a map and TCP connections over loopback to node and runner. Answers come back the way
//! that descriptors went. Short slices of all ways are measured in turn, and each figure is the median of the slices, so
//! that they can be compared although the machine may be busy with something else.

mod speed {
    pub mod broker;
    pub mod measure;
    pub mod way;
}

use speed::measure::{Figures, Station};
use speed::way::{self, Way};
use speed::{broker, measure};
use std::io;

const WAYS: [&str; 4] = ["kernel", "kernel, metered", "Unix socket", "broker"];

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("runner") => return measure::runner(&arguments[2]),
        Some("broker") => return broker::run(),
        _ => {}
    }
    let rounds = arguments.get(1).and_then(|text| text.parse().ok()).unwrap_or(20);
    for (title, cores) in [("Node and runner on one core", &[0][..]), ("On two cores", &[0, 1])] {
        way::pin(cores);
        let mut kernel = Station::new(Way::Kernel)?;
        let mut others = [Station::new(Way::Socket)?, Station::new(Way::Broker)?];
        let mut all: [Vec<Figures>; WAYS.len()] = Default::default();
        // The first round only warms up.
        for round in 0..=rounds {
            let mut figures = vec![kernel.measure()?];
            let metering = way::meter(kernel.runners())?;
            figures.push(kernel.measure()?);
            drop(metering);
            for station in &mut others {
                figures.push(station.measure()?);
            }
            if round > 0 {
                all.iter_mut().zip(figures).for_each(|(all, figures)| all.push(figures));
            }
        }
        print(title, &all.map(|rounds| Figures::median(&rounds)));
    }
    Ok(())
}

fn print(title: &str, figures: &[Figures; WAYS.len()]) {
    println!("\n{title}; in brackets, how many times what the kernel takes\n");
    println!("| | {} | {} | {} | {} | broker / kernel | metered / not |", WAYS[0], WAYS[1], WAYS[2], WAYS[3]);
    println!("|---|---|---|---|---|---|---|");
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
    for (name, value) in rows {
        let of = figures.each_ref().map(value);
        let cell = |at: usize| format!("{:.2} ({:.2})", of[at], of[at] / of[0]);
        let (broker, metered) = (of[3] / of[0], of[1] / of[0]);
        println!("| {name} | {:.2} | {} | {} | {} | {broker:.2} | {metered:.3} |", of[0], cell(1), cell(2), cell(3));
    }
}
