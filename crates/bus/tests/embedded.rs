//! The embedded log on its file: reopening, a second owner, damage, a full disk, sudden death.
#![forbid(unsafe_code)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use catchment_bus::{Bus, BusError, LOG_FILE, LogError, Snapshot};
use common::{append_somewhere, read_all, record};

async fn fill(dir: &Path, records: u64) {
    let bus = Bus::embedded(dir).await.unwrap();
    let last = bus.log.last().await.unwrap();
    for number in last..last + records {
        bus.log.append(record(format!("record {number}")), number).await.unwrap();
    }
}

#[tokio::test]
async fn the_log_is_there_again_after_a_drop() {
    let dir = tempfile::tempdir().unwrap();
    let nested = dir.path().join("a/b");
    for round in 1..=5 {
        fill(&nested, 10).await;
        let bus = Bus::embedded(&nested).await.unwrap();
        assert_eq!(bus.log.last().await.unwrap(), round * 10);
    }
    let bus = Bus::embedded(&nested).await.unwrap();
    let expected: Vec<_> = (0..50).map(|n| (n + 1, record(format!("record {n}")))).collect();
    assert_eq!(read_all(&bus).await, expected);
}

#[tokio::test]
async fn a_second_owner_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let first = Bus::embedded(dir.path()).await.unwrap();
    let clone = first.clone();
    drop(first);
    let error = Bus::embedded(dir.path()).await.unwrap_err();
    assert!(matches!(&error, BusError::InUse { path } if path.ends_with(LOG_FILE)), "{error}");
    assert!(error.to_string().contains("another process"), "{error}");
    clone.log.append(record("still usable"), 0).await.unwrap();
    drop(clone);
    Bus::embedded(dir.path()).await.unwrap();
}

#[tokio::test]
async fn what_is_no_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = Bus::embedded(&file.join("data")).await.unwrap_err();
    assert!(matches!(&error, BusError::Open { .. }) && error.to_string().contains("file/data"), "{error}");
    // The log's own name taken by a directory.
    std::fs::create_dir_all(dir.path().join("data").join(LOG_FILE)).unwrap();
    let error = Bus::embedded(&dir.path().join("data")).await.unwrap_err();
    assert!(matches!(&error, BusError::Open { .. }), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_log_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(LOG_FILE);
    for content in [b"hello".to_vec(), vec![0; 4096], b"redb".repeat(5000)] {
        std::fs::write(&path, &content).unwrap();
        let error = Bus::embedded(dir.path()).await.unwrap_err();
        assert!(matches!(&error, BusError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(LOG_FILE), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
    // An empty file is what a crash right after its creation leaves.
    std::fs::write(&path, b"").unwrap();
    Bus::embedded(dir.path()).await.unwrap();
}

/// Bytes changed or lost anywhere: an error that says so, or the content as it was; never a panic
/// and never another content.
#[tokio::test]
async fn damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path(), 300).await;
    let sound = std::fs::read(dir.path().join(LOG_FILE)).unwrap();
    let expected: Vec<_> = (0..300).map(|n| (n + 1, record(format!("record {n}")))).collect();
    let mut found = 0;
    for trial in 0..60_usize {
        let mut bytes = sound.clone();
        if trial % 3 == 0 {
            bytes.truncate(sound.len() * trial / 60);
        } else {
            let at = trial.wrapping_mul(2_654_435_761) % bytes.len();
            let end = (at + 512).min(bytes.len());
            bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0x5a);
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(LOG_FILE), &bytes).unwrap();
        match Bus::embedded(dir.path()).await {
            Err(BusError::Corrupt { .. }) => found += 1,
            Err(error) => panic!("trial {trial}: {error}"),
            // Nothing is left of an empty file, and free pages may hold anything.
            Ok(bus) if !bytes.is_empty() => assert_eq!(read_all(&bus).await, expected, "trial {trial}"),
            Ok(_) => {}
        }
    }
    assert!(found > 20, "only {found} of 60");
}

/// A tmpfs of a few megabytes, unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_appends_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&dir.path().join("disk"), "12m") else {
        eprintln!("skipped: a full disk needs the right to mount a tmpfs");
        return;
    };
    let filler = disk.0.join("filler");
    std::fs::write(&filler, vec![1; 6 << 20]).unwrap();
    let bus = Bus::embedded(&disk.0).await.unwrap();
    let content = |number: u64| Bytes::from(vec![number as u8; 50_000]);

    let mut last = 0;
    let refused = loop {
        match bus.log.append(content(last), last).await {
            Ok(sequence) => last = sequence,
            Err(error) => break error,
        }
        assert!(last < 1000, "the disk never fills");
    };
    println!("after {last} records: {refused}");
    assert!(last > 10, "{last}");
    assert!(matches!(&refused, LogError::Refused(text) if text.contains("make room")), "{refused}");
    // It goes on refusing, answers reads, and neither forgets nor invents.
    for _ in 0..3 {
        assert!(matches!(bus.log.append(content(last), last).await, Err(LogError::Refused(_))));
        assert_eq!(bus.log.last().await.unwrap(), last);
    }
    assert_eq!(bus.log.read(last - 1, 5).await.unwrap(), [(last, content(last - 1))]);

    std::fs::remove_file(&filler).unwrap();
    for number in last..last + 10 {
        assert_eq!(bus.log.append(content(number), number).await.unwrap(), number + 1);
    }
    let expected: Vec<_> = (0..last + 10).map(|number| (number + 1, content(number))).collect();
    assert_eq!(read_all(&bus).await, expected);
    drop(bus);
    let bus = Bus::embedded(&disk.0).await.unwrap();
    assert_eq!(read_all(&bus).await, expected);
}

