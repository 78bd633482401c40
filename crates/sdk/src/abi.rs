//! What the host and a function exchange: names of exports, and the records of a call.
//!
//! The host writes one record into the function's argument buffer and calls the export without parameters; the
//! function answers with nothing, or with a packed pointer to text. Both sides are little-endian and use these very
//! types, so there is one place to get the layout right. Change anything here and [`VERSION`] must rise.

use crate::{EXPONENT_MAX, Exact, Kind, Rule};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of this contract: that of the functions built with this crate.
pub const VERSION: u32 = 4;

/// Oldest version that the host still loads: since then, only things to import have been added.
pub const VERSION_OLDEST: u32 = 3;

/// Updates or partials of one fold or merge at most.
pub const BATCH_MAX: usize = 16;

/// Updates of one call that takes a whole round at most.
pub const UPDATES_MAX: usize = 256;

/// Bytes of the argument buffer: room for any record.
pub const ARGS_BYTES: usize = 9 << 10;

/// Text a function hands back is cut at this length.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// Names of what a function exports and imports.
pub mod name {
    /// `() -> i32`: the contract's version.
    pub const ABI: &str = "catchment_abi";
    /// `() -> i64`: packed JSON of the description.
    pub const DESCRIBE: &str = "catchment_describe";
    /// `() -> i32`: address of the argument buffer, [`super::ARGS_BYTES`] long, at a multiple of 8.
    pub const ARGS: &str = "catchment_args";
    /// `(i32) -> i32`: makes room for that many bytes and says where: for the configuration, and for the tables of calls
    /// that name tensors.
    pub const ROOM: &str = "catchment_room";
    /// `() -> i64`: reads the configuration, and the [`super::InitCall`] in the argument buffer; 0, or packed text of
    /// the refusal.
    pub const INIT: &str = "catchment_init";
    /// `()`: folds as the [`super::FoldCall`] in the argument buffer says.
    pub const FOLD: &str = "catchment_fold";
    /// `()`: merges as the [`super::MergeCall`] in the argument buffer says.
    pub const MERGE: &str = "catchment_merge";
    /// `() -> i64`: finalises as the [`super::FinalizeCall`] in the argument buffer says; 0, or packed text.
    pub const FINALIZE: &str = "catchment_finalize";
    /// `() -> i64`: combines as the [`super::CombineCall`] in the argument buffer says; 0, or packed text.
    pub const COMBINE: &str = "catchment_combine";
    /// `(i32) -> i32`: how many numbers a round of so many updates is measured by.
    pub const SCALARS: &str = "catchment_scalars";
    /// `()`: measures as the [`super::MeasureCall`] in the argument buffer says.
    pub const MEASURE: &str = "catchment_measure";
    /// `() -> i64`: chooses as the [`super::ChooseCall`] in the argument buffer says; 0, or packed text.
    pub const CHOOSE: &str = "catchment_choose";
    /// `() -> i64`: makes a tensor as the [`super::MakeCall`] in the argument buffer says; 0, or packed text.
    pub const MAKE: &str = "catchment_make";
    /// The linear memory.
    pub const MEMORY: &str = "memory";
    /// Module of everything that can be imported.
    pub const HOST: &str = "catchment";
    /// `(i32, i32)`, imported. Address and length of a panic's text; does not return.
    pub const PANIC: &str = "panic";
    /// `(i32, i32, i32)`, imported: converts F16 to F32, with the processor's own instruction where it has one. Address
    /// of the first, within one window or the module's own memory; address for the first result, within the module's
    /// own memory and apart from what is read; how many. Traps on anything else. Since version 4.
    pub const F16_TO_F32: &str = "f16_to_f32";
}

/// Packs the place of a text into one number. 0 stands for none.
pub const fn pack(address: u32, len: u32) -> u64 {
    (len as u64) << 32 | address as u64
}

/// Address and length of a packed text.
pub const fn unpack(packed: u64) -> (u32, u32) {
    (packed as u32, (packed >> 32) as u32)
}

/// Arguments of an initialisation: the arithmetic of every call that follows.
#[derive(Debug, Clone, Copy, Default, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitCall {
    /// 1 when sums are exact: partials of means are then integers. 0 when they are plain.
    pub exact: u32,
    /// The exponent of exact sums.
    pub exponent: i32,
    /// What an update may count at most in exact sums.
    pub weight_max: f64,
}

impl InitCall {
    /// The record of this arithmetic.
    pub fn new(exact: Option<Exact>) -> Self {
        exact.map_or(Self::default(), |e| Self { exact: 1, exponent: e.exponent, weight_max: e.weight_max })
    }

