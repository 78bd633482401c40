//! How many tasks are out, and whose they are.

use crate::site::{Site, client};
use catchment_ledger::Phase;
use catchment_tasks::Desk;
use catchment_types::{JobAction, Record, TaskId, TaskKind};
use proptest::prelude::*;
use std::collections::HashMap;

const GOAL_4: &str = r#","goal":4,"over_provision":1.5,"deadline":null"#;

#[test]
fn everyone_who_asks_gets_a_task_while_there_are_some() {
    let mut site = Site::new(GOAL_4);
    let kinds: Vec<TaskKind> = (0..9).map(|number| site.kind(number)).collect();
    assert_eq!(kinds[..6], [TaskKind::Train; 6]);
    assert_eq!(kinds[6..], [TaskKind::Wait; 3]);
    let task = site.ask(2, &[]);
    assert_eq!(task.task_id, Some(TaskId::derive(crate::site::JOB, 1, &client(2))));
    assert_eq!(site.ask(2, &[]), task, "asking again changes nothing");
    assert_eq!((task.round, task.model_version, task.retry_after_ms), (Some(1), Some(0), None));
    let wait = site.ask(7, &[]);
    assert!((100..=3_000).contains(&wait.retry_after_ms.unwrap()), "{wait:?}");
    assert_eq!(site.ask(7, &[]), wait, "an appointment stays");
}

