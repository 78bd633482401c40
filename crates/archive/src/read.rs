//! Reading a file, whatever it holds.

use crate::frame::{
    CHECK_BYTES, CONTENT_BYTES_MAX, END, END_BYTES, HEAD, HEAD_BYTES, MAGIC, MISSING, PIECE, PIECE_BYTES, RECORD,
    SNAPSHOT, check, whole,
};
use crate::{ARCHIVE_VERSION, Counts, Head, SNAPSHOT_BYTES_MAX, SNAPSHOTS_MAX, TEXT_BYTES_MAX};
use std::io::{self, Read};

/// Why a file is not read on.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is not an exported log")]
    Foreign,
    /// Another release wrote it.
    #[error("its layout is {found}, and this build reads {ARCHIVE_VERSION}: use a release that reads {found}")]
    Version {
        /// What it says.
        found: u8,
    },
    /// It is not what was written.
    #[error("it is damaged at byte {at}, {place}: {what}")]
    Damaged {
        /// Where the damaged part begins.
        at: u64,
        /// After which part that makes sense.
        place: String,
        /// What was wrong.
        what: String,
    },
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A snapshot begins; its pieces follow.
    Snapshot {
        /// The last record that is in it.
        sequence: u64,
        /// Bytes of its pieces together.
        bytes: u64,
    },
    /// The next piece of the snapshot.
    Piece(Vec<u8>),
    /// The next record.
    Record {
        /// Its sequence.
        sequence: u64,
        /// What was stored.
        bytes: Vec<u8>,
    },
    /// The next record, which could not be read.
    Missing {
        /// Its sequence.
        sequence: u64,
        /// Why not.
        why: String,
    },
    /// The end of a file that is whole. Nothing comes after it.
    End(Counts),
}

