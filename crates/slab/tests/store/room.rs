//! Budgets, free files, and a file system that is really full.

use crate::common::{MIB, OWNER, check, logged, open, open_empty, shared_memory, slab_files, submit, try_open};
use catchment_slab::{SlabError, SlabStore};
use std::path::Path;
use std::process::Command;

const PAGE: u64 = 4096;

#[test]
fn the_budget_counts_rounded_sizes_and_refuses_in_words() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 10 * PAGE);
    let first = store.grant(OWNER, PAGE + 1).expect("three pages");
    let error = store.grant(OWNER, 7 * PAGE).expect_err("eight pages do not fit seven");
    let text = error.to_string();
    let SlabError::NoRoom { wanted_bytes, free_bytes, budget_bytes, .. } = error else { panic!("{error}") };
    assert_eq!((wanted_bytes, free_bytes, budget_bytes), (8 * PAGE, 7 * PAGE, 10 * PAGE));
    assert!(text.contains("28672") && text.contains("40960") && text.contains("raise the budget"), "{text}");
    let second = store.grant(OWNER, 6 * PAGE).expect("seven pages fit seven");
    assert_eq!(store.usage().granted_bytes, 10 * PAGE);
    assert!(matches!(store.grant(OWNER, 0), Err(SlabError::NoRoom { free_bytes: 0, .. })));
    drop((first, second));
    drop(store.grant(OWNER, 9 * PAGE).expect("all free files make room"));
}

#[test]
fn a_wish_beyond_any_file_is_no_room() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), u64::MAX);
    for len in [u64::MAX, u64::MAX - 5000, i64::MAX as u64] {
        assert!(matches!(store.grant(OWNER, len), Err(SlabError::NoRoom { .. })), "{len}");
        assert!(matches!(store.grant_accumulator(OWNER, 8, len, b""), Err(SlabError::NoRoom { .. })), "{len}");
    }
    // A file could be that large, but no memory is.
    assert!(matches!(store.grant(OWNER, 1 << 50), Err(SlabError::NoRoom { .. } | SlabError::Io { .. })));
    assert_eq!(store.usage().in_use_bytes(), 0);
    assert_eq!(slab_files(dir.path()), (0, 0));
}

#[test]
fn free_files_of_other_sizes_make_room_and_fitting_ones_are_reused() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 100 * PAGE);
    let small: Vec<_> = (0..10).map(|_| store.grant(OWNER, 4 * PAGE).expect("there is room")).collect();
    drop(small);
    assert_eq!(store.usage().free_bytes, 50 * PAGE);
    let large = store.grant(OWNER, 79 * PAGE).expect("small free files make room");
    assert_eq!(store.usage().granted_bytes, 80 * PAGE);
    assert_eq!(store.usage().free_bytes, 20 * PAGE, "no more of them went than had to");
    assert_eq!(slab_files(dir.path()), (5, 100 * PAGE));
    drop(large);
    let reused = store.grant(OWNER, 70 * PAGE).expect("there is room");
    assert_eq!(store.usage().granted_bytes, 80 * PAGE, "80 pages serve 71, counted as what they are");
    drop(reused);
    let small = store.grant(OWNER, PAGE).expect("there is room");
    assert!(store.usage().granted_bytes <= 3 * PAGE, "a tiny update takes no large file");
    drop(small);
}

#[test]
fn trimming_gives_everything_free_back_and_nothing_else() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let kept = submit(&store, MIB, b"").expect("there is room");
    let names: Vec<_> = (0..3).map(|_| store.grant(OWNER, MIB).expect("there is room")).map(|slab| slab.id()).collect();
    assert!(store.usage().free_bytes > 0);
    store.trim();
    assert_eq!(store.usage().free_bytes, 0);
    assert_eq!(slab_files(dir.path()), (1, MIB + PAGE));
    check(&kept, MIB);
    let fresh = store.grant(OWNER, MIB).expect("there is room").id();
    assert!(!names.iter().any(|old| old.index() == fresh.index()), "an unlinked index is not used again");
}

#[test]
fn free_files_that_somebody_removed_or_cut_are_replaced() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let two = [store.grant(OWNER, MIB).expect("there is room"), store.grant(OWNER, MIB).expect("there is room")];
    drop(two);
    let mut files: Vec<_> = std::fs::read_dir(dir.path()).expect("lists").flatten().map(|file| file.path()).collect();
    files.retain(|path| path.extension().is_some());
    std::fs::remove_file(&files[0]).expect("removes");
    std::fs::File::options().write(true).open(&files[1]).expect("opens").set_len(100).expect("cuts");
    let (slab, log) = logged(|| submit(&store, MIB, b"").expect("there is room"));
    check(&slab, MIB);
    for file in &files {
        assert!(log.contains(file.to_str().expect("UTF-8")), "{log}");
    }
    assert_eq!(store.usage().in_use_bytes(), MIB + PAGE);
    assert_eq!(store.usage().free_bytes, 0);
}

