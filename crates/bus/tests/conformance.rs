//! One suite for every bus: whatever is built on the traits may rely on what is tested here.
#![forbid(unsafe_code)]

mod common;

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use catchment_bus::{BusError, LogError, Pushed, Snapshot};
use common::{Fixture, append_somewhere, is_quiet, next, read_all, record, until};
use futures::{StreamExt, stream};

macro_rules! on_every_bus {
    ($($test:ident),* $(,)?) => {
        on_every_bus!(@ in_memory $($test)*);
        on_every_bus!(@ embedded $($test)*);
        on_every_bus!(@ nats $($test)*);
    };
    (@ $bus:ident $($test:ident)*) => {
        mod $bus {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(super::common::$bus().await).await;
                }
            )*
        }
    };
}

on_every_bus![
    an_empty_log_is_empty,
    appends_are_numbered_and_read_in_order,
    a_wrong_expectation_stores_nothing,
    records_of_every_size_up_to_the_limit,
    concurrent_writers_store_every_record_once,
    appends_in_flight_take_their_places,
    a_follower_learns_of_every_append,
    what_is_pushed_keeps_its_order_and_comes_to_followers,
    snapshots_stand_for_records,
    an_old_snapshot_changes_nothing,
    large_snapshots_come_back,
    a_snapshot_taken_half_way_is_none,
    settling_stores_once,
    settling_tells_ones_own_record_from_anothers,
    wildcards_select,
    a_queue_group_shares_messages,
    requests_are_answered,
    requests_without_an_answer_end,
    wrong_subjects_are_refused,
    large_messages_are_refused,
    a_dropped_subscription_costs_nothing,
    a_slow_subscriber_loses_the_oldest,
];

async fn an_empty_log_is_empty(fixture: Fixture) {
    let log = &fixture.bus.log;
    assert_eq!(log.last().await.unwrap(), 0);
    assert_eq!(log.read(0, 10).await.unwrap(), vec![]);
    assert_eq!(log.read(5, 10).await.unwrap(), vec![]);
    assert_eq!(log.read(u64::MAX, 10).await.unwrap(), vec![]);
    assert!(fixture.bus.events.is_connected());
}

async fn appends_are_numbered_and_read_in_order(fixture: Fixture) {
    let log = &fixture.bus.log;
    for number in 0..200 {
        assert_eq!(log.append(record(number), number).await.unwrap(), number + 1);
    }
    assert_eq!(log.last().await.unwrap(), 200);
    let expected: Vec<_> = (0..200).map(|number| (number + 1, record(number))).collect();
    assert_eq!(read_all(&fixture.bus).await, expected);
    assert_eq!(log.read(0, 1000).await.unwrap(), expected);
    assert_eq!(log.read(0, 0).await.unwrap(), vec![]);
    assert_eq!(log.read(197, 2).await.unwrap(), expected[197..199]);
    assert_eq!(log.read(199, 2).await.unwrap(), expected[199..]);
    assert_eq!(log.read(200, 2).await.unwrap(), vec![]);
    assert_eq!(log.read(u64::MAX, usize::MAX).await.unwrap(), vec![]);
}

async fn a_wrong_expectation_stores_nothing(fixture: Fixture) {
    let log = &fixture.bus.log;
    assert_eq!(log.append(record("a"), 1).await, Err(LogError::Conflict { last: 0 }));
    log.append(record("a"), 0).await.unwrap();
    log.append(record("b"), 1).await.unwrap();
    for expected_last in [0, 1, 3, u64::MAX] {
        assert_eq!(log.append(record("x"), expected_last).await, Err(LogError::Conflict { last: 2 }));
    }
    assert_eq!(read_all(&fixture.bus).await, [(1, record("a")), (2, record("b"))]);
}

