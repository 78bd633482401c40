//! What was chosen, and what was missing for more.

use std::fmt;

/// The kinds of link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// The kernel routes.
    Kernel,
    /// This process routes, over Unix sockets.
    Socket,
}

impl LinkKind {
    /// As a metric labels it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Socket => "socket",
        }
    }
}

/// What kernel routing or metering can lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The compiled kernel programs.
    Programs,
    /// The capability to load programs.
    CapBpf,
    /// The capability to attach them to sockets.
    CapNetAdmin,
    /// The capability to watch the scheduler.
    CapPerfmon,
    /// Something that this kernel lacks or forbids.
    Kernel,
    /// A usable directory for pins.
    Pins,
}

impl Missing {
    /// As a metric labels it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Programs => "programs",
            Self::CapBpf => "cap_bpf",
            Self::CapNetAdmin => "cap_net_admin",
            Self::CapPerfmon => "cap_perfmon",
            Self::Kernel => "kernel",
            Self::Pins => "pins",
        }
    }
}

/// What was missing, and what can be done or was said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What.
    pub missing: Missing,
    /// More about it.
    pub detail: String,
}

impl Lack {
    pub(crate) fn new(missing: Missing, detail: impl Into<String>) -> Self {
        Self { missing, detail: detail.into() }
    }

    /// For `map_err`.
    pub(crate) fn of<E: fmt::Display>(missing: Missing) -> impl Fn(E) -> Self {
        move |error| Self::new(missing, error.to_string())
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.missing {
            Missing::Programs => write!(f, "the kernel programs are missing")?,
            Missing::CapBpf => write!(f, "CAP_BPF is missing")?,
            Missing::CapNetAdmin => write!(f, "CAP_NET_ADMIN is missing")?,
            Missing::CapPerfmon => write!(f, "CAP_PERFMON is missing")?,
            Missing::Kernel => write!(f, "this kernel does not do it")?,
            Missing::Pins => write!(f, "the pins cannot be used")?,
        }
        write!(f, ": {}", self.detail)
    }
}

/// What [`open`](crate::open) chose. It displays as one line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The link.
    pub link: LinkKind,
    /// What was missing for the kernel to route, when it was wanted and does not.
    pub routing: Option<Lack>,
    /// What was missing for metering, when it was wanted, the kernel routes, and metering is not there.
    pub metering: Option<Lack>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.link {
            LinkKind::Kernel => write!(f, "descriptors are routed by the kernel")?,
            LinkKind::Socket => write!(f, "descriptors go over Unix sockets")?,
        }
        if let Some(lack) = &self.routing {
            write!(f, ", not through the kernel: {lack}")?;
        }
        if let Some(lack) = &self.metering {
            write!(f, "; CPU time of runners is not metered: {lack}")?;
        }
        Ok(())
    }
}
