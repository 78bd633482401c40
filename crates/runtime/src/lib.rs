//! Runs wasm functions over windows of shared memory. The only crate that knows wasmtime.
//!
//! A function never gets a copy of an update. The pages of a slab are mapped into the address space that its instance
//! has reserved, *above* the memory the module owns, read-only; the function reads them with plain loads. Without this
//! crate, every update would be copied into a sandbox before it could be summed, and aggregation would run at half the
//! speed of memory.
//!
//! ```text
//! guest address   0            memory.size   heap cap                                            4 GiB
//!                 |  module's own heap  | (traps) |  update 0  |gap| update 1 |gap| acc_out | (traps)  |
//!                                                   read-only        read-only     read-write
//! ```
//!
//! Above `memory.size` is the point. What the module owns, the host resets, copies into and fills; a read-only page
//! there would turn a guest's `memory.fill` into a dead process. Above it, every store, fill and copy of a guest that
//! is not allowed ends as an ordinary trap. This leans on how wasmtime compiles 32-bit memories (4 GiB reserved, no
//! bounds checks), which is no promise of its interface: so the version is pinned, [`Runtime::new`] proves it on the
//! running machine with a probe, and the tests in `tests/windows.rs` must stay.
//!
//! Nothing here panics on behalf of a guest. A function that traps, loops, or asks for too much memory costs its
//! caller a [`FunctionError`] and the instance.
#![deny(unsafe_code)]

mod call;
mod codes;
pub mod compiled;
mod config;
mod dispatch;
mod engine;
mod error;
mod function;
mod gather;
mod half;
mod host;
mod instance;
mod load;
mod metrics;
mod place;
mod probe;
mod sandbox;
mod ticker;
mod view;

pub use call::{CallStats, FinalizeArgs, FoldArgs, MergeArgs, TypedWindow, UpdateWindow, Window};
pub use catchment_sdk::abi::{BATCH_MAX, UPDATES_MAX};
pub use catchment_sdk::{Class, Dtype, Exact, Kind, Rule, SCALARS_MAX};
pub use compiled::Compiled;
pub use config::{Limits, RuntimeConfig};
pub use dispatch::{Call, Reply};
pub use engine::Runtime;
pub use error::{FunctionError, HostError, LoadError, RuntimeError};
pub use function::{ConfigField, Description, Function};
pub use gather::{BagWindow, ChooseArgs, CombineArgs, MakeArgs, MeasureArgs, TensorPlace, UpdateFacts};
pub use instance::Instance;
pub use metrics::RuntimeMetrics;
pub use place::window_bytes_max;
