//! One slab from its grant to its release.

use crate::common::{MIB, OWNER, check, descriptors_in, mappings_in, open_empty, shared_memory, submit, try_open};
use catchment_slab::{
    Accumulator, CONTROL_WORDS_MAX, META_BYTES_MAX, Owner, Slab, SlabError, SlabId, SlabMut, SlabStore,
};
use memmap2::{Mmap, MmapMut, MmapOptions};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::sync::atomic::Ordering;

#[test]
fn what_is_written_and_frozen_is_read() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let mut granted = store.grant(OWNER, 100_000).expect("there is room");
    assert_eq!((granted.len(), granted.bytes_mut().len()), (100_000, 100_000));
    assert_eq!(granted.bytes_mut().as_ptr().align_offset(4096), 0);
    assert!(store.get(granted.id()).is_none(), "not frozen yet");
    assert!(!store.release(granted.id()), "a grant is released by dropping it");
    granted.bytes_mut().fill(7);
    let id = granted.id();
    let slab = granted.freeze(b"client 3").expect("freezes");
    assert_eq!((slab.id(), slab.meta(), slab.data_offset() % 4096), (id, b"client 3".as_slice(), 0));
    assert!(slab.bytes().expect("maps").iter().all(|&byte| byte == 7));
    assert_eq!(store.get(id).expect("kept").bytes().expect("maps"), slab.bytes().expect("maps"));
}

#[test]
fn every_length_comes_back_exactly_and_its_last_page_ends_in_zeros() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    for len in [0, 1, 63, 4095, 4096, 4097, 12_288, MIB + 1] {
        // Twice: fresh, then recycled and full of what the first one left.
        for _ in 0..2 {
            let slab = submit(&store, len, b"").expect("there is room");
            check(&slab, len);
            assert_eq!(slab.is_empty(), len == 0);
            let room = len.max(1).next_multiple_of(4096) as usize;
            let mut options = MmapOptions::new();
            options.offset(slab.data_offset()).len(room);
            // SAFETY: the slab is frozen and held, so the file stands still.
            let window = unsafe { options.map(&slab.fd().expect("opens")) }.expect("maps");
            assert!(window[len as usize..].iter().all(|&byte| byte == 0), "a stranger's bytes show");
            drop(window);
            store.release(slab.id());
            drop(slab);
            let mut soiled = store.grant(OWNER, room as u64).expect("there is room");
            soiled.bytes_mut().fill(0xEE);
        }
    }
}

#[test]
fn a_client_that_hangs_up_leaves_nothing_behind() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let mut granted = store.grant(OWNER, MIB).expect("there is room");
    granted.bytes_mut()[..1000].fill(1);
    let id = granted.id();
    assert_eq!(store.usage().granted_bytes, MIB + 4096);
    drop(granted);
    assert_eq!(store.usage().in_use_bytes(), 0);
    assert_eq!(store.usage().free_bytes, MIB + 4096);
    assert!(store.get(id).is_none());
    assert_eq!(
        (descriptors_in(dir.path()), mappings_in(dir.path())),
        (3, 0),
        "the directory and its locks alone are open"
    );
    let again = store.grant(OWNER, MIB).expect("there is room");
    assert_eq!(again.id(), SlabId::new(id.index(), id.generation() + 1), "the same memory, another name");
}

/// Whoever still reads what a client had sent so far never reads another's bytes, whatever the client does.
#[test]
fn a_reader_beside_the_writer_keeps_the_memory() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let mut granted = store.grant(OWNER, 10_000).expect("there is room");
    granted.bytes_mut().fill(7);
    let (id, reader) = (granted.id(), granted.reader().expect("opens"));
    let mut bytes = vec![0; 9000];
    reader.read_at(1000, &mut bytes).expect("reads");
    assert!(bytes.iter().all(|byte| *byte == 7));
    assert!(reader.read_at(1001, &mut bytes).is_err() && reader.read_at(u64::MAX, &mut bytes).is_err());
    drop(granted);
    assert_eq!((store.usage().granted_bytes, store.usage().free_bytes), (4 * 4096, 0));
    drop(reader);
    assert_eq!((store.usage().granted_bytes, store.usage().free_bytes), (0, 4 * 4096));
    // And when it is frozen and released meanwhile.
    let mut granted = store.grant(OWNER, 10_000).expect("there is room");
    assert_eq!(granted.id().index(), id.index());
    granted.bytes_mut().fill(8);
    let reader = granted.reader().expect("opens");
    let frozen = granted.freeze(b"").expect("freezes");
    store.release(frozen.id());
    drop(frozen);
    assert_eq!(store.usage().frozen_bytes, 4 * 4096);
    reader.read_at(0, &mut bytes).expect("reads");
    assert!(bytes.iter().all(|byte| *byte == 8));
    drop(reader);
    assert_eq!(store.usage().in_use_bytes(), 0);
}

