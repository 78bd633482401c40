//! A million descriptors while routes move: each arrives once, where its route went when it was sent.

mod common;

use catchment_proxy::{Inbox, Link, LinkError, Mode, Options, Route, RunnerId, open};
use catchment_types::Descriptor;
use common::{descriptor, eventually, kernel};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

const DESCRIPTORS: usize = 1 << 20;
const ROUTES: usize = 8;
const RUNNERS: u8 = 4;
const SENDERS: usize = 2;

/// Where a route went, one entry for each time it was placed.
#[derive(Default)]
struct History {
    runners: Mutex<Vec<u8>>,
    /// How many of them were placed for certain.
    placed: AtomicU32,
}

impl History {
    /// The position in the history that holds at least, or at most.
    fn placed(&self) -> u32 {
        self.placed.load(SeqCst)
    }

    fn begun(&self) -> u32 {
        self.runners.lock().expect("a history").len() as u32
    }

    fn place(&self, link: &dyn Link, route: usize, runner: u8) {
        self.runners.lock().expect("a history").push(runner);
        link.place(Route(route as u64), RunnerId(runner.into())).expect("a place");
        self.placed.fetch_add(1, SeqCst);
    }
}

struct Run {
    link: Arc<dyn Link>,
    history: Vec<History>,
    /// For each descriptor, which runner got it, plus one.
    got: Vec<AtomicU8>,
    /// And between which positions of its route's history it was sent.
    between: Vec<(AtomicU32, AtomicU32)>,
}

impl Run {
    fn receive(&self, runner: u8, mut inbox: Inbox) {
        let mut into = Vec::new();
        loop {
            into.clear();
            let count = inbox.recv(&mut into).expect("descriptors");
            if count == 0 {
                return;
            }
            for descriptor in &into {
                let before = self.got[descriptor.round as usize].swap(runner + 1, SeqCst);
                assert_eq!(before, 0, "descriptor {} arrived twice", descriptor.round);
            }
            self.link.credit(RunnerId(runner.into()), count as u32);
        }
    }

    /// Sends a share of the descriptors, singly and in batches in turn.
    fn send(&self, sender: usize) {
        let numbers: Vec<usize> = (sender..DESCRIPTORS).step_by(SENDERS).collect();
        for (turn, chunk) in numbers.chunks(16).enumerate() {
            let batch: Vec<Descriptor> =
                chunk.iter().map(|n| descriptor((n * 31 % ROUTES) as u64, *n as u64)).collect();
            let history = |n: usize| &self.history[n * 31 % ROUTES];
            chunk.iter().for_each(|n| self.between[*n].0.store(history(*n).placed(), SeqCst));
            if turn % 2 == 0 {
                self.send_all(&batch);
            } else {
                batch.iter().for_each(|descriptor| self.send_all(std::slice::from_ref(descriptor)));
            }
            chunk.iter().for_each(|n| self.between[*n].1.store(history(*n).begun(), SeqCst));
        }
    }

