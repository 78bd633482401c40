//! Logs that are read, damaged or not, and made anew, while no process works on them: the same for a data directory and
//! a server.
#![forbid(unsafe_code)]

mod common;

use std::path::Path;

use async_nats::jetstream;
use bytes::Bytes;
use catchment_bus::offline::{Bounds, Place, StoredLog};
use catchment_bus::{Bus, BusError, LOG_FILE, LogError, NatsConfig, Snapshot};
use common::nats_server::NatsServer;
use common::{config, read_all, record};

/// A place for a log, and what it needs to be there.
enum Home {
    Data(tempfile::TempDir),
    Nats(Box<(NatsServer, NatsConfig)>),
}

impl Home {
    fn both() -> [Self; 2] {
        let server = NatsServer::start();
        let config = config(&server);
        [Self::Data(tempfile::tempdir().unwrap()), Self::Nats(Box::new((server, config)))]
    }

    fn place(&self) -> Place<'_> {
        match self {
            Self::Data(dir) => Place::Data(dir.path()),
            Self::Nats(nats) => Place::Nats(&nats.1),
        }
    }

    /// As a process opens it.
    async fn bus(&self) -> Result<Bus, BusError> {
        match self {
            Self::Data(dir) => Bus::embedded(dir.path()).await,
            Self::Nats(nats) => Bus::nats(nats.1.clone()).await,
        }
    }

    async fn stored(&self) -> Box<dyn StoredLog> {
        self.place().open().await.unwrap().expect("there is a log")
    }

    /// Makes a log of records that say their numbers.
    async fn restore(&self, first: u64, last: u64, replaces: bool, snapshots: Vec<Snapshot>) {
        let mut draft = self.place().begin(first, replaces).await.unwrap();
        for sequence in first..=last {
            draft.append(vec![record(sequence)]).await.unwrap();
        }
        draft.finish(snapshots).await.unwrap();
    }
}

fn snapshot(sequence: u64) -> Snapshot {
    Snapshot { sequence, bytes: Bytes::from(vec![7; 1000 + sequence as usize]) }
}