    /// The arithmetic; the error is a record that no host writes.
    pub fn exact(&self) -> Result<Option<Exact>, &'static str> {
        let exact = Exact { exponent: self.exponent, weight_max: self.weight_max };
        match self.exact {
            0 => Ok(None),
            1 if self.exponent.abs() <= EXPONENT_MAX && self.weight_max > 0.0 => Ok(Some(exact)),
            _ => Err("the host names an arithmetic that there is not"),
        }
    }
}

/// Numbers of one update within a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UpdateRef {
    /// First byte.
    pub address: u32,
    /// Number of the dtype.
    pub dtype: u32,
    /// Rounds its base model is old.
    pub staleness: u32,
    /// Always 0.
    pub reserved: u32,
    /// Weight.
    pub weight: f64,
    /// Training examples.
    pub num_samples: f64,
}

/// Arguments of a fold. Address 0 stands for "none".
#[derive(Debug, Clone, Copy, Default, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FoldCall {
    /// Numbers in every window.
    pub elements: u32,
    /// See [`rule_code`].
    pub rule: u32,
    /// The partial so far, or 0.
    pub acc_in: u32,
    /// Where the new partial goes.
    pub acc_out: u32,
    /// How many of `update` count.
    pub updates: u32,
    /// Always 0.
    pub reserved: u32,
    /// The updates.
    pub update: [UpdateRef; BATCH_MAX],
}

/// Arguments of a call that combines updates. Address 0 stands for "none".
#[derive(Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CombineCall {
    /// Numbers in every window.
    pub elements: u32,
    /// See [`rule_code`].
    pub rule: u32,
    /// See [`kind_code`].
    pub kind: u32,
    /// How many of `update` count.
    pub updates: u32,
    /// The model before, or 0.
    pub previous: u32,
    /// Number of its dtype.
    pub previous_dtype: u32,
    /// Where the new model goes.
    pub out: u32,
    /// Number of its dtype.
    pub out_dtype: u32,
    /// The round's seed.
    pub seed: u64,
    /// The updates.
    pub update: [UpdateRef; UPDATES_MAX],
}

/// Arguments of a call that measures updates. Address 0 stands for "none".
#[derive(Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MeasureCall {
    /// Numbers in every update's window.
    pub elements: u32,
    /// See [`rule_code`].
    pub rule: u32,
    /// See [`kind_code`].
    pub kind: u32,
    /// How many of `update` count.
    pub updates: u32,
    /// The model before, or 0.
    pub previous: u32,
    /// Number of its dtype.
    pub previous_dtype: u32,
    /// The numbers that are added to.
    pub sums: u32,
    /// How many.
    pub scalars: u32,
    /// The updates.
    pub update: [UpdateRef; UPDATES_MAX],
}

/// Arguments of a choice.
#[derive(Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ChooseCall {
    /// How many of `update` count.
    pub updates: u32,
    /// What was measured.
    pub sums: u32,
    /// How many lists there are.
    pub lists: u32,
    /// Numbers of each.
    pub scalars: u32,
    /// Where a weight for each update goes.
    pub weights: u32,
    /// Always 0.
    pub reserved: u32,
    /// The round's seed.
    pub seed: u64,
    /// The updates, without addresses.
    pub update: [UpdateRef; UPDATES_MAX],
}

/// Arguments of a call that makes a tensor out of whole updates.
#[derive(Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MakeCall {
    /// How many of `update` count.
    pub updates: u32,
    /// How many [`TensorRef`]s the table in the room begins with. The last one is the model's tensor before the round.
    pub tensors: u32,
    /// Numbers of shapes that follow them, four bytes each. The rest of the room is names.
    pub dimensions: u32,
    /// Where the new tensor goes.
    pub out: u32,
    /// Number of its dtype.
    pub out_dtype: u32,
    /// Always 0.
    pub reserved: u32,
    /// Sum of weights.
    pub total_weight: f64,
    /// The round's seed.
    pub seed: u64,
    /// The updates, without addresses.
    pub update: [UpdateRef; UPDATES_MAX],
}

/// A tensor in the table of a [`MakeCall`].
#[derive(Debug, Clone, Copy, Default, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TensorRef {
    /// Number of its update.
    pub update: u32,
    /// Number of its dtype.
    pub dtype: u32,
    /// First byte; 0 when it has no elements.
    pub address: u32,
    /// Numbers of it.
    pub elements: u32,
    /// First byte of its name, within the names.
    pub name: u32,
    /// Length of its name.
    pub name_len: u32,
    /// First of its dimensions, within the shapes.
    pub shape: u32,
    /// How many dimensions.
    pub rank: u32,
}

