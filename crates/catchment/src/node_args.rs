//! What a process that takes updates is told on the command line.

use crate::address::{Advertised, Listen};
use crate::system::{default_slab_budget_bytes, default_slab_dir, free_disk_bytes, hooks};
use anyhow::{Context as _, Result, bail};
use catchment_fleet::Pace as FleetPace;
use catchment_node::{Beside, Functions, Membership, NodeConfig, Pace, RunnersConfig};
use catchment_proxy::{Link, Mode, Options, Report};
use catchment_runner::Setup;
use catchment_runtime::{Runtime, RuntimeConfig};
use catchment_types::DurationText;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Functions that were embedded when the binary was built.
const EMBEDDED: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/functions.rs"));

/// The longest time in which an answer is not read, unless it is said.
const READ_SILENCE: Duration = Duration::from_secs(60);
/// Less than this is no silence, but how networks are.
const SILENCE_MIN: Duration = Duration::from_millis(500);

/// The node's end of the link to runners, and what it became.
pub type OpenLink = (Arc<dyn Link>, Report);

/// Where a node keeps what it has, what it may use, and how others reach it.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// Address to serve HTTP on: an address or a host's name, and a port; port 0 picks a free one. Of a name's addresses the
    /// first of IPv4 is taken. 0.0.0.0 is every address of this machine, for everybody who can reach it.
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "HOST:PORT", env = "CATCHMENT_LISTEN")]
    pub listen: Listen,
    /// Where checkpoints and the node's name are kept, and the event log where it is not on NATS.
    #[arg(long, default_value = "./catchment-data", value_name = "DIR", env = "CATCHMENT_DATA")]
    pub data: PathBuf,
    /// Where shared memory is kept: a directory on a tmpfs. Default: one under /dev/shm for each data directory.
    #[arg(long, value_name = "DIR", env = "CATCHMENT_SLABS")]
    slabs: Option<PathBuf>,
    /// Shared memory to use, in MiB. Default: half of what is free.
    #[arg(long, value_name = "MIB", env = "CATCHMENT_SLAB_MIB")]
    slab_mib: Option<u64>,
    /// Directory of further functions (*.wasm). May be given more than once.
    #[arg(long, value_name = "DIR", env = "CATCHMENT_FUNCTIONS", value_delimiter = ':')]
    functions: Vec<PathBuf>,
    /// Threads that fold. Default: one per core.
    #[arg(long, value_name = "N", env = "CATCHMENT_LANES")]
    lanes: Option<usize>,
    /// Runner processes, which make the calls of functions and can reach nothing else. 0: functions run in this process.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(..=256), env = "CATCHMENT_RUNNERS")]
    runners: u32,
    /// User and group (UID:GID) of runners. Default: 65534:65534 when this process runs as root, else its own.
    #[arg(long, value_name = "UID:GID", value_parser = user_and_group, env = "CATCHMENT_RUNNER_USER")]
    runner_user: Option<(u32, u32)>,
    /// Whether the kernel routes descriptors to runners: if it can, or refuse to start, or never.
    #[arg(long, default_value = "auto", env = "CATCHMENT_EBPF", value_name = "auto|on|off")]
    ebpf: Mode,
    /// Directory on a bpffs where the kernel's routing map outlives this process, so that the next one goes on with it.
    #[arg(long, value_name = "DIR", env = "CATCHMENT_EBPF_PIN")]
    ebpf_pin: Option<PathBuf>,
    /// Connections served at one time.
    #[arg(long, default_value_t = 16_384, env = "CATCHMENT_CONNECTIONS")]
    connections: usize,
    /// How long a body may take before the minimum rate applies.
    #[arg(long, default_value = "10s", env = "CATCHMENT_BODY_GRACE")]
    body_grace: DurationText,
    /// Least bytes a second of a body, and of an answer that a client reads, over any time longer than --silence. A body
    /// that is slower at the moment gives its memory up as soon as another one waits for it.
    #[arg(long, default_value_t = 16 << 10, env = "CATCHMENT_BODY_RATE_MIN")]
    body_rate_min: u64,
    /// The longest time within a body in which nothing comes, and within an answer in which nothing is read. Default: as
    /// --park-time, and 60s.
    #[arg(long, value_name = "TIME", env = "CATCHMENT_SILENCE")]
    silence: Option<DurationText>,
    /// Memory for bodies on their way beside shared memory, in MiB: a half for windows of decoders (up to 8 MiB for zstd), a
    /// quarter for heads of safetensors files over 64 KiB, a quarter for others. Without room a body is answered with 429.
    #[arg(long, default_value_t = 256, value_name = "MIB", env = "CATCHMENT_BUFFER_MIB")]
    buffer_mib: u64,
    /// Initial models that are received at one time. One more is answered with 429.
    #[arg(long, default_value_t = 16, value_name = "N", env = "CATCHMENT_DRAFTS")]
    drafts: usize,
    /// Disk that they may take together, in MiB. Default: half of what is free in the data directory.
    #[arg(long, value_name = "MIB", env = "CATCHMENT_DRAFT_MIB")]
    draft_mib: Option<u64>,
    /// How long an update waits for shared memory before it is answered with 429.
    #[arg(long, default_value = "5s", env = "CATCHMENT_ROOM_WAIT")]
    room_wait: DurationText,
    /// How long an update waits for the event log before it is answered with 503.
    #[arg(long, default_value = "10s", env = "CATCHMENT_ACCEPT_WAIT")]
    accept_wait: DurationText,
    /// How long an update whose connection broke or fell silent is kept in shared memory, for its client to go on with. It
    /// gives way there when there is no room; in the data directory it stays as long as its round is open (--park-mib).
    #[arg(long, default_value = "60s", env = "CATCHMENT_PARK_TIME")]
    park_time: DurationText,
    /// Disk that such updates may take together in the data directory, in MiB. The oldest give way; 0: none is written
    /// there. Default: a quarter of what is free.
    #[arg(long, value_name = "MIB", env = "CATCHMENT_PARK_MIB")]
    park_mib: Option<u64>,
    /// How long a node that is told to end (SIGTERM) waits for other nodes to take what it holds of open rounds. 0s, a
    /// second signal, or an interrupt: not at all.
    #[arg(long, default_value = "30s", env = "CATCHMENT_DRAIN_TIME")]
    drain_time: DurationText,
    /// Address at which other nodes and clients reach this one, like http://10.0.0.7:7070. Default: the address it listens
    /// on.
    #[arg(long, value_name = "URL", env = "CATCHMENT_ADVERTISE")]
    advertise: Option<Advertised>,
    /// The node's name for people. Default: the host's name.
    #[arg(long, value_name = "NAME", env = "CATCHMENT_NODE_NAME")]
    name: Option<String>,
    /// Where the node stands, such as a zone or a rack: nodes of one zone are near each other.
    #[arg(long, default_value = "", value_name = "ZONE", env = "CATCHMENT_ZONE", hide_default_value = true)]
    zone: String,
    /// Bits a second that the node's link brings in, in Gbit: the planner goes by it.
    #[arg(long, default_value_t = 10.0, value_name = "GBIT", env = "CATCHMENT_LINK_GBIT")]
    link_gbit: f64,
}

