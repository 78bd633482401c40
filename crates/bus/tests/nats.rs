//! What only a server can do: be away, come back, be paused, be full, be configured wrongly.
#![forbid(unsafe_code)]

mod common;

use std::time::{Duration, Instant};

use async_nats::jetstream;
use bytes::Bytes;
use catchment_bus::{Bus, BusError, EventLog, LogError, NatsConfig, Snapshot};
use common::nats_server::{NatsServer, free_port};
use common::{config, next, read_all, record, until};
use futures::StreamExt;

const SECOND: Duration = Duration::from_secs(1);

async fn raw_stream(server: &NatsServer) -> jetstream::stream::Stream {
    let client = async_nats::connect(server.url()).await.unwrap();
    jetstream::new(client).get_stream("CATCHMENT_LOG").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_comes_back_with_log_and_subscriptions() {
    let mut server = NatsServer::start();
    let bus = Bus::nats(config(&server)).await.unwrap();
    let mut subscription = bus.events.subscribe("news.>", None).await.unwrap();
    let mut member = bus.events.subscribe("work", Some("nodes")).await.unwrap();
    let mut last = 0;
    for round in 0..3 {
        for _ in 0..20 {
            last = bus.log.append(record(last), last).await.unwrap();
        }
        server.kill();
        until("the loss is noticed", async || !bus.events.is_connected()).await;

        let begin = Instant::now();
        let append = bus.log.append(record("lost"), last).await.unwrap_err();
        assert!(matches!(append, LogError::Unavailable(_)), "{append}");
        assert!(matches!(bus.log.last().await, Err(LogError::Unavailable(_))));
        assert!(matches!(bus.log.read(0, 1).await, Err(LogError::Unavailable(_))));
        assert!(matches!(bus.log.settle(record("lost"), last).await, Err(LogError::Unavailable(_))));
        let publish = bus.events.publish("news.a", Bytes::new()).await.unwrap_err();
        assert!(matches!(publish, BusError::Disconnected { .. }), "{publish}");
        assert!(publish.to_string().contains(&server.url()), "{publish}");
        let request = bus.events.request("news.a", vec![], Bytes::new(), SECOND).await;
        assert!(matches!(request, Err(BusError::Disconnected { .. })));
        assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
        let mut late = bus.events.subscribe("late", None).await.unwrap();

        server.start_again();
        until("it is connected again", async || bus.events.is_connected()).await;
        until("the log answers again", async || bus.log.last().await.is_ok()).await;
        assert_eq!(bus.log.last().await.unwrap(), last);
        last = bus.log.append(record(last), last).await.unwrap();

        // Whatever was published while the server was away is gone; from now on all arrives.
        let payload = record(round);
        for (subject, subscription) in [("news.b", &mut subscription), ("work", &mut member), ("late", &mut late)] {
            bus.events.publish(subject, payload.clone()).await.unwrap();
            assert_eq!(next(subscription).await.unwrap().payload, payload);
        }
    }
    let expected: Vec<_> = (0..last).map(|number| (number + 1, record(number))).collect();
    assert_eq!(read_all(&bus).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_whose_acknowledgement_is_late_is_settled() {
    let server = NatsServer::start();
    let bus = Bus::nats(config(&server)).await.unwrap();
    bus.log.append(record("first"), 0).await.unwrap();
    for round in 0..3 {
        let last = 1 + round;
        let mine = record(format!("mine {round}"));
        server.pause();
        let begin = Instant::now();
        let error = bus.log.append(mine.clone(), last).await.unwrap_err();
        assert!(matches!(error, LogError::Unavailable(_)), "{error}");
        assert!(begin.elapsed() < 3 * SECOND, "{:?}", begin.elapsed());
        server.go_on();
        // The append is still in the socket: it lands now, or the second one does, never both.
        assert_eq!(bus.log.settle(mine.clone(), last).await, Ok(last + 1));
        assert_eq!(bus.log.read(last, 10).await.unwrap(), [(last + 1, mine)]);
    }
    assert_eq!(bus.log.last().await.unwrap(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_around_a_kill_are_all_settled() {
    let mut server = NatsServer::start();
    let bus = Bus::nats(config(&server)).await.unwrap();
    let writer = tokio::spawn({
        let bus = bus.clone();
        async move {
            let mut unsettled = 0;
            for last in 0..5000_u64 {
                let mut outcome = bus.log.append(record(last), last).await;
                while let Err(LogError::Unavailable(_)) = outcome {
                    unsettled += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    outcome = bus.log.settle(record(last), last).await;
                }
                assert_eq!(outcome, Ok(last + 1));
            }
            unsettled
        }
    });
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(80)).await;
        server.kill();
        server.start_again();
    }
    let unsettled = writer.await.unwrap();
    assert!(unsettled > 0, "the kills fell into no append");
    let expected: Vec<_> = (0..5000).map(|number| (number + 1, record(number))).collect();
    assert_eq!(bus.log.read(0, 10_000).await.unwrap(), expected);
}

#[tokio::test]
async fn no_server_is_a_clear_error_within_seconds() {
    let url = format!("nats://ann:secret@127.0.0.1:{}", free_port());
    let config = NatsConfig { connect_timeout: SECOND, ..NatsConfig::new(url.clone()) };
    let begin = Instant::now();
    let error = Bus::nats(config).await.unwrap_err();
    assert!(begin.elapsed() < 3 * SECOND, "{:?}", begin.elapsed());
    let text = error.to_string();
    assert!(matches!(error, BusError::Connect { .. }), "{text}");
    let (_, address) = url.split_once('@').unwrap();
    assert!(text.contains(address) && text.contains("nats-server -js") && !text.contains("secret"), "{text}");

    // Something listens there, but it is no NATS server and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", silent.local_addr().unwrap());
    let begin = Instant::now();
    let error = Bus::nats(NatsConfig { connect_timeout: SECOND, ..NatsConfig::new(url) }).await.unwrap_err();
    assert!(matches!(error, BusError::Connect { .. }), "{error}");
    assert!(begin.elapsed() < 3 * SECOND, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_server_that_starts_a_little_later_is_waited_for() {
    let mut server = NatsServer::start();
    server.kill();
    let opening = tokio::spawn(Bus::nats(config(&server)));
    tokio::time::sleep(SECOND).await;
    server.start_again();
    let bus = opening.await.unwrap().unwrap();
    bus.log.append(record("a"), 0).await.unwrap();
}

#[tokio::test]
async fn a_server_without_jetstream_is_named() {
    let server = NatsServer::start_with(&[]);
    let config = NatsConfig { connect_timeout: SECOND, ..config(&server) };
    let error = Bus::nats(config).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BusError::Stream { .. }), "{text}");
    assert!(text.contains("-js") && text.contains("CATCHMENT_LOG") && text.contains(&server.url()), "{text}");
}

#[tokio::test]
async fn credentials_in_the_url_are_used() {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start_configured(
        dir,
        "jetstream { store_dir: $DIR/js }\nauthorization { user: \"an@n\", password: \"p:ss\" }",
    );
    let port = server.port();
    let url = format!("nats://an%40n:p%3Ass@127.0.0.1:{port}");
    let bus = Bus::nats(NatsConfig::new(url)).await.unwrap();
    bus.log.append(record("a"), 0).await.unwrap();
    for wrong in [format!("nats://an%40n:secret@127.0.0.1:{port}"), server.url()] {
        let begin = Instant::now();
        let error = Bus::nats(NatsConfig::new(wrong)).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("credentials") && !text.contains("secret"), "{text}");
        assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
    }

    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start_configured(dir, "jetstream { store_dir: $DIR/js }\nauthorization { token: s3cret }");
    Bus::nats(NatsConfig::new(format!("nats://s3cret@127.0.0.1:{}", server.port()))).await.unwrap();
}

#[tokio::test]
async fn the_servers_own_limit_counts() {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start_configured(dir, "jetstream { store_dir: $DIR/js }\nmax_payload: 64KB");
    let bus = Bus::nats(config(&server)).await.unwrap();
    let limit = bus.log.record_bytes_max();
    assert!((60_000..65_536).contains(&limit), "{limit}");
    bus.log.append(Bytes::from(vec![0; limit]), 0).await.unwrap();
    let error = bus.log.append(Bytes::from(vec![0; limit + 1]), 1).await.unwrap_err();
    assert!(matches!(&error, LogError::Refused(text) if text.contains("limit")), "{error}");
}

#[tokio::test]
async fn a_full_server_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start_configured(dir, "jetstream { store_dir: $DIR/js, max_file_store: 4MB }");
    let bus = Bus::nats(config(&server)).await.unwrap();
    let mut last = 0;
    let error = loop {
        match bus.log.append(Bytes::from(vec![0; 500_000]), last).await {
            Ok(sequence) => last = sequence,
            Err(error) => break error,
        }
        assert!(last < 100, "the store never fills");
    };
    assert!(matches!(&error, LogError::Refused(_)), "after {last}: {error}");
    assert_eq!(bus.log.last().await.unwrap(), last);
}

#[tokio::test]
async fn a_stream_that_would_forget_is_refused() {
    let server = NatsServer::start();
    let client = async_nats::connect(server.url()).await.unwrap();
    let stream = jetstream::stream::Config {
        name: "CATCHMENT_LOG".to_owned(),
        subjects: vec!["catchment.v1.log".to_owned()],
        max_age: Duration::from_secs(3600),
        ..Default::default()
    };
    jetstream::new(client).create_stream(stream).await.unwrap();
    let error = Bus::nats(config(&server)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BusError::Stream { .. }) && text.contains("limit of age"), "{text}");
    // Another prefix is another log.
    let other = NatsConfig { prefix: "LAB".to_owned(), ..config(&server) };
    Bus::nats(other).await.unwrap().log.append(record("a"), 0).await.unwrap();
}

#[tokio::test]
async fn two_processes_share_the_log_and_missing_records_are_noticed() {
    let server = NatsServer::start();
    let one = Bus::nats(config(&server)).await.unwrap();
    let two = Bus::nats(config(&server)).await.unwrap();
    assert_eq!(one.log.append(record("a"), 0).await, Ok(1));
    assert_eq!(two.log.append(record("b"), 0).await, Err(LogError::Conflict { last: 1 }));
    assert_eq!(two.log.append(record("b"), 1).await, Ok(2));
    assert_eq!(one.log.append(record("c"), 2).await, Ok(3));
    assert_eq!(read_all(&one).await, read_all(&two).await);

    let stream = raw_stream(&server).await;
    stream.delete_message(2).await.unwrap();
    let error = one.log.read(0, 10).await.unwrap_err();
    assert!(matches!(&error, LogError::Damaged(text) if text.contains('2')), "{error}");
    stream.delete_message(1).await.unwrap();
    let error = one.log.read(0, 10).await.unwrap_err();
    assert_eq!(error, LogError::Forgotten { first: 3 });
    assert_eq!(one.log.read(2, 10).await.unwrap(), [(3, record("c"))]);
}

/// How long `follower` takes to learn of what `writer` appends: the median, because other tests have the machine too.
async fn news_takes(writer: &Bus, follower: &Bus, appends: usize) -> Duration {
    let mut waits = vec![];
    for _ in 0..appends {
        let last = writer.log.last().await.unwrap();
        let waiting = tokio::spawn({
            let log = follower.log.clone();
            async move { log.grown(last).await.map(|()| Instant::now()) }
        });
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert!(!waiting.is_finished(), "there is nothing after {last} yet");
        let appended = Instant::now();
        writer.log.append(record(last), last).await.unwrap();
        waits.push(waiting.await.unwrap().unwrap().saturating_duration_since(appended));
        assert_eq!(follower.log.read(last, 10).await.unwrap(), [(last + 1, record(last))]);
    }
    waits.sort_unstable();
    waits[appends / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_learns_of_an_append() {
    let mut server = NatsServer::start();
    let (one, two) = (Bus::nats(config(&server)).await.unwrap(), Bus::nats(config(&server)).await.unwrap());
    for (writer, follower) in [(&one, &two), (&two, &one)] {
        let median = news_takes(writer, follower, 10).await;
        assert!(median < Duration::from_millis(100), "{median:?}");
    }
    // A follower is told when nobody knows how far the log is, and goes on when somebody does.
    let last = one.log.last().await.unwrap();
    server.kill();
    let begin = Instant::now();
    let unknown = two.log.grown(last).await;
    assert!(matches!(unknown, Err(LogError::Unavailable(_))), "{unknown:?}");
    assert!(begin.elapsed() < 2 * SECOND, "{:?}", begin.elapsed());
    server.start_again();
    until("the log answers again", async || one.log.last().await.is_ok() && two.log.last().await.is_ok()).await;
    let median = news_takes(&one, &two, 3).await;
    assert!(median < Duration::from_millis(100), "{median:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_is_noticed_without_hints() {
    let dir = tempfile::tempdir().unwrap();
    let deaf = r#"jetstream { store_dir: $DIR/js }
        authorization { users: [{
            user: a, password: b, permissions: { publish: { allow: ">", deny: "catchment.v1.grown" }, subscribe: ">" }
        }] }"#;
    let server = NatsServer::start_configured(dir, deaf);
    let url = format!("nats://a:b@127.0.0.1:{}", server.port());
    let (one, two) = (NatsConfig::new(&url), NatsConfig::new(&url));
    let (one, two) = (Bus::nats(one).await.unwrap(), Bus::nats(two).await.unwrap());
    let median = news_takes(&one, &two, 4).await;
    assert!(median > Duration::from_millis(100) && median < 2 * SECOND, "{median:?}");
}

/// Follows until it has a record, as a writer does: asks again when the log was away.
async fn followed(log: &dyn EventLog, after: u64) -> (u64, Bytes) {
    let begin = Instant::now();
    loop {
        match log.follow(after, 1).await {
            Ok(records) => return records.into_iter().next().expect("there is one"),
            Err(LogError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("{error}"),
        }
        assert!(begin.elapsed() < 20 * SECOND);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_outlives_its_server_and_its_consumer() {
    let mut server = NatsServer::start();
    let (one, two) = (Bus::nats(config(&server)).await.unwrap(), Bus::nats(config(&server)).await.unwrap());
    one.log.append(record(0), 0).await.unwrap();
    assert_eq!(two.log.follow(0, 9).await.unwrap(), [(1, record(0))]);
    // The server forgets its consumers, and so does an operator.
    let begin = Instant::now();
    server.kill();
    let unknown = two.log.follow(1, 9).await;
    assert!(matches!(unknown, Err(LogError::Unavailable(_))) && begin.elapsed() < 3 * SECOND, "{unknown:?}");
    server.start_again();
    until("the log answers again", async || one.log.last().await.is_ok()).await;
    for last in 1..10 {
        one.log.append(record(last), last).await.unwrap();
        assert_eq!(followed(&*two.log, last).await, (last + 1, record(last)));
    }
    let stream = raw_stream(&server).await;
    let names: Vec<String> = stream.consumer_names().map(Result::unwrap).collect().await;
    assert_eq!(names.len(), 1, "only who follows has one");
    stream.delete_consumer(&names[0]).await.unwrap();
    for last in 10..20 {
        one.log.append(record(last), last).await.unwrap();
        assert_eq!(followed(&*two.log, last).await, (last + 1, record(last)));
    }
    // It is sent them again, instead of asking for each.
    until("it has a consumer again", async || stream.consumer_names().count().await == 1).await;
    let begin = Instant::now();
    for last in 20..40 {
        one.log.append(record(last), last).await.unwrap();
        assert_eq!(two.log.follow(last, 9).await.unwrap(), [(last + 1, record(last))]);
    }
    assert!(begin.elapsed() < 2 * SECOND, "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_who_may_have_no_consumer_asks() {
    let dir = tempfile::tempdir().unwrap();
    let deaf = r#"jetstream { store_dir: $DIR/js }
        authorization { users: [{
            user: a, password: b, permissions: { publish: { allow: ">", deny: "$JS.API.CONSUMER.>" }, subscribe: ">" }
        }] }"#;
    let server = NatsServer::start_configured(dir, deaf);
    let bus = Bus::nats(NatsConfig::new(format!("nats://a:b@127.0.0.1:{}", server.port()))).await.unwrap();
    for last in 0..3 {
        bus.log.append(record(last), last).await.unwrap();
        let followed = tokio::time::timeout(4 * SECOND, bus.log.follow(last, 9)).await.expect("it comes in seconds");
        assert_eq!(followed.unwrap(), [(last + 1, record(last))]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_of_what_is_forgotten_is_told() {
    let server = NatsServer::start();
    let bus = Bus::nats(config(&server)).await.unwrap();
    for last in 0..20 {
        bus.log.append(record(last), last).await.unwrap();
    }
    assert_eq!(bus.log.follow(0, 9).await.unwrap()[0].0, 1);
    for sequence in [10, 15] {
        assert!(bus.log.put_snapshot(Snapshot { sequence, bytes: record("state") }).await.unwrap());
    }
    // Somebody who begins now.
    let late = Bus::nats(config(&server)).await.unwrap();
    assert_eq!(late.log.follow(0, 9).await, Err(LogError::Forgotten { first: 10 }));
    assert_eq!(late.log.follow(15, 9).await.unwrap()[0].0, 16);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_hint_is_seen_through() {
    let server = NatsServer::start();
    let (one, two) = (Bus::nats(config(&server)).await.unwrap(), Bus::nats(config(&server)).await.unwrap());
    one.log.append(record("a"), 0).await.unwrap();
    let client = async_nats::connect(server.url()).await.unwrap();
    for wrong in [&u64::MAX.to_be_bytes()[..], b"what is this", b""] {
        client.publish("catchment.v1.grown", Bytes::copy_from_slice(wrong)).await.unwrap();
    }
    client.flush().await.unwrap();
    tokio::time::timeout(SECOND, two.log.grown(1)).await.unwrap().unwrap();
    assert_eq!(two.log.read(1, 10).await.unwrap(), []);
    // Now it waits again, and what is appended is heard of at once.
    let median = news_takes(&one, &two, 3).await;
    assert!(median < Duration::from_millis(100), "{median:?}");
}

/// What is published, asked for and answered with one prefix stays there: also with a pattern that everything matches.
#[tokio::test]
async fn clusters_with_different_prefixes_see_nothing_of_each_other() {
    let server = NatsServer::start();
    let one = Bus::nats(config(&server)).await.unwrap();
    let other = Bus::nats(NatsConfig { prefix: "LAB-2".to_owned(), ..config(&server) }).await.unwrap();
    let mut everything = one.events.subscribe(">", None).await.unwrap();
    let mut group = other.events.subscribe("v1.a", Some("nodes")).await.unwrap();
    let raw = async_nats::connect(server.url()).await.unwrap();
    let mut outside = raw.subscribe(">").await.unwrap();
    raw.publish("ready", Bytes::new()).await.unwrap();
    while outside.next().await.unwrap().subject.as_str() != "ready" {}
    other.events.publish("v1.a", record("of the other")).await.unwrap();
    one.events.publish("v1.a", record("of one")).await.unwrap();
    let message = next(&mut everything).await.unwrap();
    assert_eq!((message.subject.as_str(), message.payload), ("v1.a", record("of one")));
    let message = next(&mut group).await.unwrap();
    assert_eq!((message.subject.as_str(), message.payload), ("v1.a", record("of the other")));
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let message = tokio::time::timeout(SECOND * 5, outside.next()).await.unwrap().unwrap();
        seen.extend(Some(message.subject.to_string()).filter(|subject| subject.ends_with(".v1.a")));
    }
    seen.sort();
    assert_eq!(seen, ["catchment.v1.a", "lab-2.v1.a"]);
}

#[tokio::test]
async fn any_nats_client_can_make_a_request() {
    let server = NatsServer::start();
    let bus = Bus::nats(config(&server)).await.unwrap();
    let mut service = bus.events.subscribe("ingest.*.updates", Some("gateways")).await.unwrap();
    tokio::spawn(async move {
        while let Some(request) = next(&mut service).await {
            let weight = request.header("catchment-weight").unwrap_or("none").to_owned();
            request.respond(record(format!("receipt for {} {weight}", request.payload.len()))).await.unwrap();
        }
    });
    let client = async_nats::connect(server.url()).await.unwrap();
    let plain = client.request("catchment.ingest.default.updates", Bytes::from_static(b"12345")).await.unwrap();
    assert_eq!(plain.payload, record("receipt for 5 none"));
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Catchment-Weight", "2.5");
    let reply = client.request_with_headers("catchment.ingest.default.updates", headers, Bytes::new()).await.unwrap();
    assert_eq!(reply.payload, record("receipt for 0 2.5"));
}
