//! Choosing a link, and saying which one it became.

use crate::link::{Link, LinkError};
use crate::socket::Socket;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

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
}

impl Options {
    /// More than these would no longer fit into a socket's buffer for certain.
    pub const CREDITS_MAX: u32 = 512;
}

impl Default for Options {
    fn default() -> Self {
        Self { credits: 256 }
    }
}

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

/// What [`open`] chose, and what was missing for more. It displays as one line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The link.
    pub link: LinkKind,
    /// What was missing for kernel routing, when it was wanted.
    pub missing: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.link {
            LinkKind::Kernel => write!(f, "descriptors are routed by the kernel")?,
            LinkKind::Socket => write!(f, "descriptors go over Unix sockets")?,
        }
        match &self.missing {
            Some(missing) => write!(f, ", not through the kernel: {missing}"),
            None => Ok(()),
        }
    }
}

/// Makes the node's end.
pub fn open(mode: Mode, options: &Options) -> Result<(Arc<dyn Link>, Report), LinkError> {
    let credits = options.credits.clamp(1, Options::CREDITS_MAX);
    let missing = match mode {
        Mode::Off => None,
        Mode::On | Mode::Auto => Some("this build has no kernel programs".to_string()),
    };
    match missing {
        Some(missing) if mode == Mode::On => Err(LinkError::Unavailable(missing)),
        missing => Ok((Arc::new(Socket::new(credits)), Report { link: LinkKind::Socket, missing })),
    }
}