#[test]
fn only_release_loses_an_update_and_readers_keep_its_bytes() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let id = submit(&store, 5000, b"m").expect("there is room").id();
    let reader = store.get(id).expect("dropping every handle loses nothing");
    let clone = reader.clone();
    assert!(store.release(id));
    assert!(!store.release(id), "once");
    assert!(store.get(id).is_none());
    let other = submit(&store, 5000, b"n").expect("there is room");
    assert_ne!(other.id().index(), id.index(), "the readers' memory is not reused");
    drop(reader);
    check(&clone, 5000);
    assert_eq!(store.usage().frozen_bytes, 2 * (2 + 1) * 4096);
    drop(clone);
    assert_eq!(store.usage().frozen_bytes, (2 + 1) * 4096);
    store.release(other.id());
    drop(other);
    assert_eq!(store.usage().in_use_bytes(), 0);
}

#[test]
fn a_stale_generation_reaches_nothing() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let old = submit(&store, 10, b"").expect("there is room").id();
    store.release(old);
    let new = submit(&store, 10, b"").expect("there is room").id();
    assert_eq!((new.index(), new.generation()), (old.index(), old.generation() + 1));
    assert!(store.get(old).is_none() && !store.release(old));
    assert!(store.get(SlabId::new(new.index(), new.generation() + 1)).is_none());
    assert!(store.get(SlabId::new(new.index() + 1, 1)).is_none());
    assert!(store.get(new).is_some());
}

#[test]
fn the_kernel_refuses_to_write_through_a_readers_descriptor() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let slab = submit(&store, 8192, b"").expect("there is room");
    let fd = slab.fd().expect("opens");
    // SAFETY: the mapping is expected to be refused.
    let error = unsafe { MmapMut::map_mut(&fd) }.expect_err("PROT_WRITE is refused");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    // SAFETY: the slab is frozen and held, so the file stands still.
    let map = unsafe { Mmap::map(&fd) }.expect("reading is allowed");
    let error = map.make_mut().expect_err("mprotect to writable is refused");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    let mut file = File::from(fd.try_clone_to_owned().expect("a descriptor is free"));
    assert!(file.write(b"x").is_err() && file.set_len(0).is_err());
    check(&slab, 8192);
}

#[test]
fn metadata_has_a_limit_and_a_refused_slab_goes_back() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let full = submit(&store, 1, &[9; META_BYTES_MAX]).expect("exactly fits");
    assert_eq!(full.meta(), [9; META_BYTES_MAX]);
    store.release(full.id());
    drop(full);
    let too_long = vec![9; META_BYTES_MAX + 1];
    assert!(matches!(submit(&store, 1, &too_long), Err(SlabError::MetaTooLong { len: 3073, limit: 3072 })));
    assert!(matches!(store.grant_accumulator(OWNER, 1, 1, &too_long), Err(SlabError::MetaTooLong { .. })));
    let words = CONTROL_WORDS_MAX + 1;
    assert!(matches!(store.grant_accumulator(OWNER, words, 1, b""), Err(SlabError::ControlTooLong { .. })));
    assert_eq!(store.usage().in_use_bytes(), 0);
}

#[test]
fn an_accumulator_shares_its_words_and_begins_at_zero() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    // What an earlier use left must not pass for control words.
    let soiled = store.grant_accumulator(OWNER, 1, 2 * 4096, b"").expect("there is room");
    let file = std::fs::File::from(soiled.fd().try_clone_to_owned().expect("a descriptor"));
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xEE; 3 * 4096], 4096).expect("writes");
    let soiled_id = soiled.id();
    drop((file, soiled));
    store.release(soiled_id);
    let accumulator = store.grant_accumulator(OWNER, 600, 4096, b"plan").expect("there is room");
    assert_eq!(accumulator.id().index(), soiled_id.index(), "recycled");
    assert_eq!((accumulator.control().len(), accumulator.data_len()), (600, 4096));
    assert_eq!((accumulator.data_offset(), accumulator.meta()), (3 * 4096, b"plan".as_slice()));
    assert!(accumulator.control().iter().all(|word| word.load(Ordering::Acquire) == 0));

    accumulator.control()[599].store(42, Ordering::Release);
    let options = MmapOptions::new();
    // SAFETY: nobody else maps this accumulator's data, and its words are read here once, after they were stored.
    let mut map = unsafe { options.map_mut(&accumulator.fd()) }.expect("maps for writing");
    assert_eq!(map[4096 + 599 * 8], 42);
    let data = accumulator.data_offset() as usize;
    map[data..data + 4096].fill(3);
    drop(map);

    assert_eq!(store.usage().accumulator_bytes, 4 * 4096);
    let clone = accumulator.clone();
    assert!(store.get(accumulator.id()).is_none(), "it is no frozen update");
    assert!(store.release(accumulator.id()) && !store.release(accumulator.id()));
    drop(accumulator);
    assert_eq!(clone.control()[599].load(Ordering::Acquire), 42);
    drop(clone);
    assert_eq!(store.usage().in_use_bytes(), 0);
}

