//! Tests of the state and of its one writer.
#![forbid(unsafe_code)]

mod buffered;
mod common;
mod deadlines;
mod driver;
mod ended;
mod envelope;
mod evaluation;
mod faults;
mod faulty;
mod follow;
mod given_up;
mod life;
mod means;
#[allow(dead_code, reason = "the bus's own tests use the rest")]
#[path = "../../../bus/tests/common/nats_server.rs"]
mod nats_server;
mod replay;
mod snapshot;
mod stored;
mod table;
mod views;
