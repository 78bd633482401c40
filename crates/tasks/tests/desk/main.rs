//! The desk on the ledger's own state.
#![forbid(unsafe_code)]

mod choice;
mod crowd;
mod evaluate;
mod places;
mod site;
