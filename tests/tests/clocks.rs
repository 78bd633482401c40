//! Deadlines pass when their time is over, whatever the clocks of those say who open and close rounds.

use catchment_tests::{Bus, Cluster, Job, Server, Setup, Tensor, file, run, until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What clocks are off by.
const QUARTER_HOUR_MS: i64 = 900_000;
const DEADLINE: Duration = Duration::from_secs(12);
/// How long it may take until a round is seen, decided on and closed, also here with other tests beside it.
const LATE_MAX: Duration = Duration::from_secs(4);

fn body(value: f32) -> Vec<u8> {
    file(&[Tensor::f32("w", &[3], &[value; 3])])
}

fn spec(rounds: u64) -> Value {
    let deadline = format!("{}s", DEADLINE.as_secs());
    json!({"goal": 9, "min_updates": 1, "rounds": rounds, "deadline": deadline, "on_shortfall": "fail"})
}

/// Waits until the round's model is there, and says that this took its time from `opened` on.
async fn closes_in_time(job: &Job, round: u64, opened: Instant) {
    job.published(round).await;
    let took = opened.elapsed();
    eprintln!("round {round} was over {took:?} after it opened");
    assert!(took >= DEADLINE - Duration::from_millis(500), "round {round} was closed early: after {took:?}");
    assert!(took <= DEADLINE + LATE_MAX, "round {round} was closed late: after {took:?}");
}

/// Round after round another coordinator takes over, ahead of or behind the one that opened it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_leader_with_another_time_closes_nothing_early_and_nothing_late() {
    run(async {
        let mut cluster = Cluster::start(Setup { nodes: 2, coordinators: 3, ..Setup::default() }).await;
        let leader = cluster.leader().await;
        let others = (0..3).filter(|coordinator| *coordinator != leader);
        for (coordinator, ms) in others.zip([QUARTER_HOUR_MS, -QUARTER_HOUR_MS]) {
            cluster.coordinators[coordinator].skew_clock(ms);
        }
        cluster.nodes[1].process.skew_clock(QUARTER_HOUR_MS);
        let job = cluster.nodes[0].api().begin("timed", spec(3), &body(0.0)).await;
        let jobs = cluster.through(&job);
        for round in 1..=3 {
            jobs[0].open_round(round).await;
            let opened = Instant::now();
            jobs[0].accepted(round, "c", "", &body(1.0)).await;
            // A node whose clock is wrong, too, says how much time is left.
            let task = jobs[1].api.checkin("d", &json!({"job": "timed"})).await.expect(200).json();
            let left_ms = task["deadline_in_ms"].as_u64().unwrap_or_else(|| panic!("{task}"));
            let most_ms = DEADLINE.as_millis() as u64;
            assert!((most_ms - 4_000..=most_ms).contains(&left_ms), "{task}");
            if round < 3 {
                let leader = cluster.leader().await;
                cluster.coordinators[leader].kill9();
                let next = cluster.leader().await;
                eprintln!("round {round}: coordinator {next} leads after {leader}, {:?}", opened.elapsed());
                // It would close it at once.
                tokio::time::sleep(Duration::from_secs(2)).await;
                assert_eq!(jobs[0].round().await["state"], "open");
            }
            closes_in_time(&jobs[0], round, opened).await;
        }
        jobs[0].in_state("completed").await;
    })
    .await;
}

/// A clock that jumps moves no deadline either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_moves_no_deadline() {
    run(async {
        let cluster = Cluster::start(Setup { nodes: 1, coordinators: 1, ..Setup::default() }).await;
        let job = cluster.nodes[0].api().begin("timed", spec(2), &body(0.0)).await;
        for (round, ms) in [(1, QUARTER_HOUR_MS), (2, -QUARTER_HOUR_MS)] {
            job.open_round(round).await;
            let opened = Instant::now();
            job.accepted(round, "c", "", &body(1.0)).await;
            cluster.coordinators[0].skew_clock(ms);
            // Another record, so that it looks at its clock.
            job.accepted(round, "d", "", &body(3.0)).await;
            closes_in_time(&job, round, opened).await;
        }
    })
    .await;
}

/// A coordinator that starts while a round is open has not seen it open. It waits, at most for the whole deadline once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_starts_closes_nothing_early() {
    run(async {
        let mut cluster = Cluster::start(Setup { nodes: 1, coordinators: 1, ..Setup::default() }).await;
        let job = cluster.nodes[0].api().begin("timed", spec(1), &body(0.0)).await;
        let opened = Instant::now();
        job.accepted(1, "c", "", &body(1.0)).await;
        cluster.coordinators[0].kill9();
        cluster.coordinators[0].skew_clock(QUARTER_HOUR_MS);
        cluster.coordinators[0].start();
        cluster.coordinators[0].up().await;
        let started = Instant::now();
        job.published(1).await;
        let (since_opened, since_started) = (opened.elapsed(), started.elapsed());
        eprintln!("it was over after {since_opened:?}, {since_started:?} after the start");
        assert!(since_opened >= DEADLINE && since_started <= DEADLINE + LATE_MAX);
    })
    .await;
}

/// The one process of an embedded log knows by its clock how long it was away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_away_keeps_its_deadlines() {
    run(async {
        let mut server = Server::start(Bus::Embedded).await;
        let job = server.api().begin("timed", spec(1), &body(0.0)).await;
        let opened = Instant::now();
        job.accepted(1, "c", "", &body(1.0)).await;
        server.kill9();
        tokio::time::sleep(DEADLINE / 2).await;
        server.start_again().await;
        let job = job.through(&server.api());
        assert_eq!(job.round().await["state"], "open");
        closes_in_time(&job, 1, opened).await;
        until("it is shown", async || (job.view().await["state"] == "completed").then_some(())).await;
    })
    .await;
}
