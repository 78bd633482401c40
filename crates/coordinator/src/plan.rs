//! Where rounds are put: what the planner is told, and what it says.
//!
//! The planner is asked only when a round opens or has lost a node, and is told of the rounds that are there already, as
//! the log has them. So every coordinator plans the same from the same log and the same heartbeats.

use crate::decide::Nodes;
use catchment_ledger::{Job, Phase, Round, State};
use catchment_planner::{Config, Demand, Explanation, FOLD_S_PER_BYTE, Fleet, Node, RoundKey};
use catchment_types::{NodeId, Place, Record};

/// Seconds of CPU that receiving and digesting a byte takes: what rounds of sixteen 45 MB updates took
/// (`docs/benchmarks.md`). Folding depends on the function, so what nodes measure counts where there is something.
const RECEIVE_S_PER_BYTE: f64 = 1.0e-9;

/// The plans of one decision. The fleet is put together only if somebody asks.
pub struct Plans<'a> {
    state: &'a State,
    live: &'a [Node],
    service_s_per_byte: f64,
    left_ms: &'a dyn Fn(&Job) -> Option<u64>,
    fleet: Option<Fleet>,
    /// Why rounds are placed where they are.
    pub explanations: Vec<Explanation>,
}

impl<'a> Plans<'a> {
    /// Nothing is planned yet. `left_ms`: the time until the deadline of a job's active round.
    pub fn new(state: &'a State, nodes: &'a Nodes, left_ms: &'a dyn Fn(&Job) -> Option<u64>) -> Self {
        let service_s_per_byte = service_s_per_byte(nodes);
        Self { state, live: &nodes.live, service_s_per_byte, left_ms, fleet: None, explanations: Vec::new() }
    }

    /// Where the next round of a job is put. Nowhere in particular when there is no room, or nobody is known: clients then
    /// stay with the node they asked.
    pub fn place(&mut self, job: &Job, round: u64) -> Vec<Place> {
        if self.live.is_empty() {
            return Vec::new();
        }
        let demand = self.demand(job, round, None);
        match self.fleet().place(&demand) {
            Ok((placement, explanation)) => {
                self.explanations.push(explanation);
                places(&placement)
            }
            Err(error) => {
                tracing::warn!(job = %job.spec.name, round, %error, "place a round");
                Vec::new()
            }
        }
    }

    /// Moves what has not come of an open round away from nodes that take no more.
    pub fn move_away(&mut self, job: &Job, round: &Round) -> Option<Record> {
        let live = |node: NodeId| self.live.iter().any(|other| other.node == node);
        let is_well = round.places.is_empty() || round.places.iter().all(|place| live(place.node));
        if is_well || round.phase != Phase::Open || self.live.is_empty() {
            return None;
        }
        let demand = self.demand(job, round.number, (self.left_ms)(job));
        let fleet = self.fleet();
        let taken = |node| round.share(node).map_or(0, |share| share.updates);
        let planned = match fleet.adopt(&demand, &updates(round)) {
            Some(current) => fleet.replan(&current, &demand, taken).map(|plan| plan.unzip()),
            None => fleet.place(&demand).map(|(placement, explanation)| (Some(placement), Some(explanation))),
        };
        let places = match planned {
            Ok((Some(placement), explanation)) => {
                self.explanations.extend(explanation);
                places(&placement)
            }
            // What is left of it will do, or must.
            Ok((None, _)) | Err(_) => round.places.iter().copied().filter(|place| live(place.node)).collect(),
        };
        let moved = places != round.places;
        moved.then_some(Record::RoundPlaced { uid: job.uid, round: round.number, places })
    }

    fn demand(&self, job: &Job, round: u64, left_ms: Option<u64>) -> Demand {
        demand(job, round, left_ms, self.service_s_per_byte)
    }

    fn fleet(&mut self) -> &mut Fleet {
        let (state, live, left_ms, service) = (self.state, self.live, self.left_ms, self.service_s_per_byte);
        self.fleet.get_or_insert_with(|| {
            let mut fleet = Fleet::new(Config::default(), live.iter().copied());
            for (job, round) in state.jobs().filter_map(|job| Some((job, job.active_round()?))) {
                fleet.adopt(&demand(job, round.number, left_ms(job), service), &updates(round));
            }
            fleet
        })
    }
}

/// Seconds of CPU that a byte of an update takes to be received and folded, as nodes measure it where they do.
pub(crate) fn service_s_per_byte(nodes: &Nodes) -> f64 {
    RECEIVE_S_PER_BYTE + if nodes.cpu_s_per_byte > 0.0 { nodes.cpu_s_per_byte } else { FOLD_S_PER_BYTE }
}

fn places(placement: &catchment_planner::Placement) -> Vec<Place> {
    placement.shares.iter().map(|share| Place { node: share.node, updates: share.updates }).collect()
}

fn updates(round: &Round) -> Vec<(NodeId, u64)> {
    round.places.iter().map(|place| (place.node, place.updates)).collect()
}

/// What a round needs. How fast its updates come is what the round before it saw. Without `left_ms`, the time until
/// its deadline: as it is when it opens.
pub(crate) fn demand(job: &Job, round: u64, left_ms: Option<u64>, service_s_per_byte: f64) -> Demand {
    let left_ms = left_ms.or_else(|| job.spec.deadline.map(|deadline| deadline.ms()));
    Demand {
        key: RoundKey { uid: job.uid, round },
        class: job.needs.class.into(),
        updates: job.spec.tasks_per_round(),
        update_bytes: job.needs.update_bytes,
        partial_bytes: job.needs.partial_bytes,
        arrivals_per_s: job.last_ended().and_then(arrivals_per_s).unwrap_or_default(),
        service_s: job.needs.update_bytes as f64 * service_s_per_byte,
        time_left_s: left_ms.map(|ms| ms as f64 / 1e3),
    }
}

/// Updates a second of a round that has ended, from its opening to its last update.
fn arrivals_per_s(round: &Round) -> Option<f64> {
    let last_ms = round.contributors().map(|update| update.accept.at_ms).max()?;
    let took_s = last_ms.saturating_sub(round.opened_ms).max(1) as f64 / 1e3;
    Some(round.received() as f64 / took_s)
}
