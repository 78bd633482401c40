//! The socket link, as an ordinary user has it.

mod common;

use catchment_proxy::{Inbox, Link, LinkError, LinkKind, Mode, Options, Route, RunnerId, open};
use common::descriptor;
use std::sync::Arc;

fn link(credits: u32) -> Arc<dyn Link> {
    let (link, report) = open(Mode::Off, &Options { credits, ..Options::default() }).expect("a link");
    assert_eq!((report.link, report.routing), (LinkKind::Socket, None));
    link
}

fn attach(link: &dyn Link, runner: u32) -> Inbox {
    Inbox::new(link.attach(RunnerId(runner)).expect("a runner's end")).expect("an inbox")
}

#[test]
fn a_route_leads_to_its_runner_and_is_counted() {
    let link = link(8);
    let (mut one, mut two) = (attach(&*link, 1), attach(&*link, 2));
    link.place(Route(10), RunnerId(1)).expect("a place");
    link.place(Route(20), RunnerId(2)).expect("a place");
    for (route, number) in [(10, 1), (20, 2), (10, 3)] {
        link.send(&descriptor(route, number)).expect("room");
    }
    link.place(Route(10), RunnerId(2)).expect("another place");
    link.send(&descriptor(10, 4)).expect("room");
    let (mut at_one, mut at_two) = (Vec::new(), Vec::new());
    while at_one.len() < 2 {
        one.recv(&mut at_one).expect("descriptors");
    }
    while at_two.len() < 2 {
        two.recv(&mut at_two).expect("descriptors");
    }
    assert_eq!(at_one, [descriptor(10, 1), descriptor(10, 3)]);
    assert_eq!(at_two, [descriptor(20, 2), descriptor(10, 4)]);
    let mut counts = link.routes();
    counts.sort_by_key(|count| count.route);
    assert_eq!((counts[0].runner, counts[0].socket, counts[0].payload_bytes), (Some(RunnerId(2)), 3, 3000));
    assert_eq!((counts[1].runner, counts[1].socket, counts[1].delivered()), (Some(RunnerId(2)), 1, 1));
    assert_eq!(link.remove(Route(10)).expect("its counts").socket, 3);
    assert!(matches!(link.send(&descriptor(10, 5)), Err(LinkError::Unplaced(Route(10)))));
    assert_eq!(link.routes().len(), 1);
}

#[test]
fn beyond_its_credits_a_runner_gets_nothing_until_it_gives_some_back() {
    let link = link(3);
    let mut inbox = attach(&*link, 1);
    link.place(Route(1), RunnerId(1)).expect("a place");
    let sent = (0..10).filter(|n| link.send(&descriptor(1, *n)).is_ok()).count();
    assert_eq!(sent, 3);
    assert!(matches!(link.send(&descriptor(1, 99)), Err(LinkError::Full(RunnerId(1)))));
    let mut into = Vec::new();
    assert_eq!(inbox.recv(&mut into).expect("descriptors"), 3);
    link.credit(RunnerId(1), 2);
    let (sent, last) = link.send_all(&[descriptor(1, 3), descriptor(1, 4), descriptor(1, 5)]);
    assert!(sent == 2 && matches!(last, Err(LinkError::Full(_))));
}

#[test]
fn a_dead_runner_is_refused_and_replaced() {
    let link = link(8);
    drop(attach(&*link, 1));
    link.place(Route(1), RunnerId(1)).expect("a place");
    assert!(matches!(link.send(&descriptor(1, 1)), Err(LinkError::Gone(RunnerId(1)))));
    let mut next = attach(&*link, 2);
    assert!(matches!(link.attach(RunnerId(2)), Err(LinkError::Attached(RunnerId(2)))));
    link.detach(RunnerId(1));
    assert!(matches!(link.send(&descriptor(1, 1)), Err(LinkError::Unplaced(Route(1)))));
    assert!(matches!(link.place(Route(1), RunnerId(1)), Err(LinkError::Unknown(RunnerId(1)))));
    link.place(Route(1), RunnerId(2)).expect("a place");
    link.send(&descriptor(1, 2)).expect("room");
    let mut into = Vec::new();
    next.recv(&mut into).expect("a descriptor");
    assert_eq!(into, [descriptor(1, 2)]);
    link.detach(RunnerId(2));
    assert_eq!(next.recv(&mut into).expect("the end"), 0);
}
