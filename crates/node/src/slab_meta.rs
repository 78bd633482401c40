//! What a slab's header says of its content, so that a slab found after a crash explains itself.

use catchment_types::{Code, Digest, JobUid, Problem, Section};
use serde::{Deserialize, Serialize};

/// Metadata of a slab that holds an update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlabMeta {
    /// The job.
    pub uid: JobUid,
    /// The round.
    pub round: u64,
    /// The update's digest.
    pub digest: Digest,
    /// Where each segment lies.
    pub sections: Vec<Section>,
    /// First byte and length of its file's head, when its tensors have no coordinates.
    pub head: Option<(u64, u64)>,
}

catchment_codec::first_version!(SlabMeta);

impl SlabMeta {
    /// As bytes for the header.
    pub fn encode(&self) -> Result<Vec<u8>, Problem> {
        catchment_codec::encode(self, catchment_slab::META_BYTES_MAX)
            .map_err(|error| Problem::new(Code::Layout, format!("the model has too many segments: {error}")))
    }

    /// From a header's bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        catchment_codec::decode(bytes, catchment_slab::META_BYTES_MAX).ok()
    }
}
