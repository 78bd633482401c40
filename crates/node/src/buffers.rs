//! Memory that bodies take while they are received, outside of the shared memory that is accounted for: heads of
//! safetensors files, which are kept whole until they are parsed, and windows of decoders.
//!
//! How much of it a body takes is its sender's choice, so all of them together have a budget.

use crate::context::Context;
use catchment_types::{Code, Problem};
use prometheus::{IntGauge, IntGaugeVec};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is counted at one time.
const UNIT_BYTES: u64 = 1 << 10;

/// Bytes of a head that is nothing out of the ordinary.
const HEAD_BYTES: u64 = 64 << 10;

/// What memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// The head of a safetensors file.
    Head,
    /// A decoder and its window.
    Decoder,
}

impl Use {
    const fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Decoder => "decoder",
        }
    }
}

/// The budget of a node. Large heads and decoders have parts of their own, so that a few of them leave room for what every
/// body has.
pub struct Buffers {
    heads: Share,
    large_heads: Share,
    decoders: Share,
    gauge: IntGaugeVec,
}

/// A part of the budget.
struct Share {
    units: Arc<Semaphore>,
    units_max: u32,
}

/// What a body has of the budget; it goes back when this is dropped.
#[derive(Debug)]
pub struct Buffer {
    permit: OwnedSemaphorePermit,
    gauge: IntGauge,
}

impl Share {
    fn new(bytes: u64) -> Self {
        let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
        let units_max = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).clamp(1, most);
        Self { units: Arc::new(Semaphore::new(units_max as usize)), units_max }
    }
}

impl Buffers {
    /// A budget of `bytes`, whose use `gauge` shows by what it is for.
    pub fn new(bytes: u64, gauge: IntGaugeVec) -> Self {
        for used in [Use::Head, Use::Decoder] {
            gauge.with_label_values(&[used.name()]).set(0);
        }
        let (heads, large_heads, decoders) = (Share::new(bytes / 4), Share::new(bytes / 4), Share::new(bytes / 2));
        Self { heads, large_heads, decoders, gauge }
    }

    /// Takes `bytes` of it, waiting a while for them. What is more than all there is takes all there is.
    ///
    /// # Errors
    /// `no_room`; `not_ready` when the node ends meanwhile.
    pub async fn take(&self, context: &Context, used: Use, bytes: u64) -> Result<Buffer, Problem> {
        let share = match used {
            Use::Head if bytes <= HEAD_BYTES => &self.heads,
            Use::Head => &self.large_heads,
            Use::Decoder => &self.decoders,
        };
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, share.units_max);
        let permit = tokio::select! {
            biased;
            permit = share.units.clone().acquire_many_owned(units) => permit.expect("never closed"),
            () = tokio::time::sleep(context.config.room_wait) => {
                let detail = format!(
                    "no room for {bytes} bytes to receive the body with ({}): others have that part of --buffer-mib; try \
                     again",
                    used.name()
                );
                return Err(Problem::new(Code::NoRoom, detail));
            }
            () = context.ending.stop.cancelled() => return Err(ends()),
        };
        let gauge = self.gauge.with_label_values(&[used.name()]);
        gauge.add(held(&permit));
        Ok(Buffer { permit, gauge })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.gauge.sub(held(&self.permit));
    }
}

fn held(permit: &OwnedSemaphorePermit) -> i64 {
    (permit.num_permits() as u64 * UNIT_BYTES) as i64
}

/// What is asked of a node that ends.
pub fn ends() -> Problem {
    Problem::new(
        Code::NotReady,
        "this node is about to end: send it again, to another node or to this one once it is back",
    )
}
