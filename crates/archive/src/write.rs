//! Writing a file.

use crate::frame::{END, HEAD, MAGIC, MISSING, PIECE, PIECE_BYTES, RECORD, SNAPSHOT, check, whole};
use crate::{ARCHIVE_VERSION, Counts, Head, RECORD_BYTES_MAX, SNAPSHOT_BYTES_MAX, SNAPSHOTS_MAX, TEXT_BYTES_MAX};
use std::io::{self, Write};

/// Writes a file from its beginning to its end. One that is dropped before [`Writer::finish`] is no whole file, and no
/// reader takes it for one.
pub struct Writer<W> {
    out: W,
    hasher: blake3::Hasher,
    frames: u64,
    counts: Counts,
    /// The next record's sequence.
    next: u64,
    last: u64,
    /// The snapshot before.
    snapshot: Option<u64>,
}

impl<W: Write> Writer<W> {
    /// Begins a file of the records from `head.first` to `head.last`.
    ///
    /// # Errors
    /// Of writing; a head that is none.
    pub fn begin(mut out: W, head: &Head) -> io::Result<Self> {
        if head.first == 0 || head.first > head.last.saturating_add(1) {
            return Err(invalid(format!("records from {} to {}", head.first, head.last)));
        }
        let mut hasher = whole();
        let begin = [&MAGIC[..], &[ARCHIVE_VERSION]].concat();
        hasher.update(&begin);
        out.write_all(&begin)?;
        let (next, last) = (head.first, head.last);
        let mut writer = Self { out, hasher, frames: 0, counts: Counts::default(), next, last, snapshot: None };
        let text = text(&head.writer);
        writer.frame(HEAD, &[&head.first.to_le_bytes(), &head.last.to_le_bytes(), text])?;
        Ok(writer)
    }

    /// Writes a snapshot. All of them come before the first record, the oldest first.
    ///
    /// # Errors
    /// Of writing; a snapshot that has no place here.
    pub fn snapshot(&mut self, sequence: u64, bytes: &[u8]) -> io::Result<()> {
        let has_place = self.counts.records + self.counts.missing == 0
            && self.counts.snapshots < SNAPSHOTS_MAX
            && self.snapshot.is_none_or(|before| before < sequence)
            && bytes.len() as u64 <= SNAPSHOT_BYTES_MAX;
        if !has_place {
            return Err(invalid(format!("a snapshot of record {sequence} with {} bytes", bytes.len())));
        }
        self.snapshot = Some(sequence);
        self.counts.snapshots += 1;
        self.frame(SNAPSHOT, &[&sequence.to_le_bytes(), &(bytes.len() as u64).to_le_bytes()])?;
        bytes.chunks(PIECE_BYTES).try_for_each(|piece| self.frame(PIECE, &[piece]))
    }

    /// Writes the next record.
    ///
    /// # Errors
    /// Of writing; a record that is not the next one, or too large.
    pub fn record(&mut self, sequence: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(invalid(format!("record {sequence} has {} bytes", bytes.len())));
        }
        self.advance(sequence)?;
        self.counts.records += 1;
        self.frame(RECORD, &[&sequence.to_le_bytes(), bytes])
    }

    /// Says that the next record could not be read.
    ///
    /// # Errors
    /// Of writing; a record that is not the next one.
    pub fn missing(&mut self, sequence: u64, why: &str) -> io::Result<()> {
        self.advance(sequence)?;
        self.counts.missing += 1;
        self.frame(MISSING, &[&sequence.to_le_bytes(), text(why)])
    }

    /// Ends the file. What it was written to is flushed, not synced.
    ///
    /// # Errors
    /// Of writing; records that are not there yet.
    pub fn finish(mut self) -> io::Result<(W, Counts)> {
        if self.next != self.last + 1 {
            return Err(invalid(format!("the end, before record {}", self.next)));
        }
        let Counts { records, missing, snapshots } = self.counts;
        let digest = *self.hasher.finalize().as_bytes();
        self.frame(END, &[&records.to_le_bytes(), &missing.to_le_bytes(), &snapshots.to_le_bytes(), &digest])?;
        self.out.flush()?;
        Ok((self.out, self.counts))
    }

    fn advance(&mut self, sequence: u64) -> io::Result<()> {
        if sequence != self.next || sequence > self.last {
            return Err(invalid(format!("record {sequence} where {} comes, of {}", self.next, self.last)));
        }
        self.next += 1;
        Ok(())
    }

    fn frame(&mut self, kind: u8, parts: &[&[u8]]) -> io::Result<()> {
        let content = parts.concat();
        let bytes = u32::try_from(content.len()).expect("contents are bounded");
        let check = check(self.frames, kind, &content);
        self.frames += 1;
        for part in [&[kind][..], &bytes.to_le_bytes(), &content, &check] {
            self.hasher.update(part);
            self.out.write_all(part)?;
        }
        Ok(())
    }
}

/// As much of a text as fits.
fn text(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("no archive holds {what}"))
}