async fn records_of_every_size_up_to_the_limit(fixture: Fixture) {
    let log = &fixture.bus.log;
    let limit = log.record_bytes_max();
    assert!(limit >= 1_000_000, "{limit}");
    let sizes = [0, 1, 4096, 100_000, limit];
    for (size, last) in sizes.into_iter().zip(0..) {
        log.append(Bytes::from(vec![7; size]), last).await.unwrap();
    }
    let refused = log.append(Bytes::from(vec![7; limit + 1]), 5).await.unwrap_err();
    assert!(matches!(&refused, LogError::Refused(text) if text.contains(&limit.to_string())), "{refused}");
    let read = read_all(&fixture.bus).await;
    assert_eq!(read.iter().map(|(_, record)| record.len()).collect::<Vec<_>>(), sizes);
    assert!(read.iter().all(|(_, record)| record.iter().all(|byte| *byte == 7)));
}

async fn concurrent_writers_store_every_record_once(fixture: Fixture) {
    let writers = (0..8).map(|writer| {
        let bus = fixture.bus.clone();
        tokio::spawn(async move {
            let mut mine = vec![];
            for number in 0..25 {
                let record = record(format!("{writer}/{number}"));
                mine.push((append_somewhere(&bus, record.clone()).await, record));
            }
            assert!(mine.is_sorted());
            mine
        })
    });
    let mut appended = vec![];
    for writer in writers.collect::<Vec<_>>() {
        appended.extend(writer.await.unwrap());
    }
    appended.sort();
    assert_eq!(appended.len(), 200);
    assert_eq!(read_all(&fixture.bus).await, appended);
    let sequences: BTreeSet<u64> = appended.iter().map(|(sequence, _)| *sequence).collect();
    assert_eq!(sequences, (1..=200).collect());
}

/// Appends sent without waiting for one another, each guarded by the one before it. They may arrive in
/// any order; the guards put them into theirs.
async fn appends_in_flight_take_their_places(fixture: Fixture) {
    let log = &fixture.bus.log;
    let appended: Vec<_> = stream::iter(0..500)
        .map(async |number| {
            loop {
                match log.append(record(number), number).await {
                    // Those before it are still on their way.
                    Err(LogError::Conflict { last }) if last < number => {}
                    outcome => return outcome,
                }
            }
        })
        .buffered(32)
        .collect()
        .await;
    assert_eq!(appended, (1..=500).map(Ok).collect::<Vec<_>>());
    let expected: Vec<_> = (0..500).map(|number| (number + 1, record(number))).collect();
    assert_eq!(read_all(&fixture.bus).await, expected);
}

