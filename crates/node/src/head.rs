//! The head of a safetensors body, an update's or a model's, before any memory is granted for the rest.
//!
//! A head is kept whole until it is parsed, in memory of the budget that all such buffers have.

use crate::buffers::{Buffer, Use};
use crate::context::Context;
use crate::gateway::body::Body;
use bytes::Bytes;
use catchment_ingest::Head;
use catchment_types::{Code, Header, Problem};

/// A head that was read.
pub struct ReadHead {
    /// Its bytes.
    pub head: Head,
    /// What they say.
    pub header: Header,
    /// Bytes of the data that came with it.
    pub rest: Bytes,
    /// The head's part of the budget, for as long as that is to count.
    pub buffer: Option<Buffer>,
}

/// Reads a body's head.
///
/// # Errors
/// `truncated`, `invalid_safetensors`, `too_large`, `no_room`; and what the body's reading ends with.
pub async fn read_head(context: &Context, body: &mut Body) -> Result<ReadHead, Problem> {
    let (mut head, mut buffer) = (Head::new(body.length()), None);
    loop {
        let Some(chunk) = body.next().await? else {
            let detail = format!("the body ended after {} bytes, within its safetensors header", head.bytes().len());
            return Err(Problem::new(Code::Truncated, detail));
        };
        let (taken, header) = head.feed(&chunk)?;
        if let (None, Some(bytes)) = (&buffer, head.declared_bytes()) {
            buffer = Some(context.buffers.take(context, Use::Head, bytes).await?);
        }
        if let Some(header) = header {
            return Ok(ReadHead { head, header, rest: chunk.slice(taken..), buffer });
        }
    }
}
