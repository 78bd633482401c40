//! The arguments of calls, and how they become records and windows.

use crate::codes;
use crate::error::HostError;
use crate::place::{self, Area};
use crate::sandbox::{Access, Mapping, identify};
use catchment_sdk::abi::{self, BATCH_MAX, FinalizeCall, FoldCall, MergeCall, UpdateRef};
use catchment_sdk::{Dtype, Kind, Rule};
use serde::{Deserialize, Serialize};
use std::os::fd::BorrowedFd;

/// A range of bytes of a file in shared memory. `F` is the file: a descriptor when a call is made, and whatever stands
/// for one (an index, say) while a call is on its way to another process.
///
/// For the time of a call it is visible to the guest. Who owns the file must not shorten it meanwhile, and must not
/// hold Rust references to bytes the guest may write. Mapping works in whole pages: a guest can also read the
/// neighbours on a window's first and last page (and write them, next to an output), so what shares a page must belong
/// to one job.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Window<F> {
    /// The file: a memfd or a file on a tmpfs. Open for reading, and for writing too when it is an output.
    pub file: F,
    /// First byte: a multiple of 8.
    pub offset_bytes: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// A window of numbers of one dtype.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TypedWindow<F> {
    /// Where they are.
    pub window: Window<F>,
    /// What they are.
    #[serde(with = "codes::dtype")]
    pub dtype: Dtype,
}

/// One update of a fold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct UpdateWindow<F> {
    /// Its numbers.
    pub window: Window<F>,
    /// Their dtype.
    #[serde(with = "codes::dtype")]
    pub dtype: Dtype,
    /// Its weight: finite and positive.
    pub weight: f64,
    /// Training examples behind it: finite, not negative.
    pub num_samples: f64,
    /// How many rounds old its base model is.
    pub staleness: u32,
}

/// Arguments of a fold over one range of coordinates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FoldArgs<F> {
    /// Coordinates in the range; every window holds as many numbers.
    pub elements: u64,
    /// What the spec asks of the tensor.
    #[serde(with = "codes::rule")]
    pub rule: Rule,
    /// The partial so far, as `f64` (in exact sums as `i64`, here and below); `None` at first.
    pub acc_in: Option<Window<F>>,
    /// Where the new partial goes, as `f64`. It must not overlap any other window.
    pub acc_out: Window<F>,
    /// 1 to 16 updates.
    pub updates: Vec<UpdateWindow<F>>,
}

/// Arguments of a merge over one range of coordinates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergeArgs<F> {
    /// Coordinates in the range; every window holds as many `f64`.
    pub elements: u64,
    /// What the spec asks of the tensor.
    #[serde(with = "codes::rule")]
    pub rule: Rule,
    /// The partial so far, if any.
    pub acc_in: Option<Window<F>>,
    /// Where the joint partial goes. It must not overlap any other window.
    pub acc_out: Window<F>,
    /// 1 to 16 partials.
    pub partials: Vec<Window<F>>,
}

/// Arguments of a finalise over one range of coordinates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinalizeArgs<F> {
    /// Coordinates in the range.
    pub elements: u64,
    /// What the spec asks of the tensor.
    #[serde(with = "codes::rule")]
    pub rule: Rule,
    /// What the updates were.
    #[serde(with = "codes::kind")]
    pub kind: Kind,
    /// The partial of all updates, as `f64`.
    pub partial: Window<F>,
    /// The model before the round.
    pub previous: Option<TypedWindow<F>>,
    /// Where the new model goes. It must not overlap any other window.
    pub out: TypedWindow<F>,
    /// Sum of the updates' weights.
    pub total_weight: f64,
    /// Updates in the partial.
    pub updates: u64,
    /// The round's seed.
    pub seed: u64,
}

/// What a call took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallStats {
    /// CPU time of the calling thread, mapping and page faults included.
    pub cpu_ns: u64,
    /// Time from start to end.
    pub wall_ns: u64,
}

/// A call's record and windows, checked.
pub struct Planned<'a, Record> {
    pub record: Record,
    pub mappings: Vec<Mapping<'a>>,
}

