//! One job's clients: who has a task, who is a candidate, who waits.

use crate::book::Book;
use crate::hands::Hands;
use crate::lots::Lots;
use crate::pacing::{Crowd, appointment_bounds};
use crate::seed::Seed;
use crate::table::Waiting;
use crate::tasks;
use crate::utility::Utilities;
use catchment_ledger::{Evaluation, Job, Phase, Round};
use catchment_types::{CheckIn, ClientId, JobState, Policy, Task, TaskKind, TimeMs};
use std::collections::{HashMap, HashSet};

/// How long a client that was drawn has to come for its task, after the time it was told.
const CLAIM_MS: u64 = 5_000;
/// How long a client waits at least that has not the labels a job wants, or no samples: those rarely change.
const STRANGER_MS: u64 = 30_000;
/// The share of the job's check-ins that are left to those.
const STRANGERS: f64 = 0.2;
/// The share that is left to candidates which come back after their draw: they must not queue behind the crowd.
const RETURNS: f64 = 0.4;
/// So many clients are to ask for each place that a policy has to give.
const CHOICE: u64 = 4;
/// Rounds before the present one that a desk learns from, when it begins anew.
const LEARNT_ROUNDS: u64 = 64;
/// Rounds over which the time between two is averaged.
const AVERAGED_ROUNDS: u64 = 4;

/// One check-in.
pub struct Call<'a> {
    pub job: &'a Job,
    pub client: &'a ClientId,
    /// Its short name.
    pub key: u64,
    pub checkin: &'a CheckIn,
    pub now_ms: TimeMs,
    /// The time until the round's deadline, as this node sees it.
    pub left_ms: Option<u64>,
    /// Check-ins a second that this job's clients may amount to.
    pub per_s: f64,
    pub seed: &'a Seed,
}

/// Tasks that nobody has.
#[derive(Debug, Clone, Copy)]
struct Places {
    train: u64,
    evaluate: u64,
}

/// What is known of one job's clients.
#[derive(Debug, Default)]
pub struct Floor {
    /// The round that all of this is about; 0 before the first.
    round: u64,
    training: Hands,
    evaluating: Hands,
    /// Tasks given out in this round, to keep the two kinds in proportion.
    given_train: u64,
    given_evaluate: u64,
    lots: Lots,
    /// Clients that were drawn, and how long their places are kept.
    drawn: HashMap<ClientId, TimeMs>,
    /// Clients that had a task of the round before when it closed.
    late: HashSet<ClientId>,
    waiting: Waiting,
    book: Book,
    /// When candidates come back.
    returns: Book,
    /// Those that have not the labels the job wants, or no samples.
    strangers: Waiting,
    strangers_book: Book,
    utilities: Utilities,
    /// When clients got this round's tasks, for `utility`.
    since: HashMap<u64, TimeMs>,
}

