//! The socket on which the kernel program runs.

use super::maps::Maps;
use super::shared::DESCRIPTOR_BYTES;
use super::tcp;
use crate::LinkError;
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The node's sending socket.
///
/// The program decides about 64 bytes at a time, counted from the beginning of each write. That holds as long as every
/// write is taken in whole descriptors; after one that was not, only another socket helps.
#[derive(Debug)]
pub(super) struct Uplink {
    /// One writer at a time: the kernel keeps a verdict on the socket while it carries it out.
    socket: Mutex<OwnedFd>,
    age: u64,
    /// The slow path has read from it what cannot be.
    spoilt: AtomicBool,
}

/// Why not everything was written.
pub(super) enum Refusal {
    /// The kernel has no room now.
    Full,
    /// This socket is of no use any more.
    Broken(io::Error),
}

impl Uplink {
    /// A fresh uplink, on which the program runs from now on, and its peer.
    pub(super) fn new(age: u64, maps: &mut Maps) -> Result<(Self, OwnedFd), LinkError> {
        let (socket, peer) = tcp::pair()?;
        maps.set_uplink(&socket, &peer)?;
        Ok((Self { socket: Mutex::new(socket), age, spoilt: AtomicBool::new(false) }, peer))
    }

    /// Tells this uplink from those before it.
    pub(super) fn age(&self) -> u64 {
        self.age
    }

    /// Nothing more can be sent on this one.
    pub(super) fn spoil(&self) {
        self.spoilt.store(true, Ordering::Relaxed);
    }

    /// Writes whole descriptors, and says how many bytes went.
    pub(super) fn write(&self, bytes: &[u8]) -> (usize, Option<Refusal>) {
        if self.spoilt.load(Ordering::Relaxed) {
            return (0, Some(Refusal::Broken(io::Error::other("a message on it was cut"))));
        }
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut written, mut pipes) = (0, 0);
        while written < bytes.len() {
            match rustix::net::send(&*socket, &bytes[written..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) if count > 0 && count.is_multiple_of(DESCRIPTOR_BYTES) => written += count,
                Ok(count) => {
                    let text = format!("the kernel took {count} bytes, which is no whole number of descriptors");
                    return (written, Some(Refusal::Broken(io::Error::other(text))));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOMEM | Errno::NOBUFS) => return (written, Some(Refusal::Full)),
                // A runner's socket closed between the program's verdict and the delivery. It has left the map by now,
                // so once more the message goes to the peer.
                Err(Errno::PIPE) if pipes < 2 => pipes += 1,
                Err(error) => return (written, Some(Refusal::Broken(error.into()))),
            }
        }
        (written, None)
    }

    /// The socket itself, for tests that do to it what the link never would.
    #[cfg(test)]
    pub(super) fn misuse(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        rustix::net::send(&*socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
    }

    /// See there.
    #[cfg(test)]
    pub(super) fn socket_for_tests(&self) -> std::sync::MutexGuard<'_, OwnedFd> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
