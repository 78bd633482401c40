//! The state of every job, and the way to change it.

use crate::driver::{Driver, QUEUE};
use crate::envelope::Decided;
use crate::flight::Flight;
use crate::keeper::Keeper;
use crate::outcome::{AcceptOutcome, EvaluateOutcome, Outcome};
use crate::snapshot::{self, SnapshotPace};
use crate::state::State;
use catchment_bus::{EventLog, LogError};
use catchment_types::{Accept, EvaluationResult, JobUid, Record};
use futures::future::BoxFuture;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Why a proposal came to nothing, or is not known to have come to anything.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// The state has moved on since the proposer looked.
    #[error("the state moved on to sequence {sequence}; decide again")]
    Stale {
        /// Where it is now.
        sequence: u64,
    },
    /// The log did not and will not store it.
    #[error("the event log refused the record: {0}")]
    Refused(String),
    /// The log cannot be reached; nothing new is taken until it can. The proposal was not and will not be stored.
    #[error("the event log cannot be reached; nothing was accepted, try again")]
    Unavailable,
    /// The log cannot be read on, or is not what was written. The writer is done for good; a restart replays what
    /// there is. Whether this proposal is in it is unknown: keep what it speaks of until then. Also for a single proposal
    /// on a sound log, when its fate was forgotten while the log was away; [`Ledger::is_reachable`] tells the two apart.
    #[error("the event log cannot be read: {0}")]
    Unreadable(String),
    /// The ledger has stopped. Whether the proposal was stored is unknown, as above.
    #[error("the ledger has stopped")]
    Stopped,
}

pub(crate) type AcceptReply = oneshot::Sender<Result<AcceptOutcome, LedgerError>>;
pub(crate) type WaitingAccept = (Box<Accept>, AcceptReply);

pub(crate) type ResultReply = oneshot::Sender<Result<EvaluateOutcome, LedgerError>>;

/// A client's measurement of a model, and who waits for what becomes of it.
pub(crate) struct WaitingResult {
    pub uid: JobUid,
    pub version: u64,
    pub result: EvaluationResult,
    pub reply: ResultReply,
}

pub(crate) enum Proposal {
    Evaluate(Box<WaitingResult>),
    Accept(Box<Accept>, AcceptReply),
    Record { record: Box<Record>, decided: Option<Decided>, reply: oneshot::Sender<Result<Outcome, LedgerError>> },
    Refresh(oneshot::Sender<Result<(), LedgerError>>),
}

pub(crate) struct Shared {
    pub state: RwLock<State>,
    pub sequence: watch::Sender<u64>,
    pub revisions: Mutex<HashMap<JobUid, watch::Sender<u64>>>,
    pub stalled: AtomicBool,
    /// Why the log cannot be followed any more, and never will be by this process.
    pub broken: OnceLock<String>,
    /// Why the writer has ended, once it has.
    pub ended: watch::Sender<Option<String>>,
}

/// What the watchers of a deleted job see as its revision.
pub(crate) const GONE: u64 = u64::MAX;

/// The state of every job, and the way to change it. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    writer: [u8; 16],
    shared: Arc<Shared>,
    proposals: mpsc::Sender<Proposal>,
}