async fn a_follower_learns_of_every_append(fixture: Fixture) {
    let log = &fixture.bus.log;
    let nothing_yet = tokio::time::timeout(Duration::from_millis(100), log.grown(0)).await;
    assert!(nothing_yet.is_err(), "{nothing_yet:?}");
    let follower = tokio::spawn({
        let log = log.clone();
        async move {
            let (mut all, mut waits) = (vec![], 0);
            while all.len() < 60 {
                log.grown(all.len() as u64).await.unwrap();
                waits += 1;
                // Less than what there is, now and then.
                all.extend(log.read(all.len() as u64, 7).await.unwrap());
            }
            (all, waits)
        }
    });
    for number in 0..60 {
        log.append(record(number), number).await.unwrap();
        if number % 20 == 19 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let begin = Instant::now();
    let (all, waits) = follower.await.unwrap();
    assert!(begin.elapsed() < Duration::from_millis(100), "{:?}", begin.elapsed());
    assert_eq!(all, (0..60).map(|number| (number + 1, record(number))).collect::<Vec<_>>());
    assert!(waits <= 60, "{waits} times for 60 records");
    // What is there already needs no wait.
    tokio::time::timeout(Duration::from_millis(100), log.grown(59)).await.unwrap().unwrap();
}

/// Records without a guard, many on their way at one time and guarded ones between them; a follower that takes its time and
/// changes its mind in the middle of waiting.
async fn what_is_pushed_keeps_its_order_and_comes_to_followers(fixture: Fixture) {
    const RECORDS: u64 = 6000;
    let log = &fixture.bus.log;
    let nothing_yet = tokio::time::timeout(Duration::from_millis(100), log.follow(0, 9)).await;
    assert!(nothing_yet.is_err(), "{nothing_yet:?}");
    let follower = tokio::spawn({
        let log = log.clone();
        async move {
            let mut all: Vec<(u64, Bytes)> = vec![];
            while (all.len() as u64) < RECORDS {
                let patience = Duration::from_micros(all.len() as u64 % 300);
                let Ok(came) = tokio::time::timeout(patience, log.follow(all.len() as u64, 50)).await else { continue };
                let came = came.unwrap();
                assert!((1..=50).contains(&came.len()), "{}", came.len());
                all.extend(came);
            }
            all
        }
    });
    let mut on_their_way: VecDeque<(u64, Pushed)> = VecDeque::new();
    for number in 0..RECORDS {
        if number % 1000 == 999 {
            // Behind those that are on their way, whatever it believes is last.
            while let Some((sequence, pushed)) = on_their_way.pop_front() {
                assert_eq!(pushed.await, Ok(sequence));
            }
            assert_eq!(log.append(record(number), number).await, Ok(number + 1));
            continue;
        }
        on_their_way.push_back((number + 1, log.push(record(number)).await.unwrap()));
        if let Some((sequence, pushed)) = on_their_way.pop_front_if(|_| number % 100 > 63) {
            assert_eq!(pushed.await, Ok(sequence));
        }
    }
    let expected: Vec<_> = (0..RECORDS).map(|number| (number + 1, record(number))).collect();
    assert!(follower.await.unwrap() == expected);
    assert_eq!(log.follow(RECORDS - 2, 50).await.unwrap(), expected[RECORDS as usize - 2..]);
    // One that is ahead of another is not held up by it, and one that begins again has everything.
    assert_eq!(log.follow(0, 3).await.unwrap(), expected[..3]);
    let too_large = Bytes::from(vec![0; log.record_bytes_max() + 1]);
    assert!(matches!(log.push(too_large).await.err(), Some(LogError::Refused(_))));
}

fn snapshot_at(sequence: u64) -> Snapshot {
    Snapshot { sequence, bytes: record(format!("everything up to {sequence}")) }
}

async fn snapshots_stand_for_records(fixture: Fixture) {
    let log = &fixture.bus.log;
    assert_eq!((log.snapshot().await, log.snapshot_sequence().await), (Ok(None), Ok(0)));
    for number in 0..1200 {
        log.append(record(number), number).await.unwrap();
    }
    assert_eq!(log.put_snapshot(snapshot_at(1)).await, Ok(true));
    assert_eq!(log.put_snapshot(snapshot_at(600)).await, Ok(true));
    assert_eq!(log.read(1, 1).await, Ok(vec![(2, record(1))]));
    for (sequence, before) in [(1100, 600), (1200, 1100)] {
        assert_eq!(log.put_snapshot(snapshot_at(sequence)).await, Ok(true));
        assert_eq!(log.snapshot().await, Ok(Some(snapshot_at(sequence))));
        assert_eq!(log.snapshot_sequence().await, Ok(sequence));
        // From the snapshot before it everything is there, and what is in that one is forgotten, about.
        let expected: Vec<_> = (before..1200).map(|number| (number + 1, record(number))).collect();
        assert_eq!(log.read(before, 2000).await, Ok(expected));
        let forgotten = log.read(before - 2, 10).await.unwrap_err();
        assert!(matches!(forgotten, LogError::Forgotten { first } if first >= before && first <= before + 1));
        assert_eq!(log.read(0, 0).await, Ok(vec![]));
        assert!(matches!(log.read(0, usize::MAX).await, Err(LogError::Forgotten { .. })));
    }
    assert_eq!(log.last().await, Ok(1200));
    assert_eq!(log.append(record("x"), 0).await, Err(LogError::Conflict { last: 1200 }));
    assert_eq!(log.append(record("next"), 1200).await, Ok(1201));
    assert_eq!(log.read(1200, 10).await, Ok(vec![(1201, record("next"))]));
    // Also when a snapshot is of all there is, twice.
    for sequence in [1201, 1202] {
        assert_eq!(log.put_snapshot(snapshot_at(sequence)).await, Ok(true));
        assert_eq!(log.append(record("more"), sequence).await, Ok(sequence + 1));
    }
    assert_eq!(log.read(1202, 10).await, Ok(vec![(1203, record("more"))]));
}

async fn an_old_snapshot_changes_nothing(fixture: Fixture) {
    let log = &fixture.bus.log;
    for number in 0..20 {
        log.append(record(number), number).await.unwrap();
    }
    assert!(matches!(log.put_snapshot(snapshot_at(21)).await, Err(LogError::Refused(_))));
    assert_eq!(log.put_snapshot(snapshot_at(10)).await, Ok(true));
    for old in [10, 3] {
        let other = Snapshot { sequence: old, bytes: record("another") };
        assert_eq!(log.put_snapshot(other).await, Ok(false));
    }
    assert_eq!(log.snapshot().await, Ok(Some(snapshot_at(10))));
    // Of several at once the newest stays, and the log reaches from it to its end.
    let puts = (11..=20).map(|sequence| log.put_snapshot(snapshot_at(sequence)));
    let stored = futures::future::join_all(puts).await;
    assert!(stored.iter().all(Result::is_ok) && stored.contains(&Ok(true)), "{stored:?}");
    let newest = log.snapshot().await.unwrap().unwrap();
    assert_eq!(newest, snapshot_at(newest.sequence));
    let rest = log.read(newest.sequence, 100).await.unwrap();
    assert_eq!(rest.len() as u64, 20 - newest.sequence);
}

async fn large_snapshots_come_back(fixture: Fixture) {
    let log = &fixture.bus.log;
    log.append(record("a"), 0).await.unwrap();
    let large: Bytes = (0..5_000_003_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (sequence, bytes) in [(1, large.clone()), (2, Bytes::new()), (3, large.slice(..1 << 20))] {
        log.put_snapshot(Snapshot { sequence, bytes: bytes.clone() }).await.unwrap();
        assert!(log.snapshot().await.unwrap().unwrap().bytes == bytes);
        log.append(record(sequence), sequence).await.unwrap();
    }
}

/// Ends the taking of a snapshot after each step it waits at, as the death of the process does.
async fn a_snapshot_taken_half_way_is_none(fixture: Fixture) {
    let log = &fixture.bus.log;
    for number in 0..400 {
        log.append(record(number), number).await.unwrap();
    }
    let large = |sequence: u64| Snapshot { sequence, bytes: Bytes::from(vec![sequence as u8; 3_000_000]) };
    let (mut sequence, mut newest, mut steps) = (0, 0, 0);
    loop {
        sequence += 1;
        let mut put = Box::pin(log.put_snapshot(large(sequence)));
        let mut left = steps;
        let done = futures::future::poll_fn(|context| match put.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => {
                left -= 1;
                Poll::Pending
            }
        });
        let done = done.await;
        drop(put);
        // What was on its way may arrive yet; then it is whole. It is never torn, and nothing is lost before it.
        let found = log.snapshot().await.unwrap();
        let at = found.as_ref().map_or(0, |found| found.sequence);
        assert!((newest..=sequence).contains(&at), "{at} after {steps} steps at {sequence}");
        assert!(found.is_none_or(|found| found == large(at)), "torn after {steps} steps");
        let rest = log.read(at, 1000).await.unwrap();
        assert_eq!(rest.len() as u64, 400 - at);
        newest = at;
        if done.is_some() {
            assert_eq!((done, at), (Some(Ok(true)), sequence));
            break;
        }
        steps += 1;
        assert!(sequence < 390, "it is never done");
    }
    println!("{steps} steps");
    assert_eq!(log.put_snapshot(large(395)).await, Ok(true));
    assert_eq!(log.snapshot().await, Ok(Some(large(395))));
}

async fn settling_stores_once(fixture: Fixture) {
    let log = &fixture.bus.log;
    // As if the first append had been lost on the way ...
    assert_eq!(log.settle(record("a"), 0).await, Ok(1));
    // ... and as if only its acknowledgement had.
    assert_eq!(log.settle(record("a"), 0).await, Ok(1));
    assert_eq!(log.append(record("b"), 1).await, Ok(2));
    assert_eq!(log.settle(record("a"), 0).await, Ok(1));
    assert_eq!(log.settle(record("b"), 1).await, Ok(2));
    assert_eq!(read_all(&fixture.bus).await, [(1, record("a")), (2, record("b"))]);
}

async fn settling_tells_ones_own_record_from_anothers(fixture: Fixture) {
    let log = &fixture.bus.log;
    log.append(record("another's"), 0).await.unwrap();
    assert_eq!(log.settle(record("mine"), 0).await, Err(LogError::Conflict { last: 1 }));
    assert_eq!(log.settle(record("mine"), 7).await, Err(LogError::Conflict { last: 1 }));
    assert_eq!(log.last().await.unwrap(), 1);
    let huge = Bytes::from(vec![0; log.record_bytes_max() + 1]);
    assert!(matches!(log.settle(huge, 1).await, Err(LogError::Unavailable(_))));
}

async fn wildcards_select(fixture: Fixture) {
    let events = &fixture.bus.events;
    let mut exact = events.subscribe("v1.default.job.accepted", None).await.unwrap();
    let mut one = events.subscribe("v1.*.job.accepted", None).await.unwrap();
    let mut rest = events.subscribe("v1.default.>", None).await.unwrap();
    let mut other = events.subscribe("v1.default", None).await.unwrap();
    for subject in ["default.job.accepted", "lab.job.accepted", "default.job.closed", "default.job"] {
        events.publish(&format!("v1.{subject}"), record(subject)).await.unwrap();
    }
    for (subscription, expected) in [
        (&mut exact, vec!["default.job.accepted"]),
        (&mut one, vec!["default.job.accepted", "lab.job.accepted"]),
        (&mut rest, vec!["default.job.accepted", "default.job.closed", "default.job"]),
        (&mut other, vec![]),
    ] {
        for subject in expected {
            let message = next(subscription).await.unwrap();
            assert_eq!(message.subject, format!("v1.{subject}"));
            assert_eq!(message.payload, record(subject));
            assert!(!message.is_request());
            assert!(matches!(message.respond(Bytes::new()).await, Err(BusError::NotARequest { .. })));
        }
        assert!(is_quiet(subscription).await);
        assert_eq!(subscription.dropped(), 0);
    }
}

async fn a_queue_group_shares_messages(fixture: Fixture) {
    let events = &fixture.bus.events;
    let mut members = vec![];
    for _ in 0..3 {
        members.push(events.subscribe("work.*", Some("nodes")).await.unwrap());
    }
    let mut other_group = events.subscribe("work.>", Some("auditors")).await.unwrap();
    let mut alone = events.subscribe("work.now", None).await.unwrap();
    for number in 0..300 {
        events.publish("work.now", record(number)).await.unwrap();
    }
    for number in 0..300 {
        assert_eq!(next(&mut alone).await.unwrap().payload, record(number));
        assert_eq!(next(&mut other_group).await.unwrap().payload, record(number));
    }
    let mut seen = vec![];
    for member in &mut members {
        let mut mine = 0;
        while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(300), member.next()).await {
            seen.push(message.payload);
            mine += 1;
        }
        assert!(mine > 30, "one member got only {mine} of 300");
    }
    seen.sort();
    let mut expected: Vec<Bytes> = (0..300).map(record).collect();
    expected.sort();
    assert_eq!(seen, expected);
}

