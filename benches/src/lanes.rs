//! Work as a node gives it out: cut into ranges, a few ranges an order, and lanes that take the next one.

use crate::memory::{Blocks, Update, slab_window};
use anyhow::{Context, Result};
use catchment_runner::{Blueprint, Lane, Runners, Work};
use catchment_runtime::{Call, Exact, FoldArgs, Function, Limits, MergeArgs, Rule, Runtime, RuntimeConfig};
use catchment_slab::Slab;
use catchment_types::JobUid;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Coordinates of one call, as a node cuts them.
const RANGE: u64 = 1 << 20;
/// Orders that a lane's share is cut into, as a node does.
const ORDERS_PER_LANE: usize = 4;

/// Federated averaging, and what an instance of it is made from.
pub struct FedAvg {
    /// Where it was compiled.
    pub runtime: Runtime,
    /// It, compiled.
    pub function: Function,
    /// Its instances.
    pub blueprint: Blueprint,
}

impl FedAvg {
    /// Compiles it.
    pub fn load() -> Result<Self> {
        Self::with(&wasm()?, None)
    }

    /// Compiles another build of it, for sums that are plain or exact.
    pub fn with(wasm: &[u8], exact: Option<Exact>) -> Result<Self> {
        let runtime = Runtime::new(RuntimeConfig::default())?;
        let function = runtime.load(wasm)?;
        let digest = function.digest().parse().map_err(|_| anyhow::anyhow!("a digest"))?;
        let blueprint = Blueprint {
            job: JobUid::from_bytes([1; 16]),
            function: digest,
            config: "{}".to_owned(),
            exact: exact.map(|exact| (exact.exponent, exact.weight_max)),
            limits: Limits::default(),
        };
        Ok(Self { runtime, function, blueprint })
    }

    /// Has `runners` make the calls, over so many lanes.
    pub fn run(&self, runners: &dyn Runners, lanes: usize, calls: Vec<Call<BorrowedFd<'_>>>) -> Result<()> {
        let each = calls.len().div_ceil(ORDERS_PER_LANE * lanes).max(1);
        let orders: Vec<&[Call<BorrowedFd<'_>>]> = calls.chunks(each).collect();
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        let lane = |index: usize| {
            while let Some(order) = orders.get(next.fetch_add(1, Relaxed)) {
                let lane = Lane { job: self.blueprint.job, index: index as u32 };
                let (blueprint, function) = (&self.blueprint, &self.function);
                if let Err(error) = runners.run(Work { lane, blueprint, function, calls: order.to_vec() }) {
                    failure.lock().expect("nobody panics").get_or_insert(error);
                }
            }
        };
        std::thread::scope(|scope| {
            for index in 1..lanes.min(orders.len()) {
                scope.spawn(move || lane(index));
            }
            lane(0);
        });
        failure.into_inner().expect("nobody panics").map_or(Ok(()), |error| Err(error.into()))
    }
}

/// The function's module, as `xtask functions` leaves it.
pub fn wasm() -> Result<Vec<u8>> {
    let dir = std::env::var_os("CATCHMENT_FUNCTIONS_DIR").map(PathBuf::from);
    let exe = std::env::current_exe()?;
    let beside = || exe.ancestors().map(|dir| dir.join("functions")).find(|dir| dir.join("fedavg.wasm").is_file());
    let path = dir.or_else(beside).context("fedavg.wasm is missing: run `make build`")?.join("fedavg.wasm");
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}

fn ranges(elements: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..elements).step_by(RANGE as usize).map(move |first| (first, RANGE.min(elements - first)))
}

/// The calls that fold updates into an accumulator, in one batch.
pub fn folds<'a>(updates: &'a [Update], into: &'a Blocks, elements: u64) -> Result<Vec<Call<BorrowedFd<'a>>>> {
    let call = |(first, elements)| {
        let updates: Result<Vec<_>> = updates.iter().map(|update| update.window(first, elements)).collect();
        Ok(Call::Fold(FoldArgs {
            elements,
            rule: Rule::Mean,
            acc_in: Some(into.window(false, first, elements)),
            acc_out: into.window(true, first, elements),
            updates: updates?,
        }))
    };
    ranges(elements).map(call).collect()
}

/// The calls that merge a partial into an accumulator.
pub fn merges<'a>(partial: &'a Slab, into: &'a Blocks, elements: u64) -> Result<Vec<Call<BorrowedFd<'a>>>> {
    let call = |(first, elements)| {
        Ok(Call::Merge(MergeArgs {
            elements,
            rule: Rule::Mean,
            acc_in: Some(into.window(false, first, elements)),
            acc_out: into.window(true, first, elements),
            partials: vec![slab_window(partial, first, elements, 8)?],
        }))
    };
    ranges(elements).map(call).collect()
}
