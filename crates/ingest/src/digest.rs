//! The digest that makes a submission idempotent.

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use catchment_types::Digest;
use std::collections::BTreeMap;

/// Bytes of a block, a whole subtree of BLAKE3's tree.
const BLOCK: usize = 64 << 10;

/// BLAKE3 over a body as it arrives, and over what was said of it.
///
/// Kept as the tree's finished subtrees and the bytes of the unfinished block, so that it can be written down and another
/// process goes on with it.
#[derive(Clone, Default)]
pub struct UpdateDigest {
    /// Blocks that are finished: all but the newest one, which may turn out to be the last.
    blocks: u64,
    /// One subtree for each bit of their number, the largest first.
    subtrees: Vec<ChainingValue>,
    /// The newest block, as far as it has come.
    newest: Vec<u8>,
}

/// What an [`UpdateDigest`] has come to, to be written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestState {
    /// Blocks that are finished.
    pub blocks: u64,
    /// Their subtrees.
    pub subtrees: Vec<[u8; 32]>,
    /// Bytes of the newest block.
    pub newest: Vec<u8>,
}

impl UpdateDigest {
    /// Takes the next bytes of the body.
    pub fn feed(&mut self, mut chunk: &[u8]) {
        while !chunk.is_empty() {
            // A block is finished once it is known that it is not the last: the last one is hashed otherwise.
            if self.newest.len() == BLOCK {
                let block = self.subtree(&self.newest);
                self.finished(block);
                self.newest.clear();
            }
            if self.newest.is_empty() && chunk.len() > BLOCK {
                let (block, rest) = chunk.split_at(BLOCK);
                self.finished(self.subtree(block));
                chunk = rest;
                continue;
            }
            let (part, rest) = chunk.split_at(chunk.len().min(BLOCK - self.newest.len()));
            self.newest.extend_from_slice(part);
            chunk = rest;
        }
    }

    fn subtree(&self, block: &[u8]) -> ChainingValue {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(self.blocks * BLOCK as u64).update(block);
        hasher.finalize_non_root()
    }

    /// Joins a finished block with subtrees of its size, then those with others, as far as they are whole.
    fn finished(&mut self, block: ChainingValue) {
        let mut joined = block;
        for _ in 0..self.blocks.trailing_ones() {
            let left = self.subtrees.pop().expect("one for each bit");
            joined = merge_subtrees_non_root(&left, &joined, Mode::Hash);
        }
        self.subtrees.push(joined);
        self.blocks += 1;
    }

    /// The digest of the body alone, as `Catchment-Digest` declares it.
    pub fn body(&self) -> Digest {
        let Some((first, rest)) = self.subtrees.split_first() else { return blake3::hash(&self.newest).into() };
        let joined = |right, left: &ChainingValue| merge_subtrees_non_root(left, &right, Mode::Hash);
        let right = rest.iter().rev().fold(self.subtree(&self.newest), joined);
        merge_subtrees_root(first, &right, Mode::Hash).into()
    }

    /// Bytes that it has taken.
    pub fn bytes(&self) -> u64 {
        self.blocks * BLOCK as u64 + self.newest.len() as u64
    }

    /// What it has come to.
    pub fn state(&self) -> DigestState {
        DigestState { blocks: self.blocks, subtrees: self.subtrees.clone(), newest: self.newest.clone() }
    }

    /// Goes on from there. `None`: no digest comes to that.
    pub fn resumed(state: DigestState) -> Option<Self> {
        let DigestState { blocks, subtrees, newest } = state;
        let is_one = subtrees.len() == blocks.count_ones() as usize
            && newest.len() <= BLOCK
            && (blocks == 0 || !newest.is_empty())
            && blocks <= u64::MAX >> 20;
        is_one.then_some(Self { blocks, subtrees, newest })
    }

    /// The digest of body, weight, samples and metrics: the same update said differently is another update.
    pub fn finish(&self, weight: f64, num_samples: u64, metrics: &BTreeMap<String, f64>) -> Digest {
        let mut whole = blake3::Hasher::new_derive_key("catchment v1 update");
        whole.update(self.body().as_bytes());
        whole.update(&weight.to_bits().to_le_bytes());
        whole.update(&num_samples.to_le_bytes());
        for (name, value) in metrics {
            whole.update(&(name.len() as u64).to_le_bytes());
            whole.update(name.as_bytes());
            whole.update(&value.to_bits().to_le_bytes());
        }
        whole.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of every length around the borders of blocks and subtrees, however it comes, and however often it is written down
    /// in between.
    #[test]
    fn a_body_has_the_digest_that_everybody_else_works_out() {
        let body: Vec<u8> = (0..18 * BLOCK as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let around = |blocks: usize| [blocks * BLOCK - 1, blocks * BLOCK, blocks * BLOCK + 1, blocks * BLOCK + 5000];
        let lengths = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17].into_iter().flat_map(around);
        for len in [0, 1, 1023, 1024, 1025].into_iter().chain(lengths) {
            for step in [777, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5, usize::MAX] {
                let mut digest = UpdateDigest::default();
                for chunk in body[..len].chunks(step.min(len.max(1))) {
                    digest.feed(chunk);
                    if step > 777 {
                        digest = UpdateDigest::resumed(digest.state()).expect("a digest");
                    }
                }
                assert_eq!(digest.bytes(), len as u64);
                assert_eq!(digest.body(), blake3::hash(&body[..len]).into(), "{len} bytes, {step} at a time");
            }
        }
    }

    #[test]
    fn what_no_digest_comes_to_is_none() {
        let mut digest = UpdateDigest::default();
        digest.feed(&vec![1; 3 * BLOCK + 1]);
        let good = digest.state();
        assert_eq!((good.blocks, good.subtrees.len(), good.newest.len()), (3, 2, 1));
        for bad in [
            DigestState { blocks: 4, ..good.clone() },
            DigestState { blocks: u64::MAX, subtrees: vec![[0; 32]; 64], ..good.clone() },
            DigestState { subtrees: vec![[0; 32]], ..good.clone() },
            DigestState { newest: vec![0; BLOCK + 1], ..good.clone() },
            DigestState { newest: Vec::new(), ..good.clone() },
        ] {
            assert!(UpdateDigest::resumed(bad).is_none());
        }
        assert!(UpdateDigest::resumed(good).is_some());
    }

    #[test]
    fn everything_said_of_an_update_counts() {
        let mut digest = UpdateDigest::default();
        digest.feed(b"body");
        let metrics = BTreeMap::from([("loss".to_owned(), 0.5)]);
        let first = digest.finish(1.0, 10, &metrics);
        assert_eq!(first, digest.finish(1.0, 10, &metrics));
        assert_ne!(first, digest.finish(2.0, 10, &metrics));
        assert_ne!(first, digest.finish(1.0, 11, &metrics));
        assert_ne!(first, digest.finish(1.0, 10, &BTreeMap::new()));
        digest.feed(b"!");
        assert_ne!(first, digest.finish(1.0, 10, &metrics));
    }
}