async fn requests_are_answered(fixture: Fixture) {
    let events = fixture.bus.events.clone();
    let mut service = events.subscribe("ingest.*", Some("gateways")).await.unwrap();
    let serving = tokio::spawn(async move {
        while let Some(request) = service.next().await {
            assert!(request.is_request());
            let client = request.header("catchment-client").unwrap_or("nobody").to_owned();
            let answer = format!("{client}:{}:{}", request.subject, request.payload.len());
            request.respond(record(answer)).await.unwrap();
            // A second answer is ignored.
            request.respond(record("again")).await.unwrap();
        }
    });
    let headers = vec![("Catchment-Client".to_owned(), "ann".to_owned())];
    let timeout = Duration::from_secs(5);
    let reply = events.request("ingest.a", headers, Bytes::from(vec![0; 1000]), timeout).await.unwrap();
    assert_eq!(reply.payload, record("ann:ingest.a:1000"));
    let replies = (0..50).map(|number| {
        let events = events.clone();
        async move {
            let payload = Bytes::from(vec![0; number]);
            let reply = events.request("ingest.b", vec![], payload, timeout).await.unwrap();
            assert_eq!(reply.payload, record(format!("nobody:ingest.b:{number}")));
        }
    });
    futures::future::join_all(replies).await;
    serving.abort();
}