fn numbers(first: u64, last: u64) -> Vec<(u64, Bytes)> {
    (first..=last).map(|sequence| (sequence, record(sequence))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_made_anew_is_a_log() {
    for home in Home::both() {
        assert!(home.place().open().await.unwrap().is_none(), "there is nothing yet");
        home.restore(1, 5, false, vec![snapshot(3)]).await;
        let bus = home.bus().await.unwrap();
        assert_eq!(read_all(&bus).await, numbers(1, 5));
        assert_eq!(bus.log.snapshot().await.unwrap(), Some(snapshot(3)));
        assert_eq!(bus.log.append(record(6), 5).await.unwrap(), 6);
        drop(bus);
        let stored = home.stored().await;
        assert_eq!(stored.bounds().await.unwrap(), Bounds { first: 1, last: 6 });
        let expected: Vec<_> = numbers(1, 6).into_iter().map(|(sequence, bytes)| (sequence, Ok(bytes))).collect();
        assert_eq!(stored.read(1, 100).await.unwrap(), expected);
        assert_eq!(stored.read(3, 2).await.unwrap(), expected[2..4]);
        assert_eq!(stored.snapshots().await.unwrap(), [3]);
        assert_eq!(stored.unsound(), None);
    }
}

/// A log that has forgotten its beginning begins where it did, and goes on forgetting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_begins_where_its_snapshots_say() {
    for home in Home::both() {
        home.restore(100, 105, false, vec![snapshot(99), snapshot(104)]).await;
        let bus = home.bus().await.unwrap();
        assert!(matches!(bus.log.read(0, 1).await, Err(LogError::Forgotten { first: 100 })));
        assert_eq!(bus.log.last().await.unwrap(), 105);
        assert_eq!(bus.log.read(99, 100).await.unwrap(), numbers(100, 105));
        assert_eq!(bus.log.snapshot().await.unwrap(), Some(snapshot(104)));
        assert_eq!(bus.log.append(record(106), 105).await.unwrap(), 106);
        assert!(bus.log.put_snapshot(snapshot(106)).await.unwrap());
        assert!(matches!(bus.log.read(102, 1).await, Err(LogError::Forgotten { .. })));
        assert_eq!(bus.log.snapshot_sequence().await.unwrap(), 106);
        drop(bus);
        let stored = home.stored().await;
        assert_eq!(stored.snapshots().await.unwrap(), [104, 106]);
        assert_eq!(stored.snapshot(104).await.unwrap(), snapshot(104));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_replaced_only_when_that_is_said() {
    for home in Home::both() {
        home.restore(1, 9, false, vec![snapshot(4), snapshot(8)]).await;
        let refused = home.place().begin(1, false).await.err().expect("there is a log").to_string();
        assert!(refused.contains("there is a log already"), "{refused}");
        assert_eq!(read_all(&home.bus().await.unwrap()).await, numbers(1, 9), "it was left alone");
        // Shorter than the one before, and with an older snapshot.
        home.restore(1, 3, true, vec![snapshot(2)]).await;
        let bus = home.bus().await.unwrap();
        assert_eq!(read_all(&bus).await, numbers(1, 3));
        assert_eq!(bus.log.snapshot().await.unwrap(), Some(snapshot(2)));
        assert_eq!(bus.log.append(record(4), 3).await.unwrap(), 4);
    }
}

/// A tool that dies half-way leaves the old log, or one that no process opens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_log_is_none() {
    for home in Home::both() {
        home.restore(1, 9, false, vec![]).await;
        let mut draft = home.place().begin(1, true).await.unwrap();
        draft.append(vec![record(1), record(2)]).await.unwrap();
        let meanwhile = home.bus().await;
        drop(draft);
        match &home {
            Home::Data(_) => {
                assert!(matches!(meanwhile, Err(BusError::InUse { .. })), "{meanwhile:?}");
                assert_eq!(read_all(&home.bus().await.unwrap()).await, numbers(1, 9));
            }
            Home::Nats(_) => {
                for opened in [meanwhile, home.bus().await] {
                    let refused = opened.unwrap_err().to_string();
                    assert!(refused.contains("being restored"), "{refused}");
                }
                assert!(home.stored().await.unsound().is_some());
            }
        }
        home.restore(1, 4, true, vec![]).await;
        assert_eq!(read_all(&home.bus().await.unwrap()).await, numbers(1, 4));
    }
}

#[tokio::test]
async fn nobody_looks_at_a_log_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::embedded(dir.path()).await.unwrap();
    bus.log.append(record(1), 0).await.unwrap();
    let place = Place::Data(dir.path());
    assert!(matches!(place.open().await.err(), Some(BusError::InUse { .. })));
    assert!(matches!(place.begin(1, true).await.err(), Some(BusError::InUse { .. })));
    drop(bus);
    assert!(place.open().await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_from_a_stream_is_named() {
    let [_, home] = Home::both();
    home.restore(1, 6, false, vec![]).await;
    let Home::Nats(nats) = &home else { unreachable!("made so") };
    let client = async_nats::connect(nats.0.url()).await.unwrap();
    let stream = jetstream::new(client).get_stream("CATCHMENT_LOG").await.unwrap();
    assert!(stream.delete_message(3).await.unwrap());
    let found = home.stored().await.read(2, 3).await.unwrap();
    assert_eq!(found[0], (2, Ok(record(2))));
    assert!(matches!(&found[1], (3, Err(why)) if why.contains("not in the stream")), "{found:?}");
    assert_eq!(found[2], (4, Ok(record(4))));
}

/// Flips the byte at which a text begins in a file, and gives how often the text was there.
fn flip(file: &Path, text: &[u8]) -> usize {
    let mut bytes = std::fs::read(file).unwrap();
    let places: Vec<usize> = (0..bytes.len() - text.len()).filter(|at| bytes[*at..].starts_with(text)).collect();
    places.iter().for_each(|at| bytes[*at] ^= 0x20);
    std::fs::write(file, bytes).unwrap();
    places.len()
}

async fn long_log(dir: &Path, records: u64) {
    let bus = Bus::embedded(dir).await.unwrap();
    for sequence in 1..=records {
        bus.log.append(record(format!("<{sequence}>{}", "x".repeat(200))), sequence - 1).await.unwrap();
    }
}

/// The file does not open any more, and yet every record comes out, the one that was changed as it is now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_come_out_of_a_corrupt_file() {
    let dir = tempfile::tempdir().unwrap();
    long_log(dir.path(), 200).await;
    let file = dir.path().join(LOG_FILE);
    assert!(flip(&file, b"<77>") > 0);
    assert!(matches!(Bus::embedded(dir.path()).await, Err(BusError::Corrupt { .. })));
    let before = std::fs::read(&file).unwrap();
    let stored = Place::Data(dir.path()).open().await.unwrap().expect("there is a log");
    assert!(stored.unsound().is_some_and(|why| why.contains("corrupt")), "{:?}", stored.unsound());
    assert_eq!(stored.bounds().await.unwrap(), Bounds { first: 1, last: 200 });
    let found = stored.read(1, 1000).await.unwrap();
    for (sequence, bytes) in found {
        let text = String::from_utf8(bytes.unwrap().to_vec()).unwrap();
        let begin = if sequence == 77 { "\u{1c}77>x".to_owned() } else { format!("<{sequence}>x") };
        assert!(text.starts_with(&begin), "{sequence}: {text}");
    }
    drop(stored);
    assert!(std::fs::read(&file).unwrap() == before, "reading writes nothing");
    // In its place comes a log that opens.
    Home::Data(dir).restore(1, 3, true, vec![]).await;
}

/// Of a file whose pages make no sense at all, what can be read is read, and nothing panics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_overwritten_gives_what_is_left() {
    for (begin, end) in [(0, 64), (0, 320), (4096, 40_000), (30_000, 60_000), (4096, 10_000_000)] {
        let dir = tempfile::tempdir().unwrap();
        long_log(dir.path(), 200).await;
        let file = dir.path().join(LOG_FILE);
        let mut bytes = std::fs::read(&file).unwrap();
        let end = bytes.len().min(end);
        for (at, byte) in bytes[begin..end].iter_mut().enumerate() {
            *byte = (at * 7 + begin) as u8;
        }
        std::fs::write(&file, &bytes).unwrap();
        let stored = Place::Data(dir.path()).open().await.unwrap().expect("there is a file");
        assert!(stored.unsound().is_some(), "{begin} to {end}");
        let bounds = stored.bounds().await.unwrap();
        let found = stored.read(bounds.first, 10_000).await.unwrap();
        assert_eq!(found.len() as u64, bounds.records(), "{begin} to {end}");
    }
}