impl Floor {
    /// Clients that were told to come again.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.strangers.len()
    }

    pub fn task(&mut self, call: &Call) -> Task {
        self.waiting.sweep(call.now_ms);
        self.strangers.sweep(call.now_ms);
        let job = call.job;
        // Whoever has no samples could only send what is refused: an update, or a measurement, of nothing.
        let has_something = call.checkin.num_samples != Some(0);
        if !(has_something && job.spec.selection.admits(&call.checkin.labels)) {
            return self.turn_away(call);
        }
        let open = job.active_round().filter(|round| round.phase == Phase::Open && job.state == JobState::Running);
        let Some(round) = open else { return self.wait(call) };
        if self.round != round.number {
            self.begin(call, round);
        }
        match self.kind(call, round) {
            Some(TaskKind::Evaluate) => tasks::evaluate(job, round, call.client, call.left_ms),
            Some(_) => tasks::train(job, round, call.client, call.left_ms),
            None => self.wait(call),
        }
    }

    /// The task that a client has, or gets now.
    fn kind(&mut self, call: &Call, round: &Round) -> Option<TaskKind> {
        let (client, now_ms) = (call.client, call.now_ms);
        let until_ms = until(call);
        let has_trained = call.job.has_trained(round, client);
        if has_trained {
            self.training.take(client);
        } else if self.training.renew(client, now_ms, until_ms) {
            return Some(TaskKind::Train);
        }
        let has_measured = measurements(call.job, round).is_some_and(|evaluation| evaluation.has(client));
        if has_measured {
            self.evaluating.take(client);
        } else if self.evaluating.renew(client, now_ms, until_ms) {
            return Some(TaskKind::Evaluate);
        }
        self.draw(call, round);
        let mut places = self.places(call, round);
        places.train = if has_trained { 0 } else { places.train };
        places.evaluate = if has_measured { 0 } else { places.evaluate };
        let kind = self.next_kind(call.job, round, places)?;
        // Whoever has trained already only measures; there is nothing to choose among.
        let is_first = has_trained || call.job.spec.selection.policy == Policy::All || self.late.contains(client);
        let was_drawn = self.drawn.remove(client).is_some();
        let is_free = places.train + places.evaluate > self.drawn.len() as u64;
        if !(was_drawn || is_free && is_first) {
            if is_free {
                self.enter(call);
            }
            return None;
        }
        self.give(call, kind, until_ms);
        Some(kind)
    }

    fn give(&mut self, call: &Call, kind: TaskKind, until_ms: TimeMs) {
        let (client, now_ms) = (call.client, call.now_ms);
        self.waiting.remove(call.key);
        if kind == TaskKind::Evaluate {
            self.given_evaluate += 1;
            self.evaluating.give(client, now_ms, until_ms, false);
            return;
        }
        self.given_train += 1;
        let is_spared = self.late.remove(client);
        self.training.give(client, now_ms, until_ms, is_spared);
        if call.job.spec.selection.policy == Policy::Utility {
            self.since.insert(call.key, now_ms);
        }
    }

    /// Which kind is due, of those that there are.
    fn next_kind(&self, job: &Job, round: &Round, places: Places) -> Option<TaskKind> {
        let train = job.spec.tasks_for(round.goal);
        let lags = self.given_evaluate * train < self.given_train * evaluations(job, round);
        match places {
            Places { train: 0, evaluate: 0 } => None,
            Places { train: 0, .. } => Some(TaskKind::Evaluate),
            Places { evaluate: 1.., .. } if lags => Some(TaskKind::Evaluate),
            _ => Some(TaskKind::Train),
        }
    }

    /// An accepted update takes a place for good, a task in hand while it lasts.
    fn places(&mut self, call: &Call, round: &Round) -> Places {
        let measured = measurements(call.job, round);
        self.training.prune(call.now_ms, |client| call.job.has_trained(round, client));
        self.evaluating.prune(call.now_ms, |client| measured.is_some_and(|evaluation| evaluation.has(client)));
        let tasks = call.job.spec.tasks_for(round.goal);
        let results = measured.map_or(0, Evaluation::results);
        Places {
            train: tasks.saturating_sub(round.received()).saturating_sub(self.training.len()),
            evaluate: evaluations(call.job, round).saturating_sub(results).saturating_sub(self.evaluating.len()),
        }
    }

    /// Draws when it is time, and forgets who was drawn and did not come.
    fn draw(&mut self, call: &Call, round: &Round) {
        let now_ms = call.now_ms;
        self.drawn.retain(|_, until_ms| *until_ms > now_ms);
        if !self.lots.is_due(now_ms) {
            return;
        }
        let places = self.places(call, round);
        let free = (places.train + places.evaluate).saturating_sub(self.drawn.len() as u64);
        let until_ms = now_ms + CLAIM_MS + crowd_ms(self.lots.len(), RETURNS * call.per_s);
        let policy = call.job.spec.selection.policy;
        let winners = self.lots.draw(policy, free, round.number, call.seed, &self.utilities);
        self.drawn.extend(winners.into_iter().map(|(_, client)| (client, until_ms)));
    }

    /// Makes a client that keeps its appointment a candidate, and appoints it for right after the draw.
    fn enter(&mut self, call: &Call) {
        if self.waiting.early(call.key, call.now_ms).is_some() {
            return;
        }
        let window_ms = call.job.spec.selection.window.ms();
        let entered = self.lots.enter(call.key, call.client, call.checkin.num_samples, call.now_ms, window_ms);
        let Some(closes_ms) = entered else { return };
        let (spread, per_s) = (call.seed.spread(call.key, call.now_ms), RETURNS * call.per_s);
        let wanted_ms = closes_ms + (spread * crowd_ms(self.lots.len(), per_s) as f64) as u64;
        let due_ms = self.returns.take(call.now_ms, wanted_ms, per_s, spread);
        // Later than the clock of the draw by a little, so that nobody comes back in vain.
        self.waiting.appoint(call.key, due_ms + 25);
    }

    /// Check-ins a second that are not left to candidates and strangers.
    fn per_s(&self, call: &Call) -> f64 {
        let returns = if call.job.spec.selection.policy == Policy::All { 0.0 } else { RETURNS };
        let strangers = if self.strangers.len() == 0 { 0.0 } else { STRANGERS };
        (1.0 - returns - strangers) * call.per_s
    }

    /// Tells a client when to come again: at its appointment, if it has one still to keep.
    fn wait(&mut self, call: &Call) -> Task {
        let now_ms = call.now_ms;
        let due_ms = self.waiting.early(call.key, now_ms).unwrap_or_else(|| {
            self.waiting.remove(call.key);
            let (job, round) = (call.job, call.job.round.as_ref());
            let choice = if job.spec.selection.policy == Policy::All { 1 } else { CHOICE };
            let crowd = Crowd {
                waiting: self.waiting.len() + 1,
                per_s: self.per_s(call),
                wanted: job.spec.tasks_for(round.map_or(job.spec.goal, |round| round.goal)).saturating_mul(choice),
                next_ms: round.and_then(|round| next_ms(job, round)),
                is_idle: job.state != JobState::Running,
            };
            let (least, most) = appointment_bounds(&crowd, now_ms);
            let spread = call.seed.spread(call.key, now_ms);
            let wanted_ms = now_ms + least + (spread * (most - least) as f64) as u64;
            let due_ms = self.book.take(now_ms, wanted_ms, self.per_s(call), spread);
            self.waiting.appoint(call.key, due_ms);
            due_ms
        });
        tasks::wait_for(call.job, due_ms - now_ms)
    }

    /// Tells a client that cannot have a task to come again, much later.
    fn turn_away(&mut self, call: &Call) -> Task {
        let now_ms = call.now_ms;
        let due_ms = self.strangers.early(call.key, now_ms).unwrap_or_else(|| {
            let per_s = STRANGERS * call.per_s;
            let window_ms = crowd_ms(2 * self.strangers.len() + 1, per_s).max(STRANGER_MS);
            let spread = call.seed.spread(call.key, now_ms);
            let wanted_ms = now_ms + STRANGER_MS + (spread * window_ms as f64) as u64;
            let due_ms = self.strangers_book.take(now_ms, wanted_ms, per_s, spread);
            self.strangers.appoint(call.key, due_ms);
            due_ms
        });
        tasks::wait_for(call.job, due_ms - now_ms)
    }

    /// Another round has opened: whoever still works for the one before comes first in this one, once.
    fn begin(&mut self, call: &Call, round: &Round) {
        let (job, now_ms) = (call.job, call.now_ms);
        let learns = job.spec.selection.policy == Policy::Utility;
        let before = job.round_numbered(self.round);
        self.late.clear();
        for (client, since_ms, is_spared) in self.training.drain() {
            if before.is_none_or(|before| call.job.has_trained(before, &client)) {
                continue;
            }
            if learns {
                self.utilities.learn_slow(call.seed.key(job.uid, &client), now_ms.saturating_sub(since_ms));
            }
            if !is_spared {
                self.late.insert(client);
            }
        }
        if learns {
            self.learn(call, round);
        }
        self.since.clear();
        drop(self.evaluating.drain());
        self.lots.clear();
        self.drawn.clear();
        (self.given_train, self.given_evaluate) = (0, 0);
        self.round = round.number;
    }

    /// Learns what the updates of the rounds before this one were worth.
    fn learn(&mut self, call: &Call, round: &Round) {
        let job = call.job;
        let from = self.round.max(round.number.saturating_sub(LEARNT_ROUNDS)).max(1);
        for ended in (from..round.number).filter_map(|number| job.round_numbered(number)) {
            let mut won = 0.0;
            for update in ended.contributors() {
                let accept = &update.accept;
                let key = call.seed.key(job.uid, &accept.client);
                let since = self.since.get(&key).filter(|_| ended.number == self.round);
                let duration_ms = accept.at_ms.saturating_sub(since.copied().unwrap_or(ended.opened_ms));
                let loss = accept.metrics.get("loss").copied();
                won += self.utilities.learn(key, ended.number, accept.num_samples, loss, duration_ms);
            }
            self.utilities.end_round(won);
        }
        self.utilities.measure(job.spec.selection.preferred_duration.map(|preferred| preferred.ms()));
    }
}