impl NodeArgs {
    /// Makes the way to runner processes, if there are to be any, and gives up the rights that took. To be called while
    /// the process has one thread: rights belong to threads.
    pub fn open_link(&self) -> Result<Option<OpenLink>> {
        if self.runners == 0 {
            if self.ebpf == Mode::On {
                bail!("--ebpf on routes descriptors to runner processes, and there are none: add --runners N");
            }
            return Ok(None);
        }
        let options = Options { pin: self.ebpf_pin.clone(), ..Options::default() };
        let link = catchment_proxy::open(self.ebpf, &options).context("open the link to runners (--ebpf)")?;
        tracing::info!("{}", link.1);
        let kept = catchment_proxy::drop_to_needed().context("give up capabilities")?;
        if !kept.is_empty() {
            tracing::warn!(kept = kept.join(" "), "this kernel wants capabilities for every use of the routing map");
        }
        Ok(Some(link))
    }

    /// The functions that jobs can name.
    pub fn functions(&self) -> Result<Functions> {
        let runtime = Runtime::new(runtime_config()).context("start the wasm runtime")?;
        let dirs: Vec<&std::path::Path> = self.functions.iter().map(PathBuf::as_path).collect();
        let functions =
            Functions::load(runtime, EMBEDDED, &dirs, &self.data).context("read functions (--functions, --data)")?;
        if EMBEDDED.is_empty() && dirs.is_empty() {
            tracing::warn!("this binary carries no functions: build it with `make build`, or pass --functions DIR");
        }
        Ok(functions)
    }

