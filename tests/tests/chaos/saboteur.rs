//! Who kills, freezes and cuts off: up to two at a time, for a moment or for longer than anybody is waited for.

use catchment_tests::{Cluster, Host, PATIENCE, Process, Release};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How often it is looked whether something is due, or a process has ended by itself.
const LOOK: Duration = Duration::from_millis(50);
/// Wounds at one time.
const WOUNDS: usize = 2;
/// How likely a blow is an upgrade, while somebody is of the old release.
const UPGRADES: f64 = 0.4;
/// What his clock jumps are within.
const JUMP_MS: i64 = 1_800_000;
/// Steps right after which a node may end, as `types::Step` names them.
const STEPS: [&str; 16] = [
    "Granted",
    "Received",
    "Frozen",
    "Logged",
    "Planned",
    "Called",
    "Flipped",
    "Batched",
    "Folded",
    "Released",
    "Scratched",
    "Merged",
    "Finalized",
    "Kept",
    "Committed",
    "Published",
];

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
    /// A few blows, one of them long perhaps.
    pub const SHORT: Self = Self {
        heartbeat: Duration::from_millis(100),
        node_timeout: Duration::from_millis(1000),
        blows: 4,
        pause: (50, 600),
        short: (50, 500),
        long: (1200, 2000),
    };
    pub const QUICK: Self = Self {
        heartbeat: Duration::from_millis(150),
        node_timeout: Duration::from_millis(1500),
        blows: 14,
        pause: (200, 1800),
        short: (50, 900),
        long: (2000, 3500),
    };
    /// With the default timeouts.
    pub const SLOW: Self = Self {
        heartbeat: Duration::from_secs(1),
        node_timeout: Duration::from_secs(10),
        blows: 16,
        pause: (500, 12_000),
        short: (500, 6000),
        long: (30_000, 30_000),
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    /// `kill -9`, and start again.
    Kill,
    /// The same to a node, whose memory is gone, too.
    LoseMemory,
    /// A life that ends right after a step of the way of an update or a round.
    EndAt,
    /// `kill -9` of a node's runners; the node starts others.
    KillRunners,
    /// SIGSTOP, then SIGCONT.
    Freeze,
    /// Nothing comes through its link.
    Cut,
    /// Little comes through its link, late and in another order.
    Spoil,
    /// Its clock jumps.
    Clock,
    /// `kill -9` of a member of the old release; it comes back as this one.
    Upgrade,
    /// Another process starts on a copy of its disk, and perhaps of its memory. The older one ends; started again as on any
    /// platform, it takes its name back.
    Clone,
    /// `kill -9` of everybody, the NATS server too, and start all of them again.
    Blackout,
}

const BLOWS: [Blow; 14] = [
    Blow::Kill,
    Blow::Kill,
    Blow::LoseMemory,
    Blow::EndAt,
    Blow::EndAt,
    Blow::KillRunners,
    Blow::Freeze,
    Blow::Cut,
    Blow::Cut,
    Blow::Cut,
    Blow::Spoil,
    Blow::Clock,
    Blow::Clone,
    Blow::Blackout,
];
/// What can be done to the NATS server.
const BUS_BLOWS: [Blow; 4] = [Blow::Kill, Blow::Kill, Blow::Cut, Blow::Freeze];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// A node or a coordinator.
    Member(usize),
    /// The NATS server.
    Bus,
}

/// What has not healed yet.
struct Wound {
    target: Target,
    blow: Blow,
    until: Instant,
}

/// What he does follows from his seed.
pub struct Saboteur {
    random: StdRng,
    tempo: Tempo,
    /// What he did, and when.
    pub journal: Vec<String>,
    begun: Instant,
    wounds: Vec<Wound>,
    /// Nodes that end after some step, perhaps.
    armed: BTreeSet<usize>,
    /// Whether the cluster began with the old release.
    began_old: bool,
}

impl Saboteur {
    pub fn new(seed: u64, tempo: Tempo) -> Self {
        let random = StdRng::seed_from_u64(!seed);
        let (journal, wounds, armed) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self { random, tempo, journal, begun: Instant::now(), wounds, armed, began_old: false }
    }