async fn requests_without_an_answer_end(fixture: Fixture) {
    let events = &fixture.bus.events;
    let second = Duration::from_secs(1);
    let begin = Instant::now();
    let nobody = events.request("nobody.here", vec![], Bytes::new(), second * 5).await.unwrap_err();
    assert!(matches!(&nobody, BusError::NoResponders { subject } if subject == "nobody.here"), "{nobody}");
    assert!(begin.elapsed() < second * 2, "{:?}", begin.elapsed());

    let _silent = events.subscribe("silent", None).await.unwrap();
    let begin = Instant::now();
    let silence = events.request("silent", vec![], Bytes::new(), second / 5).await.unwrap_err();
    assert!(matches!(silence, BusError::NoReply { timeout_ms: 200, .. }), "{silence}");
    assert!(begin.elapsed() < second, "{:?}", begin.elapsed());
}

async fn wrong_subjects_are_refused(fixture: Fixture) {
    let events = &fixture.bus.events;
    let second = Duration::from_secs(1);
    for bad in ["", "a b", "a..b", "a.*", ">", "a\r\nPUB x 0\r\n"] {
        let error = events.publish(bad, Bytes::new()).await.unwrap_err();
        assert!(matches!(error, BusError::Subject { .. }), "{error}");
        let error = events.request(bad, vec![], Bytes::new(), second).await.unwrap_err();
        assert!(matches!(error, BusError::Subject { .. }), "{error}");
    }
    for (pattern, group) in [("a.>.b", None), ("a b", None), ("", None), ("a", Some("")), ("a", Some("x y"))] {
        let error = events.subscribe(pattern, group).await.unwrap_err();
        assert!(matches!(error, BusError::Subject { .. }), "{error}");
    }
    for (name, value) in [("", "x"), ("a b", "x"), ("a:", "x"), ("a", "x\r\ny"), ("a", " x"), ("é", "x")] {
        let headers = vec![(name.to_owned(), value.to_owned())];
        let error = events.request("a", headers, Bytes::new(), second).await.unwrap_err();
        assert!(matches!(error, BusError::Header { .. }), "{error}");
    }
}

