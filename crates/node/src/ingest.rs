//! From the bytes of a body to a frozen slab.
//!
//! The header is read and checked first; only then is a slab granted, so a body that does not fit costs nothing. Each
//! tensor is then written once, at its canonical place, and digested and screened while it is still in cache.

mod digest;
mod head;
mod scatter;
mod screen;

pub use digest::UpdateDigest;
pub use head::Head;
pub use scatter::Scatter;

use catchment_types::{Code, HeaderError, LayoutError, Problem};

/// A header that does not hold together, as the caller is told.
pub(crate) fn header_problem(error: &HeaderError) -> Problem {
    let code = match error {
        HeaderError::TooLong { .. } => Code::TooLarge,
        _ => Code::InvalidSafetensors,
    };
    Problem::new(code, format!("not a valid safetensors file: {error}"))
}

/// Tensors that are not the model's, as the caller is told.
pub(crate) fn layout_problem(error: &LayoutError) -> Problem {
    Problem::new(Code::Layout, format!("the update does not have the job's layout: {error}"))
        .with("tensor", error.tensor.as_str())
        .with("expected", error.expected.as_str())
        .with("found", error.found.as_str())
}