    fn send_all(&self, mut rest: &[Descriptor]) {
        while !rest.is_empty() {
            let (sent, outcome) = self.link.send_all(rest);
            rest = &rest[sent..];
            match outcome {
                Ok(()) => {}
                Err(LinkError::Full(_)) => thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Moves routes about for as long as there are senders.
    fn stir(&self, stop: &AtomicBool) -> u32 {
        let mut moves = 0;
        while !stop.load(SeqCst) {
            let (route, runner) = (moves as usize % ROUTES, (moves / 3 % u32::from(RUNNERS)) as u8);
            self.history[route].place(&*self.link, route, runner);
            moves += 1;
        }
        moves
    }

    /// Checks that each descriptor arrived at a runner that its route had while it was sent.
    fn check(&self) {
        for (number, (got, (from, to))) in self.got.iter().zip(&self.between).enumerate() {
            let runner = got.load(SeqCst).checked_sub(1).expect("it arrived");
            let history = self.history[number * 31 % ROUTES].runners.lock().expect("a history");
            let allowed = &history[from.load(SeqCst) as usize - 1..to.load(SeqCst) as usize];
            assert!(allowed.contains(&runner), "descriptor {number} went to {runner}, not to one of {allowed:?}");
        }
    }
}

fn a_million_arrive(link: Arc<dyn Link>, path: &str) {
    let run = Run {
        link,
        history: (0..ROUTES).map(|_| History::default()).collect(),
        got: (0..DESCRIPTORS).map(|_| AtomicU8::new(0)).collect(),
        between: (0..DESCRIPTORS).map(|_| Default::default()).collect(),
    };
    let stop = AtomicBool::new(false);
    let start = std::time::Instant::now();
    thread::scope(|scope| {
        for runner in 0..RUNNERS {
            let end = run.link.attach(RunnerId(runner.into())).expect("a runner's end");
            let inbox = Inbox::new(end).expect("an inbox");
            let run = &run;
            scope.spawn(move || run.receive(runner, inbox));
        }
        for (route, history) in run.history.iter().enumerate() {
            history.place(&*run.link, route, 0);
        }
        let senders: Vec<_> = (0..SENDERS)
            .map(|sender| {
                scope.spawn({
                    let run = &run;
                    move || run.send(sender)
                })
            })
            .collect();
        let stirrer = scope.spawn(|| run.stir(&stop));
        // Whatever goes wrong, the others have to end before it can be told.
        let sent: Vec<_> = senders.into_iter().map(|sender| sender.join()).collect();
        stop.store(true, SeqCst);
        let moves = stirrer.join().expect("the stirrer");
        sent.into_iter().for_each(|sent| sent.expect("a sender"));
        let arrived = || run.got.iter().filter(|got| got.load(SeqCst) != 0).count();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while arrived() < DESCRIPTORS && std::time::Instant::now() < deadline {
            thread::sleep(std::time::Duration::from_millis(5));
        }
        (0..RUNNERS).for_each(|runner| run.link.detach(RunnerId(runner.into())));
        println!("{path}: {} of {DESCRIPTORS} in {:?} under {moves} moves", arrived(), start.elapsed());
    });
    run.check();
    let counts = run.link.routes();
    for (path, count) in counts.iter().flat_map(|count| count.by_path()).filter(|(name, _)| *name != path) {
        assert_eq!(count, 0, "{path}");
    }
    assert_eq!(counts.iter().map(|count| count.delivered()).sum::<u64>(), DESCRIPTORS as u64);
    assert_eq!(counts.iter().map(|count| count.payload_bytes).sum::<u64>(), 1000 * DESCRIPTORS as u64);
    assert_eq!(counts.iter().map(|count| count.dropped).sum::<u64>(), 0);
}

#[test]
fn a_million_descriptors_through_the_kernel_while_routes_move() {
    let Some((link, _)) = kernel(&Options::default()) else { return };
    a_million_arrive(link, "kernel");
}

#[test]
fn a_million_descriptors_over_sockets_while_routes_move() {
    a_million_arrive(open(Mode::Off, &Options::default()).expect("a link").0, "socket");
}

/// Runners that die at any moment, under two senders: what is lost is hints, and the next runner is served.
fn runners_die(link: Arc<dyn Link>) {
    let stop = AtomicBool::new(false);
    let sent = AtomicU32::new(0);
    thread::scope(|scope| {
        for sender in 0..2 {
            let (link, stop, sent) = (&link, &stop, &sent);
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    let batch = [descriptor(sender, 0), descriptor(1 - sender, 0), descriptor(sender, 0)];
                    let (count, outcome) = link.send_all(&batch);
                    sent.fetch_add(count as u32, SeqCst);
                    match outcome {
                        Ok(()) => {}
                        Err(LinkError::Full(_) | LinkError::Gone(_) | LinkError::Unplaced(_)) => thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for life in 0..300u32 {
            let mut inboxes = Vec::new();
            for route in 0..2 {
                let runner = RunnerId(2 * life + route);
                inboxes.push(Inbox::new(link.attach(runner).expect("a runner's end")).expect("an inbox"));
                link.place(Route(route.into()), runner).expect("a place");
            }
            let mut into = Vec::new();
            for (route, inbox) in inboxes.iter_mut().enumerate() {
                for _ in 0..life % 5 + 1 {
                    let count = inbox.recv(&mut into).expect("descriptors");
                    link.credit(RunnerId(2 * life + route as u32), count as u32);
                }
            }
            assert!(into.iter().all(|descriptor| descriptor.function.0 < 2));
            // Some die first, others are detached first.
            if life % 2 == 0 {
                drop(inboxes);
            }
            (0..2).for_each(|route| link.detach(RunnerId(2 * life + route)));
        }
        stop.store(true, SeqCst);
    });
    // The slow path may still be at work.
    let told = || link.routes().iter().map(|count| count.delivered() + count.dropped).sum::<u64>();
    eventually("the counts stand still", || {
        let before = told();
        thread::sleep(std::time::Duration::from_millis(50));
        before == told()
    });
    let (told, sent) = (told(), u64::from(sent.load(SeqCst)));
    println!("{sent} were sent, {told} are accounted for");
    assert!(told <= sent + sent / 100 + 10, "{told} were counted, {sent} were sent");
}

#[test]
fn runners_die_under_load_in_the_kernel() {
    let Some((link, _)) = kernel(&Options { credits: 32, ..Options::default() }) else { return };
    runners_die(link);
}

#[test]
fn runners_die_under_load_over_sockets() {
    runners_die(open(Mode::Off, &Options { credits: 32, ..Options::default() }).expect("a link").0);
}

#[test]
fn a_burst_beyond_the_credits_is_refused_and_none_of_it_is_lost() {
    let Some((link, _)) = kernel(&Options { credits: Options::CREDITS_MAX, ..Options::default() }) else { return };
    let mut inbox = Inbox::new(link.attach(RunnerId(1)).expect("a runner's end")).expect("an inbox");
    link.place(Route(1), RunnerId(1)).expect("a place");
    for _ in 0..20 {
        let burst: Vec<Descriptor> = (0..10_000).map(|n| descriptor(1, n)).collect();
        let (sent, outcome) = link.send_all(&burst);
        assert!(matches!(outcome, Err(LinkError::Full(RunnerId(1)))));
        assert_eq!(sent, Options::CREDITS_MAX as usize);
        assert!(matches!(link.send(&burst[sent]), Err(LinkError::Full(RunnerId(1)))));
        let mut into = Vec::new();
        while into.len() < sent {
            inbox.recv(&mut into).expect("descriptors");
        }
        assert_eq!(into, burst[..sent]);
        link.credit(RunnerId(1), sent as u32);
    }
}

/// A runner that dies with all its credits.
fn full_and_dead(link: Arc<dyn Link>) {
    let end = link.attach(RunnerId(1)).expect("a runner's end");
    link.place(Route(1), RunnerId(1)).expect("a place");
    let burst: Vec<Descriptor> = (0..100).map(|n| descriptor(1, n)).collect();
    assert!(matches!(link.send_all(&burst), (8, Err(LinkError::Full(RunnerId(1))))));
    drop(end);
    eventually("it is gone", || matches!(link.send(&burst[0]), Err(LinkError::Gone(RunnerId(1)))));
}

#[test]
fn a_runner_that_dies_with_all_its_credits_is_gone_and_not_full() {
    full_and_dead(open(Mode::Off, &Options { credits: 8, ..Options::default() }).expect("a link").0);
    let Some((link, _)) = kernel(&Options { credits: 8, ..Options::default() }) else { return };
    full_and_dead(link);
}
