//! What the HTTP interface promises, call by call: status, code and content.

mod effects;
mod jobs;
mod models;
mod namesakes;
mod rounds;
mod system;
mod tasks;
mod updates;

use catchment_tests::{Tensor, file};

/// A small model: three numbers to be averaged and a counter to be kept.
fn model() -> Vec<u8> {
    update(0.0)
}

/// An update whose numbers are `value`, `value + 1` and `value + 2`.
fn update(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[3], &[value, value + 1.0, value + 2.0]), Tensor::i64("steps", &[], &[value as i64])])
}