async fn large_messages_are_refused(fixture: Fixture) {
    let events = &fixture.bus.events;
    let mut subscription = events.subscribe("large", None).await.unwrap();
    let largest = Bytes::from(vec![1; 1 << 20]);
    let larger = Bytes::from(vec![1; (1 << 20) + 1]);
    let error = events.publish("large", larger.clone()).await.unwrap_err();
    assert!(matches!(error, BusError::TooLarge { .. }), "{error}");
    let error = events.request("large", vec![], larger, Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, BusError::TooLarge { .. }), "{error}");
    events.publish("large", largest.clone()).await.unwrap();
    assert_eq!(next(&mut subscription).await.unwrap().payload, largest);
}

async fn a_dropped_subscription_costs_nothing(fixture: Fixture) {
    let events = &fixture.bus.events;
    for _ in 0..100 {
        drop(events.subscribe("gone", None).await.unwrap());
    }
    // Unsubscribing takes a moment on a server; then nobody is there.
    until("nobody listens", async || {
        let request = events.request("gone", vec![], Bytes::new(), Duration::from_millis(200)).await;
        matches!(request, Err(BusError::NoResponders { .. }))
    })
    .await;
}

async fn a_slow_subscriber_loses_the_oldest(fixture: Fixture) {
    let events = &fixture.bus.events;
    let mut slow = events.subscribe("flood", None).await.unwrap();
    let mut quick = events.subscribe("flood", None).await.unwrap();
    let total = catchment_bus::QUEUED_MESSAGES_MAX + 500;
    for number in 0..total {
        events.publish("flood", record(number)).await.unwrap();
        assert_eq!(next(&mut quick).await.unwrap().payload, record(number));
    }
    until("the surplus is dropped", async || slow.dropped() == 500).await;
    assert_eq!(next(&mut slow).await.unwrap().payload, record(500));
    assert_eq!(quick.dropped(), 0);
}
