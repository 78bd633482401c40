//! What the kernel program is compared with: a process that takes descriptors, looks up their route, counts and passes
//! them on.

use catchment_types::Descriptor;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;

/// Connects to the broker on this machine.
pub fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Says on which port it listens, and relays between the first two that connect.
pub fn run() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    io::stdout().write_all(&listener.local_addr()?.port().to_ne_bytes())?;
    io::stdout().flush()?;
    let mut ends = Vec::new();
    for _ in 0..2 {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        ends.push(stream);
    }
    let (one, other) = (ends[0].try_clone()?, ends[1].try_clone()?);
    let back = thread::spawn(move || relay(&other, &one));
    let there = relay(&ends[0], &ends[1]);
    // Whoever is left learns of the other's end.
    ends.iter().for_each(|end| end.shutdown(Shutdown::Both).unwrap_or_default());
    there.and(back.join().expect("the other direction"))
}

fn relay(mut from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    // Route to target, descriptors, payload; with as many others as the links have.
    let mut routes: HashMap<u64, (&TcpStream, u64, u64)> = (1000..1100).map(|route| (route, (to, 0, 0))).collect();
    routes.insert(super::way::THERE, (to, 0, 0));
    let mut buffer = [0; 64 * Descriptor::BYTES];
    let mut filled = 0;
    loop {
        let count = from.read(&mut buffer[filled..])?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let (frames, _) = buffer[..filled].as_chunks::<{ Descriptor::BYTES }>();
        let whole = frames.len() * Descriptor::BYTES;
        for frame in frames {
            let Ok(descriptor) = Descriptor::from_bytes(frame) else { continue };
            let Some((_, count, bytes)) = routes.get_mut(&descriptor.function.0) else { continue };
            *count += 1;
            *bytes += descriptor.length;
        }
        // All go to one target here, so that they can go in one write.
        if let Some((mut to, ..)) = routes.get(&super::way::THERE).copied() {
            to.write_all(&buffer[..whole])?;
        }
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
}
