//! The ways a descriptor can go, each with both directions.

use super::broker;
use super::measure::Mode;
use catchment_proxy::{Inbox, Link, Options, Route, RunnerId, open};
use catchment_types::{Descriptor, FunctionId, JobUid, Kind, SlabId};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// One of them.
#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    Kernel,
    Socket,
    Broker,
}

/// What sends.
pub enum Out {
    Link(Arc<dyn Link>),
    Stream(TcpStream),
}

/// Routes towards the runner and back; each side knows a hundred more.
pub const THERE: u64 = 7;
const RUNNER: RunnerId = RunnerId(1);

impl Out {
    /// Sends all, and waits where there is no credit.
    pub fn send(&mut self, descriptors: &[Descriptor]) -> io::Result<()> {
        match self {
            Self::Link(link) => {
                let mut rest = descriptors;
                while !rest.is_empty() {
                    let (sent, outcome) = link.send_all(rest);
                    rest = &rest[sent..];
                    match outcome {
                        Ok(()) => {}
                        Err(catchment_proxy::LinkError::Full(_)) => std::thread::yield_now(),
                        Err(error) => return Err(io::Error::other(error)),
                    }
                }
                Ok(())
            }
            Self::Stream(stream) => match descriptors {
                [descriptor] => stream.write_all(&descriptor.to_bytes()),
                _ => stream.write_all(&descriptors.iter().flat_map(Descriptor::to_bytes).collect::<Vec<u8>>()),
            },
        }
    }

    /// The other side has handled so many.
    pub fn credit(&self, count: u32) {
        if let Self::Link(link) = self {
            link.credit(RUNNER, count);
        }
    }

    /// The same, for another thread.
    pub fn another(&self) -> Self {
        match self {
            Self::Link(link) => Self::Link(link.clone()),
            Self::Stream(stream) => Self::Stream(stream.try_clone().expect("a stream")),
        }
    }
}

/// A runner as the node has it. Its processes end with it.
pub struct Side {
    pub out: Out,
    pub inbox: Inbox,
    others: Others,
}

impl Side {
    /// The processes beside this one.
    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.others.0.iter().map(Child::id)
    }
}

struct Others(Vec<Child>);

impl Drop for Others {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// A descriptor with a payload of this length.
pub fn descriptor(route: u64, length: u64) -> Descriptor {
    Descriptor {
        function: FunctionId(route),
        job: JobUid::from_bytes([7; 16]),
        round: 1,
        slab: SlabId::new(5, 9),
        offset: 0,
        kind: Kind::Update,
        length,
        weight: 1.0,
    }
}

/// Keeps this process, and those it will start, on these cores.
pub fn pin(cores: &[usize]) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Whether the kernel's way and its metering can be had, or why not.
pub fn permitted() -> io::Result<()> {
    meter(std::iter::empty()).map(drop)
}

/// The node's side: starts the runner, and whatever is between.
pub fn node(way: Way, mode: Mode) -> io::Result<Side> {
    let this = std::env::current_exe()?;
    let mut others = Others(Vec::new());
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(&this);
    command.args(["descriptor-peer", "runner", mode.name()]).stdin(Stdio::from(OwnedFd::from(theirs)));
    if way == Way::Broker {
        let mut child = Command::new(&this).args(["descriptor-peer", "broker"]).stdout(Stdio::piped()).spawn()?;
        let mut port = [0; 2];
        child.stdout.as_mut().expect("it is piped").read_exact(&mut port)?;
        others.0.push(child);
        let stream = broker::connect(u16::from_ne_bytes(port))?;
        (&ours).write_all(&port)?;
        others.0.push(command.spawn()?);
        return Ok(Side { out: Out::Stream(stream.try_clone()?), inbox: Inbox::new(stream.into())?, others });
    }
    let link = link(way)?;
    (&ours).write_all(match way {
        Way::Socket => b"\0s",
        _ => b"\0k",
    })?;
    pass(&ours, link.attach(RUNNER).map_err(io::Error::other)?)?;
    link.place(Route(THERE), RUNNER).map_err(io::Error::other)?;
    others.0.push(command.spawn()?);
    Ok(Side { out: Out::Link(link), inbox: Inbox::new(take(&ours)?)?, others })
}

/// The runner's side.
pub fn runner() -> io::Result<(Out, Inbox)> {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut first = [0; 2];
    (&control).read_exact(&mut first)?;
    let way = match &first {
        b"\0s" => Way::Socket,
        b"\0k" => Way::Kernel,
        _ => {
            let stream = broker::connect(u16::from_ne_bytes(first))?;
            return Ok((Out::Stream(stream.try_clone()?), Inbox::new(stream.into())?));
        }
    };
    let inbox = Inbox::new(take(&control)?)?;
    let link = link(way)?;
    pass(&control, link.attach(RUNNER).map_err(io::Error::other)?)?;
    link.place(Route(THERE), RUNNER).map_err(io::Error::other)?;
    Ok((Out::Link(link), inbox))
}

/// Meters these processes for as long as it is kept.
pub fn meter(pids: impl Iterator<Item = u32>) -> io::Result<Arc<dyn Link>> {
    let (link, report) = open(catchment_proxy::Mode::On, &Options::default()).map_err(io::Error::other)?;
    if let Some(lack) = report.metering {
        return Err(io::Error::other(lack.to_string()));
    }
    for pid in pids {
        link.meter(pid).map_err(io::Error::other)?;
    }
    Ok(link)
}

fn link(way: Way) -> io::Result<Arc<dyn Link>> {
    let mode = if way == Way::Kernel { catchment_proxy::Mode::On } else { catchment_proxy::Mode::Off };
    let options = Options { metering: false, ..Options::default() };
    let (link, _) = open(mode, &options).map_err(io::Error::other)?;
    // A map of one entry would be no map.
    let others = RunnerId(1000);
    std::mem::forget(link.attach(others).map_err(io::Error::other)?);
    for route in 1000..1100 {
        link.place(Route(route), others).map_err(io::Error::other)?;
    }
    Ok(link)
}

fn pass(to: &UnixStream, fd: OwnedFd) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(to, &[IoSlice::new(b"f")], &mut control, SendFlags::empty())?;
    Ok(())
}

fn take(from: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::other("no descriptor came"))
}
