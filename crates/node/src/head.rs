//! The head of a safetensors body, an update's or a model's, before any memory is granted for the rest.
//!
//! A head is kept whole until it is parsed, outside the shared memory that is accounted for. Small ones every connection
//! may have; larger ones wait until there is room for them.

use crate::context::Context;
use crate::gateway::body::Body;
use bytes::Bytes;
use catchment_ingest::Head;
use catchment_types::{Code, Header, Problem};
use tokio::sync::OwnedSemaphorePermit;

/// Bytes of a head that every body may have.
const SMALL_BYTES: u64 = 64 << 10;
/// KiB that the larger heads being received may take together.
pub const LARGE_KIB: u32 = 64 << 10;

/// A head that was read.
pub struct ReadHead {
    /// Its bytes.
    pub head: Head,
    /// What they say.
    pub header: Header,
    /// Bytes of the data that came with it.
    pub rest: Bytes,
    /// The room of a large head, for as long as that is to count.
    pub room: Option<OwnedSemaphorePermit>,
}

/// Reads a body's head.
///
/// # Errors
/// `truncated`, `invalid_safetensors`, `too_large`, `no_room`; and what the body's reading ends with.
pub async fn read_head(context: &Context, body: &mut Body) -> Result<ReadHead, Problem> {
    let (mut head, mut room) = (Head::new(body.length()), None);
    loop {
        let Some(chunk) = body.next().await? else {
            let detail = format!("the body ended after {} bytes, within its safetensors header", head.bytes().len());
            return Err(Problem::new(Code::Truncated, detail));
        };
        let (taken, header) = head.feed(&chunk)?;
        if let (None, Some(bytes)) = (&room, head.declared_bytes().filter(|bytes| *bytes > SMALL_BYTES)) {
            room = Some(take_room(context, bytes).await?);
        }
        if let Some(header) = header {
            return Ok(ReadHead { head, header, rest: chunk.slice(taken..), room });
        }
    }
}

/// Takes room for a large head, waiting a while for it.
async fn take_room(context: &Context, bytes: u64) -> Result<OwnedSemaphorePermit, Problem> {
    let kib = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX).min(LARGE_KIB);
    let room = context.heads.clone().acquire_many_owned(kib);
    match tokio::time::timeout(context.config.room_wait, room).await {
        Ok(room) => Ok(room.expect("never closed")),
        Err(_) => Err(Problem::new(Code::NoRoom, format!("no room for a header of {bytes} bytes; try again"))),
    }
}
