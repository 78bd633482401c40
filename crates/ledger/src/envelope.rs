//! A record as the log stores it: who wrote it, and what it was decided on.
//!
//! ```text
//! level 1:   message of version 1
//! level 2:   "CTL2" | checksum: 16 bytes | message of version 2
//! ```
//!
//! The mark and the checksum tell three things apart that an undecodable record may be: what a newer release wrote (sound,
//! and not understood: this process stops), what was damaged (marked, and the sum is wrong: likewise), and what somebody
//! else has sent to the log's address (not marked: everybody skips it alike, and counts it).

use catchment_bus::{LogError, SEALED_MARK};
use catchment_codec::Stored;
use catchment_types::{JobSpec, JobUid, Record, RecordV1};
use serde::{Deserialize, Serialize};

/// Bytes of one encoded record.
pub(crate) const RECORD_BYTES_MAX: usize = 900 << 10;
/// What records begin with from feature level 2 on. No version of a message begins like this.
const MARK: [u8; 4] = *b"CTL2";
const SUM_BYTES: usize = 16;
const HEAD_BYTES: usize = MARK.len() + SUM_BYTES;

/// Why what its cluster has sealed cannot be read.
pub(crate) const SEALED: &str = "it is sealed with a cluster's key, and this process has none or another one: start it with the \
                                 --cluster-key of the cluster's other members";

/// Whether a record is written in a form that members of the first release do not read: every member is newer then.
pub fn is_newest_form(record: &[u8]) -> bool {
    record.starts_with(&MARK)
}

/// What a decision was made on: it counts only while that is still so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// The job.
    pub uid: JobUid,
    /// Its revision.
    pub revision: u64,
    /// How many updates its active round has, where the decision is that these are too few. Updates that come change no
    /// revision, so that no decision waits for a pause between them.
    pub received: Option<u64>,
}

/// What there was when something was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decided {
    /// The last record then.
    pub sequence: u64,
    /// How it stood with the job that it is about, if it is about one.
    pub guard: Option<Guard>,
}

/// One record of the log, and what is stored with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// The process that wrote it: drawn at its start.
    pub writer: [u8; 16],
    /// Its number among those of this process, from 1.
    pub number: u64,
    /// What it was decided on; `None` where log order alone decides.
    pub guard: Option<Guard>,
    /// The last record that its writer knew of. `None`: its form does not say.
    pub seen: Option<u64>,
    /// What happened.
    pub record: Record,
}

/// The first form of an [`Envelope`]: see there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnvelopeV1 {
    writer: [u8; 16],
    number: u64,
    record: RecordV1,
}

catchment_codec::first_version!(EnvelopeV1);

impl Stored for Envelope {
    const VERSION: u8 = 2;
    type Before = EnvelopeV1;
}

impl From<EnvelopeV1> for Envelope {
    fn from(EnvelopeV1 { writer, number, record }: EnvelopeV1) -> Self {
        Self { writer, number, guard: None, seen: None, record: record.into() }
    }
}

/// What the log holds at a place.
#[derive(Debug, Clone, PartialEq)]
pub enum Stocked {
    /// A record.
    Record(Box<Envelope>),
    /// Nothing of the cluster's: why it is none. It changes nothing.
    Foreign(String),
}

impl Envelope {
    /// The bytes that are stored at this feature level, at most `bytes_max`.
    ///
    /// # Errors
    /// The record is too large, or needs a higher level.
    pub fn to_bytes(&self, level: u32, bytes_max: usize) -> Result<Vec<u8>, String> {
        let level = match self.record {
            // With it begins the level's own form.
            Record::LevelRaised { level: to, .. } => level.max(to),
            _ => level,
        };
        let needed = self.record.level();
        if needed > level {
            return Err(format!(
                "it needs feature level {needed} and the cluster is at {level}: some member is of an older release"
            ));
        }
        let bytes_max = bytes_max.min(RECORD_BYTES_MAX);
        if level < 2 {
            let Self { writer, number, record, .. } = self.clone();
            let record = RecordV1::try_from(record).map_err(|record| format!("{record:?} has no first form"))?;
            let old = EnvelopeV1 { writer, number, record };
            return catchment_codec::encode(&old, bytes_max).map_err(|error| error.to_string());
        }
        let message = catchment_codec::encode(self, bytes_max.saturating_sub(HEAD_BYTES));
        let message = message.map_err(|error| error.to_string())?;
        Ok([&MARK[..], &sum(&message), &message].concat())
    }

    /// What was stored as record `sequence` of a log that is at this feature level there.
    ///
    /// # Errors
    /// [`LogError::Damaged`]: it is not what was written, or this build does not understand it. Whoever meets it can follow
    /// the log no further.
    pub fn read(sequence: u64, bytes: &[u8], level: u32) -> Result<Stocked, LogError> {
        let damaged = |why: String| LogError::Damaged(format!("record {sequence}: {why}"));
        if bytes.starts_with(&SEALED_MARK) {
            return Err(damaged(SEALED.to_owned()));
        }
        let envelope = match bytes.strip_prefix(&MARK) {
            Some(rest) => read_marked(rest).map_err(damaged)?,
            // Nobody writes this form once the level is raised, but who was about to then may have.
            None => match catchment_codec::decode::<EnvelopeV1>(bytes, RECORD_BYTES_MAX) {
                Ok(old) => Self::from(old),
                Err(error) if level < 2 && bytes.first() == Some(&EnvelopeV1::VERSION) => {
                    return Err(damaged(error.to_string()));
                }
                Err(error) => return Ok(Stocked::Foreign(error.to_string())),
            },
        };
        envelope.is_understood().map_err(damaged)?;
        Ok(Stocked::Record(Box::new(envelope)))
    }

    /// What a record says in a language of its own must be understood as well: a job that one process leaves out is one
    /// that its snapshot forgets.
    fn is_understood(&self) -> Result<(), String> {
        match &self.record {
            Record::JobCreated { uid, spec, .. } => JobSpec::stored(spec.as_bytes())
                .map(drop)
                .map_err(|why| format!("the spec of job {uid} is not understood ({why}): it is of a newer release")),
            _ => Ok(()),
        }
    }
}

/// What follows the mark.
fn read_marked(bytes: &[u8]) -> Result<Envelope, String> {
    let (found, message) = bytes.split_first_chunk().ok_or("it is cut off")?;
    if *found != sum(message) {
        return Err("its checksum is wrong: its bytes were changed after it was written".to_owned());
    }
    // The bytes are those that were written.
    let envelope = catchment_codec::decode(message, RECORD_BYTES_MAX);
    envelope.map_err(|error| format!("it was written by a newer release: {error}"))
}

fn sum(message: &[u8]) -> [u8; SUM_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key("catchment v2 log record");
    hasher.update(message);
    *hasher.finalize().as_bytes().first_chunk().expect("a hash has as many bytes")
}