/// A function may look at memory before anybody has written it: nothing of another owner is there, control words and the
/// rest of the file included; what the same owner left is not cleared, which would cost as much as using it.
#[test]
fn nobody_sees_what_another_owner_left() {
    let other = Owner::new([2; 32]);
    let whole = |accumulator: &Accumulator| {
        let file = std::fs::File::from(accumulator.fd().try_clone_to_owned().expect("a descriptor"));
        let mut bytes = vec![0; file.metadata().expect("looks").len() as usize - 4096];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 4096).expect("reads");
        bytes
    };
    let soil = |store: &SlabStore, owner, len: usize| {
        let accumulator = store.grant_accumulator(owner, 1, len as u64, b"").expect("there is room");
        let file = std::fs::File::from(accumulator.fd().try_clone_to_owned().expect("a descriptor"));
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xEE; len], accumulator.data_offset()).expect("writes");
        store.release(accumulator.id());
        let mut update = store.grant(owner, len as u64).expect("there is room");
        update.bytes_mut().fill(0xEE);
        [accumulator.id().index(), update.id().index()]
    };
    // Larger than one write of zeros, and of no even number of them.
    for len in [20 * 4096, 300 * 4096, 40 << 20] {
        let dir = shared_memory();
        let store = open_empty(dir.path(), 128 * MIB);
        let files = soil(&store, OWNER, len);
        // What the same owner asks for next is the same, as it was left.
        let (accumulator, update) =
            (store.grant_accumulator(OWNER, 1, len as u64, b""), store.grant(OWNER, len as u64));
        let (accumulator, mut update) = (accumulator.expect("there is room"), update.expect("there is room"));
        assert_eq!([accumulator.id().index(), update.id().index()], files);
        assert!(whole(&accumulator)[4096..][..len].iter().rev().take(4096).all(|byte| *byte == 0xEE));
        assert!(update.bytes_mut().iter().all(|byte| *byte == 0xEE));
        store.release(accumulator.id());
        drop((accumulator, update));
        // A little smaller, so that the end of the file is left over.
        let less = len as u64 - 4096;
        let (accumulator, update) = (store.grant_accumulator(other, 1, less, b""), store.grant(other, less));
        let (accumulator, mut update) = (accumulator.expect("there is room"), update.expect("there is room"));
        assert_eq!([accumulator.id().index(), update.id().index()], files, "recycled all the same");
        assert!(whole(&accumulator).iter().all(|byte| *byte == 0) && update.bytes_mut().iter().all(|byte| *byte == 0));
        store.release(accumulator.id());
        drop((accumulator, update));
        // After a restart nobody knows whose it was.
        soil(&store, OWNER, len);
        drop(store);
        let store = open_empty(dir.path(), 128 * MIB);
        let (accumulator, update) = (store.grant_accumulator(OWNER, 1, less, b""), store.grant(OWNER, less));
        let (accumulator, mut update) = (accumulator.expect("there is room"), update.expect("there is room"));
        assert_eq!([accumulator.id().index(), update.id().index()], files);
        assert!(whole(&accumulator).iter().all(|byte| *byte == 0) && update.bytes_mut().iter().all(|byte| *byte == 0));
    }
}

/// Whoever may write to the directory can replace an update, or cut a file that is mapped.
#[test]
fn a_directory_that_others_can_reach_is_refused_and_left_alone() {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    let dir = shared_memory();
    let refused = |path: &std::path::Path, words: &str| {
        let error = try_open(path, MIB).expect_err("refused").to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(std::fs::read_dir(path).expect("lists").count(), 0, "nothing was changed");
    };
    let mode = |mode| std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).expect("its mode");
    for open in [0o777, 0o1777, 0o755, 0o711, 0o750, 0o701, 0o770] {
        mode(open);
        refused(dir.path(), "chmod 700");
    }
    mode(0o700);
    let elsewhere = shared_memory();
    let link = elsewhere.path().join("link");
    symlink(dir.path(), &link).expect("makes a link");
    refused(&link, "symbolic link");
    if rustix::process::geteuid().is_root() {
        chown(dir.path(), Some(12_345), None).expect("gives it away");
        refused(dir.path(), "belongs to user 12345");
        chown(dir.path(), Some(0), None).expect("takes it back");
    }
    drop(open_empty(dir.path(), MIB));
    // One that is made is this user's alone, whatever the mask says.
    let made = dir.path().join("deep/below");
    drop(open_empty(&made, MIB));
    assert_eq!(std::fs::metadata(&made).expect("it is there").permissions().mode() & 0o7777, 0o700);
}

#[test]
fn an_accumulator_without_words_or_data_is_one_too() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let accumulator = store.grant_accumulator(OWNER, 0, 0, b"").expect("there is room");
    assert!(accumulator.control().is_empty());
    assert_eq!((accumulator.data_len(), accumulator.data_offset()), (0, 4096));
}

#[test]
fn handles_cross_threads() {
    fn sends<T: Send + 'static>() {}
    fn shares<T: Send + Sync + Clone + 'static>() {}
    sends::<SlabMut>();
    shares::<Slab>();
    shares::<Accumulator>();
    shares::<SlabStore>();
}
