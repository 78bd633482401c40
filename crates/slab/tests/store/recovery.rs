//! What a store finds after its process has ended, well or badly.

use crate::common::{MIB, OWNER, check, logged, open, open_empty, shared_memory, slab_files, submit, try_open};
use catchment_slab::{SlabError, SlabId, SlabStore};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

fn path_of(dir: &Path, id: SlabId) -> PathBuf {
    dir.join(format!("{:08x}.slab", id.index()))
}

fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(path).expect("open a slab");
    file.write_all_at(bytes, offset).expect("overwrite a slab");
}

#[test]
fn a_store_opened_again_finds_what_was_frozen() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let kept: Vec<_> = [0, 10, 70_000].map(|len| (submit(&store, len, b"meta").expect("room").id(), len)).into();
    let accumulator = store.grant_accumulator(OWNER, 10, 9000, b"plan").expect("there is room");
    accumulator.control()[9].store(77, Ordering::Release);
    let released = submit(&store, 10, b"").expect("there is room").id();
    store.release(released);
    let unfrozen = store.grant(OWNER, 50_000).expect("there is room").id();
    let (accumulator_id, incarnation) = (accumulator.id(), store.incarnation());
    drop((accumulator, store));

    let (store, recovered) = open(dir.path(), 64 * MIB);
    assert_eq!(store.incarnation(), incarnation);
    assert_eq!(recovered.slabs.iter().map(|slab| (slab.id(), slab.len())).collect::<Vec<_>>(), kept);
    for slab in &recovered.slabs {
        check(slab, slab.len());
        assert_eq!(slab.meta(), b"meta");
    }
    let [found] = &recovered.accumulators[..] else { panic!("one accumulator was kept") };
    assert_eq!((found.id(), found.meta(), found.data_len()), (accumulator_id, b"plan".as_slice(), 9000));
    assert_eq!(found.control()[9].load(Ordering::Acquire), 77);
    assert!(store.get(released).is_none() && store.get(unfrozen).is_none());
    assert_eq!(store.usage().granted_bytes, 0);
    let reused = store.grant(OWNER, 50_000).expect("there is room");
    assert_eq!(reused.id(), SlabId::new(unfrozen.index(), unfrozen.generation() + 1), "reclaimed, under a new name");
    assert!(store.release(accumulator_id) && kept.iter().all(|(id, _)| store.release(*id)));
    drop((recovered, reused));
    assert_eq!(store.usage().in_use_bytes(), 0);
}

#[test]
fn a_store_has_one_owner_until_its_last_handle() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), MIB);
    let slab = submit(&store, 10, b"").expect("there is room");
    assert!(matches!(try_open(dir.path(), MIB), Err(SlabError::InUse { .. })));
    drop(store);
    let error = try_open(dir.path(), MIB).expect_err("a handle is left").to_string();
    assert!(error.contains("in use") && error.contains(dir.path().to_str().expect("UTF-8")), "{error}");
    drop(slab);
    assert_eq!(open(dir.path(), MIB).1.slabs.len(), 1);
}

#[test]
fn names_never_repeat_through_trims_and_restarts() {
    let dir = shared_memory();
    let mut seen = HashSet::new();
    for life in 0..5 {
        let store = open_empty(dir.path(), 64 * MIB);
        for turn in 0..20 {
            let id = store.grant(OWNER, 4096 * (1 + turn % 3)).expect("there is room").id();
            assert!(seen.insert(id), "{id} came twice, in life {life}");
            if turn % 7 == 6 {
                store.trim();
            }
        }
        store.trim();
        assert_eq!(slab_files(dir.path()).0, 0, "no header is left to remember a generation");
    }
    std::fs::create_dir(dir.path().join("000000ff.slab")).expect("make a directory under a slab's name");
    let store = open_empty(dir.path(), MIB);
    assert!(store.grant(OWNER, 1).expect("there is room").id().index() > 0xff, "a name that is taken is passed over");
}

