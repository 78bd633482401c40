//! Updates and accumulators as a node has them: in a slab store on a tmpfs, large ones in huge pages.

use crate::observe::free_bytes;
use anyhow::{Result, ensure};
use catchment_runtime::{Dtype, UpdateWindow, Window};
use catchment_slab::{Accumulator, HUGE_BYTES, Owner, Slab, SlabMut, SlabStore, StoreConfig};
use std::os::fd::BorrowedFd;
use tempfile::TempDir;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A bench is for itself.
const OWNER: Owner = Owner::new([0; 32]);
/// Left to others.
const SPARE_BYTES: u64 = 2 << 30;

/// A store of a bench's own, gone with it.
pub struct Memory {
    store: SlabStore,
    _dir: TempDir,
}

impl Memory {
    /// A store that may grow to `bytes`, where other processes will take `others_bytes` besides.
    pub fn open(bytes: u64, others_bytes: u64) -> Result<Self> {
        let (wanted, free) = (bytes + others_bytes, free_bytes()?);
        ensure!(
            wanted + SPARE_BYTES < free,
            "{} MB of memory are needed, and {} MB are free",
            wanted >> 20,
            free >> 20
        );
        let dir = tempfile::Builder::new().prefix("catchment-bench-").tempdir_in("/dev/shm")?;
        let (store, _) = SlabStore::open(StoreConfig { dir: dir.path().join("slabs"), budget_bytes: bytes })?;
        Ok(Self { store, _dir: dir })
    }

    /// The store.
    pub fn store(&self) -> &SlabStore {
        &self.store
    }

    /// A frozen slab of numbers that mean nothing, the same in each.
    pub fn numbers<T: IntoBytes + Immutable>(&self, elements: usize, number: impl Fn(usize) -> T) -> Result<Slab> {
        let mut slab = self.store.grant(OWNER, (elements * size_of::<T>()) as u64)?;
        for (i, bytes) in slab.bytes_mut().chunks_exact_mut(size_of::<T>()).enumerate() {
            bytes.copy_from_slice(number(i).as_bytes());
        }
        Ok(slab.freeze(b"")?)
    }

    /// A frozen slab with these bytes.
    pub fn copy(&self, of: &[u8]) -> Result<Slab> {
        let mut slab = self.store.grant(OWNER, of.len() as u64)?;
        slab.bytes_mut().copy_from_slice(of);
        Ok(slab.freeze(b"")?)
    }

    /// A slab of zeros to be written natively.
    pub fn zeros(&self, bytes: u64) -> Result<SlabMut> {
        let mut slab = self.store.grant(OWNER, bytes)?;
        slab.bytes_mut().fill(0);
        Ok(slab)
    }

    /// Two blocks of partial for so many coordinates, zero at first because the store is new.
    pub fn blocks(&self, elements: usize) -> Result<Blocks> {
        let block_bytes = (elements as u64 * 8).next_multiple_of(HUGE_BYTES);
        let accumulator = self.store.grant_accumulator(OWNER, 1, 2 * block_bytes, b"")?;
        Ok(Blocks { accumulator, block_bytes, current: 0 })
    }
}

/// An accumulator: folds go from one block to the other.
pub struct Blocks {
    accumulator: Accumulator,
    block_bytes: u64,
    current: u64,
}

impl Blocks {
    /// The block that holds the sum, or the other one, as a window on some coordinates.
    pub fn window(&self, is_spare: bool, first: u64, elements: u64) -> Window<BorrowedFd<'_>> {
        let block = self.current ^ u64::from(is_spare);
        let offset_bytes = self.accumulator.data_offset() + block * self.block_bytes + first * 8;
        Window { file: self.accumulator.fd(), offset_bytes, len_bytes: elements * 8 }
    }

    /// The spare block holds the sum from now on.
    pub fn flip(&mut self) {
        self.current ^= 1;
    }

    /// Whether the sum is these numbers, bit by bit.
    pub fn holds(&self, numbers: &[f64]) -> Result<bool> {
        use std::os::unix::fs::FileExt;
        let window = self.window(false, 0, numbers.len() as u64);
        let file = std::fs::File::from(window.file.try_clone_to_owned()?);
        let mut bytes = vec![0; 1 << 20];
        let chunk = bytes.len() / 8;
        for (number, expected) in numbers.chunks(chunk).enumerate() {
            let bytes = &mut bytes[..expected.len() * 8];
            file.read_exact_at(bytes, window.offset_bytes + (number * chunk * 8) as u64)?;
            if bytes != expected.as_bytes() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A slab's numbers.
pub fn floats<T: FromBytes + Immutable>(bytes: &[u8]) -> Result<&[T]> {
    let numbers = <[T]>::ref_from_bytes(bytes).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    Ok(numbers)
}

/// The same, to be written.
pub fn floats_mut(bytes: &mut [u8]) -> Result<&mut [f64]> {
    <[f64]>::mut_from_bytes(bytes).map_err(|error| anyhow::anyhow!("{error:?}"))
}

/// An update, or a partial.
pub struct Update {
    /// Where it lies.
    pub slab: Slab,
    /// What it counts.
    pub weight: f64,
    /// Its numbers' dtype.
    pub dtype: Dtype,
}

impl Update {
    /// Its bytes.
    pub fn bytes(&self) -> Result<&[u8]> {
        Ok(self.slab.bytes()?)
    }

    /// Some of its coordinates.
    pub fn window(&self, first: u64, elements: u64) -> Result<UpdateWindow<BorrowedFd<'_>>> {
        let window = slab_window(&self.slab, first, elements, self.dtype.bytes() as u64)?;
        Ok(UpdateWindow { window, dtype: self.dtype, weight: self.weight, num_samples: 1.0, staleness: 0 })
    }
}

/// Some coordinates of a slab of numbers so wide.
pub fn slab_window(slab: &Slab, first: u64, elements: u64, width: u64) -> Result<Window<BorrowedFd<'_>>> {
    Ok(Window { file: slab.fd()?, offset_bytes: slab.data_offset() + first * width, len_bytes: elements * width })
}