/// Reads a file from its beginning to its end. What it gives has passed its own checksum; that the file is whole is
/// known with [`Entry::End`].
pub struct Reader<R> {
    input: R,
    hasher: blake3::Hasher,
    /// Bytes read.
    at: u64,
    frames: u64,
    head: Head,
    counts: Counts,
    /// The next record's sequence.
    next: u64,
    /// The snapshot before.
    snapshot: Option<u64>,
    /// Bytes of it that are still to come.
    left: u64,
    is_over: bool,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    ///
    /// # Errors
    /// Every [`ArchiveError`].
    pub fn begin(input: R) -> Result<Self, ArchiveError> {
        let head = Head { first: 1, last: 0, writer: String::new() };
        let (hasher, counts) = (whole(), Counts::default());
        let mut reader =
            Self { input, hasher, at: 0, frames: 0, head, counts, next: 1, snapshot: None, left: 0, is_over: false };
        let mut begin = [0; MAGIC.len() + 1];
        match reader.fill(&mut begin) {
            Err(ArchiveError::Damaged { .. }) => return Err(ArchiveError::Foreign),
            read => read?,
        }
        let (magic, version) = begin.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(ArchiveError::Foreign);
        }
        if version != [ARCHIVE_VERSION] {
            return Err(ArchiveError::Version { found: version[0] });
        }
        let at = reader.at;
        let (kind, content, _) = reader.frame()?;
        let head = (kind == HEAD).then(|| head_of(&content)).flatten();
        reader.head = head.ok_or_else(|| reader.damaged(at, "there is no head"))?;
        reader.next = reader.head.first;
        Ok(reader)
    }

    /// What the file says of itself.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Bytes read so far.
    pub fn bytes_read(&self) -> u64 {
        self.at
    }

    /// The next part; `None` after the end.
    ///
    /// # Errors
    /// [`ArchiveError::Io`], [`ArchiveError::Damaged`].
    pub fn entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if self.is_over {
            return Ok(None);
        }
        let at = self.at;
        let (kind, content, before) = self.frame()?;
        let entry = if self.left > 0 && kind != PIECE {
            Err("a snapshot is not whole")
        } else {
            match kind {
                SNAPSHOT => self.begin_snapshot(&content),
                PIECE => self.piece(content),
                RECORD => self.record(content),
                MISSING => self.missing(&content),
                END => self.end(&content, before),
                _ => Err("a part is of no known kind"),
            }
        };
        entry.map(Some).map_err(|what| self.damaged(at, what))
    }

    fn begin_snapshot(&mut self, content: &[u8]) -> Result<Entry, &'static str> {
        let (sequence, rest) = number(content).ok_or("a snapshot has no sequence")?;
        let (bytes, rest) = number(rest).ok_or("a snapshot has no length")?;
        if !rest.is_empty() || bytes > SNAPSHOT_BYTES_MAX {
            return Err("a snapshot's length makes no sense");
        }
        if self.next != self.head.first || self.snapshot.is_some_and(|before| before >= sequence) {
            return Err("snapshots are out of order");
        }
        if self.counts.snapshots == SNAPSHOTS_MAX {
            return Err("there are too many snapshots");
        }
        self.counts.snapshots += 1;
        (self.snapshot, self.left) = (Some(sequence), bytes);
        Ok(Entry::Snapshot { sequence, bytes })
    }

    fn piece(&mut self, content: Vec<u8>) -> Result<Entry, &'static str> {
        // As they are written: full ones, and then the rest. So a snapshot cannot come as a billion empty pieces.
        if content.len() as u64 != self.left.min(PIECE_BYTES as u64) || content.is_empty() {
            return Err("a snapshot's piece has the wrong length");
        }
        self.left -= content.len() as u64;
        Ok(Entry::Piece(content))
    }

    fn record(&mut self, mut content: Vec<u8>) -> Result<Entry, &'static str> {
        let sequence = self.next_sequence(&content)?;
        content.drain(..8);
        self.counts.records += 1;
        Ok(Entry::Record { sequence, bytes: content })
    }

    fn missing(&mut self, content: &[u8]) -> Result<Entry, &'static str> {
        let sequence = self.next_sequence(content)?;
        let why = text_of(&content[8..]).ok_or("a reason is no text")?;
        self.counts.missing += 1;
        Ok(Entry::Missing { sequence, why })
    }

    fn next_sequence(&mut self, content: &[u8]) -> Result<u64, &'static str> {
        let (sequence, _) = number(content).ok_or("a record has no sequence")?;
        if sequence != self.next || sequence > self.head.last {
            return Err("records are out of order");
        }
        self.next = sequence.checked_add(1).ok_or("a sequence is too large")?;
        Ok(sequence)
    }

    fn end(&mut self, content: &[u8], before: blake3::Hash) -> Result<Entry, &'static str> {
        if content.len() != END_BYTES || self.next != self.head.last.wrapping_add(1) {
            return Err("it ends before its last record");
        }
        let Counts { records, missing, snapshots } = self.counts;
        let counts = [records, missing, snapshots].map(u64::to_le_bytes).concat();
        if content[..24] != counts[..] || &content[24..] != before.as_bytes() {
            return Err("its parts do not make up the whole that was written");
        }
        let more = self.input.read(&mut [0]).map_err(|_| "what comes after its end cannot be read")?;
        if more != 0 {
            return Err("something follows its end");
        }
        self.is_over = true;
        Ok(Entry::End(self.counts))
    }

    /// The next frame whose checksum holds, and the hash over everything before it.
    fn frame(&mut self) -> Result<(u8, Vec<u8>, blake3::Hash), ArchiveError> {
        let (at, before) = (self.at, self.hasher.finalize());
        let mut head = [0; HEAD_BYTES];
        self.fill(&mut head)?;
        let kind = head[0];
        let bytes = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if bytes > CONTENT_BYTES_MAX {
            return Err(self.damaged(at, "a part claims to be larger than any may be"));
        }
        // Grows with what comes: a length that lies takes no memory.
        let mut content = Vec::new();
        (&mut self.input).take(bytes as u64).read_to_end(&mut content)?;
        if content.len() != bytes {
            return Err(self.damaged(at, "the file ends in the middle of a part"));
        }
        self.at += bytes as u64;
        self.hasher.update(&content);
        let mut said = [0; CHECK_BYTES];
        self.fill(&mut said)?;
        if said != check(self.frames, kind, &content) {
            return Err(self.damaged(at, "a part's checksum does not hold"));
        }
        self.frames += 1;
        Ok((kind, content, before))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        match self.input.read_exact(buffer) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.damaged(self.at, "the file ends before its end"));
            }
            Err(error) => return Err(error.into()),
        }
        self.at += buffer.len() as u64;
        self.hasher.update(buffer);
        Ok(())
    }

    fn damaged(&self, at: u64, what: &str) -> ArchiveError {
        let place = match (self.frames, self.next.checked_sub(1)) {
            (0, _) => "at its beginning".to_owned(),
            (_, Some(last)) if self.next > self.head.first => format!("after record {last}"),
            _ => "before its first record".to_owned(),
        };
        ArchiveError::Damaged { at, place, what: what.to_owned() }
    }
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    bytes.split_first_chunk().map(|(number, rest)| (u64::from_le_bytes(*number), rest))
}

fn text_of(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= TEXT_BYTES_MAX)?;
    Some(text.to_owned())
}

fn head_of(content: &[u8]) -> Option<Head> {
    let (first, rest) = number(content)?;
    let (last, rest) = number(rest)?;
    let is_range = first > 0 && last < u64::MAX && first <= last + 1;
    is_range.then_some(Head { first, last, writer: text_of(rest)? })
}