#[test]
fn damaged_files_are_removed_by_name_and_the_rest_is_kept() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let ids: Vec<_> = (0..8).map(|_| submit(&store, 5000, b"meta").expect("there is room").id()).collect();
    drop(store);
    let paths: Vec<_> = ids.iter().map(|id| path_of(dir.path(), *id)).collect();
    overwrite(&paths[0], 36, &[0xFF]); // the generation
    overwrite(&paths[1], 128, b"M"); // the metadata
    overwrite(&paths[2], 0, b"x"); // the magic
    overwrite(&paths[3], 16, b"?"); // the state
    std::fs::File::options().write(true).open(&paths[4]).expect("opens").set_len(6000).expect("cuts");
    std::fs::copy(&paths[7], &paths[5]).expect("a copy under another's name");
    std::fs::write(&paths[6], b"").expect("as a kill while creating leaves it");
    std::fs::write(dir.path().join("notes.txt"), b"garbage").expect("writes");

    let ((store, recovered), log) = logged(|| open(dir.path(), 64 * MIB));
    assert_eq!(recovered.slabs.iter().map(|slab| slab.id()).collect::<Vec<_>>(), [ids[7]]);
    check(&recovered.slabs[0], 5000);
    for (place, path) in paths.iter().enumerate() {
        assert_eq!(path.exists(), place == 7, "{}", path.display());
        assert_eq!(log.contains(path.to_str().expect("UTF-8")), place < 6, "{}: {log}", path.display());
    }
    assert!(log.contains("notes.txt") && dir.path().join("notes.txt").exists(), "foreign files are named and left");
    assert_eq!(store.usage().free_bytes, 0);
    assert!(store.grant(OWNER, 1).expect("there is room").id().index() > ids[7].index());
}

#[test]
fn a_newer_file_stops_the_start_and_nothing_is_touched() {
    let dir = shared_memory();
    let store = open_empty(dir.path(), 64 * MIB);
    let ids: Vec<_> = (0..3).map(|_| submit(&store, 10, b"").expect("there is room").id()).collect();
    drop(store);
    overwrite(&path_of(dir.path(), ids[0]), 0, b"x");
    overwrite(&path_of(dir.path(), ids[2]), 8, &[9]);
    let error = try_open(dir.path(), 64 * MIB).expect_err("refused");
    let text = error.to_string();
    assert!(matches!(error, SlabError::NewerVersion { found: 9, known: 1, .. }), "{text}");
    assert!(text.contains("00000002.slab") && text.contains("newer build"), "{text}");
    assert_eq!(slab_files(dir.path()).0, 3, "not even the damaged one is gone");
    overwrite(&path_of(dir.path(), ids[2]), 8, &[1]);
    assert_eq!(open(dir.path(), 64 * MIB).1.slabs.len(), 2);
}

#[test]
fn no_permission_is_said_with_the_path() {
    let dir = shared_memory();
    let inner = dir.path().join("theirs");
    std::fs::create_dir(&inner).expect("makes a directory");
    std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o500)).expect("shuts it");
    let outcome = std::thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(65534);
        if rustix::process::geteuid().is_root() {
            // This thread alone becomes nobody, and ends with the test.
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may");
        }
        try_open(&inner, MIB).map(|_| ())
    });
    let error = outcome.join().expect("no panic").expect_err("not permitted");
    let text = error.to_string();
    assert!(matches!(error, SlabError::Denied { .. }), "{text}");
    assert!(text.contains("no permission to") && text.contains("theirs") && text.contains("run as"), "{text}");
}

const CHILD_DIR: &str = "CATCHMENT_SLAB_TEST_DIR";
const CHILD_SEED: &str = "CATCHMENT_SLAB_TEST_SEED";