impl Ledger {
    /// Replays the log, from its newest snapshot, and starts the writer. `writer` names this process's records: 16 fresh
    /// random bytes.
    ///
    /// An append that an earlier life of this process left on its way may still arrive after the replay. Whoever
    /// frees what the replayed state does not know proposes an empty [`Record::Accepted`] first: once that is stored,
    /// nothing older can be.
    ///
    /// # Errors
    /// [`LedgerError::Unreadable`], with what the log said.
    pub fn open(log: Arc<dyn EventLog>, writer: [u8; 16]) -> BoxFuture<'static, Result<Self, LedgerError>> {
        // In a box: replaying and writing are then compiled here, once, and not again in each program that opens a log.
        Box::pin(Self::open_paced(log, writer, SnapshotPace::default()))
    }

    /// The same, and says how often snapshots are taken.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub async fn open_paced(log: Arc<dyn EventLog>, writer: [u8; 16], pace: SnapshotPace) -> Result<Self, LedgerError> {
        let unreadable = |error: LogError| LedgerError::Unreadable(error.to_string());
        let state = snapshot::newest(log.as_ref()).await.map_err(unreadable)?;
        let shared = Arc::new(Shared {
            sequence: watch::Sender::new(state.sequence()),
            state: RwLock::new(state),
            revisions: Mutex::new(HashMap::new()),
            stalled: AtomicBool::new(false),
            broken: OnceLock::new(),
            ended: watch::Sender::new(None),
        });
        let (proposals, queue) = mpsc::channel(QUEUE);
        let mut driver = Driver {
            shared: shared.clone(),
            log,
            writer,
            number: 0,
            contended: false,
            owed: None,
            reloads: 0,
            flight: Flight::default(),
            keeper: Keeper::new(pace, *shared.sequence.borrow()),
        };
        driver.catch_up(0, &mut None).await.map_err(unreadable)?;
        tokio::spawn(supervise(tokio::spawn(driver.run(queue)), shared.clone()));
        Ok(Self { writer, shared, proposals })
    }

    /// What this process's records name as their writer.
    pub fn writer(&self) -> [u8; 16] {
        self.writer
    }

    /// Looks at the state. The closure must be short: it holds a read lock.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.shared.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes with every record applied.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.sequence.subscribe()
    }

    /// Changes with every revision of this job, and when it is deleted. Subscribe first, then look at the state.
    pub fn watch_job(&self, uid: JobUid) -> watch::Receiver<u64> {
        // Before the lock of the watches, because the writer takes the two in this order.
        let revision = self.read(|state| state.job(uid).map_or(GONE, |job| job.revision));
        let mut revisions = self.shared.revisions.lock().unwrap_or_else(PoisonError::into_inner);
        revisions.retain(|job, sender| *job == uid || sender.receiver_count() > 0);
        revisions.entry(uid).or_insert_with(|| watch::Sender::new(revision)).subscribe()
    }

    /// Whether the log could be reached at the last attempt, which is a second or two ago at most. When not, the state is
    /// of the past, and nobody knows how far.
    pub fn is_reachable(&self) -> bool {
        !self.shared.stalled.load(Ordering::Relaxed)
    }

    /// Why this process cannot follow the log any more, if it cannot: the log is damaged, or holds records of a newer
    /// release. Only another start can change that. The state stays what it was before.
    pub fn fault(&self) -> Option<&str> {
        self.shared.broken.get().map(String::as_str)
    }

    /// Waits until the writer has ended, and says why. It never should while there is a ledger: without it nothing is
    /// accepted, nothing that others write is seen, and the state stays what it was. Whoever runs the process ends it then.
    pub async fn ended(&self) -> String {
        let mut ended = self.shared.ended.subscribe();
        // What is waited for is locked while it is looked at, and must not be for longer.
        let why = ended.wait_for(Option::is_some).await.map(|why| why.clone().unwrap_or_default());
        match why {
            Ok(why) => why,
            Err(_) => std::future::pending().await,
        }
    }

    /// Reports an update whose slab is frozen. The answer is what became of it in log order. When the log goes away
    /// meanwhile, this waits until its fate is known: the caller keeps the slab as long, and gives its own client an
    /// earlier answer if it wants. Dropping the future does not take the update back.
    ///
    /// # Errors
    /// After [`LedgerError::Refused`] and [`LedgerError::Unavailable`] the slab is free; after the others its fate is
    /// known only to the next replay.
    pub async fn accept(&self, accept: Accept) -> Result<AcceptOutcome, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.send(Proposal::Accept(Box::new(accept), reply)).await?;
        answer.await.map_err(|_| LedgerError::Stopped)?
    }

    /// Reports what a client measured of a model. The answer is what became of it in log order.
    ///
    /// # Errors
    /// All but [`LedgerError::Stale`].
    pub async fn evaluate(
        &self,
        uid: JobUid,
        version: u64,
        result: EvaluationResult,
    ) -> Result<EvaluateOutcome, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.send(Proposal::Evaluate(Box::new(WaitingResult { uid, version, result, reply }))).await?;
        answer.await.map_err(|_| LedgerError::Stopped)?
    }

    /// Appends a record.
    ///
    /// # Errors
    /// All but [`LedgerError::Stale`].
    pub async fn propose(&self, record: Record) -> Result<Outcome, LedgerError> {
        self.record(record, None).await
    }

    /// Appends a decision that was taken on what [`State::decided`] said of it. Refused as stale if its job has changed since;
    /// at the first feature level, if anything has happened since.
    ///
    /// # Errors
    /// Every [`LedgerError`].
    pub async fn decide(&self, record: Record, decided: Decided) -> Result<Outcome, LedgerError> {
        self.record(record, Some(decided)).await
    }

    /// Waits until the state holds everything that was stored when this was called, whoever stored it. For answers such
    /// as "no such job", which must not be given to a client that has just created it at another process.
    ///
    /// # Errors
    /// All but [`LedgerError::Stale`] and [`LedgerError::Refused`].
    pub async fn refresh(&self) -> Result<(), LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.send(Proposal::Refresh(reply)).await?;
        answer.await.map_err(|_| LedgerError::Stopped)?
    }

    async fn record(&self, record: Record, decided: Option<Decided>) -> Result<Outcome, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.send(Proposal::Record { record: Box::new(record), decided, reply }).await?;
        answer.await.map_err(|_| LedgerError::Stopped)?
    }

    async fn send(&self, proposal: Proposal) -> Result<(), LedgerError> {
        if !self.is_reachable() {
            return Err(LedgerError::Unavailable);
        }
        self.proposals.send(proposal).await.map_err(|_| LedgerError::Stopped)
    }
}

/// Waits for the writer, and tells those who wait for its end what became of it.
async fn supervise(writer: JoinHandle<()>, shared: Arc<Shared>) {
    let why = match writer.await {
        Ok(()) => "it was left alone".to_owned(),
        Err(error) => error.to_string(),
    };
    // From now on the state is of the past.
    shared.stalled.store(true, Ordering::Relaxed);
    shared.ended.send_replace(Some(why));
}
