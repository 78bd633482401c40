//! Whom a policy chooses, over many rounds of clients that do as they are told.

use crate::crowd::Crowd;
use std::collections::HashMap;

fn fields(policy: &str) -> String {
    format!(r#","goal":10,"over_provision":1,"deadline":null,"selection":{{"policy":"{policy}","window":"1s"}}"#)
}

fn of(tasks: &HashMap<u64, u64>, clients: std::ops::Range<u64>) -> u64 {
    clients.map(|number| tasks.get(&number).copied().unwrap_or_default()).sum()
}

#[test]
fn everyone_gets_a_turn() {
    for policy in ["all", "random", "weighted", "utility"] {
        let mut crowd = Crowd::new(&fields(policy), 60);
        crowd.train_ms = |_| (500, 1_500);
        crowd.run(400_000);
        let untried: Vec<u64> = (0..60).filter(|number| !crowd.tasks.contains_key(number)).collect();
        assert!(untried.is_empty(), "{policy}: {untried:?} after {} rounds", crowd.rounds);
        assert!(crowd.rounds >= 90, "{policy}: {} rounds", crowd.rounds);
    }
}

/// A client that asks a hundred times as often as it is told to is chosen no more often.
#[test]
fn asking_more_often_gains_nothing() {
    let mut crowd = Crowd::new(&fields("random"), 60);
    crowd.train_ms = |_| (200, 300);
    crowd.impatient_ms = |number| (number < 6).then_some(10);
    crowd.run(1_500_000);
    let (impatient, patient) = (of(&crowd.tasks, 0..6) as f64 / 6.0, of(&crowd.tasks, 6..60) as f64 / 54.0);
    assert!(crowd.rounds > 500, "{} rounds", crowd.rounds);
    assert!((0.8..1.25).contains(&(impatient / patient)), "{impatient} tasks each, {patient} for the patient");
}

/// In a crowd, where appointments are far off, neither does coming before one's own.
#[test]
fn coming_early_gains_nothing() {
    let mut crowd = Crowd::new(&fields("random"), 3_000);
    crowd.train_ms = |_| (200, 300);
    crowd.impatient_ms = |number| (number < 30).then_some(500);
    crowd.run(600_000);
    let (impatient, all) = (of(&crowd.tasks, 0..30), of(&crowd.tasks, 0..3_000));
    assert!(all > 1_500, "{all} tasks");
    // A hundredth of them is fair; were everyone counted who is there, it would be about a fifth.
    assert!(impatient < all / 40, "{impatient} of {all}");
}

#[test]
fn weights_decide() {
    let mut crowd = Crowd::new(&fields("weighted"), 200);
    crowd.site.samples = |number| if number < 100 { 10 } else { 40 };
    crowd.train_ms = |_| (200, 300);
    crowd.run(1_000_000);
    let (light, heavy) = (of(&crowd.tasks, 0..100) as f64, of(&crowd.tasks, 100..200) as f64);
    // Less than four: whoever trains is no candidate, and draws are without replacement.
    assert!((2.5..4.2).contains(&(heavy / light)), "{light} {heavy}");
}

#[test]
fn utility_learns_who_is_useful_and_fast() {
    let mut crowd = Crowd::new(&fields("utility"), 90);
    crowd.site.loss = |number| if number < 60 { 3.0 } else { 0.2 };
    crowd.train_ms = |number| if (30..60).contains(&number) { (3_000, 4_000) } else { (200, 400) };
    crowd.run(1_200_000);
    let [good, slow, useless] = [0..30, 30..60, 60..90].map(|clients| of(&crowd.tasks, clients));
    assert!(good > 2 * slow && good > 2 * useless, "{good} {slow} {useless}");
    assert!(slow > 0 && useless > 0);
}

#[test]
fn the_same_seed_makes_the_same_choice() {
    let run = || {
        let mut crowd = Crowd::new(&fields("utility"), 40);
        crowd.train_ms = |_| (200, 300);
        crowd.run(60_000);
        let mut tasks: Vec<_> = crowd.tasks.into_iter().collect();
        tasks.sort_unstable();
        (tasks, crowd.rounds)
    };
    assert_eq!(run(), run());
}
