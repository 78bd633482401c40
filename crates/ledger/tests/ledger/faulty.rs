//! A log that fails as real ones do, around one that does not.
//!
//! Every fault is one the log's contract allows: an append that ends in `Unavailable` may be stored, not stored, or
//! stored later.

use crate::common::accept;
use async_trait::async_trait;
use bytes::Bytes;
use catchment_bus::{EventLog, LogError, Pushed, Snapshot};
use catchment_ledger::{AcceptOutcome, Envelope, Outcome, State, Stocked};
use catchment_types::{JobUid, LEVEL_MAX, Record, SlabId};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub fn encode(envelope: &Envelope) -> Bytes {
    envelope.to_bytes(1, usize::MAX).unwrap().into()
}

/// A record in a version that this build does not read.
pub fn of_a_newer_release() -> Bytes {
    framed(b"\x09what is this").into()
}

/// A message as it is stored from feature level 2 on.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new_derive_key("catchment v2 log record");
    hasher.update(message);
    [b"CTL2", &hasher.finalize().as_bytes()[..16], message].concat()
}

/// Everything stored, decoded.
pub async fn stored(log: &Arc<dyn EventLog>) -> Vec<Envelope> {
    let records = log.read(0, usize::MAX).await.unwrap();
    let read = |(sequence, bytes): &(u64, Bytes)| match Envelope::read(*sequence, bytes, LEVEL_MAX).unwrap() {
        Stocked::Record(envelope) => *envelope,
        Stocked::Foreign(why) => panic!("record {sequence}: {why}"),
    };
    records.iter().map(read).collect()
}

/// The log's own account: the state after all of it, and what became of every record and every slab.
#[derive(Default)]
pub struct Account {
    pub state: State,
    pub records: Vec<(Record, Outcome)>,
    pub envelopes: Vec<Envelope>,
    pub slabs: BTreeMap<SlabId, Vec<AcceptOutcome>>,
}

pub async fn account(log: &Arc<dyn EventLog>) -> Account {
    let mut account = Account::default();
    let mut seen = std::collections::HashSet::new();
    for (envelope, sequence) in stored(log).await.into_iter().zip(1..) {
        assert!(seen.insert((envelope.writer, envelope.number)), "record {} is stored twice", envelope.number);
        let outcome = account.state.take(sequence, &Stocked::Record(Box::new(envelope.clone())));
        account.state.audit().unwrap();
        if let (Record::Accepted(group), Outcome::Accepts(outcomes)) = (&envelope.record, &outcome) {
            for (accept, outcome) in group.iter().zip(outcomes) {
                account.slabs.entry(accept.slab).or_default().push(*outcome);
            }
        }
        account.records.push((envelope.record.clone(), outcome));
        account.envelopes.push(envelope);
    }
    account
}

/// A log that forgets as any does, and whose every record is kept all the same.
pub struct Hoard {
    log: Arc<dyn EventLog>,
    records: Mutex<Vec<Bytes>>,
}

impl Hoard {
    pub fn new(log: Arc<dyn EventLog>) -> Arc<Self> {
        Arc::new(Self { log, records: Mutex::default() })
    }

    /// A log of everything that was ever stored.
    pub async fn whole(&self) -> Arc<dyn EventLog> {
        let log = catchment_bus::Bus::in_memory().log;
        let records = self.records.lock().unwrap().clone();
        for (record, last) in records.into_iter().zip(0..) {
            log.append(record, last).await.unwrap();
        }
        log
    }
}

#[async_trait]
impl EventLog for Hoard {
    async fn append(&self, record: Bytes, expected_last: u64) -> Result<u64, LogError> {
        let sequence = self.log.append(record.clone(), expected_last).await?;
        // In memory nothing happens between the two.
        let mut records = self.records.lock().unwrap();
        records.push(record);
        assert_eq!(records.len() as u64, sequence);
        Ok(sequence)
    }

    async fn push(&self, record: Bytes) -> Result<Pushed, LogError> {
        let pushed = self.log.push(record.clone()).await?.await?;
        let mut records = self.records.lock().unwrap();
        records.push(record);
        assert_eq!(records.len() as u64, pushed);
        Ok(Box::pin(std::future::ready(Ok(pushed))))
    }

    async fn read(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        self.log.read(after, limit).await
    }

    async fn last(&self) -> Result<u64, LogError> {
        self.log.last().await
    }

