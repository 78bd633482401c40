//! Who kills, stops and cuts off: one blow after the other, some of them short, some longer than anybody is waited for.

use catchment_tests::{Cluster, PATIENCE, Process};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::ops::Range;
use std::time::{Duration, Instant};

/// How often it is looked whether a process has ended by itself.
const LOOK: Duration = Duration::from_millis(100);

/// How fast everything goes.
#[derive(Debug, Clone, Copy)]
pub struct Tempo {
    pub heartbeat: Duration,
    pub node_timeout: Duration,
    blows: u32,
    /// Milliseconds between two blows.
    pause: (u64, u64),
    /// Milliseconds that a short one lasts.
    short: (u64, u64),
    /// Milliseconds that a long one lasts: longer than the timeout.
    long: (u64, u64),
}

impl Tempo {
    pub const QUICK: Self = Self {
        heartbeat: Duration::from_millis(150),
        node_timeout: Duration::from_millis(1500),
        blows: 10,
        pause: (200, 1200),
        short: (50, 900),
        long: (2000, 3500),
    };
    /// With the default timeouts.
    pub const SLOW: Self = Self {
        heartbeat: Duration::from_secs(1),
        node_timeout: Duration::from_secs(10),
        blows: 8,
        pause: (500, 3000),
        short: (500, 6000),
        long: (30_000, 30_000),
    };
}

#[derive(Debug, Clone, Copy)]
enum Blow {
    /// `kill -9`, and start again.
    Kill,
    /// The same to a node, whose memory is gone, too.
    LoseMemory,
    /// `kill -9` of the NATS server, and start again.
    KillBus,
    /// SIGSTOP, then SIGCONT.
    Freeze,
    /// Nothing comes through its link.
    Cut,
    /// Little comes through its link, late and in another order.
    Spoil,
    /// Its clock jumps.
    Clock,
}

const BLOWS: [Blow; 10] = [
    Blow::Kill,
    Blow::Kill,
    Blow::Kill,
    Blow::LoseMemory,
    Blow::KillBus,
    Blow::Freeze,
    Blow::Cut,
    Blow::Cut,
    Blow::Spoil,
    Blow::Clock,
];

/// What he does follows from his seed.
pub struct Saboteur {
    random: StdRng,
    tempo: Tempo,
    /// What he did, and when.
    pub journal: Vec<String>,
    begun: Instant,
}

impl Saboteur {
    pub fn new(seed: u64, tempo: Tempo) -> Self {
        let random = StdRng::seed_from_u64(!seed);
        Self { random, tempo, journal: Vec::new(), begun: Instant::now() }
    }

    /// Does all that he does; afterwards everything is whole again, and everybody started.
    pub async fn rage(&mut self, cluster: &mut Cluster) {
        self.begun = Instant::now();
        for _ in 0..self.tempo.blows {
            let pause = self.between(self.tempo.pause);
            self.pass(cluster, pause).await;
            let blow = BLOWS[self.random.random_range(0..BLOWS.len())];
            self.strike(cluster, blow).await;
        }
    }

    fn between(&mut self, (least, most): (u64, u64)) -> Duration {
        Duration::from_millis(self.random.random_range(least..=most))
    }

    fn duration(&mut self) -> Duration {
        let range = if self.random.random_bool(0.6) { self.tempo.short } else { self.tempo.long };
        self.between(range)
    }

    fn one_of(&mut self, range: Range<usize>) -> usize {
        self.random.random_range(range)
    }

    /// Writes down what happened.
    pub fn note(&mut self, what: &str) {
        self.journal.push(format!("{:.2} s: {what}", self.begun.elapsed().as_secs_f64()));
    }

    async fn strike(&mut self, cluster: &mut Cluster, blow: Blow) {
        let (nodes, lasts) = (cluster.nodes.len(), self.duration());
        let any = self.one_of(0..nodes + cluster.coordinators.len());
        let (name, node) = (member(cluster, any).name().to_owned(), any % nodes);
        let on_hosts = cluster.nodes[node].host.is_some();
        match blow {
            Blow::Kill => {
                self.note(&format!("kill {name} for {lasts:.1?}"));
                member(cluster, any).kill9();
                self.pass(cluster, lasts).await;
                member(cluster, any).start();
            }
            Blow::LoseMemory => {
                self.note(&format!("node-{node} loses its memory, and is away for {lasts:.1?}"));
                cluster.nodes[node].lose_memory();
                self.pass(cluster, lasts).await;
                cluster.nodes[node].process.start();
            }
            Blow::KillBus => {
                self.note(&format!("kill the bus for {lasts:.1?}"));
                cluster.nats().kill();
                self.pass(cluster, lasts).await;
                cluster.nats().start_again();
            }
            Blow::Freeze => {
                self.note(&format!("freeze {name} for {lasts:.1?}"));
                member(cluster, any).freeze();
                self.pass(cluster, lasts).await;
                member(cluster, any).thaw();
            }
            Blow::Cut if on_hosts => {
                self.note(&format!("cut {name} off for {lasts:.1?}"));
                host(cluster, any).cut();
                self.pass(cluster, lasts).await;
                host(cluster, any).heal();
            }
            Blow::Spoil if on_hosts => {
                let how = host(cluster, any).spoil();
                self.note(&format!("spoil the link of {name} for {lasts:.1?} ({how})"));
                self.pass(cluster, lasts).await;
                host(cluster, any).heal();
            }
            Blow::Cut | Blow::Spoil => self.note("a link would be cut or spoiled"),
            Blow::Clock => {
                let ms = self.random.random_range(-1_800_000..=1_800_000);
                self.note(&format!("the clock of {name} jumps to {ms} ms beside the others"));
                member(cluster, any).skew_clock(ms);
            }
        }
    }

    /// Lets time pass, and starts who has ended by himself.
    async fn pass(&mut self, cluster: &mut Cluster, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.revive(cluster);
            tokio::time::sleep(LOOK.min(until - Instant::now().min(until))).await;
        }
    }

    /// Waits until every node takes work.
    pub async fn wait_for_everybody(&mut self, cluster: &mut Cluster) {
        let begun = Instant::now();
        for i in 0..cluster.nodes.len() {
            while !cluster.nodes[i].is_ready().await {
                assert!(begun.elapsed() < PATIENCE, "node-{i} is not ready after {PATIENCE:?}");
                self.pass(cluster, LOOK).await;
            }
        }
    }

    /// Starts who has ended without having been killed, as any platform does.
    fn revive(&mut self, cluster: &mut Cluster) {
        for i in 0..cluster.nodes.len() + cluster.coordinators.len() {
            let process = member(cluster, i);
            if process.has_ended() {
                process.start();
                let name = process.name().to_owned();
                self.note(&format!("{name} had ended by itself"));
            }
        }
    }
}

/// A node or a coordinator.
fn member(cluster: &mut Cluster, i: usize) -> &mut Process {
    cluster.processes().nth(i).expect("a member")
}

fn host(cluster: &Cluster, i: usize) -> &catchment_tests::Host {
    let nodes = cluster.nodes.len();
    if i < nodes { cluster.nodes[i].host() } else { &cluster.coordinator_hosts[i - nodes] }
}