    /// Does all that he does; afterwards everything is whole again, and everybody started.
    pub async fn rage(&mut self, cluster: &mut Cluster) {
        self.begun = Instant::now();
        self.began_old = !olds(cluster).is_empty();
        for _ in 0..self.tempo.blows {
            let pause = self.between(self.tempo.pause);
            self.pass(cluster, pause).await;
            while self.wounds.len() == WOUNDS {
                self.pass(cluster, LOOK).await;
            }
            self.strike(cluster);
        }
        while !self.wounds.is_empty() {
            self.pass(cluster, LOOK).await;
        }
        for node in std::mem::take(&mut self.armed) {
            let process = member(cluster, node);
            process.kill9();
            process.start();
        }
        // What a clone has is nobody's from now on; whoever it had replaced is started again.
        cluster.clones.iter_mut().for_each(Process::kill9);
        // The way back is not open any more once all are new, so nobody goes it.
        for old in olds(cluster) {
            let process = member(cluster, old);
            process.kill9();
            process.change_to(Release::Present);
            process.start();
        }
    }

    fn between(&mut self, (least, most): (u64, u64)) -> Duration {
        Duration::from_millis(self.random.random_range(least..=most))
    }

    /// Writes down what happened.
    pub fn note(&mut self, what: &str) {
        self.journal.push(format!("{:.2} s: {what}", self.begun.elapsed().as_secs_f64()));
    }

    /// Whether the log says which process a node is: a coordinator has raised the feature level, where that was needed.
    fn says_who_is_who(&self, cluster: &mut Cluster) -> bool {
        let is_raised = |process: &mut Process| process.log().contains("LevelRaised");
        !self.began_old || (olds(cluster).is_empty() && cluster.processes().any(is_raised))
    }

    /// One blow at somebody who is well.
    fn strike(&mut self, cluster: &mut Cluster) {
        let (nodes, members) = (cluster.nodes.len(), cluster.nodes.len() + cluster.coordinators.len());
        let range = if self.random.random_bool(0.6) { self.tempo.short } else { self.tempo.long };
        let lasts = self.between(range);
        let mut blow = BLOWS[self.random.random_range(0..BLOWS.len())];
        let is_for_nodes = matches!(blow, Blow::LoseMemory | Blow::EndAt | Blow::KillRunners | Blow::Clone);
        let chosen = self.random.random_range(0..if is_for_nodes { nodes } else { members + 1 });
        let target = if chosen < members { Target::Member(chosen) } else { Target::Bus };
        if target == Target::Bus {
            blow = BUS_BLOWS[self.random.random_range(0..BUS_BLOWS.len())];
        }
        let olds = olds(cluster);
        let target = match olds.len() {
            0 => target,
            count if self.random.random_bool(UPGRADES) => {
                blow = Blow::Upgrade;
                Target::Member(olds[self.random.random_range(0..count)])
            }
            _ => target,
        };
        if self.wounds.iter().any(|wound| wound.target == target) {
            return self.note("he would strike somebody who is down");
        }
        // While some are old, and until that is noticed, nobody says in the log which process a node is.
        if blow == Blow::Clone && !self.says_who_is_who(cluster) {
            return self.note("he would clone a node");
        }
        self.deal(cluster, blow, target, lasts);
        if !matches!(blow, Blow::Clock | Blow::EndAt | Blow::KillRunners | Blow::Clone | Blow::Blackout) {
            self.wounds.push(Wound { target, blow, until: Instant::now() + lasts });
        }
    }

    fn deal(&mut self, cluster: &mut Cluster, blow: Blow, target: Target, lasts: Duration) {
        let Target::Member(i) = target else { return self.deal_the_bus(cluster, blow, lasts) };
        let name = member(cluster, i).name().to_owned();
        match blow {
            Blow::Kill => {
                member(cluster, i).kill9();
                self.note(&format!("kill {name} for {lasts:.1?}"));
            }
            Blow::Upgrade => {
                member(cluster, i).kill9();
                member(cluster, i).change_to(Release::Present);
                self.armed.remove(&i);
                self.note(&format!("kill {name} for {lasts:.1?}; it comes back as the new release"));
            }
            Blow::LoseMemory => {
                cluster.nodes[i].lose_memory();
                self.note(&format!("{name} loses its memory, and is away for {lasts:.1?}"));
            }
            Blow::EndAt => {
                let step = STEPS[self.random.random_range(0..STEPS.len())];
                let step = format!("{step}:{}", self.random.random_range(1..5));
                member(cluster, i).kill9();
                member(cluster, i).start_to_end_at(&step);
                self.armed.insert(i);
                self.note(&format!("kill {name}; it is to end again after {step}"));
            }
            Blow::KillRunners => {
                let count = member(cluster, i).kill9_children();
                self.note(&format!("kill {count} runners of {name}"));
            }
            Blow::Freeze => {
                member(cluster, i).freeze();
                self.note(&format!("freeze {name} for {lasts:.1?}"));
            }
            Blow::Cut => match host(cluster, i) {
                Some(host) => {
                    host.cut();
                    self.note(&format!("cut {name} off for {lasts:.1?}"));
                }
                None => self.note("he would cut a link"),
            },
            Blow::Spoil => match host(cluster, i).map(Host::spoil) {
                Some(how) => self.note(&format!("spoil the link of {name} for {lasts:.1?} ({how})")),
                None => self.note("he would spoil a link"),
            },
            Blow::Clone => {
                let with_memory = self.random.random_bool(0.5);
                cluster.clone_node(i, with_memory);
                self.note(&format!("clone {name}{}", if with_memory { " with its memory" } else { "" }));
            }
            Blow::Blackout => self.black_out(cluster),
            Blow::Clock => {
                let ms = self.random.random_range(-JUMP_MS..=JUMP_MS);
                member(cluster, i).skew_clock(ms);
                self.note(&format!("the clock of {name} jumps to {ms} ms beside the others"));
            }
        }
    }

