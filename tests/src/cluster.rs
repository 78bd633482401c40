//! A cluster as processes: a NATS server, nodes and coordinators, each with its own data and shared memory, on loopback or
//! on hosts of their own.

use crate::ports::free_port;
use crate::programs::{failpoints, functions_dir, uninfluenced};
use crate::server::DEFAULTS;
use crate::{Api, Host, Job, Nats, Network, Process, Release, shared_memory, until};
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// Where gateways listen on hosts of their own.
const PORT: u16 = 7070;
/// A process that is told to stop has stopped by then.
const UNTIL_FROZEN: Duration = Duration::from_millis(10);
/// How long a node may take to say whether it is ready.
const LOOK_TIME_MAX: Duration = Duration::from_secs(2);

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What it begins as; members may change.
    pub release: Release,
    /// Nodes.
    pub nodes: usize,
    /// Coordinators.
    pub coordinators: usize,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Silence after which a node is given up.
    pub node_timeout: Duration,
    /// Runner processes of each node.
    pub runners: u32,
    /// Shared memory of each node.
    pub slab_mib: u32,
    /// Where each node stands; nowhere in particular beyond the last.
    pub zones: &'static [&'static str],
    /// A folder of further functions of each node; none beyond the last.
    pub functions: Vec<PathBuf>,
    /// Further flags of nodes, and their values.
    pub node_flags: Vec<(&'static str, String)>,
    /// Further flags of coordinators.
    pub coordinator_flags: Vec<(&'static str, String)>,
    /// Whether its processes may be ended between two steps and have their clocks set wrong: then they are no program that
    /// people get.
    pub failpoints: bool,
}

impl Default for Setup {
    /// Three nodes, two coordinators, and time enough to be started again.
    fn default() -> Self {
        let (heartbeat, node_timeout) = (Duration::from_millis(200), Duration::from_secs(20));
        Self {
            release: Release::default(),
            nodes: 3,
            coordinators: 2,
            heartbeat,
            node_timeout,
            runners: 0,
            slab_mib: 256,
            zones: &[],
            functions: Vec::new(),
            node_flags: Vec::new(),
            coordinator_flags: Vec::new(),
            failpoints: true,
        }
    }
}

/// A node: its process, its address, and what it keeps.
pub struct NodeProcess {
    /// The process.
    pub process: Process,
    /// Where it is, if not on loopback.
    pub host: Option<Arc<Host>>,
    address: String,
    data: PathBuf,
    slabs: PathBuf,
    /// What it is started with, and whether in a program that has failpoints.
    arguments: (bool, Arguments),
}

/// A running cluster; all of it is gone when it is dropped.
pub struct Cluster {
    /// Its nodes.
    pub nodes: Vec<NodeProcess>,
    /// Its coordinators.
    pub coordinators: Vec<Process>,
    /// Processes on copies of nodes' disks.
    pub clones: Vec<Process>,
    /// Where coordinators are, if not on loopback.
    pub coordinator_hosts: Vec<Arc<Host>>,
    nats: Nats,
    home: TempDir,
    // Removed last, in this order.
    _slabs: TempDir,
    _network: Option<Network>,
}

impl NodeProcess {
    /// A client of its gateway.
    pub fn api(&self) -> Api {
        Api::new(&self.address)
    }

    /// Whether it takes work.
    pub async fn is_ready(&self) -> bool {
        let answer = Api::impatient(&self.address, LOOK_TIME_MAX).try_call("GET", "/readyz", &[], None).await;
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// `host:port` of its gateway.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its link, cut or spoiled; only on hosts.
    pub fn host(&self) -> &Host {
        self.host.as_ref().expect("this cluster is on hosts of its own")
    }

    /// Model files on its disk.
    pub fn checkpoints(&self) -> Vec<PathBuf> {
        let (mut folders, mut found) = (vec![self.data.clone()], Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                match entry.path() {
                    path if path.is_dir() => folders.push(path),
                    path if path.extension().is_some_and(|name| name == "safetensors") => found.push(path),
                    _ => {}
                }
            }
        }
        found
    }

    /// Ends it as a power failure does: what it had in memory is gone.
    pub fn lose_memory(&mut self) {
        self.process.kill9();
        empty(&self.slabs);
    }

    /// Ends it as a fire does: it will come back as a new machine.
    pub fn lose_machine(&mut self) {
        self.lose_memory();
        empty(&self.data);
    }
}

fn empty(folder: &Path) {
    std::fs::remove_dir_all(folder).expect("remove a folder");
    make(folder);
}

/// For this user alone: a store takes no other.
fn make(folder: &Path) {
    std::fs::DirBuilder::new().mode(0o700).create(folder).expect("make a folder");
}

impl Cluster {
    /// Starts one on loopback and waits until it is ready.
    pub async fn start(setup: Setup) -> Self {
        Self::assemble(&setup, None, Nats::start(), Vec::new()).run().await
    }

    /// One on loopback of which nothing but the bus's server is there; it is started by whoever wants it.
    pub fn not_started(setup: &Setup) -> Self {
        let mut nats = Nats::start();
        nats.kill();
        Self::assemble(setup, None, nats, Vec::new())
    }

    /// Starts one, every member on a host of its own. `None`, and a line that shows it, where hosts cannot be made.
    pub async fn start_on_hosts(setup: Setup, test: &str) -> Option<Self> {
        let names = names("node", setup.nodes).chain(names("coordinator", setup.coordinators));
        let made = Network::make().and_then(|mut network| {
            let nats = network.host("nats")?;
            let hosts = names.map(|name| network.host(&name).map(Arc::new)).collect::<Result<_, _>>()?;
            Ok((network, nats, hosts))
        });
        match made {
            Ok((network, nats, hosts)) => {
                Some(Self::assemble(&setup, Some(network), Nats::start_on(nats), hosts).run().await)
            }
            Err(why) => {
                eprintln!("SKIPPED: {test}: no hosts of its own: {}", why.trim());
                None
            }
        }
    }

    fn assemble(setup: &Setup, network: Option<Network>, nats: Nats, hosts: Vec<Arc<Host>>) -> Self {
        let prefix = format!("catchment-tests-{}-", std::process::id());
        let slabs = shared_memory();
        let home = tempfile::Builder::new().prefix(&prefix).tempdir().expect("make a folder for data");
        let cluster = Arguments::of([
            ("--nats", nats.url()),
            ("--heartbeat", format!("{}ms", setup.heartbeat.as_millis())),
            ("--node-timeout", format!("{}ms", setup.node_timeout.as_millis())),
        ]);
        let nodes = names("node", setup.nodes).enumerate().map(|(i, name)| {
            let host = hosts.get(i).cloned();
            let (data, slabs) = (home.path().join(format!("{name}.data")), slabs.path().join(&name));
            for folder in [&data, &slabs] {
                make(folder);
            }
            let address = match &host {
                Some(host) => format!("{}:{PORT}", host.address()),
                None => format!("127.0.0.1:{}", free_port()),
            };
            let of_setup = [
                ("--slab-mib", setup.slab_mib.to_string()),
                ("--zone", setup.zones.get(i).copied().unwrap_or_default().to_owned()),
            ];
            // Whoever runs the tests may ask for runners; here some are wanted whoever it is.
            let runners = (setup.runners > 0).then(|| ("--runners", setup.runners.to_string()));
            let arguments = Arguments::of(DEFAULTS.map(|(flag, value)| (flag, value.to_owned())));
            let arguments = arguments
                .and(cluster.0.clone())
                .and(own(&name, &address, &data, &slabs))
                .and(of_setup)
                .and(runners)
                .and(functions(setup.functions.get(i)));
            let arguments = arguments.and(setup.node_flags.iter().cloned());
            let arguments = (setup.failpoints, arguments);
            let process = role("node", &name, home.path(), host.clone(), arguments.clone());
            NodeProcess { process, host, address, data, slabs, arguments }
        });
        let coordinator_hosts: Vec<Arc<Host>> = hosts.iter().skip(setup.nodes).cloned().collect();
        let coordinators = names("coordinator", setup.coordinators).enumerate().map(|(i, name)| {
            let arguments = cluster.clone().and([("--listen", "127.0.0.1:0".to_owned())]);
            let arguments = arguments.and(setup.coordinator_flags.iter().cloned());
            role("coordinator", &name, home.path(), coordinator_hosts.get(i).cloned(), (setup.failpoints, arguments))
        });
        let (nodes, coordinators) = (nodes.collect(), coordinators.collect());
        let clones = Vec::new();
        let mut cluster =
            Self { nodes, coordinators, clones, coordinator_hosts, nats, home, _slabs: slabs, _network: network };
        cluster.processes().for_each(|process| process.change_to(setup.release));
        cluster
    }

    async fn run(mut self) -> Self {
        self.processes().for_each(Process::start);
        for process in self.processes() {
            process.up().await;
        }
        for i in 0..self.nodes.len() {
            self.ready(i).await;
        }
        self
    }

    /// Starts another process on a copy of a node's disk, as it is now, and of its memory or not: both are the same node then.
    pub fn clone_node(&mut self, node: usize, with_memory: bool) {
        let NodeProcess { process, host, data, slabs, arguments: (has_failpoints, arguments), .. } = &self.nodes[node];
        let name = format!("{}-clone-{}", process.name(), self.clones.len());
        let (copy, memory) = (self.home.path().join(format!("{name}.data")), slabs.with_file_name(&name));
        // As a snapshot of a machine has it: all memory is of one moment.
        process.freeze();
        std::thread::sleep(UNTIL_FROZEN);
        for (from, to, is_copied) in [(data, &copy, true), (slabs, &memory, with_memory)] {
            make(to);
            // A file that goes while it is copied is none that the copy needs.
            let from = format!("{}/.", from.display());
            is_copied.then(|| Command::new("cp").arg("-a").arg(from).arg(to).output().expect("run cp"));
        }
        process.thaw();
        let address = match host {
            Some(host) => format!("{}:{}", host.address(), usize::from(PORT) + 1 + self.clones.len()),
            None => format!("127.0.0.1:{}", free_port()),
        };
        let arguments = (*has_failpoints, arguments.clone().and(own(&name, &address, &copy, &memory)));
        let mut clone = role("node", &name, self.home.path(), host.clone(), arguments);
        clone.start();
        self.clones.push(clone);
    }

    /// Every node's and coordinator's process.
    pub fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.nodes.iter_mut().map(|node| &mut node.process).chain(&mut self.coordinators)
    }

    /// Waits until a node takes work.
    pub async fn ready(&self, node: usize) {
        let node = &self.nodes[node];
        until(&format!("{} is ready", node.process.name()), async || node.is_ready().await.then_some(())).await;
    }

    /// Starts a node again and waits until it takes work.
    pub async fn start_again(&mut self, node: usize) {
        self.nodes[node].process.start();
        self.nodes[node].process.up().await;
        self.ready(node).await;
    }

    /// Starts a node again as another release, on what it left, and waits until it takes work.
    pub async fn start_again_as(&mut self, node: usize, release: Release) {
        self.nodes[node].process.change_to(release);
        self.start_again(node).await;
    }

    /// Clients of every gateway.
    pub fn apis(&self) -> Vec<Api> {
        self.nodes.iter().map(NodeProcess::api).collect()
    }

    /// The job through each gateway.
    pub fn through(&self, job: &Job) -> Vec<Job> {
        self.apis().iter().map(|api| job.through(api)).collect()
    }

    /// Waits until it is completed, as every gateway knows.
    pub async fn completed(&self, job: &Job) {
        for job in self.through(job) {
            job.in_state("completed").await;
        }
    }

    /// Bytes of this kind that each node has taken from others.
    pub async fn peer_bytes(&self, kind: &str) -> Vec<f64> {
        let mut bytes = Vec::new();
        for api in self.apis() {
            bytes.push(api.metrics().await.sum("catchment_peer_bytes_total", &[("kind", kind)]));
        }
        bytes
    }

    /// The bus's own server.
    pub fn nats(&mut self) -> &mut Nats {
        &mut self.nats
    }

    /// A client of a coordinator that is up.
    pub fn coordinator(&self, coordinator: usize) -> Api {
        Api::new(&self.coordinators[coordinator].said_address().expect("it is up"))
    }

    /// The coordinator that said last that it decides.
    pub async fn leader(&self) -> usize {
        let decides = |process: &Process| {
            let log = process.log();
            let last = log.lines().rev().find(|line| line.contains("this coordinator ")).map(str::to_owned);
            process.is_started() && last.is_some_and(|line| line.contains("decides from now on"))
        };
        until("a coordinator decides", async || self.coordinators.iter().position(decides)).await
    }

    /// Waits until no node has shared memory in use.
    pub async fn holds_no_slabs(&self) {
        for (i, node) in self.nodes.iter().enumerate() {
            let api = node.api();
            until(&format!("node {i} has no shared memory in use"), async || {
                (api.metrics().await.slab_bytes_in_use() == 0).then_some(())
            })
            .await;
        }
    }

    /// Copies every log to `folder`.
    pub fn keep_logs(&mut self, folder: &Path) {
        std::fs::create_dir_all(folder).expect("make a folder for logs");
        let Self { nodes, coordinators, clones, .. } = self;
        let nodes = nodes.iter().map(|node| &node.process);
        for process in nodes.chain(&*coordinators).chain(&*clones) {
            std::fs::write(folder.join(format!("{}.log", process.name())), process.log()).expect("keep a log");
        }
    }

    /// Where its members keep what they have.
    pub fn home(&self) -> &Path {
        self.home.path()
    }
}