    /// How the node is known to others; `pace` is `None` when there are none. `address`: where it listens.
    pub fn membership(
        &self,
        address: SocketAddr,
        pace: Option<FleetPace>,
        coordinator: Option<Beside>,
    ) -> Result<Membership> {
        let url = match &self.advertise {
            Some(Advertised(url)) => url.clone(),
            None if address.ip().is_unspecified() && pace.is_some() => {
                bail!("it listens on every address ({address}): say with --advertise at which others reach it")
            }
            None => format!("http://{address}"),
        };
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let name = self.name.clone().unwrap_or_else(host);
        if !(self.link_gbit.is_finite() && self.link_gbit > 0.0) {
            bail!("--link-gbit is a positive number");
        }
        let (zone, link_bytes_per_s) = (self.zone.clone(), self.link_gbit * 1e9 / 8.0);
        Ok(Membership { name, url, zone, link_bytes_per_s, pace, coordinator })
    }

    /// How the node is set up.
    pub fn node_config(&self) -> Result<NodeConfig> {
        let slab_dir = self.slabs.clone().unwrap_or_else(|| default_slab_dir(&self.data));
        let slab_budget_bytes = match self.slab_mib {
            Some(0) => bail!("--slab-mib is at least 1"),
            Some(mib) => mib << 20,
            None => default_slab_budget_bytes(&slab_dir),
        };
        if self.buffer_mib == 0 {
            bail!("--buffer-mib is at least 1");
        }
        let draft_bytes_max = match self.draft_mib {
            Some(mib) => mib << 20,
            None => free_disk_bytes(&self.data) / 2,
        };
        let silence = |default: Duration| self.silence.map_or(default, duration).max(SILENCE_MIN);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let lanes = self.lanes.unwrap_or(cores).clamp(1, 256);
        Ok(NodeConfig {
            data_dir: self.data.clone(),
            slab_dir,
            slab_budget_bytes,
            lanes,
            pace: Pace {
                grace: duration(self.body_grace),
                rate_min: self.body_rate_min.max(1),
                silence: silence(duration(self.park_time)),
            },
            read_silence: silence(READ_SILENCE),
            room_wait: duration(self.room_wait),
            accept_wait: duration(self.accept_wait),
            park_time: duration(self.park_time),
            park_bytes_max: self.park_mib.map_or_else(|| free_disk_bytes(&self.data) / 4, |mib| mib << 20),
            drain_time: duration(self.drain_time),
            connections_max: self.connections.max(1),
            buffer_bytes: self.buffer_mib << 20,
            drafts_max: self.drafts.max(1),
            draft_bytes_max,
        })
    }

    /// Processes that make its calls.
    pub fn runners_config(&self, lanes: usize, link: OpenLink) -> Result<RunnersConfig> {
        let nobody = rustix::process::geteuid().is_root().then_some((65_534, 65_534));
        let setup = Setup {
            workers: (lanes as u32).div_ceil(self.runners),
            runtime: runtime_config(),
            user: self.runner_user.or(nobody),
        };
        let program = std::env::current_exe().context("find this program, to start runners")?;
        let arguments = vec!["runner".into()];
        Ok(RunnersConfig { link, program, arguments, count: self.runners, setup, once: hooks().runners_once.to_vec() })
    }
}

/// The same for all processes: what one has compiled, another runs.
fn runtime_config() -> RuntimeConfig {
    RuntimeConfig { instances_max: 256, heap_bytes_max: 64 << 20, cpu_ms_max: 3_600_000, ..RuntimeConfig::default() }
}

fn user_and_group(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
    parsed.ok_or_else(|| format!("`{text}` is not UID:GID, two numbers"))
}

/// Every connection and every update being received holds descriptors; the default limit is made for other programs.
pub fn raise_descriptor_limit() {
    let resource = rustix::process::Resource::Nofile;
    let limit = rustix::process::getrlimit(resource);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(resource, raised) {
        tracing::warn!(%error, "raise the limit of open files");
    }
}

fn duration(text: DurationText) -> Duration {
    Duration::from_millis(text.ms())
}
