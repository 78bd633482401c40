//! Long use and many threads: nothing grows, nothing is mixed up.

use crate::common::{
    MIB, OWNER, check, descriptors_in, mappings_in, open, open_empty, shared_memory, slab_files, submit,
};
use catchment_slab::{SlabError, SlabId};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::HashSet;
use std::sync::{Barrier, Mutex};

#[test]
fn ten_thousand_updates_leave_no_trace() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let cycle = |turn: u64| {
        let slab = submit(&store, 20_000, &turn.to_le_bytes()).expect("there is room");
        check(&slab, 20_000);
        slab.fd().expect("opens");
        assert!(store.release(slab.id()));
    };
    cycle(0);
    let before = (descriptors_in(dir.path()), mappings_in(dir.path()), slab_files(dir.path()), store.usage());
    assert_eq!((before.0, before.1), (3, 0));
    (1..10_000).for_each(cycle);
    let after = (descriptors_in(dir.path()), mappings_in(dir.path()), slab_files(dir.path()), store.usage());
    assert_eq!(before, after);
    assert_eq!(after.3.in_use_bytes(), 0);
}

#[test]
fn thousands_of_waiting_updates_cost_no_descriptors() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let slabs: Vec<_> = (0..3000).map(|_| submit(&store, 100, b"waits").expect("there is room")).collect();
    assert_eq!((descriptors_in(dir.path()), mappings_in(dir.path())), (3, 0));
    drop((slabs, store));
    let (store, recovered) = open(dir.path(), 64 * MIB);
    assert_eq!(recovered.slabs.len(), 3000);
    assert_eq!((descriptors_in(dir.path()), mappings_in(dir.path())), (3, 0));
    for slab in recovered.slabs {
        check(&slab, 100);
        slab.fd().expect("opens");
        store.release(slab.id());
    }
    assert_eq!((descriptors_in(dir.path()), mappings_in(dir.path())), (3, 0));
    assert_eq!(store.usage().in_use_bytes(), 0);
}

#[test]
fn threads_never_see_each_others_bytes() {
    const THREADS: u64 = 8;
    let dir = shared_memory();
    // Room for about half of what the threads want, so that eviction and refusal are part of the game.
    let budget_bytes = 2 * MIB;
    let store = open_empty(dir.path(), budget_bytes);
    let ids = Mutex::new(HashSet::new());
    let unique = |id: SlabId| assert!(ids.lock().expect("no panic").insert(id), "{id} came twice");
    let one_thread = |seed: u64| {
        let mut random = StdRng::seed_from_u64(seed);
        let mut mine = Vec::new();
        let mut refused = 0;
        for _ in 0..1500 {
            let len = [100, 5_000, 40_000, 41_000, 150_000][random.random_range(0..5)];
            match random.random_range(0..10) {
                0..4 => match submit(&store, len, &len.to_le_bytes()) {
                    Ok(slab) => {
                        unique(slab.id());
                        mine.push((slab, len));
                    }
                    Err(SlabError::NoRoom { .. }) => refused += 1,
                    Err(error) => panic!("{error}"),
                },
                4..6 => match store.grant(OWNER, len) {
                    Ok(mut granted) => {
                        unique(granted.id());
                        granted.bytes_mut().fill(0xEE);
                    }
                    Err(SlabError::NoRoom { .. }) => refused += 1,
                    Err(error) => panic!("{error}"),
                },
                6..9 if !mine.is_empty() => {
                    let (slab, len) = mine.swap_remove(random.random_range(0..mine.len()));
                    let again = store.get(slab.id()).expect("frozen and not released");
                    drop(slab);
                    assert!(store.release(again.id()));
                    assert!(store.get(again.id()).is_none());
                    check(&again, len);
                }
                _ if random.random_range(0..20) == 0 => store.trim(),
                _ => {}
            }
            let usage = store.usage();
            assert!(usage.in_use_bytes() + usage.free_bytes <= budget_bytes, "{usage:?}");
        }
        for (slab, len) in mine {
            check(&slab, len);
            store.release(slab.id());
        }
        refused
    };
    let refused: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|seed| scope.spawn(move || one_thread(seed))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert!(refused > 0, "the budget was never reached; make it smaller");
    let usage = store.usage();
    assert_eq!(usage.in_use_bytes(), 0);
    assert_eq!(slab_files(dir.path()).1, usage.free_bytes, "the books and the directory agree");
    assert_eq!((descriptors_in(dir.path()), mappings_in(dir.path())), (3, 0));
}

/// A grant that fits the budget is never refused because another one is just unlinking the file in its way.
#[test]
fn making_room_refuses_nobody_who_fits() {
    const THREADS: u64 = 4;
    let dir = shared_memory();
    let store = open_empty(dir.path(), THREADS * MIB);
    for _ in 0..200 {
        // One free file takes the whole budget; every thread needs it gone.
        drop(store.grant(OWNER, THREADS * MIB - 4096).expect("nothing is in use"));
        let start = Barrier::new(THREADS as usize);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    let outcome = store.grant(OWNER, MIB - 4096);
                    // All grants are held together; a refused thread too must come here, or the others wait for ever.
                    start.wait();
                    outcome.expect("four of one MiB fit four MiB");
                });
            }
        });
    }
    assert_eq!(store.usage().in_use_bytes(), 0);
}