/// Collects the windows of one call.
pub struct Plan<'a> {
    elements: u64,
    windows: Vec<(String, Window<BorrowedFd<'a>>, Access)>,
}

impl<'a> Plan<'a> {
    pub fn new(elements: u64) -> Result<Self, HostError> {
        if elements == 0 || elements > u64::from(u32::MAX) {
            return Err(HostError::argument("elements", format!("{elements}; a call covers 1 to 2^32 − 1")));
        }
        Ok(Self { elements, windows: Vec::with_capacity(BATCH_MAX + 2) })
    }

    /// Adds a window that must hold so many numbers of this dtype. Returns its number.
    fn add(
        &mut self,
        what: String,
        window: Window<BorrowedFd<'a>>,
        elements: u64,
        dtype: Dtype,
        access: Access,
    ) -> Result<usize, HostError> {
        let expected = elements * dtype.bytes() as u64;
        if window.len_bytes != expected {
            let reason =
                format!("{} bytes; {elements} numbers of {} take {expected}", window.len_bytes, dtype.as_str());
            return Err(HostError::argument(what, reason));
        }
        self.windows.push((what, window, access));
        Ok(self.windows.len() - 1)
    }

    pub fn read(
        &mut self,
        what: impl ToString,
        window: Window<BorrowedFd<'a>>,
        dtype: Dtype,
    ) -> Result<usize, HostError> {
        self.add(what.to_string(), window, self.elements, dtype, Access::Read)
    }

    /// Adds a window of any length.
    pub fn read_bytes(&mut self, what: impl ToString, window: Window<BorrowedFd<'a>>) -> Result<usize, HostError> {
        self.add(what.to_string(), window, window.len_bytes, Dtype::U8, Access::Read)
    }

    pub fn write(
        &mut self,
        what: impl ToString,
        window: Window<BorrowedFd<'a>>,
        dtype: Dtype,
    ) -> Result<usize, HostError> {
        self.write_of(what, window, self.elements, dtype)
    }

    /// Adds a window that must hold another number of elements.
    pub fn write_of(
        &mut self,
        what: impl ToString,
        window: Window<BorrowedFd<'a>>,
        elements: u64,
        dtype: Dtype,
    ) -> Result<usize, HostError> {
        self.add(what.to_string(), window, elements, dtype, Access::ReadWrite)
    }

    pub fn place(self, area: Area) -> Result<Vec<Mapping<'a>>, HostError> {
        self.check_files()?;
        let places = place::place(area, self.windows.iter().map(|(_, w, _)| (w.offset_bytes, w.len_bytes)))?;
        let mappings = self.windows.into_iter().zip(places);
        Ok(mappings.map(|((what, w, access), place)| Mapping { fd: w.file, place, access, what }).collect())
    }

    /// Every window lies within its file, and none shares a byte with one that is written.
    fn check_files(&self) -> Result<(), HostError> {
        let mut files = Vec::with_capacity(self.windows.len());
        for (what, window, _) in &self.windows {
            let (len, file) = identify(window.file).map_err(|error| HostError::argument(what, error))?;
            if window.offset_bytes.checked_add(window.len_bytes).is_none_or(|end| end > len) {
                let reason = format!("bytes {}..+{} of a file of {len}", window.offset_bytes, window.len_bytes);
                return Err(HostError::argument(what, reason));
            }
            files.push(file);
        }
        for (i, (what, written, access)) in self.windows.iter().enumerate() {
            if *access == Access::Read {
                continue;
            }
            let end = written.offset_bytes + written.len_bytes;
            for (k, (other_what, other, _)) in self.windows.iter().enumerate() {
                let other_end = other.offset_bytes + other.len_bytes;
                let apart = end <= other.offset_bytes || other_end <= written.offset_bytes;
                if i != k && files[i] == files[k] && !apart {
                    return Err(HostError::argument(what, format!("it overlaps {other_what}")));
                }
            }
        }
        Ok(())
    }
}

fn batch(what: &'static str, count: usize) -> Result<u32, HostError> {
    match count {
        1..=BATCH_MAX => Ok(count as u32),
        _ => Err(HostError::argument(what, format!("{count}; a call takes 1 to {BATCH_MAX}"))),
    }
}