/// Measuring tasks of a round.
fn evaluations(job: &Job, round: &Round) -> u64 {
    let due = job.spec.evaluate.as_ref().filter(|evaluate| evaluate.is_due(round.model_version));
    due.map_or(0, |evaluate| evaluate.tasks(job.spec.tasks_for(round.goal)))
}

/// What was measured of the round's model.
fn measurements<'a>(job: &'a Job, round: &Round) -> Option<&'a Evaluation> {
    job.evaluation(round.model_version)
}

/// How long a client has a task from now on: never beyond the round's end, if that is still to come.
fn until(call: &Call) -> TimeMs {
    let timeout_ms = call.job.spec.selection.task_timeout.ms();
    let left_ms = call.left_ms.filter(|left| *left > 0);
    call.now_ms + left_ms.map_or(timeout_ms, |left| timeout_ms.min(left))
}

/// The time in which so many may ask.
fn crowd_ms(clients: usize, per_s: f64) -> u64 {
    (clients as f64 * 1000.0 / per_s.max(1e-3)) as u64
}

/// When the round after this one should open, if the last ones tell.
fn next_ms(job: &Job, round: &Round) -> Option<TimeMs> {
    let back = AVERAGED_ROUNDS.min(round.number - 1);
    let first = job.round_numbered(round.number - back).filter(|_| back > 0)?;
    Some(round.opened_ms + round.opened_ms.saturating_sub(first.opened_ms) / back)
}
