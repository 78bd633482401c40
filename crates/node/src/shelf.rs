//! Uploads that broke off, as files: `uploads/` in the data directory.
//!
//! ```text
//! magic, 8 bytes | version, 1 | zeros, 3 | length of the facts, 4 | their digest, 32 | facts | data
//! ```
//!
//! The facts say what was said of the update, and how far it is. The data is what has come of it, as it lies in its slab:
//! the bytes that are placed already, one place after the other. Both have a digest, and nothing is synced: a file that a
//! power failure has cut is no upload, and its client sends the update whole. The version is this form's own.

use crate::parking::Address;
use catchment_slab::SlabReader;
use catchment_types::{ClientId, Digest, JobUid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Error, ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio_util::sync::CancellationToken;

const MAGIC: &[u8; 8] = b"CTCHPART";
/// The version that is written, and the only one there is.
const VERSION: u8 = 1;
/// Magic, version, zeros, length and digest of the facts.
const HEAD_BYTES: usize = 8 + 1 + 3 + 4 + 32;
/// The longest facts. Most of them is the head of the update's file.
const FACTS_BYTES_MAX: usize = 4 << 20;
/// The longest head of an update's file that is kept for it, and what all those of uploads on their way may take.
const KEPT_HEAD_BYTES_MAX: usize = 2 << 20;
const KEPT_HEADS_BYTES_MAX: u64 = 64 << 20;
/// Bytes written or read at one time.
const PIECE_BYTES: usize = 1 << 20;
/// How names end.
const WHOLE: &str = "part";
const DRAFT: &str = "draft";

/// What is known of an upload beside its data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The job.
    pub uid: JobUid,
    /// The round that it was sent to.
    pub round: u64,
    /// Its client.
    pub client: ClientId,
    /// The weight, when it was said.
    pub weight: Option<f64>,
    /// Samples, when that was said.
    pub num_samples: Option<u64>,
    /// What the client measured.
    pub metrics: BTreeMap<String, f64>,
    /// The model it was trained from, when that was said.
    pub base: Option<Digest>,
    /// Digest of the body alone, when it was declared.
    pub body_digest: Option<Digest>,
    /// Bytes of the whole body.
    pub length: u64,
    /// Bytes of it that are here.
    pub offset: u64,
    /// How often it was parked.
    pub parkings: u32,
    /// The head of its file.
    pub head: Vec<u8>,
    /// What its digest has come to: finished blocks, their subtrees, and bytes of the newest one.
    pub blocks: u64,
    /// As above.
    pub subtrees: Vec<[u8; 32]>,
    /// As above.
    pub newest: Vec<u8>,
    /// Bytes of the data in this file.
    pub data_bytes: u64,
    /// Their digest.
    pub data_digest: Digest,
}

catchment_codec::first_version!(Facts);

impl Facts {
    /// Where it is sent to.
    pub fn address(&self) -> Address {
        Address { uid: self.uid, round: self.round, client: self.client.clone() }
    }
}

/// An upload on its way to its file.
pub struct Outgoing {
    /// What is known of it; of the data nothing yet.
    pub facts: Facts,
    /// Where in the slab its data lies.
    pub places: Vec<Range<usize>>,
    /// What reads it there.
    pub reader: SlabReader,
}

impl Outgoing {
    /// Bytes that its file will have, about.
    pub fn bytes(&self) -> u64 {
        let data: usize = self.places.iter().map(Range::len).sum();
        (data + self.facts.head.len() + self.facts.newest.len() + HEAD_BYTES + 4096) as u64
    }
}

/// Uploads that were found in files.
pub type Found = Vec<(Address, Stored)>;

/// An upload that is in a file.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The file.
    pub path: PathBuf,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of the update that are here.
    pub offset: u64,
    /// Bytes it has.
    pub length: u64,
    /// How often it was parked.
    pub parkings: u32,
    /// Digest of the body alone, when it was declared.
    pub body_digest: Option<Digest>,
}

