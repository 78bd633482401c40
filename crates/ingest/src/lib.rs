//! From the bytes of a request to an update in memory, without any I/O.
//!
//! The header is read and checked first; only then is memory granted, so a body that does not fit costs nothing. Each
//! tensor is then written once, at its canonical place, and digested and screened while it is still in cache. Apart from
//! the node so that everything a stranger sends can be fuzzed at full speed.
#![forbid(unsafe_code)]

mod closer;
mod digest;
mod head;
mod part;
mod range;
mod request;
mod said;
mod scatter;
mod screen;
mod widen;
mod zstd_frames;

pub use closer::Base;
pub use digest::{DigestState, UpdateDigest};
pub use head::Head;
pub use part::Part;
pub use range::{first_beyond, first_inexact, largest};
pub use request::{Way, classify};
pub use said::{METRICS_BYTES_MAX, Said, check_samples, parse_digest, parse_metrics, parse_numbers};
pub use scatter::Scatter;
pub use screen::first_non_finite;
pub use zstd_frames::ZstdFrames;

use catchment_types::{Code, HeaderError, LayoutError, Problem};

/// A header that does not hold together, as the caller is told.
pub fn header_problem(error: &HeaderError) -> Problem {
    let code = match error {
        HeaderError::TooLong { .. } => Code::TooLarge,
        _ => Code::InvalidSafetensors,
    };
    Problem::new(code, format!("not a valid safetensors file: {error}"))
}

/// Tensors that are not the model's, as the caller is told.
pub fn layout_problem(error: &LayoutError) -> Problem {
    Problem::new(Code::Layout, format!("the update does not have the job's layout: {error}"))
        .with("tensor", error.tensor.as_str())
        .with("expected", error.expected.as_str())
        .with("found", error.found.as_str())
}
