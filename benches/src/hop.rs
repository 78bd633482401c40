//! A hop inside a node: from an update that lies in memory to a fold that is finished, in another process.
//!
//! By order: the payload stays where it is. Beside it the same payload is sent, in gRPC's framing over loopback TCP and
//! through a NATS server, to a process that folds it natively. Everything is measured to the finished fold.

mod peer;
mod transport;

pub use peer::{Arguments as PeerArguments, child};

use crate::fold::number;
use crate::lanes::{FedAvg, folds, merges};
use crate::memory::{Blocks, Memory, Update};
use crate::model::Model;
use crate::observe::Series;
use crate::platform::binary;
use anyhow::Result;
use catchment_proxy::{Mode, Options};
use catchment_runner::{InProcess, Processes, ProcessesConfig, Runners, Setup};
use catchment_runtime::{Dtype, RuntimeConfig};
use catchment_slab::SlabStore;
use peer::Peer;
use std::fmt::Write;
use std::time::{Duration, Instant};
use transport::Nats;

/// What to measure.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Arguments {
    /// How often each case is measured.
    #[arg(long, default_value_t = 9)]
    pub rounds: usize,
    /// Tiny payloads only.
    #[arg(long)]
    pub small: bool,
}

/// One payload.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    elements: usize,
    batch: usize,
    partials: bool,
}

/// In the place of what the kernel link takes, where it may not be used.
const NOT_HERE: &str = "not permitted";
/// Numbers of the least fold: half a page.
const TINY: usize = 512;

/// Measures and makes Markdown tables.
pub fn run(arguments: &Arguments) -> Result<String> {
    let (resnet18, resnet152) = (Model::Resnet18.elements() as usize, Model::Resnet152.elements() as usize);
    let case = |name, elements, batch, partials| Case { name, elements, batch, partials };
    let mut cases = vec![
        case("one update of 45 MB", resnet18, 1, false),
        case("16 updates of 45 MB, one batch", resnet18, 16, false),
        case("partial of that model, 90 MB", resnet18, 1, true),
        case("one update of 233 MB", resnet152, 1, false),
        case("4 updates of 233 MB, one batch", resnet152, 4, false),
        case("partial of that model, 466 MB", resnet152, 1, true),
    ];
    if arguments.small {
        cases = vec![case("small update", 100_000, 1, false), case("small partial", 100_000, 1, true)];
    }
    let fedavg = FedAvg::load()?;
    let nats = Nats::start()?;
    let mut table = format!(
        "A hop, to the finished fold, ms, medians (least–most) of {} rounds\n\n\
         | | order to a runner process | over the kernel link | in this process | TCP, gRPC framing | NATS | folding alone, native | TCP : order | NATS : order |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        arguments.rounds
    );
    for case in cases {
        let taken = measure(&fedavg, &nats, case, arguments.rounds, 1)?;
        let ms = |series: &Series| series.map(|s| s * 1e3).show(1);
        writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} | {} | **{}** | **{}** |",
            case.name,
            ms(&taken.order),
            taken.kernel.as_ref().map_or(NOT_HERE.to_owned(), ms),
            ms(&taken.here),
            ms(&taken.tcp),
            ms(&taken.nats),
            ms(&taken.alone),
            taken.tcp.over(&taken.order).show(1),
            taken.nats.over(&taken.order).show(1),
        )?;
    }
    let tiny = Case { name: "", elements: TINY, batch: 1, partials: false };
    let taken = measure(&fedavg, &nats, tiny, if arguments.small { 5 } else { 50 }, 100)?;
    let us = |series: &Series| series.map(|s| s * 1e6).show(1);
    writeln!(
        table,
        "\nThe bare round trip, µs: an order with a fold of {TINY} numbers, or those 2 kB sent, until the fold is answered; medians (least–most) of series of 100\n\n\
         | order to a runner process | over the kernel link | in this process | TCP | NATS |\n|---|---|---|---|---|\n\
         | {} | {} | {} | {} | {} |",
        us(&taken.order),
        taken.kernel.as_ref().map_or(NOT_HERE.to_owned(), us),
        us(&taken.here),
        us(&taken.tcp),
        us(&taken.nats)
    )?;
    Ok(table)
}

#[derive(Default)]
struct Taken {
    order: Series,
    /// Where the kernel may route.
    kernel: Option<Series>,
    here: Series,
    tcp: Series,
    nats: Series,
    alone: Series,
}