    async fn grown(&self, after: u64) -> Result<(), LogError> {
        self.log.grown(after).await
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, LogError> {
        self.log.snapshot().await
    }

    async fn snapshot_sequence(&self) -> Result<u64, LogError> {
        self.log.snapshot_sequence().await
    }

    async fn put_snapshot(&self, snapshot: Snapshot) -> Result<bool, LogError> {
        self.log.put_snapshot(snapshot).await
    }

    fn record_bytes_max(&self) -> usize {
        self.log.record_bytes_max()
    }
}

/// What happens to one append.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    None,
    /// It never arrives.
    Lost,
    /// It is stored, and nobody says so.
    Unacknowledged,
    /// It arrives after this many milliseconds.
    Late(u64),
    /// Another writer stores this many records first.
    Overtaken(u64),
    /// It is stored unacknowledged, and another writer stores this many after it.
    Buried(u64),
    /// It is refused.
    Refused,
    /// The log says that it is not what it was.
    Damaged,
    /// It is refused because the log ends here.
    EndsAt(u64),
    /// There is a mistake in the log's code.
    Panics,
}

/// How often what happens, in percent; the rest of the appends and reads go well.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    pub lost: u32,
    pub unacknowledged: u32,
    pub late: u32,
    pub overtaken: u32,
    pub refused: u32,
    pub unread: u32,
}

pub struct Faulty {
    inner: Arc<dyn EventLog>,
    script: Mutex<VecDeque<Fault>>,
    /// Of the next reads, whether they fail.
    reads: Mutex<VecDeque<bool>>,
    random: Option<(Mutex<ChaCha8Rng>, Rates)>,
    intruder: [u8; 16],
    intrusions: AtomicU64,
    pub record_bytes_max: AtomicUsize,
}

/// Where the other writer's accepts go.
pub const INTRUDED: JobUid = crate::common::JOB;

impl Faulty {
    pub fn scripted(inner: Arc<dyn EventLog>, script: &[Fault]) -> Arc<Self> {
        Arc::new(Self::new(inner, script, None))
    }

    pub fn random(inner: Arc<dyn EventLog>, seed: u64, rates: Rates) -> Arc<Self> {
        Arc::new(Self::new(inner, &[], Some((Mutex::new(ChaCha8Rng::seed_from_u64(seed)), rates))))
    }

