//! One attached runner, seen from the node.

use crate::LinkError;
use crate::credits::Credits;
use crate::link::RunnerId;
use catchment_types::Descriptor;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The node's end of a runner's stream, and what is known of it.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) id: RunnerId,
    pub(crate) credits: Credits,
    socket: OwnedFd,
    gone: AtomicBool,
    /// The rest of a descriptor of which the kernel took only a part. It goes first, or the stream loses its framing.
    rest: Mutex<Vec<u8>>,
}

impl Runner {
    pub(crate) fn new(id: RunnerId, socket: OwnedFd, window: u32) -> Self {
        let (gone, rest) = (AtomicBool::new(false), Mutex::default());
        Self { id, credits: Credits::new(window), socket, gone, rest }
    }

    /// Whether it is known to be gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Writes one descriptor to the stream, or nothing. Does not block.
    pub(crate) fn write(&self, bytes: &[u8; Descriptor::BYTES]) -> Result<(), LinkError> {
        if self.is_gone() {
            return Err(LinkError::Gone(self.id));
        }
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        while !rest.is_empty() {
            let written = self.push(&rest)?;
            rest.drain(..written);
        }
        let written = self.push(bytes)?;
        rest.extend_from_slice(&bytes[written..]);
        Ok(())
    }

    fn push(&self, bytes: &[u8]) -> Result<usize, LinkError> {
        match rustix::net::send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(written) => Ok(written),
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::NOMEM) => Err(LinkError::Full(self.id)),
            Err(_) => {
                self.gone.store(true, Ordering::Relaxed);
                Err(LinkError::Gone(self.id))
            }
        }
    }

    /// Asks the socket whether the runner hung up. A runner has nothing to say here, so whatever it did write is
    /// thrown away, a bounded amount at a time.
    pub(crate) fn look(&self) -> bool {
        let mut scratch = [0; 4096];
        for _ in 0..16 {
            match rustix::net::recv(&self.socket, &mut scratch[..], RecvFlags::DONTWAIT) {
                Ok((_, 1..)) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Ok((_, 0)) | Err(_) => {
                    self.gone.store(true, Ordering::Relaxed);
                    break;
                }
            }
        }
        self.is_gone()
    }
}
