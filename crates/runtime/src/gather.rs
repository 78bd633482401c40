//! The arguments of calls that take a whole round, and how they become records, tables and windows.

use crate::call::{Plan, Planned, TypedWindow, UpdateWindow, Window};
use crate::codes;
use crate::error::HostError;
use crate::place::Area;
use catchment_sdk::abi::{self, ChooseCall, CombineCall, MakeCall, MeasureCall, TensorRef, UPDATES_MAX, UpdateRef};
use catchment_sdk::{Dtype, Kind, Rule};
use serde::{Deserialize, Serialize};
use std::os::fd::BorrowedFd;
use zerocopy::{FromZeros, IntoBytes};

/// Arguments of a call that makes a range of the model out of every update's numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CombineArgs<F> {
    /// Coordinates in the range.
    pub elements: u64,
    /// What the spec asks of the tensor.
    #[serde(with = "codes::rule")]
    pub rule: Rule,
    /// What the updates are.
    #[serde(with = "codes::kind")]
    pub kind: Kind,
    /// 1 to 256 updates.
    pub updates: Vec<UpdateWindow<F>>,
    /// The model before the round.
    pub previous: Option<TypedWindow<F>>,
    /// Where the new model goes. It must not overlap any other window.
    pub out: TypedWindow<F>,
    /// The round's seed.
    pub seed: u64,
}

/// Arguments of a call that measures a range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeasureArgs<F> {
    /// Coordinates in the range.
    pub elements: u64,
    /// What the spec asks of the tensor.
    #[serde(with = "codes::rule")]
    pub rule: Rule,
    /// What the updates are.
    #[serde(with = "codes::kind")]
    pub kind: Kind,
    /// 1 to 256 updates.
    pub updates: Vec<UpdateWindow<F>>,
    /// The model before the round.
    pub previous: Option<TypedWindow<F>>,
    /// The `f64` that are added to, as many as the function asks for. They must not overlap any other window.
    pub sums: Window<F>,
}

/// What is known of an update beside its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct UpdateFacts {
    /// Its weight: finite and positive.
    pub weight: f64,
    /// Training examples behind it: finite, not negative.
    pub num_samples: f64,
    /// How many rounds old its base model is.
    pub staleness: u32,
}

/// Arguments of a choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChooseArgs<F> {
    /// 1 to 256 updates.
    pub updates: Vec<UpdateFacts>,
    /// What was measured: so many lists of `f64`, one after the other.
    pub sums: Window<F>,
    /// How many lists.
    pub lists: u64,
    /// Where an `f64` for each update goes. Zeros before the call.
    pub weights: Window<F>,
    /// The round's seed.
    pub seed: u64,
}

/// A tensor within the bytes of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorPlace {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its dtype.
    #[serde(with = "codes::dtype")]
    pub dtype: Dtype,
    /// First byte within the update's window: a multiple of 8.
    pub offset: u64,
}

impl TensorPlace {
    fn elements(&self) -> Result<u32, HostError> {
        let product = self.shape.iter().try_fold(1u64, |product, d| product.checked_mul(*d));
        let elements = product.and_then(|elements| u32::try_from(elements).ok());
        elements.ok_or_else(|| HostError::argument(&self.name, "it has 2^32 elements or more"))
    }
}

/// An update as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BagWindow<F> {
    /// Its bytes.
    pub window: Window<F>,
    /// Its tensors.
    pub tensors: Vec<TensorPlace>,
    /// What else is known of it.
    pub facts: UpdateFacts,
}

/// Arguments of a call that makes one tensor of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MakeArgs<F> {
    /// The tensor; its offset counts for nothing.
    pub tensor: TensorPlace,
    /// Its numbers before the round.
    pub previous: Window<F>,
    /// Where the new ones go, in the same dtype. They must not overlap any other window.
    pub out: Window<F>,
    /// 1 to 256 updates.
    pub updates: Vec<BagWindow<F>>,
    /// Sum of the updates' weights.
    pub total_weight: f64,
    /// The round's seed.
    pub seed: u64,
}

fn count(updates: usize) -> Result<u32, HostError> {
    match updates {
        1..=UPDATES_MAX => Ok(updates as u32),
        _ => Err(HostError::argument("updates", format!("{updates}; a call takes 1 to {UPDATES_MAX}"))),
    }
}

fn facts(facts: &UpdateFacts) -> UpdateRef {
    let UpdateFacts { weight, num_samples, staleness } = *facts;
    UpdateRef { weight, num_samples, staleness, ..UpdateRef::default() }
}

fn read_updates<'a>(plan: &mut Plan<'a>, updates: &[UpdateWindow<BorrowedFd<'a>>]) -> Result<u32, HostError> {
    let count = count(updates.len())?;
    for (i, update) in updates.iter().enumerate() {
        plan.read(format!("update {i}"), update.window, update.dtype)?;
    }
    Ok(count)
}

impl<'a> CombineArgs<BorrowedFd<'a>> {
    pub(crate) fn plan(&self, area: Area) -> Result<Planned<'a, CombineCall>, HostError> {
        let mut plan = Plan::new(self.elements)?;
        let count = read_updates(&mut plan, &self.updates)?;
        let previous = self.previous.map(|p| plan.read("previous", p.window, p.dtype)).transpose()?;
        let out = plan.write("out", self.out.window, self.out.dtype)?;
        let mappings = plan.place(area)?;
        let mut record = CombineCall {
            elements: self.elements as u32,
            rule: abi::rule_code(self.rule),
            kind: abi::kind_code(self.kind),
            updates: count,
            previous: previous.map_or(0, |i| mappings[i].place.guest),
            previous_dtype: self.previous.map_or(0, |p| p.dtype as u32),
            out: mappings[out].place.guest,
            out_dtype: self.out.dtype as u32,
            seed: self.seed,
            ..CombineCall::new_zeroed()
        };
        for ((to, update), mapping) in record.update.iter_mut().zip(&self.updates).zip(&mappings) {
            *to = update.record(mapping.place.guest);
        }
        Ok(Planned { record, mappings })
    }
}

