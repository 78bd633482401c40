//! Populations in virtual time: clients that ask, wait as they are told, train and submit.

use crate::site::{JOB, Site};
use catchment_ledger::Phase;
use catchment_tasks::{RATE_MAX_PER_S, WAITING_BYTES};
use catchment_types::TaskKind;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Between a round's close and the next one's opening.
const COMMIT_MS: u64 = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ask(u64),
    Submit(u64, u64),
    Turn,
}

pub struct Crowd {
    pub site: Site,
    /// How long each client trains: from, to.
    pub train_ms: fn(u64) -> (u64, u64),
    /// Clients that ask this often, whatever they are told.
    pub impatient_ms: fn(u64) -> Option<u64>,
    /// Training tasks of each client.
    pub tasks: HashMap<u64, u64>,
    /// Rounds that ended.
    pub rounds: u64,
    /// Check-ins of each second, first ones left out.
    pub asked: HashMap<u64, u64>,
    /// For each round, the time from its opening until its last task was out.
    pub filled_ms: Vec<u64>,
    out: u64,
    seen: HashMap<u64, ()>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    number: u64,
    begun_ms: u64,
}

impl Crowd {
    /// So many clients, who first come within half a minute.
    pub fn new(fields: &str, clients: u64) -> Self {
        let site = Site::new(fields);
        let mut crowd = Self {
            begun_ms: site.now_ms,
            site,
            train_ms: |_| (1_000, 1_000),
            impatient_ms: |_| None,
            tasks: HashMap::new(),
            rounds: 0,
            asked: HashMap::new(),
            filled_ms: Vec::new(),
            out: 0,
            seen: HashMap::new(),
            events: BinaryHeap::new(),
            number: 0,
        };
        for number in 0..clients {
            crowd.after(number * 7_919 % clients * 30_000 / clients, Event::Ask(number));
        }
        crowd
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.number += 1;
        self.events.push(Reverse((self.site.now_ms + ms, self.number, event)));
    }

    /// Lets so much time pass.
    pub fn run(&mut self, ms: u64) {
        let until_ms = self.begun_ms + ms;
        while let Some(Reverse((at_ms, _, event))) = self.events.pop().filter(|Reverse((at_ms, ..))| *at_ms < until_ms)
        {
            self.site.now_ms = at_ms;
            match event {
                Event::Ask(number) => self.ask(number),
                Event::Submit(number, round) => {
                    self.site.submit(number, round);
                    if round == self.site.round().number && self.site.round().phase == Phase::Aggregating {
                        self.turn_once();
                    }
                    self.after(1, Event::Ask(number));
                }
                Event::Turn => {
                    self.site.commit();
                    self.site.open();
                    self.rounds += 1;
                    self.out = 0;
                }
            }
        }
    }

    fn turn_once(&mut self) {
        let is_turning = self.events.iter().any(|Reverse((_, _, event))| *event == Event::Turn);
        if !is_turning {
            self.after(COMMIT_MS, Event::Turn);
        }
    }

    fn ask(&mut self, number: u64) {
        let second = (self.site.now_ms - self.begun_ms) / 1_000;
        if self.seen.insert(number, ()).is_some() {
            *self.asked.entry(second).or_default() += 1;
        }
        let task = self.site.ask(number, &[]);
        match task.task {
            TaskKind::Train => {
                *self.tasks.entry(number).or_default() += 1;
                self.out += 1;
                if self.out == self.site.job().spec.tasks_per_round() {
                    self.filled_ms.push(self.site.now_ms - self.site.round().opened_ms);
                }
                let (least, most) = (self.train_ms)(number);
                let ms = least + (number * 31 + self.number * 17) % (most - least + 1);
                self.after(ms, Event::Submit(number, task.round.unwrap()));
            }
            TaskKind::Wait => {
                let ms = (self.impatient_ms)(number).unwrap_or(task.retry_after_ms.unwrap());
                self.after(ms, Event::Ask(number));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A hundred thousand waiting clients: the node answers a few hundred a second, and rounds fill at once all the same.
#[test]
fn a_hundred_thousand_clients_do_not_stampede() {
    for policy in ["all", "random"] {
        let fields = format!(
            r#","goal":100,"over_provision":1.3,"deadline":null,"selection":{{"policy":"{policy}","window":"1s"}}"#
        );
        let mut crowd = Crowd::new(&fields, 100_000);
        crowd.train_ms = |_| (3_000, 6_000);
        crowd.run(900_000);
        let waiting = crowd.site.desk.waiting(JOB);
        assert!((99_000..=100_000).contains(&waiting), "{policy}: {waiting} waiting");
        assert!(waiting * WAITING_BYTES < 5 << 20);
        let most = *crowd.asked.values().max().unwrap();
        let total: u64 = crowd.asked.values().sum();
        // Beside those with appointments: whoever has just submitted asks at once.
        let limit = RATE_MAX_PER_S as u64 + 130;
        let mut filled = crowd.filled_ms.clone();
        filled.sort_unstable();
        let (median, slowest) = (filled[filled.len() / 2], *filled.last().unwrap());
        eprintln!(
            "{policy}: {} check-ins a second on average, {most} at most; {} rounds in 900 s, filled in {median} ms \
             (median), {slowest} ms (slowest); {} clients had a task",
            total / 900,
            crowd.rounds,
            crowd.tasks.len()
        );
        assert!(most <= limit, "{policy}: {most} check-ins in a second");
        assert!(median < 4_000 && slowest < 10_000, "{policy}: rounds filled in {median} ms, {slowest} ms");
        assert!(crowd.rounds > 85, "{policy}: {} rounds", crowd.rounds);
    }
}

/// Few clients are not made to wait for a crowd that is not there.
#[test]
fn a_small_population_fills_its_rounds_at_once() {
    let mut crowd = Crowd::new(r#","goal":3,"over_provision":1,"deadline":null"#, 5);
    crowd.train_ms = |_| (30_000, 31_000);
    crowd.run(1_800_000);
    let mut filled = crowd.filled_ms.clone();
    filled.sort_unstable();
    assert!(filled[filled.len() / 2] < 2_000, "{filled:?}");
    assert!(crowd.rounds > 50, "{} rounds", crowd.rounds);
    assert!(crowd.asked.values().sum::<u64>() < 5 * 1_800, "{:?}", crowd.asked.values().sum::<u64>());
}
