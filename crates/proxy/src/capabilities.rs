//! Which of the kernel's privileges this thread has, and giving them up.

use aya::maps::{MapData, MapError};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use std::io;
use std::os::fd::OwnedFd;

/// What loading the kernel programs can take, and nothing after it needs.
const FOR_LOADING: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_RESOURCE);

/// Whether this thread has a capability, or the old one that contains it.
pub(crate) fn has(capability: CapabilitySet) -> bool {
    let either = capability | CapabilitySet::SYS_ADMIN;
    capabilities(None).is_ok_and(|sets| sets.effective.intersects(either))
}

/// Whether this thread may load the routing program.
pub(crate) fn may_load() -> bool {
    has(CapabilitySet::BPF) && has(CapabilitySet::NET_ADMIN)
}

/// Gives up, for good, the capabilities that [`open`](crate::open) needs and an open link does not. Says which of them
/// were kept: none, but for `CAP_BPF` on kernels (before 5.19) that want it for every use of a map.
///
/// Other capabilities stay. Linux keeps capabilities for each thread, so this is for the first thread of a process, after
/// `open` and before it starts others, which inherit what is left; nor can programs that it executes get them back. The
/// link's own thread has given up everything already. Routing, new runners and metering go on: the programs are attached,
/// and the maps are open files.
pub fn drop_to_needed() -> io::Result<Vec<&'static str>> {
    suspend(FOR_LOADING)?;
    let sets = capabilities(None)?;
    if maps_are_usable() || !sets.permitted.contains(CapabilitySet::BPF) {
        renounce(FOR_LOADING)?;
        return Ok(Vec::new());
    }
    set_capabilities(None, CapabilitySets { effective: sets.effective | CapabilitySet::BPF, ..sets })?;
    renounce(FOR_LOADING - CapabilitySet::BPF)?;
    Ok(vec!["CAP_BPF"])
}

/// Gives up everything, in a thread that needs nothing. What cannot be given up is kept.
pub(crate) fn drop_all() {
    let none = CapabilitySet::empty();
    if let Err(error) = set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }) {
        tracing::debug!(%error, "give up capabilities");
    }
}

/// No longer in effect, but still to be had again.
fn suspend(unwanted: CapabilitySet) -> io::Result<()> {
    let sets = capabilities(None)?;
    Ok(set_capabilities(None, CapabilitySets { effective: sets.effective - unwanted, ..sets })?)
}

/// Not to be had again, not even by executing another program as root.
fn renounce(unwanted: CapabilitySet) -> io::Result<()> {
    for capability in unwanted.iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Without CAP_SETPCAP the bounding set stays, and nothing that is left leads back to it but set-uid root.
            Ok(()) | Err(Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let sets = capabilities(None)?;
    let sets = CapabilitySets {
        effective: sets.effective - unwanted,
        permitted: sets.permitted - unwanted,
        inheritable: sets.inheritable - unwanted,
    };
    Ok(set_capabilities(None, sets)?)
}

/// Whether the kernel lets this thread use maps that it holds: it is asked about a file that is none.
fn maps_are_usable() -> bool {
    let Ok(file) = std::fs::File::open("/dev/null") else { return false };
    match MapData::from_fd(OwnedFd::from(file)) {
        Err(MapError::SyscallError(error)) => error.io_error.kind() != io::ErrorKind::PermissionDenied,
        _ => true,
    }
}