/// Arguments of a merge. Address 0 stands for "none".
#[derive(Debug, Clone, Copy, Default, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MergeCall {
    /// Numbers in every window.
    pub elements: u32,
    /// See [`rule_code`].
    pub rule: u32,
    /// The partial so far, or 0.
    pub acc_in: u32,
    /// Where the joint partial goes.
    pub acc_out: u32,
    /// How many of `partial` count.
    pub partials: u32,
    /// Always 0.
    pub reserved: u32,
    /// Addresses of the partials.
    pub partial: [u32; BATCH_MAX],
}

/// Arguments of a finalise. Address 0 stands for "none".
#[derive(Debug, Clone, Copy, Default, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FinalizeCall {
    /// Numbers in every window.
    pub elements: u32,
    /// See [`rule_code`].
    pub rule: u32,
    /// See [`kind_code`].
    pub kind: u32,
    /// The partial.
    pub partial: u32,
    /// The model before, or 0.
    pub previous: u32,
    /// Number of its dtype.
    pub previous_dtype: u32,
    /// Where the new model goes.
    pub out: u32,
    /// Number of its dtype.
    pub out_dtype: u32,
    /// Sum of weights.
    pub total_weight: f64,
    /// Updates in the partial.
    pub updates: u64,
    /// The round's seed.
    pub seed: u64,
}

const _: () = assert!(size_of::<FoldCall>() <= ARGS_BYTES && size_of::<UpdateRef>() == 32);
const _: () = assert!(size_of::<MergeCall>() <= ARGS_BYTES && size_of::<FinalizeCall>() <= ARGS_BYTES);
const _: () = assert!(size_of::<CombineCall>() <= ARGS_BYTES && size_of::<MeasureCall>() <= ARGS_BYTES);
const _: () = assert!(size_of::<ChooseCall>() <= ARGS_BYTES && size_of::<MakeCall>() <= ARGS_BYTES);

/// A rule's number.
pub const fn rule_code(rule: Rule) -> u32 {
    match rule {
        Rule::Mean => 1,
        Rule::Max => 2,
    }
}

/// The rule of this number.
pub const fn rule_from(code: u32) -> Option<Rule> {
    match code {
        1 => Some(Rule::Mean),
        2 => Some(Rule::Max),
        _ => None,
    }
}

/// A kind's number.
pub const fn kind_code(kind: Kind) -> u32 {
    match kind {
        Kind::Weights => 1,
        Kind::Delta => 2,
    }
}

/// The kind of this number.
pub const fn kind_from(code: u32) -> Option<Kind> {
    match code {
        1 => Some(Kind::Weights),
        2 => Some(Kind::Delta),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        assert_eq!(unpack(pack(7, 9)), (7, 9));
        assert_eq!(unpack(pack(u32::MAX, u32::MAX)), (u32::MAX, u32::MAX));
        for rule in [Rule::Mean, Rule::Max] {
            assert_eq!(rule_from(rule_code(rule)), Some(rule));
        }
        for kind in [Kind::Weights, Kind::Delta] {
            assert_eq!(kind_from(kind_code(kind)), Some(kind));
        }
        assert_eq!((rule_from(0), kind_from(0)), (None, None));
        for exact in [None, Some(Exact { exponent: -7, weight_max: 2.5 })] {
            assert_eq!(InitCall::new(exact).exact(), Ok(exact));
        }
        assert!(InitCall { exact: 2, ..InitCall::default() }.exact().is_err());
    }

    /// The layout is a contract with modules that were built before: a change must be seen.
    #[test]
    fn layout_of_the_records() {
        let update = UpdateRef { address: 1, dtype: 2, staleness: 3, reserved: 0, weight: 1.0, num_samples: 2.0 };
        let bytes = update.as_bytes();
        assert_eq!(bytes[..16], [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], 1f64.to_le_bytes());
        assert_eq!(core::mem::offset_of!(FoldCall, update), 24);
        assert_eq!(core::mem::offset_of!(MergeCall, partial), 24);
        assert_eq!(core::mem::offset_of!(FinalizeCall, total_weight), 32);
        assert_eq!((size_of::<FoldCall>(), size_of::<MergeCall>(), size_of::<FinalizeCall>()), (536, 88, 56));
        assert_eq!(core::mem::offset_of!(CombineCall, update), 40);
        assert_eq!(core::mem::offset_of!(MeasureCall, update), 32);
        assert_eq!(core::mem::offset_of!(ChooseCall, update), 32);
        assert_eq!(core::mem::offset_of!(MakeCall, update), 40);
        assert_eq!(size_of::<TensorRef>(), 32);
        assert_eq!((size_of::<InitCall>(), core::mem::offset_of!(InitCall, weight_max)), (16, 8));
    }
}