/// An update of no samples is refused, and so is a measurement: nobody is sent for either.
#[test]
fn who_has_no_samples_gets_no_task_and_takes_no_place() {
    for policy in ["all", "random", "weighted", "utility"] {
        let fields = r#","goal":2,"over_provision":1,"deadline":null,"evaluate":{"fraction":1}"#;
        let mut site = Site::new(&format!(r#"{fields},"selection":{{"policy":"{policy}"}}"#));
        site.samples = |number| if number < 50 { 0 } else { 10 };
        for _ in 0..200 {
            site.now_ms += 500;
            for number in 0..50 {
                let task = site.ask(number, &[]);
                assert_eq!(task.task, TaskKind::Wait, "{policy}");
                assert!(task.retry_after_ms.is_some_and(|ms| ms > 0), "{policy}");
            }
        }
        let mut kinds = Vec::new();
        for _ in 0..20 {
            site.now_ms += 500;
            kinds.extend((50..60).map(|number| site.kind(number)));
        }
        assert!(kinds.contains(&TaskKind::Train), "{policy}: the places are there for others");
    }
}

#[test]
fn a_task_that_takes_too_long_goes_to_another_client() {
    let mut site = Site::new(r#","goal":1,"over_provision":1,"deadline":null,"selection":{"task_timeout":"10s"}"#);
    assert_eq!(site.kind(1), TaskKind::Train);
    site.now_ms += 9_000;
    assert_eq!((site.kind(2), site.kind(1)), (TaskKind::Wait, TaskKind::Train));
    site.now_ms += 9_000;
    assert_eq!((site.kind(2), site.kind(1)), (TaskKind::Wait, TaskKind::Train), "a check-in renews it");
    site.now_ms += 10_000;
    assert_eq!((site.kind(2), site.kind(1)), (TaskKind::Train, TaskKind::Wait));
}

#[test]
fn a_task_ends_with_its_round_at_the_latest() {
    let mut site = Site::new(r#","goal":1,"over_provision":1,"deadline":"5s""#);
    assert_eq!(site.kind(1), TaskKind::Train);
    site.now_ms += 4_999;
    assert_eq!(site.kind(2), TaskKind::Wait);
    let deadline_ms = Some(site.now_ms + 60_000);
    site.apply(Record::RoundExtended { uid: crate::site::JOB, round: 1, deadline_ms });
    site.now_ms += 200;
    assert_eq!(site.kind(2), TaskKind::Train, "the round goes on without the first");
}

/// While nobody has come the round keeps its deadline, although it has passed: tasks last all the same.
#[test]
fn a_deadline_that_has_passed_ends_no_task() {
    let mut site = Site::new(r#","goal":1,"over_provision":1,"deadline":"5s""#);
    site.now_ms += 60_000;
    assert_eq!(site.kind(1), TaskKind::Train);
    site.now_ms += 1_000;
    assert_eq!((site.kind(2), site.kind(1)), (TaskKind::Wait, TaskKind::Train));
}

#[test]
fn updates_that_nobody_asked_for_take_places_too() {
    let mut site = Site::new(GOAL_4);
    assert!(site.submit(10, 1) && site.submit(11, 1) && site.submit(12, 1));
    let kinds: Vec<TaskKind> = (0..4).map(|number| site.kind(number)).collect();
    assert_eq!(kinds, [TaskKind::Train, TaskKind::Train, TaskKind::Train, TaskKind::Wait]);
}

#[test]
fn a_client_whose_update_was_lost_is_asked_again() {
    let mut site = Site::new(GOAL_4);
    assert_eq!(site.kind(1), TaskKind::Train);
    assert!(site.submit(1, 1));
    assert_eq!(site.kind(1), TaskKind::Wait);
    let receipts = vec![site.round().update_of(&client(1)).unwrap().receipt];
    site.apply(Record::Lost { uid: crate::site::JOB, round: 1, receipts, at_ms: site.now_ms });
    site.now_ms += 200;
    assert_eq!(site.kind(1), TaskKind::Train);
}

#[test]
fn who_was_too_late_comes_first_in_the_next_round_but_once() {
    let fields = r#","goal":2,"over_provision":1.5,"deadline":null,"selection":{"policy":"random","window":"1s"}"#;
    let mut site = Site::new(fields);
    let late = |site: &mut Site, round: u64, clients: [u64; 2]| {
        for number in clients {
            assert!(site.submit(number, round));
        }
        assert_eq!(site.round().phase, Phase::Aggregating);
        assert_eq!(site.kind(3), TaskKind::Wait, "there is nothing to do in between");
        site.commit();
        site.open();
    };
    for number in 1..=3 {
        site.ask(number, &[]);
    }
    site.now_ms += 2_000;
    for number in 1..=3 {
        assert_eq!(site.kind(number), TaskKind::Train, "three places, three candidates");
    }
    late(&mut site, 1, [1, 2]);
    let task = site.ask(3, &[]);
    assert_eq!((task.task, task.round), (TaskKind::Train, Some(2)), "at once, without a draw");
    assert_eq!(site.kind(4), TaskKind::Wait);
    late(&mut site, 2, [1, 2]);
    assert_eq!(site.kind(3), TaskKind::Wait, "not twice in a row");
}

#[test]
fn jobs_that_are_paused_or_over_say_so() {
    let mut site = Site::new(GOAL_4);
    let act = |action| Record::JobActed { uid: crate::site::JOB, action, at_ms: 0 };
    site.apply(act(JobAction::Pause));
    assert_eq!(site.kind(1), TaskKind::Wait);
    site.apply(act(JobAction::Stop));
    assert_eq!(site.kind(1), TaskKind::Stop);
}

#[test]
fn labels_are_asked_for() {
    let mut site = Site::new(r#","goal":2,"selection":{"where":{"site":"x","tier":"1"}}"#);
    let task = site.ask(1, &[("site", "y"), ("tier", "1")]);
    assert_eq!(task.task, TaskKind::Wait);
    assert!((30_000..=61_000).contains(&task.retry_after_ms.unwrap()), "{task:?}");
    assert_eq!(site.ask(1, &[("site", "y"), ("tier", "1")]), task);
    assert_eq!(site.ask(2, &[("site", "x"), ("tier", "1"), ("more", "z")]).task, TaskKind::Train);
}

/// Tasks are derived, so another desk, after a restart or on another node, gives the same.
#[test]
fn a_new_desk_gives_the_same_task() {
    let mut site = Site::new(GOAL_4);
    let task = site.ask(1, &[]);
    site.desk = Desk::new([6; 16]);
    assert_eq!(site.ask(1, &[]), task);
    site.desk.retain(&Default::default());
    assert_eq!(site.desk.waiting(crate::site::JOB), 0);
    assert_eq!(site.ask(1, &[]), task);
}

#[derive(Debug, Clone)]
enum Step {
    Ask(u64),
    Submit(u64),
    Measure(u64),
    Later(u64),
}

fn results(site: &Site) -> u64 {
    site.job().evaluation(site.round().model_version).map_or(0, |evaluation| evaluation.results())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..30u64).prop_map(Step::Ask),
        2 => (0..30u64).prop_map(Step::Submit),
        1 => (0..30u64).prop_map(Step::Measure),
        3 => (0..3_000u64).prop_map(Step::Later),
    ];
    proptest::collection::vec(step, 1..300)
}

proptest! {
    /// Seen from outside: with a new task, those that last and have no update, and updates, are no more than were to be
    /// given out.
    #[test]
    fn over_provision_is_never_exceeded(steps in steps(), policy in prop::sample::select(vec!["all", "random", "weighted", "utility"])) {
        let mut site = Site::new(&format!(
            r#","goal":5,"over_provision":1.6,"deadline":null,"evaluate":{{"fraction":0.4}},
            "selection":{{"policy":"{policy}","window":"500ms","task_timeout":"4s"}}"#
        ));
        let mut out: [HashMap<u64, u64>; 2] = Default::default();
        for step in steps {
            match step {
                Step::Later(ms) => site.now_ms += ms,
                Step::Ask(number) => {
                    let task = site.ask(number, &[]);
                    prop_assert_eq!(&site.ask(number, &[]), &task);
                    let (kind, taken, limit) = match task.task {
                        TaskKind::Train => (0, site.round().received(), 8),
                        TaskKind::Evaluate => (1, results(&site), 4),
                        other => {
                            prop_assert_eq!(other, TaskKind::Wait);
                            prop_assert!(task.retry_after_ms.is_some_and(|ms| ms > 0));
                            continue;
                        }
                    };
                    let now_ms = site.now_ms;
                    let had = out[kind].insert(number, now_ms + 4_000).is_some_and(|until| until > now_ms);
                    let live = out[kind].values().filter(|until| **until > now_ms).count() as u64;
                    // Updates that nobody asked for may come at any time; a new task is given only where there is room.
                    prop_assert!(had || live + taken <= limit, "{live} out, {taken} done, of {limit}");
                }
                Step::Measure(number) => {
                    let version = site.round().model_version;
                    site.measure(number, version);
                    out[1].remove(&number);
                }
                Step::Submit(number) => {
                    let round = site.round().number;
                    site.submit(number, round);
                    out[0].remove(&number);
                    if site.round().phase != Phase::Open {
                        site.commit();
                        site.open();
                        out = Default::default();
                    }
                }
            }
        }
    }
}
