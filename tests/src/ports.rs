//! Ports that stay a test's own until it ends.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::TcpListener;
use std::sync::Mutex;

/// The locks of the ports that this process was given.
static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// Ports given: outside the range that outgoing connections take theirs from, so that one stays free while its server is
/// away.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

/// A port that nobody listens on. Nobody else is given it, in this process or in another one of the same user, before
/// this process ends: its server is started later, perhaps twice, and may find it taken otherwise.
pub fn free_port() -> u16 {
    // Many tests start at once; at random places they rarely meet.
    let start = RandomState::new().build_hasher().finish() % u64::from(COUNT);
    let start = u16::try_from(start).expect("below COUNT");
    let mut ports = (0..COUNT).map(|step| FIRST + (start + step) % COUNT);
    ports.find(|port| take(*port) && TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

/// Whether the port had no holder; this process is its holder then.
fn take(port: u16) -> bool {
    let folder = std::env::temp_dir().join(format!("catchment-tests-ports-{}", rustix::process::getuid().as_raw()));
    std::fs::create_dir_all(&folder).expect("make a folder for the locks of ports");
    let lock = File::create(folder.join(port.to_string())).expect("open the lock of a port");
    let is_free = lock.try_lock().is_ok();
    if is_free {
        TAKEN.lock().expect("no holder panics").push(lock);
    }
    is_free
}

#[cfg(test)]
mod tests {
    use super::take;

    #[test]
    fn a_port_is_given_once() {
        let ports: Vec<u16> = (0..200).map(|_| super::free_port()).collect();
        let different: std::collections::BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(different.len(), ports.len());
        assert!(ports.iter().all(|port| !take(*port)), "a port that was given can be taken");
    }
}
