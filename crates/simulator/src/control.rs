//! The real control plane: the fold over the log, and the decisions of the coordinator.
//!
//! Everything that the simulator knows of the log's records and of `decide` is here.

use crate::scenario::Workload;
use catchment_coordinator::{Nodes, decide};
use catchment_ledger::{AcceptOutcome, Deadlines, Job, Moment, Outcome, Phase, Round, State};
use catchment_types::{
    Accept, ClientId, Digest, Footprint, JobUid, ModelCommit, NodeId, ReceiptId, Record, SlabId, TimeMs,
};
use std::collections::BTreeMap;

/// What a coordinator decided and the log took.
pub enum Decided {
    /// A round began.
    Opened { job: usize, round: u64, deadline_ms: Option<TimeMs> },
    /// A round takes no more, got another deadline, or its job ended.
    Changed { job: usize },
}

/// An update that a node reports.
pub struct Reported {
    pub job: usize,
    pub round: u64,
    pub client: u32,
    pub bytes: u64,
}

/// The log and its fold.
pub struct Control {
    state: State,
    deadlines: Deadlines,
    slabs: u64,
}

impl Default for Control {
    /// Nothing has happened yet.
    fn default() -> Self {
        Self { state: State::default(), deadlines: Deadlines::new(true), slabs: 0 }
    }
}

