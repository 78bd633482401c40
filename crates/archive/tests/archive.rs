//! What is written is read; what was changed on its way is noticed, wherever.

use catchment_archive::{ARCHIVE_VERSION, ArchiveError, Counts, Entry, Head, Reader, Writer};
use proptest::prelude::*;

fn head(first: u64, last: u64) -> Head {
    Head { first, last, writer: "a test".to_owned() }
}

/// Two snapshots, one of more than one piece, and four records, of which one is missing.
fn example() -> Vec<u8> {
    let mut writer = Writer::begin(Vec::new(), &head(5, 8)).unwrap();
    writer.snapshot(4, &[7; 3]).unwrap();
    writer.snapshot(6, &vec![9; (1 << 20) + 5]).unwrap();
    writer.record(5, b"five").unwrap();
    writer.record(6, b"").unwrap();
    writer.missing(7, "it was not there").unwrap();
    writer.record(8, &[0; 300]).unwrap();
    let (file, counts) = writer.finish().unwrap();
    assert_eq!(counts, Counts { records: 3, missing: 1, snapshots: 2 });
    file
}

fn read(file: &[u8]) -> Result<Vec<Entry>, ArchiveError> {
    let mut reader = Reader::begin(file)?;
    let mut entries = Vec::new();
    while let Some(entry) = reader.entry()? {
        entries.push(entry);
    }
    Ok(entries)
}

#[test]
fn what_is_written_is_read() {
    let file = example();
    assert_eq!(Reader::begin(&file[..]).unwrap().head(), &head(5, 8));
    let expected = vec![
        Entry::Snapshot { sequence: 4, bytes: 3 },
        Entry::Piece(vec![7; 3]),
        Entry::Snapshot { sequence: 6, bytes: (1 << 20) + 5 },
        Entry::Piece(vec![9; 1 << 20]),
        Entry::Piece(vec![9; 5]),
        Entry::Record { sequence: 5, bytes: b"five".to_vec() },
        Entry::Record { sequence: 6, bytes: vec![] },
        Entry::Missing { sequence: 7, why: "it was not there".to_owned() },
        Entry::Record { sequence: 8, bytes: vec![0; 300] },
        Entry::End(Counts { records: 3, missing: 1, snapshots: 2 }),
    ];
    assert_eq!(read(&file).unwrap(), expected);
}

/// A file that a release has written is read for ever.
#[test]
fn the_layout_is_pinned() {
    let mut writer = Writer::begin(Vec::new(), &head(2, 3)).unwrap();
    writer.snapshot(1, b"state").unwrap();
    writer.record(2, b"two").unwrap();
    writer.missing(3, "gone").unwrap();
    let (file, _) = writer.finish().unwrap();
    assert_eq!(&file[..9], b"catchlog\x01");
    assert_eq!(blake3::hash(&file).to_hex().as_str(), PINNED);
}

const PINNED: &str = "cc78b47ae5bb1ebcc81341b23e0eae71d52925ce956f60f110b65174157e29fc";

#[test]
fn a_log_without_records_is_a_file_too() {
    for (first, snapshot) in [(1, None), (9, Some(8))] {
        let mut writer = Writer::begin(Vec::new(), &head(first, first - 1)).unwrap();
        if let Some(sequence) = snapshot {
            writer.snapshot(sequence, b"").unwrap();
        }
        let (file, _) = writer.finish().unwrap();
        assert!(matches!(read(&file).unwrap().last(), Some(Entry::End(_))));
    }
}

#[test]
fn every_cut_is_noticed() {
    let mut writer = Writer::begin(Vec::new(), &head(1, 2)).unwrap();
    writer.snapshot(1, b"state").unwrap();
    writer.record(1, b"one").unwrap();
    writer.record(2, b"two").unwrap();
    let (file, _) = writer.finish().unwrap();
    for cut in 0..file.len() {
        assert!(read(&file[..cut]).is_err(), "cut at {cut}");
    }
    let error = read(&file[..file.len() - 90]).unwrap_err().to_string();
    assert!(error.contains("after record 1"), "{error}");
    assert!(read(&[&file[..], b"x"].concat()).is_err(), "something follows");
}

#[test]
fn parts_in_another_order_are_noticed() {
    let record = |sequence, bytes: &[u8]| {
        let mut writer = Writer::begin(Vec::new(), &head(sequence, sequence)).unwrap();
        writer.record(sequence, bytes).unwrap();
        writer.finish().unwrap().0
    };
    // Frames of the same length at the same place in another file.
    let (one, two) = (record(1, b"one"), record(1, b"two"));
    let mixed = [&one[..one.len() - 77], &two[two.len() - 77..]].concat();
    let error = read(&mixed).unwrap_err().to_string();
    assert!(error.contains("do not make up the whole"), "{error}");
}

#[test]
fn other_files_are_told_apart() {
    assert!(matches!(read(b"").unwrap_err(), ArchiveError::Foreign));
    assert!(matches!(read(b"safetensors, perhaps").unwrap_err(), ArchiveError::Foreign));
    let mut newer = example();
    newer[8] = ARCHIVE_VERSION + 1;
    assert!(matches!(read(&newer).unwrap_err(), ArchiveError::Version { found } if found == ARCHIVE_VERSION + 1));
}

#[test]
fn what_has_no_place_is_not_written() {
    assert!(Writer::begin(Vec::new(), &head(0, 4)).is_err());
    assert!(Writer::begin(Vec::new(), &head(6, 4)).is_err());
    let mut writer = Writer::begin(Vec::new(), &head(1, 2)).unwrap();
    assert!(writer.record(2, b"").is_err(), "not the first");
    writer.snapshot(3, b"").unwrap();
    assert!(writer.snapshot(3, b"").is_err(), "not newer");
    writer.record(1, b"").unwrap();
    assert!(writer.snapshot(4, b"").is_err(), "too late");
    assert!(writer.finish().is_err(), "a record is not there yet");
}

proptest! {
    /// Any one byte that is another.
    #[test]
    fn every_flip_is_noticed(at in any::<prop::sample::Index>(), by in 1u8..) {
        let mut writer = Writer::begin(Vec::new(), &head(3, 5)).unwrap();
        writer.snapshot(3, &[1; 40]).unwrap();
        for sequence in 3..=4 {
            writer.record(sequence, &[2; 40]).unwrap();
        }
        writer.missing(5, "gone").unwrap();
        let (mut file, _) = writer.finish().unwrap();
        let at = at.index(file.len());
        file[at] ^= by;
        prop_assert!(read(&file).is_err());
    }

    /// Records of any content, in any number.
    #[test]
    fn any_records_come_back(first in 1u64..1 << 40, records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..20)) {
        let last = first + records.len() as u64 - 1;
        let mut writer = Writer::begin(Vec::new(), &head(first, last)).unwrap();
        for (sequence, bytes) in (first..).zip(&records) {
            writer.record(sequence, bytes).unwrap();
        }
        let entries = read(&writer.finish().unwrap().0).unwrap();
        let found: Vec<_> = entries.into_iter().filter_map(|entry| match entry {
            Entry::Record { bytes, .. } => Some(bytes),
            _ => None,
        }).collect();
        prop_assert_eq!(found, records);
    }
}
