//! What stands for the beginning of a log, so that it need not be kept and read for ever.

use bytes::Bytes;

/// Snapshots a log keeps: the newest, and the one before it for whoever is reading records between the two.
pub(crate) const KEPT: usize = 2;

/// What all records up to `sequence` come to, in its writer's own encoding.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The last record that is in it.
    pub sequence: u64,
    /// Its content, of no meaning here.
    pub bytes: Bytes,
}

impl Snapshot {
    /// BLAKE3 over sequence and content: what tells a whole snapshot from a torn or damaged one.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("catchment v1 snapshot");
        hasher.update(&self.sequence.to_le_bytes());
        hasher.update(&self.bytes);
        hasher.finalize().into()
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("sequence", &self.sequence).field("bytes", &self.bytes.len()).finish()
    }
}
