//! Coordinators on a real ledger, in virtual time.
#![forbid(unsafe_code)]

use catchment_bus::Bus;
use catchment_coordinator::{Coordinator, Metrics, Scale, run};
use catchment_fleet::{Beat, CoordinatorBeat, Fleet, NodeBeat, Pace, Speak};
use catchment_ledger::{AcceptOutcome, EvaluateOutcome, Ledger, Outcome, Phase, State};
use catchment_types::{
    Accept, Clock, Digest, EvaluationResult, JobAction, JobState, JobUid, LEVEL_MAX, LogId, ModelCommit, NodeId,
    Record, SlabId, TimeMs,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// A clock that goes as the runtime's virtual time does.
struct Virtual(Instant);

impl Clock for Virtual {
    fn now_ms(&self) -> TimeMs {
        1_000_000 + self.0.elapsed().as_millis() as u64
    }
}

const LOST_AFTER: Duration = Duration::from_secs(10);

const INITIAL: ModelCommit = ModelCommit::initial(Digest::from_bytes([7; 32]), 64, NodeId(1));

fn uid(job: u8) -> JobUid {
    JobUid::from_bytes([job; 16])
}

fn node(id: u64) -> Beat {
    Beat::Node(NodeBeat {
        node: NodeId(id),
        name: format!("node-{id}"),
        url: "http://127.0.0.1:1".to_owned(),
        pass: String::new(),
        zone: String::new(),
        cores: 2,
        memory_bytes: 1 << 30,
        memory_free_bytes: 1 << 30,
        link_bytes_per_s: 1e9,
        cpu_s_per_byte: 0.0,
        draining: false,
        level: LEVEL_MAX,
    })
}

/// A ledger with jobs of `fields`, and two coordinators.
async fn coordinated(jobs: u8, fields: &str) -> (Bus, Ledger) {
    let bus = Bus::in_memory();
    let ledger = Ledger::open(bus.log.clone(), [1; 16]).await.unwrap();
    let log = LogId::from_bytes([7; 16]);
    ledger.propose(Record::LevelRaised { level: LEVEL_MAX, log, at_ms: 0 }).await.unwrap();
    let clock = Arc::new(Virtual(Instant::now()));
    for id in 1..=2 {
        let speak: Speak =
            Arc::new(move || vec![Beat::Coordinator(CoordinatorBeat { id, wanted: None, level: LEVEL_MAX })]);
        let pace = Pace { interval: Duration::from_secs(1), lost_after: LOST_AFTER };
        let fleet = Fleet::join(bus.events.clone(), speak, pace, [id as u8; 16]).await.unwrap();
        let coordinator = Coordinator {
            id,
            metrics: Metrics::new(),
            scale: Scale::default(),
            level_max: LEVEL_MAX,
            log: LogId::from_bytes([id as u8; 16]),
        };
        tokio::spawn(run(ledger.clone(), fleet, clock.clone(), coordinator));
    }
    // A node that speaks for as long as the bus is there.
    let speak: Speak = Arc::new(|| vec![node(1)]);
    let fleet = Fleet::join(bus.events.clone(), speak, Pace::default(), [9; 16]).await.unwrap();
    Box::leak(Box::new(fleet));
    for job in 0..jobs {
        let spec = format!(r#"{{"name":"job-{job}","function":"fedavg"{fields}}}"#);
        ledger.propose(Record::JobCreated { uid: uid(job), spec, at_ms: 0 }).await.unwrap();
        ledger
            .propose(Record::ModelPut { uid: uid(job), model: INITIAL, needs: Default::default(), at_ms: 0 })
            .await
            .unwrap();
    }
    (bus, ledger)
}

/// Waits until the state is as wanted.
async fn until(ledger: &Ledger, wanted: impl Fn(&State) -> bool) {
    let mut changes = ledger.watch();
    let reached = async {
        while !ledger.read(&wanted) {
            changes.changed().await.unwrap();
        }
    };
    if timeout(Duration::from_secs(3_600), reached).await.is_err() {
        panic!("never reached: {:#?}", ledger.read(|state| state.jobs().map(|job| job.view()).collect::<Vec<_>>()));
    }
}

fn phase(state: &State, job: u8) -> Option<(u64, Phase)> {
    state.job(uid(job))?.round.as_ref().map(|round| (round.number, round.phase))
}

async fn submit(ledger: &Ledger, job: u8, round: u64, client: u32) -> AcceptOutcome {
    submit_at(ledger, NodeId(1), job, round, client).await
}

async fn submit_at(ledger: &Ledger, node: NodeId, job: u8, round: u64, client: u32) -> AcceptOutcome {
    let accept = Accept {
        uid: uid(job),
        round,
        base: None,
        client: format!("client-{client}").parse().unwrap(),
        digest: Digest::from_bytes([1; 32]),
        weight: 1.0,
        num_samples: 1,
        metrics: BTreeMap::new(),
        bytes: 64,
        node,
        incarnation: ledger.read(|state| state.incarnation(node)),
        slab: SlabId::new(client, round as u32),
        at_ms: 0,
    };
    ledger.accept(accept).await.unwrap()
}

/// Folds and commits a round that is closed.
async fn commit(ledger: &Ledger, job: u8, round: u64) -> Outcome {
    let receipts = ledger.read(|state| {
        let round = state.job(uid(job)).unwrap().active_round().unwrap();
        round.pending().map(|update| update.receipt).collect()
    });
    ledger.propose(Record::Folded { uid: uid(job), round, receipts }).await.unwrap();
    let model = ledger.read(|state| {
        let job = state.job(uid(job)).unwrap();
        let round = job.active_round().unwrap();
        let contribution = Some(round.contribution());
        ModelCommit { version: job.models.next(), contributors: round.received(), contribution, ..INITIAL }
    });
    ledger.propose(Record::Committed { uid: uid(job), round, model, at_ms: 0 }).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn rounds_open_when_they_can_and_not_twice() {
    let (bus, ledger) = coordinated(20, r#","goal":1,"rounds":3,"deadline":null"#).await;
    for round in 1..=3 {
        for job in 0..20 {
            until(&ledger, |state| phase(state, job) == Some((round, Phase::Open))).await;
            assert!(submit(&ledger, job, round, 1).await.is_accepted());
            assert_eq!(commit(&ledger, job, round).await, Outcome::Done);
        }
    }
    assert!(ledger.read(|state| state.jobs().all(|job| job.state == JobState::Completed)));
    let records = bus.log.last().await.unwrap();
    // The log's level; created, model; then opened, accepted, folded, committed: none of them twice, none in vain.
    assert_eq!(records, 1 + 20 * (2 + 3 * 4));
    sleep(Duration::from_secs(86_400)).await;
    assert_eq!(bus.log.last().await.unwrap(), records, "idle is silent");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_closes_the_round_in_time() {
    let (_, ledger) = coordinated(1, r#","goal":9,"min_updates":1,"rounds":1,"deadline":"30s""#).await;
    until(&ledger, |state| phase(state, 0) == Some((1, Phase::Open))).await;
    let opened = Instant::now();
    assert!(submit(&ledger, 0, 1, 1).await.is_accepted());
    until(&ledger, |state| phase(state, 0) == Some((1, Phase::Aggregating))).await;
    let took = opened.elapsed();
    assert!((30_000..30_050).contains(&took.as_millis()), "{took:?}");
    assert_eq!(commit(&ledger, 0, 1).await, Outcome::Done);
}

#[tokio::test(start_paused = true)]
async fn of_two_deadlines_the_nearer_wakes() {
    let (_, ledger) = coordinated(1, r#","goal":9,"rounds":1,"deadline":"30s","on_shortfall":"skip""#).await;
    let slower = r#"{"name":"slower","function":"fedavg","goal":9,"rounds":1,"deadline":"60s","on_shortfall":"skip"}"#;
    let opened = Instant::now();
    let second = uid(200);
    ledger.propose(Record::JobCreated { uid: second, spec: slower.to_owned(), at_ms: 0 }).await.unwrap();
    ledger
        .propose(Record::ModelPut { uid: second, model: INITIAL, needs: Default::default(), at_ms: 0 })
        .await
        .unwrap();
    for (job, after_s) in [(0, 30), (200, 60)] {
        until(&ledger, |state| phase(state, job) == Some((1, Phase::Skipped))).await;
        let took = opened.elapsed().as_millis();
        assert!((after_s * 1000..after_s * 1000 + 50).contains(&took), "{took} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shortfall_does_what_the_spec_says() {
    let shared = r#","goal":9,"min_updates":2,"rounds":2,"deadline":"1s","on_shortfall":"#;
    let (_, ledger) = coordinated(1, &format!(r#"{shared}"skip""#)).await;
    until(&ledger, |state| state.job(uid(0)).is_some_and(|job| job.state == JobState::Completed)).await;
    assert_eq!(ledger.read(|state| phase(state, 0)), Some((2, Phase::Skipped)));

    let (_, ledger) = coordinated(1, &format!(r#"{shared}"fail""#)).await;
    until(&ledger, |state| state.job(uid(0)).is_some_and(|job| job.state == JobState::Failed)).await;
    let reason = ledger.read(|state| state.job(uid(0)).unwrap().reason.clone());
    assert_eq!(reason.as_deref(), Some("round 1 had 0 updates at its deadline and needs 2"));

    let (_, ledger) = coordinated(1, &format!(r#"{shared}"retry""#)).await;
    until(&ledger, |state| phase(state, 0) == Some((1, Phase::Open))).await;
    assert!(submit(&ledger, 0, 1, 1).await.is_accepted());
    sleep(Duration::from_secs(10)).await;
    assert!(submit(&ledger, 0, 1, 2).await.is_accepted(), "the round keeps what it has and stays open");
    until(&ledger, |state| phase(state, 0) == Some((1, Phase::Aggregating))).await;
}

/// What was accepted still becomes a model; a round that has nothing is not waited for.
#[tokio::test(start_paused = true)]
async fn a_job_that_gets_no_better_ends_early() {
    let fields = r#","goal":2,"rounds":9,"deadline":null,"evaluate":{"min_results":1,"patience":1}"#;
    for is_idle in [false, true] {
        let (_, ledger) = coordinated(1, fields).await;
        let measure = async |version, loss: f64| {
            let metrics = BTreeMap::from([("loss".to_owned(), loss)]);
            let result = EvaluationResult { client: "c".parse().unwrap(), num_samples: 1, metrics };
            assert_eq!(ledger.evaluate(uid(0), version, result).await.unwrap(), EvaluateOutcome::Counted);
        };
        until(&ledger, |state| phase(state, 0) == Some((1, Phase::Open))).await;
        measure(0, 1.0).await;
        assert!(submit(&ledger, 0, 1, 1).await.is_accepted() && submit(&ledger, 0, 1, 2).await.is_accepted());
        assert_eq!(commit(&ledger, 0, 1).await, Outcome::Done);
        until(&ledger, |state| phase(state, 0) == Some((2, Phase::Open))).await;
        assert!(is_idle || submit(&ledger, 0, 2, 1).await.is_accepted());
        measure(1, 2.0).await;
        if !is_idle {
            sleep(Duration::from_secs(5)).await;
            assert_eq!(ledger.read(|state| phase(state, 0)), Some((2, Phase::Open)), "an update is in it");
            assert!(submit(&ledger, 0, 2, 2).await.is_accepted());
            assert_eq!(commit(&ledger, 0, 2).await, Outcome::Done);
        }
        until(&ledger, |state| state.job(uid(0)).is_some_and(|job| job.state == JobState::Completed)).await;
        let (view, models) = ledger.read(|state| state.job(uid(0)).map(|job| (job.view(), job.models.next())).unwrap());
        assert!(view.reason.is_some_and(|reason| reason.contains("no better than version 0")));
        assert_eq!((view.best_version, view.round.round, models), (Some(0), 2, if is_idle { 2 } else { 3 }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_stops_the_clock() {
    let (_, ledger) = coordinated(1, r#","goal":9,"min_updates":1,"deadline":"30s","on_shortfall":"fail""#).await;
    until(&ledger, |state| phase(state, 0) == Some((1, Phase::Open))).await;
    let deadline = ledger.read(|state| state.job(uid(0)).unwrap().round.as_ref().unwrap().deadline_ms.unwrap());
    let act = |action, at_ms| ledger.propose(Record::JobActed { uid: uid(0), action, at_ms });
    let opened = Instant::now();
    act(JobAction::Pause, deadline - 20_000).await.unwrap();
    sleep(Duration::from_secs(3_600)).await;
    act(JobAction::Resume, deadline - 20_000 + 3_600_000).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    assert!(submit(&ledger, 0, 1, 1).await.is_accepted(), "most of the round's time is left");
    until(&ledger, |state| phase(state, 0) == Some((1, Phase::Aggregating))).await;
    assert!((3_630..3_631).contains(&opened.elapsed().as_secs()), "{:?}", opened.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_falls_silent_is_given_up_and_its_clients_are_asked_again() {
    let (bus, ledger) = coordinated(1, r#","goal":2,"rounds":1,"deadline":null"#).await;
    until(&ledger, |state| phase(state, 0) == Some((1, Phase::Open))).await;
    let speak: Speak = Arc::new(|| vec![node(2)]);
    let second = Fleet::join(bus.events.clone(), speak, Pace::default(), [8; 16]).await.unwrap();
    assert!(submit_at(&ledger, NodeId(2), 0, 1, 1).await.is_accepted());
    sleep(3 * LOST_AFTER).await;
    let received = |state: &State| state.job(uid(0)).unwrap().round.as_ref().unwrap().received();
    assert_eq!(ledger.read(received), 1, "who speaks is not lost");
    drop(second);
    let silent = Instant::now();
    until(&ledger, |state| received(state) == 0).await;
    assert!(silent.elapsed() >= LOST_AFTER - Duration::from_secs(1) && silent.elapsed() < 2 * LOST_AFTER);
    assert!(ledger.read(|state| state.incarnation(NodeId(2))) > 0);
    let records = bus.log.last().await.unwrap();
    sleep(3 * LOST_AFTER).await;
    assert_eq!(bus.log.last().await.unwrap(), records, "it is given up once");
    assert!(submit(&ledger, 0, 1, 1).await.is_accepted(), "its client sends again");
    assert!(submit(&ledger, 0, 1, 2).await.is_accepted());
    assert_eq!(commit(&ledger, 0, 1).await, Outcome::Done);
}