impl Stored {
    fn of(path: PathBuf, bytes: u64, facts: &Facts) -> Self {
        let Facts { offset, length, parkings, body_digest, .. } = *facts;
        Self { path, bytes, offset, length, parkings, body_digest }
    }
}

/// The folder.
pub struct Shelf {
    dir: PathBuf,
    /// Most bytes of all files together.
    pub bytes_max: u64,
    files: AtomicU64,
    heads: Arc<AtomicU64>,
}

/// The head of an update's file, kept as long as it may be needed.
#[derive(Debug)]
pub struct KeptHead {
    /// Its bytes.
    pub bytes: Box<[u8]>,
    heads: Arc<AtomicU64>,
}

impl Drop for KeptHead {
    fn drop(&mut self) {
        self.heads.fetch_sub(self.bytes.len() as u64, Relaxed);
    }
}

impl Shelf {
    /// The folder in `data_dir`, for `bytes_max` bytes; and what is in it: uploads of addresses that are `open`. All else
    /// that has a name of ours is removed.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn open(data_dir: &Path, bytes_max: u64, open: impl Fn(&Address) -> bool) -> io::Result<(Self, Found)> {
        let dir = data_dir.join("uploads");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut newest: BTreeMap<String, (Address, Stored)> = BTreeMap::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            if ending != WHOLE && ending != DRAFT {
                continue;
            }
            let found = if ending == WHOLE { read(&path) } else { Err(damaged("it is a draft")) };
            let found = found.and_then(|(file, facts)| {
                let bytes = file.metadata()?.len();
                Ok((facts.address(), Stored::of(path.clone(), bytes, &facts)))
            });
            match found {
                Ok((address, stored)) if open(&address) => {
                    let older = newest.remove(&name_of(&address));
                    // Of two the one that got further: a process ended between writing one and removing the other.
                    let (keep, gone) = match older {
                        Some(older) if older.1.offset > stored.offset => (older, Some(stored)),
                        older => ((address, stored), older.map(|(_, older)| older)),
                    };
                    newest.insert(name_of(&keep.0), keep);
                    gone.iter().for_each(|gone| remove(&gone.path));
                }
                Ok(_) => remove(&path),
                Err(error) => {
                    tracing::info!(path = %path.display(), %error, "no upload that can be gone on with; it is removed");
                    remove(&path);
                }
            }
        }
        let shelf = Self { dir, bytes_max, files: AtomicU64::new(0), heads: Arc::default() };
        Ok((shelf, newest.into_values().collect()))
    }

    /// Keeps the head of an update's file, if there is room for it.
    pub fn keep_head(&self, head: &[u8]) -> Option<KeptHead> {
        let bytes = head.len() as u64;
        if head.len() > KEPT_HEAD_BYTES_MAX || self.heads.fetch_add(bytes, Relaxed) + bytes > KEPT_HEADS_BYTES_MAX {
            if head.len() <= KEPT_HEAD_BYTES_MAX {
                self.heads.fetch_sub(bytes, Relaxed);
            }
            return None;
        }
        Some(KeptHead { bytes: head.into(), heads: self.heads.clone() })
    }

    /// Writes an upload to a file of its own, unless nobody wants it any more. Blocks.
    ///
    /// # Errors
    /// What the system refuses; nothing is left then.
    pub fn write(&self, outgoing: Outgoing, unwanted: &CancellationToken) -> io::Result<Stored> {
        let name = name_of(&outgoing.facts.address());
        // Never a name that was used before: whoever reads the older file is not disturbed.
        let path = loop {
            let path = self.dir.join(format!("{name}-{}.{WHOLE}", self.files.fetch_add(1, Relaxed)));
            if !path.exists() {
                break path;
            }
        };
        let draft = path.with_extension(DRAFT);
        let written = write(&draft, outgoing, unwanted).and_then(|(bytes, facts)| {
            fs::rename(&draft, &path)?;
            Ok(Stored::of(path, bytes, &facts))
        });
        if written.is_err() {
            remove(&draft);
        }
        written
    }
}

