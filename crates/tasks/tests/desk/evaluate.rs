//! Tasks to measure.

use crate::site::{Site, client};
use catchment_types::{TaskId, TaskKind};

#[test]
fn a_share_of_the_tasks_is_to_measure() {
    let fields = r#","goal":8,"over_provision":1,"deadline":null,"evaluate":{"fraction":0.25,"every":2}"#;
    let mut site = Site::new(fields);
    let kinds: Vec<TaskKind> = (0..12).map(|number| site.kind(number)).collect();
    let count = |kind| kinds.iter().filter(|found| **found == kind).count();
    assert_eq!((count(TaskKind::Train), count(TaskKind::Evaluate), count(TaskKind::Wait)), (8, 2, 2));
    assert_eq!(kinds[0], TaskKind::Train);
    let measuring: Vec<u64> = (0..12).filter(|number| kinds[*number as usize] == TaskKind::Evaluate).collect();
    let task = site.ask(measuring[0], &[]);
    assert_eq!((task.task, task.model_version, task.round), (TaskKind::Evaluate, Some(0), Some(1)));
    assert_eq!(task.task_id, Some(TaskId::derive_evaluation(crate::site::JOB, 0, &client(measuring[0]))));
    assert!(task.model_url.is_some_and(|url| url.ends_with("version=0")) && task.etag.is_some());
    // Whoever has measured may train, if there is something left; here there is not.
    site.measure(measuring[0], 0);
    assert_eq!(site.kind(measuring[0]), TaskKind::Wait);
    assert_eq!(site.kind(measuring[1]), TaskKind::Evaluate);
    // Version 1 is not due.
    for number in (0..12).filter(|number| kinds[*number as usize] == TaskKind::Train) {
        assert!(site.submit(number, 1));
    }
    site.commit();
    site.open();
    let kinds: Vec<TaskKind> = (20..32).map(|number| site.kind(number)).collect();
    assert!(!kinds.contains(&TaskKind::Evaluate));
}

/// Where there are few clients, the same ones train and measure, and the round is never short of either.
#[test]
fn two_clients_do_everything() {
    let fields = r#","goal":2,"over_provision":1,"deadline":null,"evaluate":{"fraction":1}"#;
    let mut site = Site::new(fields);
    for round in 1..=3 {
        let (mut trained, mut measured) = (0, 0);
        for _ in 0..20 {
            for number in 0..2 {
                site.now_ms += 150;
                match site.ask(number, &[]).task {
                    TaskKind::Evaluate => {
                        site.measure(number, round - 1);
                        measured += 1;
                    }
                    TaskKind::Train if trained == 0 || measured == 2 => {
                        assert!(site.submit(number, round));
                        trained += 1;
                    }
                    _ => {}
                }
            }
            if trained == 2 {
                break;
            }
        }
        assert_eq!((trained, measured), (2, 2), "in round {round}");
        site.commit();
        site.open();
    }
}
