//! The store beside a model of it that a reader can check by eye: a map of kept updates and a list of live handles.

use crate::common::{OWNER, check, open, shared_memory, slab_files, submit};
use catchment_slab::{Recovered, Slab, SlabError, SlabId, SlabMut, SlabStore};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

const BUDGET_BYTES: u64 = 80 * 4096;

#[derive(Debug, Clone)]
enum Act {
    Grant(u64),
    FreezeOldest,
    HangUp,
    Submit(u64),
    Get(prop::sample::Index),
    DropHandle(prop::sample::Index),
    Release(prop::sample::Index),
    Trim,
    Reopen,
}

fn act() -> impl Strategy<Value = Act> {
    let len = prop_oneof![0u64..300, 4000u64..9000, 30_000u64..50_000, 100_000u64..200_000];
    prop_oneof![
        2 => len.clone().prop_map(Act::Grant),
        2 => Just(Act::FreezeOldest),
        1 => Just(Act::HangUp),
        4 => len.prop_map(Act::Submit),
        2 => any::<prop::sample::Index>().prop_map(Act::Get),
        3 => any::<prop::sample::Index>().prop_map(Act::DropHandle),
        4 => any::<prop::sample::Index>().prop_map(Act::Release),
        1 => Just(Act::Trim),
        1 => Just(Act::Reopen),
    ]
}

fn file_bytes(len: u64) -> u64 {
    4096 + len.max(1).next_multiple_of(4096)
}

struct Pair {
    store: SlabStore,
    granted: Vec<SlabMut>,
    handles: Vec<(Slab, u64)>,
    /// What the store must keep: id to length.
    kept: BTreeMap<SlabId, u64>,
    /// Every id ever seen.
    seen: HashSet<SlabId>,
}

impl Pair {
    /// A grant must succeed exactly when the budget has room beside what is in use.
    fn expect_room<T>(&mut self, len: u64, outcome: Result<T, SlabError>, in_use_before: u64) -> Option<T> {
        let fits = in_use_before + file_bytes(len) <= BUDGET_BYTES;
        match outcome {
            Ok(value) => {
                assert!(fits, "{len} bytes were granted beside {in_use_before}");
                Some(value)
            }
            Err(SlabError::NoRoom { wanted_bytes, free_bytes, .. }) => {
                assert!(!fits, "{len} bytes were refused beside {in_use_before}");
                assert_eq!((wanted_bytes, free_bytes), (file_bytes(len), BUDGET_BYTES - in_use_before));
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn some_id(&self, index: &prop::sample::Index) -> Option<SlabId> {
        let mut ids: Vec<_> = self.seen.iter().copied().collect();
        ids.sort();
        (!ids.is_empty()).then(|| *index.get(&ids))
    }

    fn new_id(&mut self, id: SlabId) {
        assert!(self.seen.insert(id), "{id} came twice");
    }

    fn run(&mut self, dir: &Path, act: Act) {
        let in_use = self.store.usage().in_use_bytes();
        match act {
            Act::Grant(len) => {
                let outcome = self.store.grant(OWNER, len);
                if let Some(granted) = self.expect_room(len, outcome, in_use) {
                    self.new_id(granted.id());
                    self.granted.push(granted);
                }
            }
            Act::FreezeOldest if !self.granted.is_empty() => {
                let mut granted = self.granted.remove(0);
                granted.bytes_mut().fill(0);
                let (id, len) = (granted.id(), granted.len());
                granted.freeze(&id.get().to_le_bytes()).expect("freezes");
                self.kept.insert(id, len);
            }
            Act::HangUp => drop(self.granted.pop()),
            Act::Submit(len) => {
                let outcome = submit(&self.store, len, b"");
                if let Some(slab) = self.expect_room(len, outcome, in_use) {
                    self.new_id(slab.id());
                    self.kept.insert(slab.id(), len);
                    self.handles.push((slab, len));
                }
            }
            Act::Get(index) => {
                let Some(id) = self.some_id(&index) else { return };
                let found = self.store.get(id);
                assert_eq!(found.as_ref().map(Slab::len), self.kept.get(&id).copied());
                self.handles.extend(found.map(|slab| (slab.clone(), slab.len())));
            }
            Act::DropHandle(index) if !self.handles.is_empty() => {
                let (slab, len) = self.handles.swap_remove(index.index(self.handles.len()));
                if slab.meta().is_empty() {
                    check(&slab, len);
                }
            }
            Act::Release(index) => {
                let Some(id) = self.some_id(&index) else { return };
                assert_eq!(self.store.release(id), self.kept.remove(&id).is_some());
            }
            Act::Trim => {
                self.store.trim();
                assert_eq!(self.store.usage().free_bytes, 0);
            }
            Act::Reopen => self.reopen(dir),
            Act::FreezeOldest | Act::DropHandle(_) => {}
        }
    }

    fn reopen(&mut self, dir: &Path) {
        let incarnation = self.store.incarnation();
        self.granted.clear();
        self.handles.clear();
        // The store has to be gone before the directory can be opened again.
        let elsewhere = shared_memory();
        self.store = open(elsewhere.path(), 0).0;
        let (store, Recovered { slabs, accumulators }) = open(dir, BUDGET_BYTES);
        assert_eq!(store.incarnation(), incarnation);
        assert!(accumulators.is_empty());
        let found: BTreeMap<_, _> = slabs.iter().map(|slab| (slab.id(), slab.len())).collect();
        assert_eq!(found, self.kept);
        self.handles.extend(slabs.into_iter().map(|slab| (slab.clone(), slab.len())));
        self.store = store;
    }

    fn compare(&self, dir: &Path) {
        let usage = self.store.usage();
        assert_eq!(slab_files(dir).1, usage.in_use_bytes() + usage.free_bytes);
        assert!(usage.in_use_bytes() + usage.free_bytes <= BUDGET_BYTES);
        let within = |actual: u64, wanted: u64, count: usize| {
            let spare = wanted / 4 + 4096 * count as u64;
            assert!((wanted..=wanted + spare).contains(&actual), "{actual} bytes for {wanted}");
        };
        let wanted = self.granted.iter().map(|slab| file_bytes(slab.len())).sum();
        within(usage.granted_bytes, wanted, self.granted.len());
        let mut live = self.kept.clone();
        live.extend(self.handles.iter().map(|(slab, len)| (slab.id(), *len)));
        within(usage.frozen_bytes, live.values().map(|&len| file_bytes(len)).sum(), live.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_does(acts in prop::collection::vec(act(), 1..80)) {
        let dir = shared_memory();
        let (store, _) = open(dir.path(), BUDGET_BYTES);
        let (granted, handles) = (Vec::new(), Vec::new());
        let mut pair = Pair { store, granted, handles, kept: BTreeMap::new(), seen: HashSet::new() };
        for act in acts {
            pair.run(dir.path(), act);
            pair.compare(dir.path());
        }
    }
}
