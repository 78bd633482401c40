//! What is asked of a runner, and what it says.

use catchment_runtime::{Call, Exact, Function, FunctionError, HostError, Limits, Reply};
use catchment_types::{Descriptor, Digest, FunctionId, JobUid, Kind, SlabId};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// What an instance is made from. Two jobs never share one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Blueprint {
    /// The job.
    pub job: JobUid,
    /// The function.
    pub function: Digest,
    /// The job's configuration of it, as JSON.
    pub config: String,
    /// How sums are rounded, when they are exact: [`Exact`]'s exponent and largest weight.
    pub exact: Option<(i32, f64)>,
    /// What an instance may use.
    pub limits: Limits,
}

impl Blueprint {
    pub(crate) fn exact(&self) -> Option<Exact> {
        self.exact.map(|(exponent, weight_max)| Exact { exponent, weight_max })
    }
}

/// One line of work of a job: its orders follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lane {
    /// The job.
    pub job: JobUid,
    /// Which of its lanes.
    pub index: u32,
}

impl Lane {
    /// What descriptors are routed by.
    pub fn route(self) -> FunctionId {
        let digest = blake3::hash(&[&self.job.as_bytes()[..], &self.index.to_le_bytes()].concat());
        FunctionId::of(&digest.into())
    }
}

/// Calls to be made, on one instance, one after the other.
#[derive(Debug, Clone)]
pub struct Work<'a> {
    /// Who asks.
    pub lane: Lane,
    /// The instance.
    pub blueprint: &'a Blueprint,
    /// Its function.
    pub function: &'a Function,
    /// The calls.
    pub calls: Vec<Call<BorrowedFd<'a>>>,
}

/// What came of work.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {
    /// What each call gave.
    pub replies: Vec<Reply>,
    /// CPU time of the calls.
    pub cpu: Duration,
    /// How long making the instance took, if there was none.
    pub cold_start: Option<Duration>,
    /// How long the work waited for a runner.
    pub waited: Duration,
}

/// Work in a form that travels: calls name files by their place in a list.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub blueprint: Blueprint,
    pub calls: Vec<Call<u32>>,
}

impl Order {
    /// Writes work down, with the files that it needs.
    pub fn of<'a>(work: Work<'a>) -> Result<(Self, Vec<OwnedFd>), FunctionError> {
        let mut files: Vec<BorrowedFd<'a>> = Vec::new();
        let mut index = |file: BorrowedFd<'a>| {
            let known = files.iter().rposition(|other| other.as_raw_fd() == file.as_raw_fd());
            Ok::<_, FunctionError>(known.unwrap_or_else(|| {
                files.push(file);
                files.len() - 1
            }) as u32)
        };
        let calls = work.calls.into_iter().map(|call| call.try_map(&mut index)).collect::<Result<_, _>>()?;
        let owned = files.iter().map(|file| file.try_clone_to_owned()).collect::<Result<_, _>>();
        let owned = owned.map_err(|error| HostError::argument_of("the files of a call", error))?;
        Ok((Self { blueprint: work.blueprint.clone(), calls }, owned))
    }

    /// The calls, over these files.
    pub fn calls<'a>(self, files: &'a [OwnedFd]) -> Result<Vec<Call<BorrowedFd<'a>>>, FunctionError> {
        use std::os::fd::AsFd;
        let mut file = |index: u32| {
            let file = files.get(index as usize).map(AsFd::as_fd);
            file.ok_or_else(|| HostError::argument_of("an order", format!("it has no file {index}")).into())
        };
        self.calls.into_iter().map(|call| call.try_map(&mut file)).collect()
    }

    /// Bytes that the calls read, as descriptors count them.
    pub fn payload_bytes(&self) -> u64 {
        let of_call = |call: &Call<u32>| match call {
            Call::Fold(args) => args.updates.iter().map(|update| update.window.len_bytes).sum(),
            Call::Merge(args) => args.partials.iter().map(|window| window.len_bytes).sum(),
            Call::Finalize(args) => args.partial.len_bytes,
            Call::Combine(args) => args.updates.iter().map(|update| update.window.len_bytes).sum(),
            Call::Measure(args) => args.updates.iter().map(|update| update.window.len_bytes).sum(),
            Call::Choose(args) => args.sums.len_bytes,
            Call::Make(args) => args.updates.iter().map(|update| update.window.len_bytes).sum(),
            Call::Scalars { .. } => 0,
        };
        self.calls.iter().map(of_call).sum::<u64>()
    }

    /// The hint that it is there.
    pub fn descriptor(&self, lane: Lane, number: u64) -> Descriptor {
        Descriptor {
            function: lane.route(),
            job: lane.job,
            round: number,
            slab: SlabId::from_u64(0),
            offset: 0,
            kind: Kind::Order,
            length: self.payload_bytes(),
            weight: self.calls.len() as f64,
        }
    }
}
