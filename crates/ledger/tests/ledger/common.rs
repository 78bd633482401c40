//! Small jobs, clients and records.

use catchment_ledger::{AcceptOutcome, Job, Outcome, Round, State};
use catchment_types::{
    Accept, ClientId, Code, Digest, JobAction, JobUid, ModelCommit, Name, NodeId, Receipt, ReceiptId, Record, SlabId,
    SpecPatch, TimeMs,
};
use std::collections::BTreeMap;

pub const JOB: JobUid = JobUid::from_bytes([1; 16]);

pub fn client(number: u64) -> ClientId {
    format!("client-{number}").parse().unwrap()
}

pub fn digest(number: u8) -> Digest {
    Digest::from_bytes([number; 32])
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A job's spec: `fields` are further members, with a comma before each.
pub fn spec(name: &str, fields: &str) -> String {
    format!(r#"{{"name":"{name}","function":"fedavg"{fields}}}"#)
}

pub fn created(uid: JobUid, spec: String) -> Record {
    Record::JobCreated { uid, spec, at_ms: 0 }
}

pub fn accept(uid: JobUid, round: u64, number: u64, body: u8) -> Accept {
    Accept {
        uid,
        round,
        base: None,
        client: client(number),
        digest: digest(body),
        weight: 1.0 + number as f64,
        num_samples: 10 * (number + 1),
        metrics: BTreeMap::from([("loss".to_owned(), number as f64)]),
        bytes: 64,
        node: NodeId(1),
        incarnation: 0,
        slab: SlabId::new(number as u32, round as u32),
        at_ms: 5,
    }
}

pub fn initial_model() -> ModelCommit {
    ModelCommit::initial(digest(200), 64, NodeId(1))
}

/// The commit that the node would propose for `round` now.
pub fn commit_of(job: &Job, round: &Round) -> ModelCommit {
    ModelCommit {
        version: job.models.next(),
        etag: digest(201),
        bytes: 64,
        node: NodeId(1),
        function: Some(digest(202)),
        contributors: round.received(),
        contribution: Some(round.contribution()),
        gathered: false,
        metrics: round.metrics(),
    }
}

/// A state whose every record is audited.
#[derive(Default)]
pub struct Fixture {
    pub state: State,
    pub now_ms: TimeMs,
}

impl Fixture {
    /// One running job, its first round open.
    pub fn running(fields: &str) -> Self {
        let mut fixture = Self::waiting(fields);
        assert_eq!(fixture.put_model(), Outcome::Done);
        assert_eq!(fixture.open(1), Outcome::Done);
        fixture
    }

    /// One job without a model.
    pub fn waiting(fields: &str) -> Self {
        let mut fixture = Self::default();
        assert_eq!(fixture.apply(created(JOB, spec("a", fields))), Outcome::Done);
        fixture
    }

    pub fn apply(&mut self, record: Record) -> Outcome {
        let outcome = self.state.apply(self.state.sequence() + 1, &record);
        if let Err(why) = self.state.audit() {
            panic!("after {record:?}: {why}");
        }
        outcome
    }

    pub fn job(&self) -> &Job {
        self.state.job(JOB).unwrap()
    }

    pub fn round(&self) -> &Round {
        self.job().round.as_ref().unwrap()
    }

    pub fn put_model(&mut self) -> Outcome {
        self.apply(Record::ModelPut { uid: JOB, model: initial_model(), needs: Default::default(), at_ms: self.now_ms })
    }

    pub fn open(&mut self, round: u64) -> Outcome {
        self.open_until(round, None)
    }

    pub fn open_until(&mut self, round: u64, deadline_ms: Option<TimeMs>) -> Outcome {
        self.apply(Record::RoundOpened { uid: JOB, round, deadline_ms, places: vec![], at_ms: self.now_ms })
    }

    pub fn act(&mut self, action: JobAction) -> Outcome {
        self.apply(Record::JobActed { uid: JOB, action, at_ms: self.now_ms })
    }

    pub fn patch(&mut self, patch: SpecPatch) -> Outcome {
        self.apply(Record::JobPatched { uid: JOB, patch, at_ms: self.now_ms })
    }

    pub fn accept(&mut self, round: u64, number: u64, body: u8) -> AcceptOutcome {
        match self.apply(Record::Accepted(vec![accept(JOB, round, number, body)])) {
            Outcome::Accepts(outcomes) if outcomes.len() == 1 => outcomes[0],
            other => panic!("one accept has one outcome, not {other:?}"),
        }
    }

    /// Accepts a fresh update and returns its receipt.
    pub fn accepted(&mut self, round: u64, number: u64) -> ReceiptId {
        match self.accept(round, number, 0) {
            AcceptOutcome::Accepted(receipt) => receipt,
            other => panic!("client {number} of round {round} met {other:?}"),
        }
    }

    pub fn fold(&mut self, round: u64, receipts: &[ReceiptId]) -> Outcome {
        self.apply(Record::Folded { uid: JOB, round, receipts: receipts.to_vec() })
    }

    pub fn lose(&mut self, round: u64, receipts: &[ReceiptId]) -> Outcome {
        self.apply(Record::Lost { uid: JOB, round, receipts: receipts.to_vec(), at_ms: self.now_ms })
    }

    pub fn discard(&mut self, round: u64, receipt: ReceiptId) -> Outcome {
        self.apply(Record::Discarded { uid: JOB, round, receipt, code: Code::FunctionTrap, reason: "trap".to_owned() })
    }

    pub fn fold_pending(&mut self) -> Outcome {
        let receipts: Vec<_> = self.round().pending().map(|update| update.receipt).collect();
        self.fold(self.round().number, &receipts)
    }

    pub fn commit(&mut self) -> Outcome {
        let model = commit_of(self.job(), self.round());
        self.commit_as(model)
    }

    pub fn commit_as(&mut self, model: ModelCommit) -> Outcome {
        self.apply(Record::Committed { uid: JOB, round: self.round().number, model, at_ms: self.now_ms })
    }

    /// Gives the round up that is being aggregated.
    pub fn give_up(&mut self) -> Outcome {
        let (round, contribution) = (self.round().number, self.round().contribution());
        self.give_up_as(round, contribution)
    }

    pub fn give_up_as(&mut self, round: u64, contribution: Digest) -> Outcome {
        let reason = "element 3 of tensor `w` is infinite".to_owned();
        self.apply(Record::RoundGivenUp { uid: JOB, round, contribution, reason, at_ms: self.now_ms })
    }

    /// Opens a round, fills it with updates of these clients and gives it up.
    pub fn spoil_round(&mut self, round: u64, clients: impl IntoIterator<Item = u64>) -> Vec<ReceiptId> {
        assert_eq!(self.open(round), Outcome::Done);
        let receipts = clients.into_iter().map(|number| self.accepted(round, number)).collect();
        assert_eq!(self.fold_pending(), Outcome::Done);
        assert_eq!(self.give_up(), Outcome::Done);
        receipts
    }

    pub fn receipt(&self, receipt: ReceiptId) -> Receipt {
        self.state.receipt(receipt).expect("a kept receipt")
    }

    /// Runs a whole round of `clients`.
    pub fn run_round(&mut self, round: u64, clients: impl IntoIterator<Item = u64>) -> Vec<ReceiptId> {
        assert_eq!(self.open(round), Outcome::Done);
        let receipts = clients.into_iter().map(|number| self.accepted(round, number)).collect();
        assert_eq!(self.fold_pending(), Outcome::Done);
        assert_eq!(self.commit(), Outcome::Done);
        receipts
    }
}

/// Whether a record changed nothing.
pub fn is_ignored(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Ignored(_))
}
