//! Snapshots of the state, so that opening a ledger does not replay a cluster's whole life.
//!
//! They are never made of the live state. Copying it would hold every accept up for as long as it takes, so whoever
//! makes a snapshot opens the log as a ledger does, from the snapshot before and the records after it, beside the
//! ledger at work, and stores what that comes to. The live state is not even looked at.

use crate::append::{Envelope, RECORD_BYTES_MAX, REPLAY};
use crate::state::State;
use catchment_bus::{EventLog, LogError, Snapshot};
use std::sync::Arc;

/// The layout of a snapshot, its last byte. Raise it with every change of what the state holds, and then keep reading
/// the one before: a log whose first records are forgotten cannot be replayed instead.
pub const SNAPSHOT_VERSION: u8 = 1;
/// Added to the version where names of deleted jobs follow the state. Without any, nothing follows, so that whoever does
/// not know of them reads such a snapshot; one with names it takes for a version that it does not read.
const WITH_NAMES: u8 = 0x80;

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

/// The part of a spec that a snapshot carries: what can change while a job runs. The rest is in the text it was created
/// from.
pub(crate) mod spec {
    use catchment_types::{DurationText, JobSpec};
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Changes {
        rounds: u64,
        goal: u64,
        min_updates: u64,
        deadline: Option<DurationText>,
    }

    pub(crate) fn serialize<S: Serializer>(spec: &JobSpec, serializer: S) -> Result<S::Ok, S::Error> {
        let (rounds, goal, min_updates, deadline) = (spec.rounds, spec.goal, spec.min_updates, spec.deadline);
        Changes { rounds, goal, min_updates, deadline }.serialize(serializer)
    }

    /// A spec of which only the changes mean anything.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobSpec, D::Error> {
        let Changes { rounds, goal, min_updates, deadline } = Changes::deserialize(deserializer)?;
        let any = JobSpec::from_json(br#"{"name":"a","function":"a"}"#);
        let any = any.map_err(|errors| D::Error::custom(format!("{errors:?}")))?;
        Ok(JobSpec { rounds, goal, min_updates, deadline, ..any })
    }

    pub(crate) fn take_changes(spec: &mut JobSpec, changed: &JobSpec) {
        spec.rounds = changed.rounds;
        spec.set_goal(changed.goal);
        spec.min_updates = changed.min_updates;
        spec.deadline = changed.deadline;
    }
}

impl State {
    /// The state as a snapshot's content.
    ///
    /// # Errors
    /// Why it cannot be one: it is too large.
    pub fn to_snapshot(&self) -> Result<Vec<u8>, String> {
        let names = (!self.used_names.is_empty()).then_some(&self.used_names);
        let bytes = match names {
            None => catchment_codec::encode_large(self),
            Some(names) => catchment_codec::encode_large(&(self, names)),
        };
        let mut bytes = bytes.map_err(|error| error.to_string())?;
        bytes.push(names.map_or(SNAPSHOT_VERSION, |_| SNAPSHOT_VERSION | WITH_NAMES));
        Ok(bytes)
    }

    /// The state of a snapshot's content. It was audited when it was stored.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, String> {
        let (message, version) = match bytes.split_last() {
            Some((version, message)) => (message, *version),
            None => return Err("it is empty".to_owned()),
        };
        if version & !WITH_NAMES != SNAPSHOT_VERSION {
            return Err(format!(
                "it is of version {version}, and this build reads version {SNAPSHOT_VERSION}: use a release that \
                 reads version {version}"
            ));
        }
        let read = if version & WITH_NAMES == 0 {
            catchment_codec::decode_large(message)
        } else {
            catchment_codec::decode_large(message).map(|(mut state, used_names): (Self, _)| {
                state.used_names = used_names;
                state
            })
        };
        let mut state = read.map_err(|error| error.to_string())?;
        state.complete()?;
        Ok(state)
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
                state.apply(sequence, &Envelope::decode(sequence, &bytes)?.record);
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

impl Envelope {
    pub(crate) fn decode(sequence: u64, bytes: &[u8]) -> Result<Self, LogError> {
        catchment_codec::decode(bytes, RECORD_BYTES_MAX)
            .map_err(|error| LogError::Damaged(format!("record {sequence}: {error}")))
    }
}