    fn deal_the_bus(&mut self, cluster: &mut Cluster, blow: Blow, lasts: Duration) {
        match blow {
            Blow::Cut => cluster.nats().host().into_iter().for_each(Host::cut),
            Blow::Freeze => cluster.nats().freeze(),
            _ => cluster.nats().kill(),
        }
        self.note(&format!("{blow:?} the bus for {lasts:.1?}"));
    }

    /// Everybody who is well dies and is started again.
    fn black_out(&mut self, cluster: &mut Cluster) {
        let is_well = |target: Target| self.wounds.iter().all(|wound| wound.target != target);
        if is_well(Target::Bus) {
            cluster.nats().kill();
        }
        let well: Vec<usize> = (0..cluster.processes().count()).filter(|i| is_well(Target::Member(*i))).collect();
        well.iter().for_each(|i| member(cluster, *i).kill9());
        if is_well(Target::Bus) {
            cluster.nats().start_again();
        }
        well.iter().for_each(|i| member(cluster, *i).start());
        self.note("kill everybody");
    }

    /// Heals what is due.
    fn heal(&mut self, cluster: &mut Cluster) {
        let now = Instant::now();
        let due = self.wounds.extract_if(.., |wound| wound.until <= now);
        for Wound { target, blow, .. } in due.collect::<Vec<_>>() {
            let Target::Member(i) = target else {
                match blow {
                    Blow::Cut => cluster.nats().host().into_iter().for_each(Host::heal),
                    Blow::Freeze => cluster.nats().thaw(),
                    _ => cluster.nats().start_again(),
                }
                continue;
            };
            match blow {
                Blow::Kill | Blow::LoseMemory | Blow::Upgrade => member(cluster, i).start(),
                Blow::Freeze => member(cluster, i).thaw(),
                Blow::Cut | Blow::Spoil => host(cluster, i).into_iter().for_each(Host::heal),
                Blow::Clock | Blow::EndAt | Blow::KillRunners | Blow::Clone | Blow::Blackout => {}
            }
        }
    }

    /// Lets time pass: what is due heals, and who has ended by himself is started, as on any platform.
    async fn pass(&mut self, cluster: &mut Cluster, time: Duration) {
        let until = Instant::now() + time;
        loop {
            self.heal(cluster);
            self.revive(cluster);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }

    fn revive(&mut self, cluster: &mut Cluster) {
        for i in 0..cluster.nodes.len() + cluster.coordinators.len() {
            let process = member(cluster, i);
            if process.has_ended() {
                process.start();
                let (name, armed) = (process.name().to_owned(), self.armed.remove(&i));
                self.note(&format!("{name} has ended{}", if armed { "" } else { ", and nobody knows why" }));
            }
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
}

/// Members of the old release.
fn olds(cluster: &mut Cluster) -> Vec<usize> {
    let all = cluster.processes().enumerate();
    all.filter(|(_, process)| process.release() == Release::Old).map(|(i, _)| i).collect()
}

fn member(cluster: &mut Cluster, i: usize) -> &mut Process {
    cluster.processes().nth(i).expect("a member")
}

/// Where a member is, if it is on a host of its own.
fn host(cluster: &Cluster, i: usize) -> Option<&Host> {
    let coordinators = cluster.coordinator_hosts.iter();
    cluster.nodes.iter().filter_map(|node| node.host.as_ref()).chain(coordinators).nth(i).map(|host| &**host)
}
