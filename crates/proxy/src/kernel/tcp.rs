//! Connections of this process with itself.

use crate::LinkError;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

/// Strangers that may connect to the listener before our own connection is accepted.
const STRANGERS_MAX: usize = 64;

/// Both ends of a TCP connection over loopback. A Unix socket pair would be simpler, but as the target of a redirect it
/// wakes its reader for nothing.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), LinkError> {
    let fail = LinkError::io("make a TCP connection over loopback");
    connect().map(|(one, other)| (one.into(), other.into())).map_err(fail)
}

fn connect() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let one = TcpStream::connect(listener.local_addr()?)?;
    let ours = one.local_addr()?;
    for _ in 0..STRANGERS_MAX {
        let (other, address) = listener.accept()?;
        if address == ours {
            one.set_nodelay(true)?;
            other.set_nodelay(true)?;
            return Ok((one, other));
        }
    }
    Err(std::io::Error::other("others keep connecting to the listener"))
}
