//! A job, its desk and a clock.

use catchment_ledger::{AcceptOutcome, Job, Outcome, Round, State};
use catchment_tasks::Desk;
use catchment_types::{
    Accept, CheckIn, ClientId, Digest, EvaluationResult, JobUid, ModelCommit, NodeId, Record, SlabId, Task, TaskKind,
    TimeMs,
};
use std::collections::BTreeMap;

pub const JOB: JobUid = JobUid::from_bytes([1; 16]);

pub fn client(number: u64) -> ClientId {
    format!("client-{number}").parse().unwrap()
}

pub struct Site {
    pub state: State,
    pub desk: Desk,
    pub now_ms: TimeMs,
    /// What each client says of its samples.
    pub samples: fn(u64) -> u64,
    /// The loss that each reports.
    pub loss: fn(u64) -> f64,
}

impl Site {
    /// A job with these fields, its first round open.
    pub fn new(fields: &str) -> Self {
        let mut site = Self {
            state: State::default(),
            desk: Desk::new([5; 16]),
            now_ms: 1_000_000,
            samples: |_| 10,
            loss: |_| 1.0,
        };
        let spec = format!(r#"{{"name":"a","function":"fedavg","rounds":1000000{fields}}}"#);
        site.apply(Record::JobCreated { uid: JOB, spec, at_ms: site.now_ms });
        let model = site.model(0, None);
        site.apply(Record::ModelPut { uid: JOB, model, needs: Default::default(), at_ms: site.now_ms });
        site.open();
        site
    }

    fn model(&self, version: u64, contribution: Option<Digest>) -> ModelCommit {
        ModelCommit {
            version,
            etag: Digest::from_bytes([version as u8; 32]),
            bytes: 1,
            node: NodeId(1),
            function: None,
            contributors: 0,
            contribution,
            gathered: true,
            metrics: BTreeMap::new(),
        }
    }

    pub fn apply(&mut self, record: Record) -> Outcome {
        let outcome = self.state.apply(self.state.sequence() + 1, &record);
        assert!(!matches!(outcome, Outcome::Ignored(_)), "{record:?}: {outcome:?}");
        outcome
    }

    pub fn job(&self) -> &Job {
        self.state.job(JOB).unwrap()
    }

    pub fn round(&self) -> &Round {
        self.job().round.as_ref().unwrap()
    }

    pub fn open(&mut self) {
        let (round, at_ms) = (self.job().round_number() + 1, self.now_ms);
        let deadline_ms = self.job().spec.deadline.map(|deadline| at_ms + deadline.ms());
        self.apply(Record::RoundOpened { uid: JOB, round, deadline_ms, places: vec![], at_ms });
    }

    /// Makes the model of the closed round.
    pub fn commit(&mut self) {
        let contribution = self.round().contribution();
        let (round, model) = (self.round().number, self.model(self.job().models.next(), Some(contribution)));
        self.apply(Record::Committed { uid: JOB, round, model, at_ms: self.now_ms });
    }

    pub fn ask(&mut self, number: u64, labels: &[(&str, &str)]) -> Task {
        let checkin = CheckIn {
            num_samples: Some((self.samples)(number)),
            labels: labels.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            ..CheckIn::default()
        };
        let (state, desk) = (&self.state, &mut self.desk);
        let job = state.job(JOB).unwrap();
        let deadline_ms = job.active_round().and_then(|round| round.deadline_ms);
        let left_ms = deadline_ms.map(|deadline| deadline.saturating_sub(self.now_ms));
        desk.task(job, &client(number), &checkin, self.now_ms, left_ms)
    }

    pub fn kind(&mut self, number: u64) -> TaskKind {
        self.ask(number, &[]).task
    }

    /// Sends an update for a round. Whether it was accepted.
    pub fn submit(&mut self, number: u64, round: u64) -> bool {
        let accept = Accept {
            uid: JOB,
            round,
            base: None,
            client: client(number),
            digest: Digest::from_bytes([0; 32]),
            weight: 1.0,
            num_samples: (self.samples)(number),
            metrics: BTreeMap::from([("loss".to_owned(), (self.loss)(number))]),
            bytes: 1,
            node: NodeId(1),
            incarnation: 0,
            slab: SlabId::new(number as u32, 0),
            at_ms: self.now_ms,
        };
        match self.apply(Record::Accepted(vec![accept])) {
            Outcome::Accepts(outcomes) => matches!(outcomes[..], [AcceptOutcome::Accepted(_)]),
            other => panic!("{other:?}"),
        }
    }

    pub fn measure(&mut self, number: u64, version: u64) {
        let metrics = BTreeMap::from([("loss".to_owned(), (self.loss)(number))]);
        let result = EvaluationResult { client: client(number), num_samples: 1, metrics };
        self.apply(Record::Evaluated { uid: JOB, version, results: vec![result] });
    }
}
