//! What only the inside can do to a link: misuse its uplink, take sockets out of the maps. They need root.

use super::*;
use crate::Inbox;
use crate::testing::descriptor;
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(10);

/// A link, or a line that says why the test is skipped.
fn link(window: u32) -> Option<Arc<Kernel>> {
    match Routing::open(&Objects::default(), None, false) {
        Ok((routing, maps)) => Some(Kernel::new(routing, maps, None, window).expect("a link")),
        Err(lack) => {
            crate::testing::skipped(&lack.to_string());
            None
        }
    }
}

/// A runner that hands over what it gets, but for what is no descriptor, until the link ends. It gives no credits.
fn runner(link: &Kernel, id: u32) -> std::sync::mpsc::Receiver<Descriptor> {
    let mut inbox = Inbox::new(link.attach(RunnerId(id)).expect("a runner's end")).expect("an inbox");
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut into = Vec::new();
        while !matches!(inbox.recv(&mut into), Ok(0)) {
            into.drain(..).for_each(|descriptor| sender.send(descriptor).unwrap_or_default());
        }
    });
    receiver
}

fn count(link: &Kernel, route: u64) -> RouteCount {
    link.routes().into_iter().find(|count| count.route == Route(route)).expect("a route")
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < WAIT, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_write_of_several_descriptors_is_split_among_their_runners() {
    let Some(link) = link(64) else { return };
    let runners = [runner(&link, 0), runner(&link, 1), runner(&link, 2)];
    for route in 0..3 {
        link.place(Route(route), RunnerId(route as u32)).expect("a place");
    }
    let batch: Vec<Descriptor> = (0..16).map(|n| descriptor(n * 7 % 3, n)).collect();
    let (sent, outcome) = link.send_all(&batch);
    outcome.expect("room");
    assert_eq!(sent, 16);
    for (route, runner) in runners.iter().enumerate() {
        let wanted = batch.iter().filter(|descriptor| descriptor.function.0 == route as u64);
        for descriptor in wanted {
            assert_eq!(runner.recv_timeout(WAIT).expect("a descriptor"), *descriptor);
        }
        assert!(runner.try_recv().is_err());
    }
    let counts: Vec<RouteCount> = (0..3).map(|route| count(&link, route)).collect();
    assert_eq!(counts.iter().map(|count| count.kernel).sum::<u64>(), 16);
    assert_eq!(counts.iter().map(|count| count.payload_bytes).sum::<u64>(), 16 * 1000);
}

#[test]
fn a_socket_that_left_the_map_is_served_by_the_slow_path() {
    let Some(link) = link(64) else { return };
    let inbox = runner(&link, 1);
    link.place(Route(1), RunnerId(1)).expect("a place");
    link.send(&descriptor(1, 1)).expect("room");
    inbox.recv_timeout(WAIT).expect("a descriptor");
    link.maps().remove_runner(RunnerId(1));
    let batch: Vec<Descriptor> = (2..20).map(|n| descriptor(1, n)).collect();
    link.send_all(&batch).1.expect("room");
    for descriptor in batch {
        assert_eq!(inbox.recv_timeout(WAIT).expect("a descriptor"), descriptor);
    }
    // The slow path counts after it has sent.
    eventually("all are counted", || count(&link, 1).delivered() == 19);
    let count = count(&link, 1);
    assert_eq!((count.kernel, count.slow, count.dropped, count.payload_bytes), (1, 18, 0, 19_000));
}

#[test]
fn within_a_write_what_cannot_be_routed_does_not_follow_what_could() {
    let Some(link) = link(64) else { return };
    let inboxes = [runner(&link, 0), runner(&link, 1)];
    for n in 0..2 {
        link.place(Route(n), RunnerId(n as u32)).expect("a place");
    }
    link.maps().remove_runner(RunnerId(1));
    let batch: Vec<Descriptor> = (0..16).map(|n| descriptor(n % 2, n)).collect();
    link.send_all(&batch).1.expect("room");
    for descriptor in batch {
        let inbox = &inboxes[descriptor.function.0 as usize];
        assert_eq!(inbox.recv_timeout(WAIT).expect("a descriptor"), descriptor);
    }
    eventually("all are counted", || (count(&link, 0).kernel, count(&link, 1).slow) == (8, 8));
    assert_eq!((count(&link, 0).slow, count(&link, 1).kernel), (0, 0));
}

#[test]
fn a_closed_socket_leads_to_the_slow_path_and_a_new_one_back() {
    let Some(link) = link(64) else { return };
    drop(link.attach(RunnerId(1)).expect("a runner's end"));
    link.place(Route(1), RunnerId(1)).expect("a place");
    // The kernel takes note of a closed socket in its own time.
    eventually("the death is noticed", || matches!(link.send(&descriptor(1, 1)), Err(LinkError::Gone(RunnerId(1)))));
    assert!(count(&link, 1).dropped >= 1);
    let next = runner(&link, 2);
    link.place(Route(1), RunnerId(2)).expect("a place");
    link.detach(RunnerId(1));
    let before = count(&link, 1).kernel;
    link.send(&descriptor(1, 2)).expect("room");
    assert_eq!(next.recv_timeout(WAIT).expect("a descriptor"), descriptor(1, 2));
    assert_eq!(count(&link, 1).kernel, before + 1);
}

/// Sends until what is sent arrives again, and says how many were lost before that.
fn recovers(link: &Kernel, inbox: &std::sync::mpsc::Receiver<Descriptor>, case: &str) -> u64 {
    for lost in 0..32 {
        let sent = descriptor(1, 1000 + lost);
        let _ = link.send(&sent);
        // Those from before may still be on their way.
        while let Ok(got) = inbox.recv_timeout(Duration::from_millis(100)) {
            if got == sent {
                // Nothing is left that would spoil the next.
                for n in 0..40 {
                    link.send(&descriptor(1, n)).unwrap_or_else(|error| panic!("{case}: {error}"));
                    assert_eq!(inbox.recv_timeout(WAIT).expect("a descriptor"), descriptor(1, n), "{case}");
                }
                link.credit(RunnerId(1), u32::MAX);
                return lost;
            }
        }
        link.credit(RunnerId(1), u32::MAX);
    }
    panic!("{case}: it stays poisoned");
}

#[test]
fn no_write_poisons_the_uplink() {
    let Some(link) = link(64) else { return };
    let inbox = runner(&link, 1);
    link.place(Route(1), RunnerId(1)).expect("a place");
    let good = descriptor(1, 7).to_bytes();
    let mut unknown = good;
    unknown[60] = 99;
    let odd = descriptor(0xdead, 1).to_bytes();
    let half_behind = [&good[..], &good[..30]].concat();
    let cases: [(&str, &[u8]); 8] = [
        ("one byte", &[1]),
        ("63 bytes", &good[..63]),
        ("one and a half", &half_behind),
        ("half", &good[32..]),
        ("a route that nobody placed", &odd),
        ("zeros", &[0; 64]),
        ("noise", &[0xa5; 1000]),
        ("an unknown kind on a known route", &unknown),
    ];
    for round in 0..3 {
        for (case, bytes) in cases {
            link.read().uplink.misuse(bytes).expect("the kernel takes it");
            let lost = recovers(&link, &inbox, case);
            assert!(lost <= 2, "{case}, round {round}: {lost} were lost");
        }
    }
}

#[test]
fn an_uplink_whose_peer_died_is_replaced() {
    let Some(link) = link(64) else { return };
    let inbox = runner(&link, 1);
    link.place(Route(1), RunnerId(1)).expect("a place");
    for age in 0..20 {
        rustix::net::shutdown(&*link.read().uplink.socket_for_tests(), rustix::net::Shutdown::Both).expect("a socket");
        eventually("it is replaced", || {
            recovers(&link, &inbox, "shut down");
            link.read().uplink.age() > age
        });
    }
}

#[test]
fn nothing_is_left_of_a_link_that_was_dropped() {
    let Some(first) = link(8) else { return };
    drop(first);
    let open = || std::fs::read_dir("/proc/self/fd").expect("a list").count();
    let before = open();
    for _ in 0..5 {
        let Some(link) = link(8) else { return };
        let ends: Vec<OwnedFd> = (0..8).map(|n| link.attach(RunnerId(n)).expect("a runner's end")).collect();
        for n in 0..8 {
            link.place(Route(n), RunnerId(n as u32)).expect("a place");
            link.send(&descriptor(n, 1)).expect("room");
        }
        drop(ends);
        link.send(&descriptor(1, 2)).ok();
        drop(link);
    }
    // Other tests run beside this one, and open and close files of their own.
    eventually("the files are closed", || open() <= before + 8);
}