impl Control {
    pub fn create(&mut self, job: usize, workload: &Workload, now_ms: TimeMs) {
        let deadline_ms = (workload.deadline_s * 1000.0) as u64;
        let spec = format!(
            r#"{{"name":"job-{job}","function":"simulated","goal":{},"rounds":{},"over_provision":{},
            "deadline":"{deadline_ms}ms","receipts":"0ms"}}"#,
            workload.goal, workload.rounds, workload.over_provision
        );
        let created = self.append(&Record::JobCreated { uid: uid(job), spec, at_ms: now_ms });
        assert_eq!(created, Outcome::Done, "the scenario's numbers make a spec");
        let model = model(0, workload.update_bytes, 0, None, false);
        self.append(&Record::ModelPut { uid: uid(job), model, needs: Footprint::default(), at_ms: now_ms });
    }

    /// Carries out what the coordinator decides now. Also when it wants to look again.
    pub fn look(&mut self, now_ms: TimeMs) -> (Vec<Decided>, Option<TimeMs>) {
        let (mut done, now) = (Vec::new(), Moment { clock_ms: now_ms, passed_ms: now_ms });
        loop {
            self.deadlines.look(&self.state, now);
            // Placing is the simulated policy's, and so is noticing that a node is gone.
            let decision = decide(&self.state, &Nodes::default(), &self.deadlines, now);
            let again_ms = decision.look_again_ms.map(|left| now_ms + left);
            let Some(record) = decision.records.into_iter().next() else { return (done, again_ms) };
            assert_eq!(self.append(&record), Outcome::Done, "{record:?}");
            done.push(match record {
                Record::RoundOpened { uid, round, deadline_ms, .. } => {
                    Decided::Opened { job: number(uid), round, deadline_ms }
                }
                Record::RoundClosed { uid, .. } | Record::RoundExtended { uid, .. } | Record::JobFailed { uid, .. } => {
                    Decided::Changed { job: number(uid) }
                }
                other => unreachable!("a coordinator does not decide {other:?}"),
            });
        }
    }

    /// Reports a group of updates of one node; the receipt of each that counts.
    pub fn accept(&mut self, node: NodeId, group: &[Reported], now_ms: TimeMs) -> Vec<Option<ReceiptId>> {
        let accepts = group.iter().map(|update| self.slab(node, update, now_ms)).collect();
        let Outcome::Accepts(outcomes) = self.append(&Record::Accepted(accepts)) else { unreachable!() };
        let receipt = |outcome: AcceptOutcome| match outcome {
            AcceptOutcome::Accepted(receipt) => Some(receipt),
            _ => None,
        };
        outcomes.into_iter().map(receipt).collect()
    }

    fn slab(&mut self, node: NodeId, update: &Reported, at_ms: TimeMs) -> Accept {
        self.slabs += 1;
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&update.client.to_le_bytes());
        Accept {
            uid: uid(update.job),
            round: update.round,
            base: None,
            client: client(update.client),
            digest: Digest::from_bytes(digest),
            weight: 1.0,
            num_samples: 1,
            metrics: BTreeMap::new(),
            bytes: update.bytes,
            node,
            incarnation: self.state.incarnation(node),
            slab: SlabId::from_u64(self.slabs),
            at_ms,
        }
    }

    pub fn folded(&mut self, job: usize, round: u64, receipts: Vec<ReceiptId>) {
        self.append(&Record::Folded { uid: uid(job), round, receipts });
    }

    /// A node is gone with everything on it. Gives the clients whose updates of active rounds are lost, by job and round.
    pub fn lost(&mut self, node: NodeId, now_ms: TimeMs) -> Vec<(usize, u64, Vec<u32>)> {
        let mut lost = Vec::new();
        for (job, round) in self.state.jobs().filter_map(|job| Some((job, job.active_round()?))) {
            let there = round.contributors().filter(|update| update.accept.node == node);
            let clients: Vec<u32> = there.map(|update| client_number(&update.accept.client)).collect();
            if !clients.is_empty() {
                lost.push((number(job.uid), round.number, clients));
            }
        }
        let incarnation = self.state.incarnation(node);
        self.append(&Record::NodeLost { node, incarnation, at_ms: now_ms });
        lost
    }

    /// Commits a round's model, made of these updates. Whether the log took it.
    ///
    /// # Errors
    /// They are not, each once, the updates that the log says are in the round.
    pub fn commit(
        &mut self,
        job: usize,
        round: u64,
        mut made_of: Vec<ReceiptId>,
        gathered: bool,
        now_ms: TimeMs,
    ) -> Result<bool, String> {
        made_of.sort_unstable();
        let Some((state, active)) = self.active(job).filter(|(_, active)| active.number == round) else {
            return Ok(false);
        };
        let counted: Vec<ReceiptId> = active.contributors().map(|update| update.receipt).collect();
        if made_of != counted {
            let twice = made_of.windows(2).filter(|pair| pair[0] == pair[1]).count();
            let (made, wanted) = (made_of.len(), counted.len());
            return Err(format!(
                "job {job} round {round}: made of {made} updates ({twice} twice), the log has {wanted}"
            ));
        }
        let version = state.models.next();
        let model = model(version, 64, made_of.len() as u64, Some(active.contribution()), gathered);
        let outcome = self.append(&Record::Committed { uid: uid(job), round, model, at_ms: now_ms });
        if outcome == Outcome::Done { Ok(true) } else { Err(format!("job {job} round {round}: {outcome:?}")) }
    }

    fn active(&self, job: usize) -> Option<(&Job, &Round)> {
        let job = self.state.job(uid(job))?;
        job.active_round().map(|round| (job, round))
    }

    /// Whether the round still takes updates.
    pub fn is_open(&self, job: usize, round: u64) -> bool {
        self.active(job).is_some_and(|(_, active)| active.number == round && active.phase == Phase::Open)
    }

    /// The number of the round that is not over.
    pub fn active_round(&self, job: usize) -> Option<u64> {
        self.active(job).map(|(_, active)| active.number)
    }

    /// Whether the model can be made.
    pub fn is_ready(&self, job: usize, gathered: bool) -> bool {
        self.active(job).is_some_and(|(_, round)| if gathered { round.is_complete() } else { round.is_ready() })
    }

    pub fn is_over(&self) -> bool {
        self.state.jobs().all(|job| job.state.is_over())
    }

    /// Jobs that published all their models.
    pub fn completed(&self) -> usize {
        self.state.jobs().filter(|job| job.state == catchment_types::JobState::Completed).count()
    }

    /// Recounts the state's counts; takes time by its size.
    pub fn audit(&self) -> Result<(), String> {
        self.state.audit()
    }

    pub fn records(&self) -> u64 {
        self.state.sequence()
    }

    pub fn describe(&self, job: usize) -> String {
        self.state.job(uid(job)).map_or_else(String::new, |job| format!("{:?}", job.round_view()))
    }

    fn append(&mut self, record: &Record) -> Outcome {
        self.state.apply(self.state.sequence() + 1, record)
    }
}

fn model(version: u64, bytes: u64, contributors: u64, contribution: Option<Digest>, gathered: bool) -> ModelCommit {
    let mut etag = [0; 32];
    etag[..8].copy_from_slice(&version.to_le_bytes());
    ModelCommit {
        version,
        etag: Digest::from_bytes(etag),
        bytes,
        node: NodeId(0),
        function: None,
        contributors,
        contribution,
        gathered,
        metrics: BTreeMap::new(),
    }
}

fn uid(job: usize) -> JobUid {
    JobUid::from_bytes((job as u128 + 1).to_be_bytes())
}

fn number(uid: JobUid) -> usize {
    (u128::from_be_bytes(*uid.as_bytes()) - 1) as usize
}

fn client(number: u32) -> ClientId {
    format!("c{number}").parse().expect("a letter and digits are a client id")
}

fn client_number(client: &ClientId) -> u32 {
    client.as_str()[1..].parse().expect("made by `client`")
}
