//! Messages with files over a Unix stream socket.
//!
//! ```text
//! length of the message: u32 | number of files: u32     with the first files
//! one byte for each further batch of files              with that batch
//! the message
//! ```

use catchment_codec::Stored;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Read, Result, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Bytes of one message at most.
pub const MESSAGE_BYTES_MAX: usize = catchment_codec::WIRE_BYTES_MAX;
/// Bytes of what a runner says at most: numbers, and a reason.
pub const SAID_BYTES_MAX: usize = 256 << 10;
/// Files that go with one batch; the kernel takes 253.
const BATCH: usize = 200;
/// Files of one message at most: a round's updates, and a few more.
pub const FILES_MAX: usize = 1024;
const HEAD_BYTES: usize = 8;

fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::InvalidData, reason)
}

/// The bytes of a message.
pub fn encode<M: Stored>(message: &M) -> Result<Vec<u8>> {
    catchment_codec::encode(message, MESSAGE_BYTES_MAX).map_err(invalid)
}

/// Sends a message. Blocks until the socket has taken it.
pub fn send<M: Stored>(socket: &UnixStream, message: &M, files: &[BorrowedFd<'_>]) -> Result<()> {
    send_bytes(socket, &encode(message)?, files)
}

/// Sends an encoded message.
pub fn send_bytes(mut socket: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> Result<()> {
    if files.len() > FILES_MAX {
        return Err(invalid(format!("{} files; a message has at most {FILES_MAX}", files.len())));
    }
    let [a, b, c, d] = (bytes.len() as u32).to_le_bytes();
    let [e, f, g, h] = (files.len() as u32).to_le_bytes();
    let (first, rest) = files.split_at(files.len().min(BATCH));
    send_with(socket, &[a, b, c, d, e, f, g, h], first)?;
    for batch in rest.chunks(BATCH) {
        send_with(socket, &[0], batch)?;
    }
    socket.write_all(bytes)
}

/// Receives a message of at most `bytes_max` that comes without files; any that do are closed by the kernel.
pub fn receive_alone<M: Stored>(mut socket: &UnixStream, bytes_max: usize) -> Result<Option<M>> {
    let mut head = [0; HEAD_BYTES];
    match socket.read(&mut head[..1]) {
        Ok(0) => return Ok(None),
        // It ended with something unread.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
        Ok(_) => socket.read_exact(&mut head[1..])?,
        Err(error) => return Err(error),
    }
    let (len, _) = announced(head, bytes_max, 0)?;
    read(socket, len).map(Some)
}

fn send_with(socket: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(files.is_empty() || control.push(SendAncillaryMessage::ScmRights(files)), "the space is for a batch");
    let mut sent = 0;
    while sent < bytes.len() {
        sent += rustix::io::retry_on_intr(|| {
            sendmsg(socket, &[IoSlice::new(&bytes[sent..])], &mut control, SendFlags::NOSIGNAL)
        })?;
        // They went with the first byte.
        control.clear();
    }
    Ok(())
}

/// Receives a message of at most `bytes_max`; `None` when the other end is gone.
pub fn receive<M: Stored>(socket: &UnixStream, bytes_max: usize) -> Result<Option<(M, Vec<OwnedFd>)>> {
    let mut files = Vec::new();
    let mut head = [0; HEAD_BYTES];
    if !receive_with(socket, &mut head, &mut files)? {
        return Ok(None);
    }
    let (len, count) = announced(head, bytes_max, FILES_MAX)?;
    while files.len() < count {
        let before = files.len();
        if !receive_with(socket, &mut [0], &mut files)? || files.len() == before {
            return Err(invalid(format!("{before} of {count} files came")));
        }
    }
    if files.len() > count {
        return Err(invalid(format!("{} files came; {count} were announced", files.len())));
    }
    Ok(Some((read(socket, len)?, files)))
}

/// Bytes and files that a head announces, within these limits.
fn announced(head: [u8; HEAD_BYTES], bytes_max: usize, files_max: usize) -> Result<(usize, usize)> {
    let [a, b, c, d, e, f, g, h] = head;
    let (len, count) = (u32::from_le_bytes([a, b, c, d]) as usize, u32::from_le_bytes([e, f, g, h]) as usize);
    if len > bytes_max || count > files_max {
        return Err(invalid(format!("a message of {len} bytes and {count} files")));
    }
    Ok((len, count))
}

/// Reads what follows a head.
fn read<M: Stored>(mut socket: &UnixStream, len: usize) -> Result<M> {
    let mut bytes = vec![0; len];
    socket.read_exact(&mut bytes)?;
    catchment_codec::decode(&bytes, len).map_err(invalid)
}

/// Fills `bytes`; `false` when there was nothing any more.
fn receive_with(socket: &UnixStream, bytes: &mut [u8], files: &mut Vec<OwnedFd>) -> Result<bool> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut received = 0;
    while received < bytes.len() {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let part = rustix::io::retry_on_intr(|| {
            recvmsg(socket, &mut [IoSliceMut::new(&mut bytes[received..])], &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let part = match part {
            Err(rustix::io::Errno::CONNRESET) if received == 0 => return Ok(false),
            part => part?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                files.extend(came);
            }
        }
        match part.bytes {
            0 if received == 0 => return Ok(false),
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            some => received += some,
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};
    use std::os::fd::AsFd;

    #[derive(Debug, Serialize, Deserialize)]
    struct Text(String);

    catchment_codec::first_version!(Text);

    fn text(text: impl Into<String>) -> Text {
        Text(text.into())
    }

    #[test]
    fn messages_and_files_arrive_together_and_in_order() {
        let (here, there) = UnixStream::pair().unwrap();
        let file = |text: &str| {
            let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            std::fs::File::from(file.try_clone().unwrap()).write_all(text.as_bytes()).unwrap();
            file
        };
        let files: Vec<OwnedFd> = (0..450).map(|i| file(&i.to_string())).collect();
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        let long = "x".repeat(3 << 20);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                send(&here, &text("none"), &[]).unwrap();
                send(&here, &text(&long), &borrowed).unwrap();
                send(&here, &text("two"), &borrowed[..2]).unwrap();
                here.shutdown(std::net::Shutdown::Both).unwrap();
            });
            let (Text(text), none) = receive::<Text>(&there, MESSAGE_BYTES_MAX).unwrap().unwrap();
            assert_eq!((text.as_str(), none.len()), ("none", 0));
            let (Text(text), all) = receive::<Text>(&there, MESSAGE_BYTES_MAX).unwrap().unwrap();
            assert_eq!((text.len(), all.len()), (long.len(), 450));
            for (i, file) in all.into_iter().enumerate() {
                use std::os::unix::fs::FileExt;
                let mut bytes = [0; 3];
                let n = std::fs::File::from(file).read_at(&mut bytes, 0).unwrap();
                assert_eq!(bytes[..n], *i.to_string().as_bytes());
            }
            let (Text(text), two) = receive::<Text>(&there, MESSAGE_BYTES_MAX).unwrap().unwrap();
            assert_eq!((text.as_str(), two.len()), ("two", 2));
            assert!(receive::<Text>(&there, MESSAGE_BYTES_MAX).unwrap().is_none());
        });
    }

    #[test]
    fn garbage_and_half_messages_are_errors() {
        let pair = |bytes: &[u8]| {
            let (mut here, there) = UnixStream::pair().unwrap();
            here.write_all(bytes).unwrap();
            drop(here);
            receive::<Text>(&there, MESSAGE_BYTES_MAX)
        };
        assert!(pair(&[0xff; 8]).is_err());
        assert!(pair(&[1, 0, 0, 0]).is_err());
        assert!(pair(&[9, 0, 0, 0, 0, 0, 0, 0, 1, 2]).is_err());
        assert!(pair(&[1, 0, 0, 0, 1, 0, 0, 0, 1]).is_err());
        assert!(pair(&[1, 0, 0, 0, 0, 0, 0, 0, 77]).is_err());
        assert!(pair(&[]).unwrap().is_none());
        let (here, there) = UnixStream::pair().unwrap();
        send(&here, &text("long".repeat(100)), &[]).unwrap();
        assert!(receive::<Text>(&there, 400).is_err());
    }
}