    fn new(inner: Arc<dyn EventLog>, script: &[Fault], random: Option<(Mutex<ChaCha8Rng>, Rates)>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut intruder = [0xee; 16];
        intruder[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        Self {
            record_bytes_max: AtomicUsize::new(inner.record_bytes_max()),
            inner,
            script: Mutex::new(script.iter().copied().collect()),
            reads: Mutex::default(),
            random,
            intruder,
            intrusions: AtomicU64::new(0),
        }
    }

    pub fn then(&self, faults: &[Fault]) {
        self.script.lock().unwrap().extend(faults);
    }

    pub fn fail_reads(&self, reads: &[bool]) {
        self.reads.lock().unwrap().extend(reads);
    }

    fn fault(&self) -> Fault {
        if let Some(fault) = self.script.lock().unwrap().pop_front() {
            return fault;
        }
        let Some((rng, rates)) = &self.random else { return Fault::None };
        let mut rng = rng.lock().unwrap();
        let mut dice = rng.random_range(0..100u32);
        let mut hit = |rate: u32| {
            let hit = dice < rate;
            dice = dice.wrapping_sub(rate);
            hit
        };
        if hit(rates.lost) {
            Fault::Lost
        } else if hit(rates.unacknowledged) {
            if rng.random_bool(0.1) { Fault::Buried(300) } else { Fault::Unacknowledged }
        } else if hit(rates.late) {
            Fault::Late(rng.random_range(1..800))
        } else if hit(rates.overtaken) {
            Fault::Overtaken(if rng.random_bool(0.1) { 300 } else { 1 })
        } else if hit(rates.refused) {
            Fault::Refused
        } else {
            Fault::None
        }
    }

    fn read_fails(&self) -> bool {
        if let Some(fails) = self.reads.lock().unwrap().pop_front() {
            return fails;
        }
        self.random.as_ref().is_some_and(|(rng, rates)| rng.lock().unwrap().random_range(0..100) < rates.unread)
    }

    /// Another writer's records; now and then an accept of a client that is also at work here.
    async fn intrude(&self, records: u64) {
        for _ in 0..records {
            let number = self.intrusions.fetch_add(1, Ordering::Relaxed) + 1;
            let group = match &self.random {
                Some((rng, _)) if rng.lock().unwrap().random_bool(0.2) => {
                    let mut accept = accept(INTRUDED, 1, number % 40, (number % 2) as u8);
                    accept.slab = SlabId::new(u32::MAX, (u64::from(self.intruder[0]) << 16 | number) as u32);
                    vec![accept]
                }
                _ => Vec::new(),
            };
            let record = encode(&Envelope {
                writer: self.intruder,
                number,
                guard: None,
                seen: None,
                record: Record::Accepted(group),
            });
            loop {
                let last = self.inner.last().await.unwrap();
                if self.inner.append(record.clone(), last).await.is_ok() {
                    break;
                }
            }
        }
    }
}

fn unavailable() -> LogError {
    LogError::Unavailable("as the test wants it".to_owned())
}

#[async_trait]
impl EventLog for Faulty {
    async fn append(&self, record: Bytes, expected_last: u64) -> Result<u64, LogError> {
        let fault = self.fault();
        match fault {
            Fault::None => {}
            Fault::Lost => return Err(unavailable()),
            Fault::Unacknowledged | Fault::Buried(_) => {
                let _ = self.inner.append(record, expected_last).await;
                if let Fault::Buried(records) = fault {
                    self.intrude(records).await;
                }
                return Err(unavailable());
            }
            Fault::Late(after_ms) => {
                let inner = self.inner.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(after_ms)).await;
                    let _ = inner.append(record, expected_last).await;
                });
                return Err(unavailable());
            }
            Fault::Overtaken(records) => self.intrude(records).await,
            Fault::Refused => return Err(LogError::Refused("as the test wants it".to_owned())),
            Fault::Damaged => return Err(LogError::Damaged("as the test wants it".to_owned())),
            Fault::EndsAt(last) => return Err(LogError::Conflict { last }),
            Fault::Panics => panic!("a mistake in the log"),
        }
        tokio::task::yield_now().await;
        self.inner.append(record, expected_last).await
    }

    async fn push(&self, record: Bytes) -> Result<Pushed, LogError> {
        let said = |said| -> Result<Pushed, LogError> { Ok(Box::pin(std::future::ready(said))) };
        let fault = self.fault();
        match fault {
            Fault::None => {}
            Fault::Lost => return said(Err(unavailable())),
            Fault::Unacknowledged | Fault::Buried(_) => {
                self.inner.push(record).await?.await?;
                if let Fault::Buried(records) = fault {
                    self.intrude(records).await;
                }
                return said(Err(unavailable()));
            }
            Fault::Late(after_ms) => {
                let inner = self.inner.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(after_ms)).await;
                    inner.push(record).await.unwrap().await.unwrap();
                });
                return said(Err(unavailable()));
            }
            Fault::Overtaken(records) => self.intrude(records).await,
            Fault::Refused => return said(Err(LogError::Refused("as the test wants it".to_owned()))),
            Fault::Damaged | Fault::EndsAt(_) => {
                return said(Err(LogError::Damaged("as the test wants it".to_owned())));
            }
            Fault::Panics => panic!("a mistake in the log"),
        }
        tokio::task::yield_now().await;
        let sequence = self.inner.push(record).await?.await;
        said(sequence)
    }

    async fn read(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, LogError> {
        if self.read_fails() {
            return Err(unavailable());
        }
        self.inner.read(after, limit).await
    }

    async fn last(&self) -> Result<u64, LogError> {
        self.inner.last().await
    }

    async fn grown(&self, after: u64) -> Result<(), LogError> {
        self.inner.grown(after).await
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, LogError> {
        if self.read_fails() {
            return Err(unavailable());
        }
        self.inner.snapshot().await
    }

    async fn snapshot_sequence(&self) -> Result<u64, LogError> {
        self.inner.snapshot_sequence().await
    }

    async fn put_snapshot(&self, snapshot: Snapshot) -> Result<bool, LogError> {
        self.inner.put_snapshot(snapshot).await
    }

    fn record_bytes_max(&self) -> usize {
        self.record_bytes_max.load(Ordering::Relaxed)
    }
}
