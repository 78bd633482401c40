//! The store against a real tmpfs, real processes and real crashes.

mod common;
mod cycles;
mod lifecycle;
mod model;
mod recovery;
mod room;
