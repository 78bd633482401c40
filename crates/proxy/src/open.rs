//! Choosing a link, and saying which one it became.

mod report;

use crate::capabilities;
use crate::kernel::{Kernel, Meter, Objects, Routing};
use crate::link::{Link, LinkError, Route, RunnerId};
use crate::socket::Socket;
use catchment_types::{Descriptor, FunctionId, JobUid, Kind, SlabId};
pub use report::{Lack, LinkKind, Missing, Report};
use std::io::Read;
use std::net::TcpStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// Whether the kernel is to route descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// If this machine and this process's capabilities allow it.
    #[default]
    Auto,
    /// Or refuse to start.
    On,
    /// Never.
    Off,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            other => Err(format!("`{other}` is none of auto, on, off")),
        }
    }
}

/// How a link is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Descriptors that may be under way to one runner, at most [`Options::CREDITS_MAX`].
    pub credits: u32,
    /// Whether to count the CPU time of runners, where it can be done.
    pub metering: bool,
    /// A directory on a bpffs (`/sys/fs/bpf/catchment/<name>`) under which routing and its counts outlive this process.
    /// The next one goes on with them, and needs no capability if the pins are its own. By default nothing outlives it.
    pub pin: Option<PathBuf>,
    /// A folder with the compiled kernel programs, instead of those in this binary or next to it.
    pub programs: Option<PathBuf>,
}

impl Options {
    /// More than these would no longer fit into a socket's buffer for certain.
    pub const CREDITS_MAX: u32 = 512;
}

impl Default for Options {
    fn default() -> Self {
        Self { credits: 256, metering: true, pin: None, programs: None }
    }
}

/// Makes the node's end. What this needs of the machine, and can be given up afterwards with
/// [`drop_to_needed`](crate::drop_to_needed):
///
/// * for the kernel to route: `CAP_BPF` and `CAP_NET_ADMIN`, or pins that this user owns,
/// * for metering: `CAP_BPF` and `CAP_PERFMON`, and a kernel that describes its types.
///
/// Each is tried once, and the report says what came of it.
pub fn open(mode: Mode, options: &Options) -> Result<(Arc<dyn Link>, Report), LinkError> {
    let window = options.credits.clamp(1, Options::CREDITS_MAX);
    let lack = match mode {
        Mode::Off => None,
        Mode::Auto | Mode::On => match kernel_or_anew(options, window) {
            Ok(opened) => return Ok(opened),
            Err(lack) => Some(lack),
        },
    };
    match lack {
        Some(lack) if mode == Mode::On => Err(LinkError::Unavailable(lack.to_string())),
        lack => Ok((Arc::new(Socket::new(window)), Report { link: LinkKind::Socket, routing: lack, metering: None })),
    }
}

/// What is pinned may not work, because somebody took the program off it. Whoever can, begins anew.
fn kernel_or_anew(options: &Options, window: u32) -> Result<(Arc<dyn Link>, Report), Lack> {
    match kernel(options, window, false) {
        Err(lack) if options.pin.is_some() && lack.missing == Missing::Kernel && capabilities::may_load() => {
            kernel(options, window, true)
        }
        outcome => outcome,
    }
}

fn kernel(options: &Options, window: u32, fresh: bool) -> Result<(Arc<dyn Link>, Report), Lack> {
    let objects = Objects { folder: options.programs.clone() };
    let (routing, maps) = Routing::open(&objects, options.pin.as_deref(), fresh)?;
    let (meter, metering) = match options.metering.then(|| Meter::open(&objects)) {
        None => (None, None),
        Some(Ok(meter)) => (Some(meter), None),
        Some(Err(lack)) => (None, Some(lack)),
    };
    let kernel = Kernel::new(routing, maps, meter, window).map_err(Lack::of(Missing::Kernel))?;
    prove(&*kernel)?;
    Ok((kernel, Report { link: LinkKind::Kernel, routing: None, metering }))
}

/// Sends one descriptor through the kernel: that a program was loaded does not say that it works.
fn prove(link: &dyn Link) -> Result<(), Lack> {
    const WAIT: Duration = Duration::from_secs(2);
    let (runner, route) = (RunnerId(u32::MAX - 2), Route(u64::MAX));
    let descriptor = Descriptor {
        function: FunctionId(route.0),
        job: JobUid::from_bytes([0; 16]),
        round: 0,
        slab: SlabId::new(0, 0),
        offset: 0,
        kind: Kind::Update,
        length: 0,
        weight: 0.0,
    };
    let attempt = || -> Result<bool, LinkError> {
        let mut stream = TcpStream::from(link.attach(runner)?);
        link.place(route, runner)?;
        link.send(&descriptor)?;
        let mut bytes = [0; Descriptor::BYTES];
        let read = stream.set_read_timeout(Some(WAIT)).and_then(|()| stream.read_exact(&mut bytes));
        read.map_err(LinkError::io("read what the kernel program redirected"))?;
        Ok(bytes == descriptor.to_bytes())
    };
    let outcome = attempt();
    link.detach(runner);
    let count = link.remove(route);
    match outcome.map_err(Lack::of(Missing::Kernel))? && count.is_some_and(|count| count.kernel == 1) {
        true => Ok(()),
        false => Err(Lack::new(Missing::Kernel, "its program is loaded and does not redirect")),
    }
}
