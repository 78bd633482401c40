//! What the author of an aggregation function uses.
//!
//! A function implements the trait of its class and names itself in [`export!`]; everything else (how the host hands over
//! memory, how panics become readable reasons) is hidden here. Without this crate every function would carry its own
//! pointer arithmetic, and every mistake in it would be a wrong model instead of a compile error.
//!
//! | class | trait | for |
//! |---|---|---|
//! | additive | [`Additive`] | sums: updates are folded as they arrive, partials merge in any order |
//! | coordinate-wise | [`CoordinateWise`] | every update for each coordinate: medians |
//! | two-phase | [`TwoPhase`] | a look at all updates, a choice, the chosen combined: Krum |
//! | whole | [`Whole`] | updates without the model's coordinates: stacks of low-rank factors |
//!
//! The crate is `no_std` on wasm32 and an ordinary library elsewhere, so the same function runs in native tests:
//!
//! ```
//! use catchment_sdk::{kernels, Additive, Config, Description, Finalize, Fold, Merge};
//!
//! struct Mean;
//!
//! impl Additive for Mean {
//!     const DESCRIPTION: Description = Description {
//!         name: "plain-mean",
//!         version: "1.0.0",
//!         summary: "The unweighted mean.",
//!         exact: true,
//!         ..Description::DEFAULT
//!     };
//!     fn init(_: &Config) -> Result<Self, String> {
//!         Ok(Self)
//!     }
//!     fn fold(&self, call: Fold<'_>) {
//!         kernels::weighted_sum(call.acc_in, call.acc_out, call.updates.iter().map(|u| (u.values, 1.0)));
//!     }
//!     fn merge(&self, call: Merge<'_>) {
//!         kernels::merge_sum(call.acc_in, call.acc_out, call.partials);
//!     }
//!     fn finalize(&self, call: Finalize<'_>) -> Result<(), String> {
//!         kernels::scale(call.partial, call.updates as f64, None, call.out);
//!         Ok(())
//!     }
//! }
//!
//! catchment_sdk::export!(Mean: Additive);
//! ```
//!
//! # What a function may rely on
//!
//! - Every slice of one call covers the same coordinates and has the same length.
//! - Calls come in any order of ranges, possibly from several instances at once, one instance per range at a time.
//!   Nothing may be remembered from one call to the next; `&self` holds the configuration only.
//! - Updates hold no NaN and no infinity; weights are finite and positive. The host has screened them.
//! - In a job with exact sums, partials are integers; the [`kernels`] take them as they take plain ones, and a function
//!   that uses nothing else for its sums says `exact: true`. Weights and elements are within the job's bounds.
//! - There is no clock, no randomness but the seed, and no I/O.
//!
//! # What a function must not do
//!
//! Slices handed to a call lie in *windows*: pages of shared memory above the module's own heap. They are read and
//! written by plain loads and stores; the wasm instructions `memory.copy` and `memory.fill` refuse them. Build with
//! `cargo run --release -p xtask -- functions`, which keeps the compiler from emitting them
//! (`-Ctarget-cpu=mvp -Ctarget-feature=+simd128,+sign-ext,+nontrapping-fptoint,+mutable-globals`).
#![cfg_attr(target_arch = "wasm32", no_std)]
#![deny(unsafe_code)]

extern crate alloc;

pub mod abi;
mod config;
mod element;
mod exact;
mod function;
mod gather;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod guest;
pub mod kernels;
mod layout;
mod pair;
mod small_float;
mod values;

pub use config::{CONFIG_BYTES_MAX, Config};
pub use element::{Bool, Element};
pub use exact::{EXPONENT_MAX, Exact, Partial, PartialMut};
pub use function::{Additive, Class, ConfigField, Description, Finalize, Fold, Kind, Merge, Rule, Update};
pub use gather::{Bag, Choose, Combine, CoordinateWise, Make, Measure, SCALARS_MAX, Tensor, TwoPhase, Whole};
pub use layout::{TensorTemplate, UpdateLayout};
pub use small_float::{Bf16, F8E4M3, F8E5M2, F16};
pub use values::{Dtype, Values, ValuesMut};

/// Exports a function's entry points: `export!(Name: Trait)`, once, at the root of the function's crate.
///
/// It expands to nothing except on wasm32, where the host calls what it defines.
#[macro_export]
macro_rules! export {
    ($function:ty: $class:ident) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "exported names are what the host calls; each forwards to the SDK")]
        #[doc(hidden)]
        mod catchment_exports {
            use super::*;
            use $crate::guest::{self, Slot};

            static FUNCTION: Slot<$function> = Slot::new();

            #[unsafe(no_mangle)]
            extern "C" fn catchment_abi() -> u32 {
                $crate::abi::VERSION
            }
            #[unsafe(no_mangle)]
            extern "C" fn catchment_describe() -> u64 {
                guest::describe(&<$function as $crate::$class>::DESCRIPTION, $crate::Class::$class)
            }
            #[unsafe(no_mangle)]
            extern "C" fn catchment_args() -> u32 {
                guest::args()
            }
            #[unsafe(no_mangle)]
            extern "C" fn catchment_room(len: u32) -> u32 {
                guest::room(len)
            }
            #[unsafe(no_mangle)]
            extern "C" fn catchment_init() -> u64 {
                let description = &<$function as $crate::$class>::DESCRIPTION;
                guest::init(&FUNCTION, description, <$function as $crate::$class>::init)
            }
            $crate::export_calls!($class);
        }
    };
}

/// The entry points that only functions of one class have.
#[doc(hidden)]
#[macro_export]
macro_rules! export_calls {
    (Additive) => {
        #[unsafe(no_mangle)]
        extern "C" fn catchment_fold() {
            guest::fold(&FUNCTION)
        }
        #[unsafe(no_mangle)]
        extern "C" fn catchment_merge() {
            guest::merge(&FUNCTION)
        }
        #[unsafe(no_mangle)]
        extern "C" fn catchment_finalize() -> u64 {
            guest::finalize(&FUNCTION)
        }
    };
    (CoordinateWise) => {
        #[unsafe(no_mangle)]
        extern "C" fn catchment_combine() -> u64 {
            guest::combine(&FUNCTION, $crate::CoordinateWise::combine)
        }
    };
    (TwoPhase) => {
        #[unsafe(no_mangle)]
        extern "C" fn catchment_scalars(updates: u32) -> u32 {
            guest::scalars(&FUNCTION, updates)
        }
        #[unsafe(no_mangle)]
        extern "C" fn catchment_measure() {
            guest::measure(&FUNCTION)
        }
        #[unsafe(no_mangle)]
        extern "C" fn catchment_choose() -> u64 {
            guest::choose(&FUNCTION)
        }
        #[unsafe(no_mangle)]
        extern "C" fn catchment_combine() -> u64 {
            guest::combine(&FUNCTION, $crate::TwoPhase::combine)
        }
    };
    (Whole) => {
        #[unsafe(no_mangle)]
        extern "C" fn catchment_make() -> u64 {
            guest::make(&FUNCTION)
        }
    };
}
