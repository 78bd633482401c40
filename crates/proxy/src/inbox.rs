//! The runner's end of a link.

use catchment_types::Descriptor;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most descriptors that one read takes.
const BATCH: usize = 64;

/// Reads descriptors from what [`Link::attach`](crate::Link::attach) made. Both kinds of link look the same from here.
///
/// A read takes every descriptor that is there, up to 64. One that comes in pieces is kept until it is whole.
#[derive(Debug)]
pub struct Inbox {
    fd: OwnedFd,
    buffer: Box<[u8; BATCH * Descriptor::BYTES]>,
    /// Bytes of the buffer that were read, and how many of them were handed out.
    filled: usize,
    taken: usize,
}

impl Inbox {
    /// Wraps a runner's end, and makes its reads blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags - OFlags::NONBLOCK)?;
        Ok(Self { fd, buffer: Box::new([0; BATCH * Descriptor::BYTES]), filled: 0, taken: 0 })
    }

    /// Waits for descriptors, appends them, and says how many. 0: the node ended the link, and no more will come.
    ///
    /// 64 bytes that are no descriptor give an error of kind [`InvalidData`](io::ErrorKind::InvalidData), once
    /// those before them were handed out, and are skipped. One such error can be a newer node's message; if all that
    /// follows is refused too, the stream lost its framing and the runner should end.
    pub fn recv(&mut self, into: &mut Vec<Descriptor>) -> io::Result<usize> {
        while self.filled - self.taken < Descriptor::BYTES {
            if self.fill()? == 0 {
                return Ok(0);
            }
        }
        let mut count = 0;
        while let Some(bytes) = self.buffer[self.taken..self.filled].first_chunk::<{ Descriptor::BYTES }>() {
            match Descriptor::from_bytes(bytes) {
                Ok(descriptor) => into.push(descriptor),
                Err(_) if count > 0 => break,
                Err(error) => {
                    self.taken += Descriptor::BYTES;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
            self.taken += Descriptor::BYTES;
            count += 1;
        }
        Ok(count)
    }

    /// Reads once, behind what was not handed out yet.
    fn fill(&mut self) -> io::Result<usize> {
        self.buffer.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        loop {
            match rustix::io::read(&self.fd, &mut self.buffer[self.filled..]) {
                Ok(count) => {
                    self.filled += count;
                    return Ok(count);
                }
                // A socket that the kernel redirects to can wake up for nothing, even in a blocking read.
                Err(Errno::INTR | Errno::AGAIN) => {}
                // The node died with something unread.
                Err(Errno::CONNRESET) => return Ok(0),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests;
