use super::*;
use crate::testing::descriptor;
use proptest::prelude::*;
use std::io::Write;
use std::os::unix::net::UnixStream;

fn pair() -> (UnixStream, Inbox) {
    let (node, runner) = UnixStream::pair().expect("a socket pair");
    runner.set_nonblocking(true).expect("a socket");
    (node, Inbox::new(runner.into()).expect("an inbox"))
}

fn drain(inbox: &mut Inbox) -> (Vec<Descriptor>, usize) {
    let (mut into, mut refused) = (Vec::new(), 0);
    loop {
        match inbox.recv(&mut into) {
            Ok(0) => return (into, refused),
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                refused += 1;
            }
        }
    }
}

#[test]
fn a_read_takes_all_that_is_there() {
    let (mut node, mut inbox) = pair();
    let sent: Vec<Descriptor> = (0..5).map(|n| descriptor(1, n)).collect();
    node.write_all(&sent.iter().flat_map(Descriptor::to_bytes).collect::<Vec<u8>>()).expect("a write");
    let mut into = vec![descriptor(9, 9)];
    assert_eq!(inbox.recv(&mut into).expect("descriptors"), 5);
    assert_eq!(into[1..], sent);
    drop(node);
    assert_eq!(inbox.recv(&mut into).expect("the end"), 0);
    assert_eq!(inbox.recv(&mut into).expect("still the end"), 0);
}

#[test]
fn garbage_is_named_and_skipped_and_hides_nothing() {
    let (mut node, mut inbox) = pair();
    let mut garbage = descriptor(1, 2).to_bytes();
    garbage[60] = 77;
    node.write_all(&[descriptor(1, 1).to_bytes(), garbage, descriptor(1, 3).to_bytes()].concat()).expect("a write");
    let mut into = Vec::new();
    assert_eq!(inbox.recv(&mut into).expect("what comes before"), 1);
    let error = inbox.recv(&mut into).expect_err("garbage");
    assert_eq!(error.to_string(), "unknown descriptor kind 77");
    assert_eq!(inbox.recv(&mut into).expect("what comes after"), 1);
    assert_eq!(into, [descriptor(1, 1), descriptor(1, 3)]);
}

#[test]
fn half_a_descriptor_at_the_end_is_none() {
    let (mut node, mut inbox) = pair();
    node.write_all(&descriptor(1, 1).to_bytes()[..40]).expect("a write");
    drop(node);
    assert_eq!(drain(&mut inbox), (vec![], 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// However a stream is cut, and whatever garbage stands between, every descriptor arrives once and in order.
    #[test]
    fn any_cut_gives_the_same(
        frames in prop::collection::vec(prop::bool::weighted(0.9), 0..200),
        cuts in prop::collection::vec(1usize..300, 1..50),
    ) {
        let mut bytes = Vec::new();
        for (n, good) in frames.iter().enumerate() {
            let mut frame = descriptor(3, n as u64).to_bytes();
            if !good {
                frame[62] = 1;
            }
            bytes.extend(frame);
        }
        let (mut node, mut inbox) = pair();
        let writer = std::thread::spawn(move || {
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    return;
                }
                let (now, later) = rest.split_at(rest.len().min(*cut));
                node.write_all(now).expect("a write");
                rest = later;
            }
        });
        let (got, refused) = drain(&mut inbox);
        writer.join().expect("the writer");
        let good = frames.iter().enumerate().filter(|(_, good)| **good);
        let wanted: Vec<Descriptor> = good.map(|(n, _)| descriptor(3, n as u64)).collect();
        prop_assert_eq!(got, wanted);
        prop_assert_eq!(refused, frames.iter().filter(|good| !**good).count());
    }
}
