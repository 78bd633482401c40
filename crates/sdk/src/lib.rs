//! What the author of an aggregation function uses.
//!
//! A function implements [`Aggregator`] and names itself in [`export!`]; everything else (how the host hands over
//! memory, how panics become readable reasons) is hidden here. Without this crate every function would carry its own
//! pointer arithmetic, and every mistake in it would be a wrong model instead of a compile error.
//!
//! The crate is `no_std` on wasm32 and an ordinary library elsewhere, so the same function runs in native tests:
//!
//! ```
//! use catchment_sdk::{kernels, Aggregator, Class, Config, Description, Finalize, Fold, Merge};
//!
//! struct Mean;
//!
//! impl Aggregator for Mean {
//!     const DESCRIPTION: Description = Description {
//!         name: "plain-mean",
//!         version: "1.0.0",
//!         class: Class::Additive,
//!         summary: "The unweighted mean.",
//!         config: &[],
//!         needs_previous: false,
//!         exact: true,
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
//! catchment_sdk::export!(Mean);
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
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod guest;
pub mod kernels;
mod pair;
mod small_float;
mod values;

pub use config::{CONFIG_BYTES_MAX, Config};
pub use element::{Bool, Element};
pub use exact::{EXPONENT_MAX, Exact, Partial, PartialMut};
pub use function::{Aggregator, Class, ConfigField, Description, Finalize, Fold, Kind, Merge, Rule, Update};
pub use small_float::{Bf16, F8E4M3, F8E5M2, F16};
pub use values::{Dtype, Values, ValuesMut};

/// Exports a function's entry points. Call it once, at the root of the function's crate, with its [`Aggregator`].
///
/// It expands to nothing except on wasm32, where the host calls what it defines.
#[macro_export]
macro_rules! export {
    ($aggregator:ty) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "exported names are what the host calls; each forwards to the SDK")]
        #[doc(hidden)]
        mod catchment_exports {
            use super::*;
            use $crate::guest::{self, Slot};

            static FUNCTION: Slot<$aggregator> = Slot::new();

            #[unsafe(no_mangle)]
            extern "C" fn catchment_abi() -> u32 {
                $crate::abi::VERSION
            }
            #[unsafe(no_mangle)]
            extern "C" fn catchment_describe() -> u64 {
                guest::describe::<$aggregator>()
            }
            #[unsafe(no_mangle)]
            extern "C" fn catchment_args() -> u32 {
                guest::args()
            }
            #[unsafe(no_mangle)]
            extern "C" fn catchment_config(len: u32) -> u32 {
                guest::config(len)
            }
            #[unsafe(no_mangle)]
            extern "C" fn catchment_init() -> u64 {
                guest::init(&FUNCTION)
            }
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
        }
    };
}