/// Measures one payload, each way in turn; a figure is the mean of `times` in a row.
fn measure(fedavg: &FedAvg, nats: &Nats, case: Case, rounds: usize, times: usize) -> Result<Taken> {
    let Case { elements, batch, partials, .. } = case;
    let width = if partials { 8 } else { 4 };
    let each = (batch as u64 * width + 16) * elements as u64;
    let memory = Memory::open(each + 16 * elements as u64 + (64 << 20), 2 * each)?;
    let mut updates: Vec<Update> = Vec::new();
    for _ in 0..batch {
        let slab = match (updates.first().map(Update::bytes), partials) {
            (Some(first), _) => memory.copy(first?)?,
            (None, true) => memory.numbers(elements, |i| f64::from(number(i)))?,
            (None, false) => memory.numbers(elements, number)?,
        };
        updates.push(Update { slab, weight: 0.5, dtype: Dtype::F32 });
    }
    let payload = updates.iter().map(Update::bytes).collect::<Result<Vec<_>>>()?;
    let lanes = std::thread::available_parallelism()?.get();
    let by_socket = processes(memory.store(), lanes as u32, Mode::Off)?;
    let by_kernel = kernel_routes().then(|| processes(memory.store(), lanes as u32, Mode::On)).transpose()?;
    let here = InProcess::default();
    let mut sums = [memory.blocks(elements)?, memory.blocks(elements)?];
    let arguments = |nats| PeerArguments { elements, batch, partials, nats };
    let mut tcp = Peer::start(&arguments(None))?;
    let mut by_nats = Peer::start(&arguments(Some(nats.address.clone())))?;
    let mut taken = Taken { kernel: by_kernel.as_ref().map(|_| Series::default()), ..Taken::default() };
    for round in 0..=rounds {
        let mean = |run: &mut dyn FnMut() -> Result<()>| {
            let begun = Instant::now();
            for _ in 0..times {
                run()?;
            }
            anyhow::Ok(begun.elapsed().as_secs_f64() / times as f64)
        };
        let [first, second] = &mut sums;
        let order = mean(&mut || by_order(fedavg, &by_socket, &updates, first, case, lanes))?;
        let mut alone = 0.0;
        let sent = mean(&mut || tcp.fold(&payload).map(|seconds| alone = seconds))?;
        let routed =
            by_kernel.as_ref().map(|processes| mean(&mut || by_order(fedavg, processes, &updates, first, case, lanes)));
        let routed = routed.transpose()?;
        let inside = mean(&mut || by_order(fedavg, &here, &updates, second, case, lanes))?;
        let published = mean(&mut || by_nats.fold(&payload).map(drop))?;
        // The first round makes instances and touches memory.
        if round > 0 {
            taken.order.push(order);
            taken.kernel.iter_mut().zip(routed).for_each(|(kernel, routed)| kernel.push(routed));
            taken.here.push(inside);
            taken.tcp.push(sent);
            taken.nats.push(published);
            taken.alone.push(alone);
        }
    }
    Ok(taken)
}

fn by_order(
    fedavg: &FedAvg,
    runners: &dyn Runners,
    updates: &[Update],
    sum: &mut Blocks,
    case: Case,
    lanes: usize,
) -> Result<()> {
    let calls = match case.partials {
        true => merges(&updates[0].slab, sum, case.elements as u64)?,
        false => folds(updates, sum, case.elements as u64)?,
    };
    fedavg.run(runners, lanes, calls)?;
    sum.flip();
    Ok(())
}

/// Whether the kernel may route descriptors here.
fn kernel_routes() -> bool {
    catchment_proxy::open(Mode::On, &Options { metering: false, ..Options::default() }).is_ok()
}

/// One runner process with a thread a lane, as `catchment up --runners 1` starts it.
pub fn processes(store: &SlabStore, workers: u32, mode: Mode) -> Result<Processes> {
    let link = catchment_proxy::open(mode, &Options::default())?;
    let nobody = rustix::process::geteuid().is_root().then_some((65_534, 65_534));
    let config = ProcessesConfig {
        program: binary()?,
        arguments: vec!["runner".into()],
        count: 1,
        setup: Setup { workers, runtime: RuntimeConfig::default(), user: nobody },
        once: vec![],
        lock: store.lock()?,
        patience: Duration::from_secs(10),
    };
    Ok(Processes::start(config, link)?)
}