impl<F> UpdateWindow<F> {
    /// Its record, once it is mapped.
    pub(crate) fn record(&self, address: u32) -> UpdateRef {
        UpdateRef {
            address,
            dtype: self.dtype as u32,
            staleness: self.staleness,
            reserved: 0,
            weight: self.weight,
            num_samples: self.num_samples,
        }
    }
}

impl<'a> FoldArgs<BorrowedFd<'a>> {
    pub(crate) fn plan(&self, area: Area) -> Result<Planned<'a, FoldCall>, HostError> {
        let count = batch("updates", self.updates.len())?;
        let mut plan = Plan::new(self.elements)?;
        for (i, update) in self.updates.iter().enumerate() {
            if !(update.weight.is_finite() && update.weight > 0.0) {
                return Err(HostError::argument(format!("update {i}"), format!("weight {}", update.weight)));
            }
            plan.read(format!("update {i}"), update.window, update.dtype)?;
        }
        let acc_in = self.acc_in.map(|window| plan.read("acc_in", window, Dtype::F64)).transpose()?;
        let acc_out = plan.write("acc_out", self.acc_out, Dtype::F64)?;
        let mappings = plan.place(area)?;
        let mut record = FoldCall {
            elements: self.elements as u32,
            rule: abi::rule_code(self.rule),
            acc_in: acc_in.map_or(0, |i| mappings[i].place.guest),
            acc_out: mappings[acc_out].place.guest,
            updates: count,
            ..FoldCall::default()
        };
        for ((to, update), mapping) in record.update.iter_mut().zip(&self.updates).zip(&mappings) {
            *to = update.record(mapping.place.guest);
        }
        Ok(Planned { record, mappings })
    }
}

impl<'a> MergeArgs<BorrowedFd<'a>> {
    pub(crate) fn plan(&self, area: Area) -> Result<Planned<'a, MergeCall>, HostError> {
        let count = batch("partials", self.partials.len())?;
        let mut plan = Plan::new(self.elements)?;
        for (i, window) in self.partials.iter().enumerate() {
            plan.read(format!("partial {i}"), *window, Dtype::F64)?;
        }
        let acc_in = self.acc_in.map(|window| plan.read("acc_in", window, Dtype::F64)).transpose()?;
        let acc_out = plan.write("acc_out", self.acc_out, Dtype::F64)?;
        let mappings = plan.place(area)?;
        let mut record = MergeCall {
            elements: self.elements as u32,
            rule: abi::rule_code(self.rule),
            acc_in: acc_in.map_or(0, |i| mappings[i].place.guest),
            acc_out: mappings[acc_out].place.guest,
            partials: count,
            ..MergeCall::default()
        };
        for (to, mapping) in record.partial[..self.partials.len()].iter_mut().zip(&mappings) {
            *to = mapping.place.guest;
        }
        Ok(Planned { record, mappings })
    }
}

impl<'a> FinalizeArgs<BorrowedFd<'a>> {
    pub(crate) fn plan(&self, area: Area) -> Result<Planned<'a, FinalizeCall>, HostError> {
        let mut plan = Plan::new(self.elements)?;
        let partial = plan.read("partial", self.partial, Dtype::F64)?;
        let previous = self.previous.map(|p| plan.read("previous", p.window, p.dtype)).transpose()?;
        let out = plan.write("out", self.out.window, self.out.dtype)?;
        let mappings = plan.place(area)?;
        let record = FinalizeCall {
            elements: self.elements as u32,
            rule: abi::rule_code(self.rule),
            kind: abi::kind_code(self.kind),
            partial: mappings[partial].place.guest,
            previous: previous.map_or(0, |i| mappings[i].place.guest),
            previous_dtype: self.previous.map_or(0, |p| p.dtype as u32),
            out: mappings[out].place.guest,
            out_dtype: self.out.dtype as u32,
            total_weight: self.total_weight,
            updates: self.updates,
            seed: self.seed,
        };
        Ok(Planned { record, mappings })
    }
}
