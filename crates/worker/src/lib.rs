//! A federated-learning client that really trains: candle models on the UCI handwritten digits.
//!
//! Catchment moves and folds updates without knowing what they mean. This crate is the other side: it gives the
//! platform real updates of a real model, so that "federated training works" is a measured accuracy and not a claim.
//! Candle and everything else heavy stays in here.
//!
//! | module | what it holds |
//! |---|---|
//! | [`data`] | the digits |
//! | [`split`] | the hold-out, and the skewed shares of the clients |
//! | [`model`] | the MLP and the CNN, and their safetensors form |
//! | [`train`] | local training and evaluation |
//! | [`baseline`] | what a client reaches alone, and what pooled data would reach |
//! | [`participate`] | the loop of check-in, training and submission |
//! | [`rng`] | randomness: a seed and a purpose give the same numbers everywhere |
//! | [`threads`] | how many threads the arithmetic takes |
#![forbid(unsafe_code)]

pub mod baseline;
pub mod data;
pub mod model;
pub mod participate;
pub mod rng;
pub mod split;
pub mod threads;
pub mod train;
