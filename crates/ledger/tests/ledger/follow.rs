//! Several ledgers on one log: what one appends, the others see.

use crate::common::*;
use crate::driver::running;
use crate::faulty::{Faulty, account, of_a_newer_release};
use crate::nats_server::NatsServer;
use catchment_bus::{Bus, EventLog, NatsConfig};
use catchment_ledger::{Ledger, LedgerError, State};
use futures::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

const GOAL_900: &str = r#","goal":900,"deadline":null"#;
const SOON: Duration = Duration::from_millis(100);

fn config(server: &NatsServer) -> NatsConfig {
    NatsConfig { request_timeout: Duration::from_secs(2), ..NatsConfig::new(server.url()) }
}

async fn nats(config: &NatsConfig) -> Arc<dyn EventLog> {
    Bus::nats(config.clone()).await.unwrap().log
}

/// Waits until `ledger` has applied `sequence`; how long that took.
async fn sees(ledger: &Ledger, sequence: u64) -> Duration {
    let begin = Instant::now();
    let mut watch = ledger.watch();
    timeout(Duration::from_secs(10), watch.wait_for(|applied| *applied >= sequence)).await.unwrap().unwrap();
    begin.elapsed()
}

/// Each of two ledgers appends now and then; how long the other takes to see it: the median, because other
/// tests have the machine too.
async fn news_takes(one: &Ledger, two: &Ledger, accepts: u64) -> Duration {
    let mut waits = Vec::new();
    let known = one.read(|state| state.job(JOB).unwrap().round.as_ref().unwrap().received());
    for number in known..known + accepts {
        let (writer, follower) = if number % 3 == 0 { (two, one) } else { (one, two) };
        let outcome = writer.accept(accept(JOB, 1, number, 0)).await.unwrap();
        waits.push(sees(follower, writer.read(State::sequence)).await);
        assert!(outcome.is_accepted());
        assert!(follower.read(|state| state.job(JOB).unwrap().round.as_ref().unwrap().received() == number + 1));
        sleep(Duration::from_millis(number % 5 * 10)).await;
    }
    assert!(one.read(State::clone) == two.read(State::clone));
    waits.sort_unstable();
    waits[waits.len() / 2]
}

#[tokio::test]
async fn a_follower_sees_what_another_appends() {
    let log = Bus::in_memory().log;
    let one = running(log.clone(), 1, GOAL_900).await;
    let two = Ledger::open(log, [2; 16]).await.unwrap();
    let median = news_takes(&one, &two, 100).await;
    assert!(median < SOON, "{median:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_on_a_server_sees_what_another_appends() {
    let server = NatsServer::start();
    let one = running(nats(&config(&server)).await, 1, GOAL_900).await;
    let two = Ledger::open(nats(&config(&server)).await, [2; 16]).await.unwrap();
    let median = news_takes(&one, &two, 60).await;
    println!("news took {median:?}");
    assert!(median < SOON, "{median:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_sees_all_that_was_stored_before() {
    let server = NatsServer::start();
    let one = running(nats(&config(&server)).await, 1, GOAL_900).await;
    let two = Ledger::open(nats(&config(&server)).await, [2; 16]).await.unwrap();
    for number in 0..50 {
        assert!(one.accept(accept(JOB, 1, number, 0)).await.unwrap().is_accepted());
        let stored = one.read(State::sequence);
        let asked = join_all((0..3).map(|_| two.refresh())).await;
        assert!(asked.iter().all(Result::is_ok) && two.read(State::sequence) >= stored, "{asked:?}");
    }
    // Where it cannot be known, it is not said.
    drop(server);
    let asked = two.refresh().await;
    assert!(matches!(asked, Err(LedgerError::Unavailable)), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_without_hints_sees_it_later() {
    let deaf = r#"jetstream { store_dir: $DIR/js }
        authorization { users: [{
            user: a, password: b, permissions: { publish: { allow: ">", deny: "catchment.v1.grown" }, subscribe: ">" }
        }] }"#;
    let server = NatsServer::start_configured(tempfile::tempdir().unwrap(), deaf);
    let config = NatsConfig::new(format!("nats://a:b@127.0.0.1:{}", server.port()));
    let one = running(nats(&config).await, 1, GOAL_900).await;
    let two = Ledger::open(nats(&config).await, [2; 16]).await.unwrap();
    let median = news_takes(&one, &two, 6).await;
    println!("news took {median:?}");
    assert!(median < Duration::from_secs(2), "{median:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_says_when_it_cannot_follow() {
    let mut server = NatsServer::start();
    let one = running(nats(&config(&server)).await, 1, GOAL_900).await;
    let two = Ledger::open(nats(&config(&server)).await, [2; 16]).await.unwrap();
    server.kill();
    // Neither writes anything, and both find out.
    for _ in 0..60 {
        sleep(Duration::from_millis(50)).await;
        if !one.is_reachable() && !two.is_reachable() {
            break;
        }
    }
    assert!(!one.is_reachable() && !two.is_reachable());
    let refused = two.accept(accept(JOB, 1, 1, 0)).await;
    assert!(matches!(refused, Err(LedgerError::Unavailable)), "{refused:?}");
    assert_eq!(two.read(State::sequence), 3, "what it knows it keeps");
    server.start_again();
    for _ in 0..100 {
        sleep(Duration::from_millis(50)).await;
        if one.is_reachable() && two.is_reachable() {
            break;
        }
    }
    assert!(one.is_reachable() && two.is_reachable());
    let median = news_takes(&one, &two, 10).await;
    assert!(median < SOON, "{median:?}");
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_cannot_read_tries_on() {
    let inner = Bus::in_memory().log;
    let one = running(inner.clone(), 1, GOAL_900).await;
    let log = Faulty::scripted(inner, &[]);
    let two = Ledger::open(log.clone(), [2; 16]).await.unwrap();
    log.fail_reads(&[true; 20]);
    assert!(one.accept(accept(JOB, 1, 0, 0)).await.unwrap().is_accepted());
    sleep(Duration::from_secs(1)).await;
    assert!(!two.is_reachable() && two.read(State::sequence) == 3);
    sees(&two, 4).await;
    assert!(two.is_reachable());
}

#[tokio::test(start_paused = true)]
async fn a_follower_does_not_go_past_what_it_cannot_read() {
    let log = Bus::in_memory().log;
    let one = running(log.clone(), 1, GOAL_900).await;
    log.append(of_a_newer_release(), 3).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    assert!(!one.is_reachable());
    assert_eq!(one.read(State::sequence), 3);
    let refused = one.accept(accept(JOB, 1, 1, 0)).await;
    assert!(matches!(refused, Err(LedgerError::Unavailable)), "{refused:?}");
    assert_eq!(log.last().await.unwrap(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_processes_write_at_once() {
    let server = NatsServer::start();
    let observer = nats(&config(&server)).await;
    let mut ledgers = vec![running(nats(&config(&server)).await, 1, GOAL_900).await];
    for writer in [2, 3] {
        ledgers.push(Ledger::open(nats(&config(&server)).await, [writer; 16]).await.unwrap());
    }
    let writers = ledgers.iter().enumerate().map(|(writer, ledger)| async move {
        for number in 0..100 {
            let number = number * 3 + writer as u64;
            assert!(ledger.accept(accept(JOB, 1, number, 0)).await.unwrap().is_accepted());
        }
    });
    join_all(writers).await;
    let account = account(&observer).await;
    assert_eq!(account.slabs.len(), 300);
    for ledger in &ledgers {
        sees(ledger, account.state.sequence()).await;
        assert!(ledger.read(|state| *state == account.state));
    }
}
