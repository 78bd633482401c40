//! Tensors on the wire and in memory.
//!
//! A body is a plain safetensors file whose author chose the order of its tensors; a slab holds the same tensors at
//! canonical places, so that one range of coordinates means the same in every update of a job. [`Header`] reads the
//! first, [`Layout`] fixes the second, and [`Fit`] says where each byte of one goes in the other.

mod bounds;
mod fit;
mod header;
mod layout;
mod update_layout;

pub use bounds::{Added, Bounds, Cause};
pub use fit::{Fit, LayoutError, Placed, Section};
pub use header::{Header, HeaderError, Limits, TensorInfo};
pub use layout::{ALIGN_ELEMENTS, Layout, Rule, Segment, SpecRuleError, TensorRule};
pub use update_layout::{Template, TensorTemplate, UpdateLayout};