impl<'a> MeasureArgs<BorrowedFd<'a>> {
    pub(crate) fn plan(&self, area: Area, scalars: u32) -> Result<Planned<'a, MeasureCall>, HostError> {
        let mut plan = Plan::new(self.elements)?;
        let count = read_updates(&mut plan, &self.updates)?;
        let previous = self.previous.map(|p| plan.read("previous", p.window, p.dtype)).transpose()?;
        let sums = plan.write_of("sums", self.sums, scalars.into(), Dtype::F64)?;
        let mappings = plan.place(area)?;
        let mut record = MeasureCall {
            elements: self.elements as u32,
            rule: abi::rule_code(self.rule),
            kind: abi::kind_code(self.kind),
            updates: count,
            previous: previous.map_or(0, |i| mappings[i].place.guest),
            previous_dtype: self.previous.map_or(0, |p| p.dtype as u32),
            sums: mappings[sums].place.guest,
            scalars,
            ..MeasureCall::new_zeroed()
        };
        for ((to, update), mapping) in record.update.iter_mut().zip(&self.updates).zip(&mappings) {
            *to = update.record(mapping.place.guest);
        }
        Ok(Planned { record, mappings })
    }
}

impl<'a> ChooseArgs<BorrowedFd<'a>> {
    pub(crate) fn plan(&self, area: Area, scalars: u32) -> Result<Planned<'a, ChooseCall>, HostError> {
        let updates = count(self.updates.len())?;
        let mut plan = Plan::new(self.lists * u64::from(scalars))?;
        let sums = plan.read("sums", self.sums, Dtype::F64)?;
        let weights = plan.write_of("weights", self.weights, updates.into(), Dtype::F64)?;
        let mappings = plan.place(area)?;
        let mut record = ChooseCall {
            updates,
            sums: mappings[sums].place.guest,
            lists: self.lists as u32,
            scalars,
            weights: mappings[weights].place.guest,
            seed: self.seed,
            ..ChooseCall::new_zeroed()
        };
        for (to, from) in record.update.iter_mut().zip(&self.updates) {
            *to = facts(from);
        }
        Ok(Planned { record, mappings })
    }
}

/// The table of tensors that goes to the function's room.
#[derive(Default)]
struct Table {
    refs: Vec<TensorRef>,
    shapes: Vec<u32>,
    names: String,
}

impl Table {
    fn push(&mut self, update: usize, tensor: &TensorPlace, address: u32) -> Result<(), HostError> {
        let (name, shape) = (self.names.len() as u32, self.shapes.len() as u32);
        let elements = tensor.elements()?;
        self.names.push_str(&tensor.name);
        // Each is at most the number of elements, or the tensor is empty.
        self.shapes.extend(tensor.shape.iter().map(|d| u32::try_from(*d).unwrap_or(u32::MAX)));
        self.refs.push(TensorRef {
            update: update as u32,
            dtype: tensor.dtype as u32,
            address,
            elements,
            name,
            name_len: tensor.name.len() as u32,
            shape,
            rank: tensor.shape.len() as u32,
        });
        Ok(())
    }

    fn bytes(&self) -> Vec<u8> {
        [self.refs.as_bytes(), self.shapes.as_bytes(), self.names.as_bytes()].concat()
    }
}

impl<'a> MakeArgs<BorrowedFd<'a>> {
    /// The record and the table that goes with it.
    pub(crate) fn plan(&self, area: Area) -> Result<(Planned<'a, MakeCall>, Vec<u8>), HostError> {
        let updates = count(self.updates.len())?;
        let mut plan = Plan::new(u64::from(self.tensor.elements()?))?;
        let previous = plan.read("previous", self.previous, self.tensor.dtype)?;
        let out = plan.write("out", self.out, self.tensor.dtype)?;
        for (i, update) in self.updates.iter().enumerate() {
            plan.read_bytes(format!("update {i}"), update.window)?;
        }
        let mappings = plan.place(area)?;
        let mut table = Table::default();
        for (i, (update, mapping)) in self.updates.iter().zip(&mappings[2..]).enumerate() {
            for tensor in update.tensors.iter().filter(|tensor| !tensor.shape.contains(&0)) {
                let bytes = u64::from(tensor.elements()?) * tensor.dtype.bytes() as u64;
                let end = tensor.offset.checked_add(bytes).filter(|end| *end <= update.window.len_bytes);
                if end.is_none() || !tensor.offset.is_multiple_of(8) {
                    return Err(HostError::argument(&tensor.name, "it lies outside its update"));
                }
                table.push(i, tensor, mapping.place.guest + tensor.offset as u32)?;
            }
        }
        table.push(0, &self.tensor, mappings[previous].place.guest)?;
        let mut record = MakeCall {
            updates,
            tensors: table.refs.len() as u32,
            dimensions: table.shapes.len() as u32,
            out: mappings[out].place.guest,
            out_dtype: self.tensor.dtype as u32,
            total_weight: self.total_weight,
            seed: self.seed,
            ..MakeCall::new_zeroed()
        };
        for (to, update) in record.update.iter_mut().zip(&self.updates) {
            *to = facts(&update.facts);
        }
        Ok((Planned { record, mappings }, table.bytes()))
    }
}
