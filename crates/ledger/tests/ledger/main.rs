//! Tests of the state and of its one writer.
#![forbid(unsafe_code)]

mod common;
mod driver;
mod faults;
mod faulty;
mod life;
mod replay;
mod table;
