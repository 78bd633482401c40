//! Any bytes as an exported log: never a panic or a large allocation; and what is read to its end, written again, is the
//! same file. Checksums are what a fuzzer never guesses, so of most inputs they are made here, by a second writing of the
//! layout: then the parts behind them are reached.
#![no_main]

use catchment_archive::{Entry, Reader, Writer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| match bytes.split_first() {
    Some((b'c', _)) => read(bytes),
    Some((_, parts)) => read(&sealed(parts)),
    None => {}
});

/// A file of parts, each its kind, a length and its content, with checksums that hold.
fn sealed(mut parts: &[u8]) -> Vec<u8> {
    let mut file = b"catchlog\x01".to_vec();
    let mut number = 0u64;
    while let [kind, length, rest @ ..] = parts {
        let (content, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        let mut content = content.to_vec();
        if *kind == b'E' && content.len() >= 24 {
            content.truncate(24);
            let mut hasher = blake3::Hasher::new_derive_key("catchment v1 archive");
            content.extend(hasher.update(&file).finalize().as_bytes());
        }
        let mut hasher = blake3::Hasher::new_derive_key("catchment v1 archive frame");
        let check = hasher.update(&number.to_le_bytes()).update(&[*kind]).update(&content).finalize();
        file.push(*kind);
        file.extend((content.len() as u32).to_le_bytes());
        file.extend(&content);
        file.extend(&check.as_bytes()[..16]);
        number += 1;
        parts = rest;
    }
    file
}

fn read(file: &[u8]) {
    let Ok(mut reader) = Reader::begin(file) else { return };
    let mut writer = Writer::begin(Vec::new(), reader.head()).expect("what was read can be written");
    let (mut snapshot, mut content) = (None, Vec::new());
    loop {
        let Ok(entry) = reader.entry() else { return };
        if let (Some((sequence, length)), true) = (snapshot, !matches!(entry, Some(Entry::Piece(_)))) {
            assert_eq!(content.len() as u64, length, "a snapshot is whole");
            writer.snapshot(sequence, &std::mem::take(&mut content)).expect("it has its place");
            snapshot = None;
        }
        match entry {
            Some(Entry::Snapshot { sequence, bytes }) => snapshot = Some((sequence, bytes)),
            Some(Entry::Piece(piece)) => content.extend(piece),
            Some(Entry::Record { sequence, bytes }) => writer.record(sequence, &bytes).expect("it is the next one"),
            Some(Entry::Missing { sequence, why }) => writer.missing(sequence, &why).expect("it is the next one"),
            Some(Entry::End(counts)) => {
                let (again, counted) = writer.finish().expect("nothing is missing");
                assert_eq!((again.as_slice(), counted), (file, counts));
                return;
            }
            None => unreachable!("the end comes first"),
        }
    }
}
