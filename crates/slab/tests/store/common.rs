//! A directory on shared memory, a byte pattern, and a look at what this process holds open.

use catchment_slab::{Owner, Recovered, Slab, SlabError, SlabId, SlabStore, StoreConfig};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
/// Who most files are for.
pub const OWNER: Owner = Owner::new([1; 32]);

/// A fresh directory on shared memory, gone with the test.
pub fn shared_memory() -> TempDir {
    tempfile::Builder::new()
        .prefix("catchment-slab-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .tempdir_in("/dev/shm")
        .expect("make a directory on /dev/shm")
}

pub fn try_open(dir: &Path, budget_bytes: u64) -> Result<(SlabStore, Recovered), SlabError> {
    SlabStore::open(StoreConfig { dir: dir.to_owned(), budget_bytes })
}

pub fn open(dir: &Path, budget_bytes: u64) -> (SlabStore, Recovered) {
    try_open(dir, budget_bytes).expect("open the store")
}

/// Opens a directory in which nothing is to be found.
pub fn open_empty(dir: &Path, budget_bytes: u64) -> SlabStore {
    let (store, recovered) = open(dir, budget_bytes);
    assert!(recovered.slabs.is_empty() && recovered.accumulators.is_empty());
    store
}

/// The byte at `place` of the update with this id: no two updates look alike.
fn pattern(id: SlabId, place: usize) -> u8 {
    let mixed = (id.get() ^ place as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 56) as u8
}

/// Grants, fills with the id's own pattern, freezes.
pub fn submit(store: &SlabStore, len: u64, meta: &[u8]) -> Result<Slab, SlabError> {
    let mut granted = store.grant(OWNER, len)?;
    let id = granted.id();
    for (place, byte) in granted.bytes_mut().iter_mut().enumerate() {
        *byte = pattern(id, place);
    }
    granted.freeze(meta)
}

/// Panics unless the slab holds its own pattern.
pub fn check(slab: &Slab, len: u64) {
    let bytes = slab.bytes().expect("map the slab");
    assert_eq!((slab.len(), bytes.len() as u64), (len, len), "slab {}", slab.id());
    let wrong = bytes.iter().enumerate().find(|&(place, &byte)| byte != pattern(slab.id(), place));
    assert_eq!(wrong, None, "slab {} holds a foreign byte", slab.id());
}

/// Descriptors of this process on files in `dir`.
pub fn descriptors_in(dir: &Path) -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("list descriptors");
    descriptors.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok()).filter(|to| to.starts_with(dir)).count()
}

/// Mappings of this process of files in `dir`.
pub fn mappings_in(dir: &Path) -> usize {
    let dir = dir.to_str().expect("a name in UTF-8");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("list mappings");
    maps.lines().filter(|line| line.contains(dir)).count()
}

/// Slab files in `dir`, and their bytes.
pub fn slab_files(dir: &Path) -> (usize, u64) {
    let files = std::fs::read_dir(dir).expect("list the store").flatten();
    let slabs = files.filter(|file| file.path().extension().is_some_and(|ending| ending == "slab"));
    slabs.fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.metadata().expect("look at a slab").len()))
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic inside").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs `work` and returns what it logged.
pub fn logged<T>(work: impl FnOnce() -> T) -> (T, String) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let result = tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(lines.0.lock().expect("no panic inside").clone()).expect("logs are UTF-8");
    (result, text)
}