fn write(draft: &Path, outgoing: Outgoing, unwanted: &CancellationToken) -> io::Result<(u64, Facts)> {
    let Outgoing { mut facts, places, reader } = outgoing;
    facts.data_bytes = places.iter().map(|place| place.len() as u64).sum();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    // A digest has always the same length: what is written in its place first is as long.
    file.write_all(&begin(&facts)?)?;
    let (mut hasher, mut piece) = (blake3::Hasher::new(), vec![0; PIECE_BYTES]);
    for place in places {
        for at in place.clone().step_by(PIECE_BYTES) {
            if unwanted.is_cancelled() {
                return Err(Error::new(ErrorKind::Interrupted, "nobody wants it any more"));
            }
            let piece = &mut piece[..PIECE_BYTES.min(place.end - at)];
            reader.read_at(at as u64, piece)?;
            hasher.update(piece);
            file.write_all(piece)?;
        }
    }
    facts.data_digest = hasher.finalize().into();
    file.write_all_at(&begin(&facts)?, 0)?;
    Ok((file.metadata()?.len(), facts))
}

/// Everything before the data.
fn begin(facts: &Facts) -> io::Result<Vec<u8>> {
    let facts = catchment_codec::encode(facts, FACTS_BYTES_MAX).map_err(Error::other)?;
    let length = (facts.len() as u32).to_le_bytes();
    Ok([&MAGIC[..], &[VERSION, 0, 0, 0], &length, blake3::hash(&facts).as_bytes(), &facts].concat())
}

/// Reads what is known of an upload; the file then stands at its data.
pub fn read(path: &Path) -> io::Result<(File, Facts)> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut head = [0; HEAD_BYTES];
    file.read_exact(&mut head)?;
    let (magic, rest) = head.split_at(8);
    if magic != MAGIC {
        return Err(damaged("it is no upload"));
    }
    if rest[0] != VERSION {
        return Err(damaged(&format!("it is an upload of version {}, and this build reads {VERSION}", rest[0])));
    }
    let length = u32::from_le_bytes(*rest[4..].first_chunk().expect("four bytes")) as usize;
    if length > FACTS_BYTES_MAX {
        return Err(damaged("its facts are too long"));
    }
    let mut facts = vec![0; length];
    file.read_exact(&mut facts)?;
    if blake3::hash(&facts).as_bytes()[..] != rest[8..] {
        return Err(damaged("the digest of its facts does not fit"));
    }
    let facts: Facts = catchment_codec::decode(&facts, FACTS_BYTES_MAX).map_err(|error| damaged(&error.to_string()))?;
    if file.metadata()?.len() != (HEAD_BYTES + length) as u64 + facts.data_bytes || facts.offset > facts.length {
        return Err(damaged("its lengths do not fit"));
    }
    Ok((file, facts))
}

/// Brings the data to where it was in its slab. Blocks.
///
/// # Errors
/// It is not what was written, and what the system refuses.
pub fn read_data(file: &mut File, facts: &Facts, places: &[Range<usize>], memory: &mut [u8]) -> io::Result<()> {
    let bytes: u64 = places.iter().map(|place| place.len() as u64).sum();
    if bytes != facts.data_bytes || places.iter().any(|place| place.end > memory.len()) {
        return Err(damaged("its data belongs to other places than it says"));
    }
    let mut hasher = blake3::Hasher::new();
    for place in places {
        for piece in memory[place.clone()].chunks_mut(PIECE_BYTES) {
            file.read_exact(piece)?;
            hasher.update(piece);
        }
    }
    if Digest::from(hasher.finalize()) != facts.data_digest {
        return Err(damaged("the digest of its data does not fit"));
    }
    Ok(())
}

/// Removes a file that nobody needs.
pub fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "remove an upload that nobody needs");
    }
}

fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

/// What the names of an address's files begin with. A client's name may be too long for one.
fn name_of(address: &Address) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("catchment v1 upload");
    hasher.update(address.uid.as_bytes()).update(&address.round.to_le_bytes());
    hasher.update(address.client.as_str().as_bytes());
    hasher.finalize().to_hex()[..32].to_owned()
}
