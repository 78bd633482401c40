//! Snapshots of the state, so that opening a ledger does not replay a cluster's whole life.
//!
//! They are never made of the live state. Copying it would hold every accept up for as long as it takes, so whoever
//! makes a snapshot opens the log as a ledger does, from the snapshot before and the records after it, beside the
//! ledger at work, and stores what that comes to. The live state is not even looked at.

mod changes;
mod layout;
mod v1;

use crate::append::REPLAY;
use crate::envelope::{Envelope, SEALED};
use crate::outcome::Outcome;
use crate::state::{DIFFERS, State};
use catchment_bus::{EventLog, LogError, SEALED_MARK, Snapshot};
use std::sync::Arc;

/// The version of a snapshot, its last byte. Raise it with every change of what is put down, and keep reading the ones
/// before: a log whose first records are forgotten cannot be replayed instead.
pub const SNAPSHOT_VERSION: u8 = 2;
/// What the first release wrote. It is written still while the cluster has members of that release.
const FIRST_VERSION: u8 = 1;
/// What builds between the first release and the second version wrote where names of deleted jobs follow the state.
const NAMED_VERSION: u8 = FIRST_VERSION | 0x80;

/// How often snapshots are taken. Each has the log forget what is in the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotPace {
    /// Records after which there is a new one.
    pub records: u64,
    /// Bytes of records after which there is one, whatever their number.
    pub bytes: u64,
}

impl Default for SnapshotPace {
    /// Two or three seconds of replay.
    fn default() -> Self {
        Self { records: 20_000, bytes: 64 << 20 }
    }
}

impl SnapshotPace {
    /// Takes none, so the log keeps everything.
    pub const NEVER: Self = Self { records: u64::MAX, bytes: u64::MAX };
}

impl State {
    /// The state as a snapshot's content, in the newest form that every member of its cluster reads.
    ///
    /// # Errors
    /// Why it cannot be one: a job is too large.
    pub fn to_snapshot(&self) -> Result<Vec<u8>, String> {
        let (mut bytes, version) = if self.level < 2 {
            let first = catchment_codec::encode_large(&v1::StateV1::write(self));
            (first.map_err(|error| error.to_string())?, FIRST_VERSION)
        } else {
            (layout::write(self)?, SNAPSHOT_VERSION)
        };
        bytes.push(version);
        Ok(bytes)
    }

    /// The state of a snapshot's content. It was audited when it was stored.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, String> {
        if bytes.starts_with(&SEALED_MARK) {
            return Err(SEALED.to_owned());
        }
        let Some((version, content)) = bytes.split_last() else { return Err("it is empty".to_owned()) };
        let first = |error: catchment_codec::CodecError| error.to_string();
        match *version {
            SNAPSHOT_VERSION if content.starts_with(&layout::MARK) => layout::read(content),
            SNAPSHOT_VERSION => Err("it does not begin like a snapshot".to_owned()),
            FIRST_VERSION => catchment_codec::decode_large(content).map_err(first).and_then(v1::StateV1::read),
            NAMED_VERSION => catchment_codec::decode_large(content).map_err(first).and_then(v1::NamedV1::read),
            version => Err(format!(
                "it is of version {version}, and this build reads versions up to {SNAPSHOT_VERSION}: use a release that \
                 reads version {version}"
            )),
        }
    }
}

/// The state of the newest snapshot; the empty state when there is none.
///
/// # Errors
/// [`LogError::Damaged`] when it does not read and the log has forgotten what it stands for.
pub(crate) async fn newest(log: &dyn EventLog) -> Result<State, LogError> {
    let why = match log.snapshot().await {
        Ok(None) => return Ok(State::default()),
        Ok(Some(snapshot)) => match decode(snapshot).await? {
            Ok(state) => return Ok(state),
            Err(why) => why,
        },
        Err(LogError::Damaged(why)) => why,
        Err(error) => return Err(error),
    };
    match log.read(0, 1).await {
        Ok(_) => {
            tracing::warn!(why, "the newest snapshot does not read; the whole log is replayed instead");
            Ok(State::default())
        }
        Err(LogError::Forgotten { first }) => Err(LogError::Damaged(format!(
            "the newest snapshot does not read ({why}), and the log begins at record {first}"
        ))),
        Err(error) => Err(error),
    }
}

async fn decode(snapshot: Snapshot) -> Result<Result<State, String>, LogError> {
    work(move || {
        let state = State::from_snapshot(&snapshot.bytes)?;
        if state.sequence() != snapshot.sequence {
            return Err(format!("it is of record {} and was stored as of {}", state.sequence(), snapshot.sequence));
        }
        Ok(state)
    })
    .await
}

/// Does what takes long where it holds up no other task.
async fn work<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, LogError> {
    let worked = tokio::task::spawn_blocking(work).await;
    worked.map_err(|error| LogError::Damaged(format!("a snapshot was not worked out: {error}")))
}

/// Takes a snapshot of the log as it is now, unless there is one after `known` already. Its sequence, and whether it was
/// stored.
pub(crate) async fn take(log: Arc<dyn EventLog>, known: u64) -> Result<Option<u64>, LogError> {
    if log.snapshot_sequence().await? > known {
        return Ok(None);
    }
    let mut state = newest(log.as_ref()).await?;
    loop {
        let records = log.read(state.sequence(), REPLAY).await?;
        let is_end = records.len() < REPLAY;
        state = work(move || {
            for (sequence, bytes) in records {
                let stocked = Envelope::read(sequence, &bytes, state.level())?;
                if let Outcome::Ignored(DIFFERS) = state.take(sequence, &stocked) {
                    return Err(LogError::Damaged(format!("record {sequence}: {DIFFERS}")));
                }
            }
            Ok(state)
        })
        .await??;
        if is_end {
            break;
        }
    }
    let sequence = state.sequence();
    let bytes = work(move || {
        state.audit()?;
        state.to_snapshot()
    });
    let bytes = bytes.await?.map_err(LogError::Refused)?;
    tracing::debug!(sequence, bytes = bytes.len(), "storing a snapshot");
    let is_stored = log.put_snapshot(Snapshot { sequence, bytes: bytes.into() }).await?;
    Ok(is_stored.then_some(sequence))
}
