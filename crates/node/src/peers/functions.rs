//! Modules of functions from other nodes. A job is pinned to its function's bytes, and while one build follows another, or
//! where nodes have other folders of functions, not every node has them of itself.

use super::{Head, Sink, Wanted};
use crate::context::Context;
use crate::functions::MODULE_BYTES_MAX;
use catchment_types::Digest;
use std::io;

#[derive(Default)]
struct ToMemory(Vec<u8>);

impl Sink for ToMemory {
    fn begin(&mut self, head: &Head) -> io::Result<()> {
        let is_small = head.bytes <= MODULE_BYTES_MAX;
        let too_large = || io::Error::other(format!("{} bytes; a module has at most {MODULE_BYTES_MAX}", head.bytes));
        is_small.then_some(()).ok_or_else(too_large)
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// A module that this node lacks, from the first other node that gives it. What it gives has that digest.
///
/// # Errors
/// What the last of them said.
pub async fn fetch(context: &Context, digest: Digest) -> Result<Vec<u8>, String> {
    let mut last = "no other node is heard".to_owned();
    for beat in context.peers.others(context.node) {
        let mut sink = ToMemory::default();
        match context.peers.fetch(beat.node, &Wanted::Function(digest), &mut sink).await {
            Ok(came) if came == digest => {
                tracing::info!(function = %digest, from = beat.name, "fetched a function's module");
                return Ok(sink.0);
            }
            Ok(_) => last = format!("node `{}` gave another module", beat.name),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}