fn names(role: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |i| format!("{role}-{i}"))
}

/// Flags and their values; a later one replaces an earlier one.
#[derive(Clone)]
struct Arguments(BTreeMap<&'static str, String>);

impl Arguments {
    fn of(arguments: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self(arguments.into_iter().collect())
    }

    fn and(mut self, more: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        self.0.extend(more);
        self
    }
}

/// What no two nodes have in common.
fn own(name: &str, address: &str, data: &Path, slabs: &Path) -> [(&'static str, String); 5] {
    [
        ("--listen", address.to_owned()),
        ("--advertise", format!("http://{address}")),
        ("--name", name.to_owned()),
        ("--data", data.display().to_string()),
        ("--slabs", slabs.display().to_string()),
    ]
}

/// What is built, and a folder beside it.
fn functions(own: Option<&PathBuf>) -> Option<(&'static str, String)> {
    let folders: Vec<String> = functions_dir().iter().chain(own).map(|folder| folder.display().to_string()).collect();
    (!folders.is_empty()).then(|| ("--functions", folders.join(":")))
}

fn role(
    role: &'static str,
    name: &str,
    home: &Path,
    host: Option<Arc<Host>>,
    (has_failpoints, arguments): (bool, Arguments),
) -> Process {
    Process::new(name, home, move |release| {
        // An old release has them in the program that people got.
        let has_failpoints = has_failpoints && release == Release::Present;
        let program = if has_failpoints { failpoints() } else { release.program() };
        let command = host.as_ref().map_or_else(|| Command::new(&program), |host| host.command(&program));
        let mut command = uninfluenced(command);
        let known = arguments.0.iter().filter(|(flag, _)| release.takes(role, flag));
        command.arg(role).args(known.flat_map(|(flag, value)| [*flag, value.as_str()]));
        command
    })
}