const CHILD_DIR: &str = "CATCHMENT_TEST_APPEND_IN";

/// Not a test by itself: the process that [`an_acknowledged_record_survives_kill_9`] kills. It says
/// each sequence it was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_appends_until_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else {
        return;
    };
    let bus = Bus::embedded(Path::new(&dir)).await.unwrap();
    loop {
        let next = bus.log.last().await.unwrap() + 1;
        let sequence = append_somewhere(&bus, record(format!("record {next}"))).await;
        let mut out = std::io::stdout();
        writeln!(out, "acknowledged {sequence}").unwrap();
        out.flush().unwrap();
    }
}

#[tokio::test]
async fn an_acknowledged_record_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_appends_until_killed", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let sequences = lines.filter_map(|line| line.unwrap().strip_prefix("acknowledged ")?.parse::<u64>().ok());
        for (count, sequence) in sequences.enumerate() {
            assert_eq!(sequence, acknowledged + 1);
            acknowledged = sequence;
            if count == 20 + round * 7 {
                // What the child still says after this counts too.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let bus = Bus::embedded(dir.path()).await.unwrap();
        let last = bus.log.last().await.unwrap();
        assert!(last >= acknowledged && last <= acknowledged + 1, "{last} stored, {acknowledged} acknowledged");
        let expected: Vec<_> = (1..=last).map(|n| (n, record(format!("record {n}")))).collect();
        assert_eq!(read_all(&bus).await, expected);
        acknowledged = last;
    }
}

const CHILD_SNAPSHOT_DIR: &str = "CATCHMENT_TEST_SNAPSHOT_IN";

/// Large enough to be killed in the middle of.
fn snapshot_at(sequence: u64) -> Snapshot {
    Snapshot { sequence, bytes: Bytes::from(sequence.to_le_bytes().repeat(100_000)) }
}

/// Not a test by itself: the process that [`no_kill_tears_a_snapshot`] kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_takes_snapshots_until_killed() {
    let Some(dir) = std::env::var_os(CHILD_SNAPSHOT_DIR) else {
        return;
    };
    let bus = Bus::embedded(Path::new(&dir)).await.unwrap();
    loop {
        let next = bus.log.last().await.unwrap() + 1;
        let sequence = append_somewhere(&bus, record(format!("record {next}"))).await;
        if sequence % 5 == 0 {
            assert!(bus.log.put_snapshot(snapshot_at(sequence)).await.unwrap());
        }
        let mut out = std::io::stdout();
        writeln!(out, "acknowledged {sequence}").unwrap();
        out.flush().unwrap();
    }
}

#[tokio::test]
async fn no_kill_tears_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_takes_snapshots_until_killed", "--nocapture"])
            .env(CHILD_SNAPSHOT_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut acknowledged = 0;
        for (count, line) in BufReader::new(child.stdout.take().unwrap()).lines().enumerate() {
            let line = line.unwrap();
            acknowledged = line.strip_prefix("acknowledged ").map_or(acknowledged, |text| text.parse().unwrap());
            if count as u64 == 25 {
                // At another moment each time.
                std::thread::sleep(std::time::Duration::from_micros(round * 700));
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let bus = Bus::embedded(dir.path()).await.unwrap();
        let last = bus.log.last().await.unwrap();
        assert!(last >= acknowledged, "{last} stored, {acknowledged} acknowledged");
        let snapshot = bus.log.snapshot().await.unwrap().unwrap();
        assert_eq!(snapshot, snapshot_at(snapshot.sequence));
        assert!(snapshot.sequence % 5 == 0 && snapshot.sequence + 5 >= acknowledged, "{snapshot:?} of {acknowledged}");
        // Nothing is forgotten that the snapshot before this one does not hold.
        let before = snapshot.sequence - 5;
        let expected: Vec<_> = (before + 1..=last).map(|n| (n, record(format!("record {n}")))).collect();
        assert_eq!(bus.log.read(before, 1000).await.unwrap(), expected);
    }
    let forgotten = Bus::embedded(dir.path()).await.unwrap().log.read(0, 1).await;
    assert!(matches!(forgotten, Err(LogError::Forgotten { first }) if first > 100), "{forgotten:?}");
}