#[test]
fn a_frozen_slab_that_somebody_cut_is_an_error_and_no_crash() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let slab = submit(&store, MIB, b"").expect("there is room");
    let path = dir.path().join(format!("{:08x}.slab", slab.id().index()));
    std::fs::File::options().write(true).open(&path).expect("opens").set_len(5000).expect("cuts");
    let error = slab.bytes().expect_err("it is damaged").to_string();
    assert!(error.contains("5000 bytes") && error.contains(path.to_str().expect("UTF-8")), "{error}");
    assert!(matches!(slab.fd(), Err(SlabError::Damaged { .. })));
    assert!(store.release(slab.id()));
}

#[test]
fn what_was_kept_stays_under_a_smaller_budget() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let id = submit(&store, 4 * MIB, b"").expect("there is room").id();
    drop(store.grant(OWNER, MIB).expect("there is room"));
    drop(store);
    let ((store, recovered), log) = logged(|| open(dir.path(), MIB));
    assert!(log.contains("exceed the budget"), "{log}");
    assert_eq!(recovered.slabs.len(), 1);
    check(&recovered.slabs[0], 4 * MIB);
    assert_eq!(store.usage().free_bytes, 0, "free files went first");
    assert!(matches!(store.grant(OWNER, 1), Err(SlabError::NoRoom { free_bytes: 0, .. })));
    drop(recovered);
    store.release(id);
    drop(store.grant(OWNER, 1).expect("room again, by unlinking"));
    assert!(store.usage().free_bytes <= MIB);
}

/// A tmpfs of four MiB, unmounted on drop; `None`, said aloud, where mounting is not permitted.
struct SmallTmpfs(tempfile::TempDir);

impl SmallTmpfs {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().expect("make a mount point");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "catchment-test"]).arg(dir.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(dir)),
            other => {
                eprintln!("SKIPPED: mounting a small tmpfs is not permitted here: {other:?}");
                None
            }
        }
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

fn fill_until_refused(store: &SlabStore, dir: &Path) {
    let mut slabs = Vec::new();
    let error = loop {
        match submit(store, MIB / 2, b"") {
            Ok(slab) => slabs.push(slab),
            Err(error) => break error,
        }
    };
    let SlabError::NoRoom { wanted_bytes, free_bytes, .. } = error else { panic!("{error}") };
    assert!(free_bytes < wanted_bytes, "{free_bytes} of {wanted_bytes}");
    assert!(slabs.len() >= 6, "{} slabs", slabs.len());
    slabs.iter().for_each(|slab| check(slab, MIB / 2));
    assert_eq!(slab_files(dir).0, slabs.len(), "the refused grant left no file");
    assert_eq!(store.usage().granted_bytes, 0);
    for slab in slabs {
        store.release(slab.id());
    }
}

#[test]
fn a_full_file_system_is_no_room_and_never_a_signal() {
    let Some(small) = SmallTmpfs::mount() else { return };
    let dir = small.0.path().join("slabs");
    let store = open_empty(&dir, 1 << 30);
    // The second time over recycled files.
    fill_until_refused(&store, &dir);
    fill_until_refused(&store, &dir);
    // Free files of another size stand in the way, though the budget would allow both.
    assert!(store.usage().free_bytes > 3 * MIB);
    let large = submit(&store, 3 * MIB, b"").expect("the free files give way");
    check(&large, 3 * MIB);
    // Somebody else fills the file system.
    std::fs::write(small.0.path().join("other"), vec![1; 2 * MIB as usize]).expect_err("no space left");
    assert!(matches!(store.grant(OWNER, MIB), Err(SlabError::NoRoom { .. })));
}

#[test]
fn a_store_off_tmpfs_works_and_says_so() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("make a directory");
    let (opened, log) = logged(|| try_open(&dir.path().join("deep/slabs"), 64 * MIB));
    let (store, _) = opened.expect("opens");
    if !log.contains("not on a tmpfs") {
        eprintln!("SKIPPED: the build folder is on a tmpfs itself");
    }
    check(&submit(&store, 100_000, b"").expect("there is room"), 100_000);
}