/// The process that is killed: works on the store for ever and says what it has done, each line after the deed (and
/// for releases also before it).
#[test]
#[ignore = "the child of `every_kill_leaves_exactly_what_was_frozen`"]
fn child_works_until_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let seed = std::env::var(CHILD_SEED).expect("the parent sets it").parse().expect("a number");
    let mut random = StdRng::seed_from_u64(seed);
    let mut out = std::io::stdout();
    let mut say = |line: String| out.write_all(format!("{line}\n").as_bytes()).expect("the parent listens");
    let (store, recovered) = open(Path::new(&dir), 64 * MIB);
    let accumulator = match recovered.accumulators.first() {
        Some(found) => found.clone(),
        None => store.grant_accumulator(OWNER, 4, 5000, b"plan").expect("there is room"),
    };
    let mut mine: Vec<_> = recovered.slabs.iter().map(|slab| slab.id()).collect();
    drop(recovered);
    loop {
        let len = random.random_range(0..40_000);
        match random.random_range(0..4) {
            0 => store.grant(OWNER, len).expect("there is room").bytes_mut().fill(0xEE),
            1 if mine.len() > 20 => {
                let id = mine.swap_remove(random.random_range(0..mine.len()));
                say(format!("releasing {}", id.get()));
                assert!(store.release(id));
                say(format!("released {}", id.get()));
            }
            _ if mine.len() < 200 => {
                let id = submit(&store, len, &len.to_le_bytes()).expect("there is room").id();
                mine.push(id);
                say(format!("kept {}", id.get()));
                let count = accumulator.control()[3].fetch_add(1, Ordering::AcqRel) + 1;
                say(format!("counted {count}"));
            }
            _ => {}
        }
    }
}

/// What the children have said so far.
#[derive(Default)]
struct Told {
    kept: BTreeMap<SlabId, bool>,
    ever: HashSet<SlabId>,
    counted: u64,
}

impl Told {
    fn listen(&mut self, output: &str) {
        let whole = output.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        for (word, number) in whole.filter_map(|line| line.split_once(' ')) {
            let Ok(number) = number.parse::<u64>() else { continue };
            let id = SlabId::from_u64(number);
            match word {
                "kept" => {
                    assert!(self.ever.insert(id), "{id} came twice");
                    self.kept.insert(id, true);
                }
                // Between the two words either outcome is right.
                "releasing" => drop(self.kept.insert(id, false)),
                "released" => drop(self.kept.remove(&id)),
                "counted" => self.counted = number,
                _ => {}
            }
        }
    }

    fn compare(&mut self, dir: &Path) {
        let (store, recovered): (SlabStore, _) = open(dir, 64 * MIB);
        let found: BTreeMap<_, _> = recovered.slabs.iter().map(|slab| (slab.id(), slab)).collect();
        for (id, certain) in &self.kept {
            assert!(found.contains_key(id) || !certain, "{id} was frozen and is lost");
        }
        let untold: Vec<_> = found.keys().filter(|id| !self.kept.contains_key(id)).copied().collect();
        assert!(untold.len() <= 1, "at most the last one was frozen and not told: {untold:?}");
        assert!(untold.iter().all(|id| self.ever.insert(*id)), "a released slab is back: {untold:?}");
        for slab in found.values() {
            let len = u64::from_le_bytes(slab.meta().try_into().expect("eight bytes of metadata"));
            check(slab, len);
        }
        self.kept = found.keys().map(|id| (*id, true)).collect();
        if self.counted > 0 {
            let [accumulator] = &recovered.accumulators[..] else { panic!("one accumulator is kept") };
            assert_eq!(accumulator.meta(), b"plan");
            assert!(accumulator.control()[3].load(Ordering::Acquire) >= self.counted);
        }
        let usage = store.usage();
        assert_eq!(usage.granted_bytes, 0);
        assert_eq!(slab_files(dir).1, usage.in_use_bytes() + usage.free_bytes);
    }
}

#[test]
fn every_kill_leaves_exactly_what_was_frozen() {
    let dir = shared_memory();
    let mut random = StdRng::seed_from_u64(3);
    let mut told = Told::default();
    for seed in 0..25 {
        let mut child = Command::new(std::env::current_exe().expect("this test's own program"))
            .args(["--exact", "recovery::child_works_until_killed", "--ignored", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .env(CHILD_SEED, seed.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the child");
        std::thread::sleep(Duration::from_micros(random.random_range(3_000..60_000)));
        child.kill().expect("kill the child");
        let mut output = String::new();
        child.stdout.take().expect("it is piped").read_to_string(&mut output).expect("read what it said");
        let status = child.wait().expect("reap the child");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "it failed by itself: {output}");
        told.listen(&output);
        told.compare(dir.path());
    }
    assert!(told.counted > 100, "the children hardly came to work: {}", told.counted);
}
