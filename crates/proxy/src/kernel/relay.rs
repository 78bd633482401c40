//! The slow path: reads what the kernel program passed on, and forwards it to the runner as this process knows it.

use super::Kernel;
use super::shared::DESCRIPTOR_BYTES;
use crate::{Inbox, LinkError, capabilities};
use catchment_types::Descriptor;
use std::os::fd::OwnedFd;
use std::sync::Weak;

/// Starts a thread that forwards until the uplink's other end is closed, which is when the link or this uplink goes.
pub(super) fn start(kernel: Weak<Kernel>, age: u64, peer: OwnedFd) -> Result<(), LinkError> {
    let inbox = Inbox::new(peer).map_err(LinkError::io("read from the uplink's peer"))?;
    let body = move || run(&kernel, age, inbox);
    let thread = std::thread::Builder::new().name("descriptors".to_string()).spawn(body);
    thread.map(drop).map_err(LinkError::io("start the slow path's thread"))
}

fn run(kernel: &Weak<Kernel>, age: u64, mut inbox: Inbox) {
    // It moves bytes between sockets that are open already, and a thread keeps what it is born with.
    capabilities::drop_all();
    let mut descriptors: Vec<Descriptor> = Vec::new();
    loop {
        descriptors.clear();
        let outcome = inbox.recv(&mut descriptors);
        let Some(kernel) = kernel.upgrade() else { return };
        for descriptor in &descriptors {
            let bytes: [u8; DESCRIPTOR_BYTES] = descriptor.to_bytes();
            kernel.forward(&bytes, descriptor);
        }
        match outcome {
            Ok(1..) => {}
            // Nothing, where another uplink has taken its place.
            Ok(0) => return kernel.spoil(age),
            Err(error) => {
                tracing::warn!(%error, "the slow path read what is no descriptor");
                return kernel.spoil(age);
            }
        }
    }
}
