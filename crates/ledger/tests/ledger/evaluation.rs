//! What clients measure of models.

use crate::common::*;
use catchment_bus::Bus;
use catchment_ledger::{EvaluateOutcome, Ledger, MEASURED_MAX, Outcome};
use catchment_types::{EvaluationResult, JobState, JobUid, Record};
use std::collections::BTreeMap;

const MEASURED: &str =
    r#","goal":1,"rounds":50,"deadline":null,"evaluate":{"min_results":2,"patience":2},"checkpoints":{"keep_last":3}"#;

fn result(number: u64, num_samples: u64, loss: f64) -> EvaluationResult {
    EvaluationResult { client: client(number), num_samples, metrics: BTreeMap::from([("loss".to_owned(), loss)]) }
}

impl Fixture {
    fn evaluate(&mut self, version: u64, results: Vec<EvaluationResult>) -> Vec<EvaluateOutcome> {
        match self.apply(Record::Evaluated { uid: JOB, version, results }) {
            Outcome::Evaluations(outcomes) => outcomes,
            other => panic!("results have an outcome each, not {other:?}"),
        }
    }

    /// Commits the open round's model and opens the next.
    fn next_version(&mut self) {
        let round = self.round().number;
        self.accepted(round, 1);
        self.fold_pending();
        assert_eq!(self.commit(), Outcome::Done);
        assert_eq!(self.open(round + 1), Outcome::Done);
    }

    /// Two clients find this loss in the newest version.
    fn measured(&mut self, loss: f64) {
        let version = self.job().newest_model().unwrap().commit.version;
        self.evaluate(version, vec![result(1, 1, loss), result(2, 1, loss)]);
    }
}

#[test]
fn means_are_weighted_by_samples() {
    let mut fixture = Fixture::running(MEASURED);
    assert_eq!(fixture.evaluate(0, vec![result(1, 30, 1.0)]), [EvaluateOutcome::Counted]);
    assert_eq!(fixture.job().best_version(), None, "one result is too few");
    assert_eq!(fixture.evaluate(0, vec![result(2, 10, 5.0)]), [EvaluateOutcome::Counted]);
    let view = fixture.job().model_view(fixture.job().model(0).unwrap());
    let evaluation = view.evaluation.unwrap();
    assert_eq!((evaluation.results, evaluation.num_samples, evaluation.metrics["loss"]), (2, 40, 2.0));
    assert!(view.best);
    assert_eq!(fixture.job().view().best_version, Some(0));
}

#[test]
fn a_client_counts_once_for_a_version() {
    let mut fixture = Fixture::running(MEASURED);
    let outcomes =
        fixture.evaluate(0, vec![result(1, 5, 1.0), result(1, 5, 1.0), result(1, 5, 2.0), result(1, 6, 1.0)]);
    use EvaluateOutcome::{Conflict, Counted, Duplicate, UnknownJob, UnknownVersion};
    assert_eq!(outcomes, [Counted, Duplicate, Conflict, Conflict]);
    let before = fixture.job().clone();
    assert_eq!(fixture.evaluate(0, vec![result(1, 5, 1.0), result(1, 5, 3.0)]), [Duplicate, Conflict]);
    assert_eq!(*fixture.job(), before);
    assert_eq!(fixture.evaluate(1, vec![result(1, 5, 1.0)]), [UnknownVersion]);
    fixture.next_version();
    assert_eq!(fixture.evaluate(1, vec![result(1, 5, 9.0)]), [Counted], "another version");
    let stranger = JobUid::from_bytes([9; 16]);
    let outcome = fixture.apply(Record::Evaluated { uid: stranger, version: 0, results: vec![result(1, 5, 1.0)] });
    assert_eq!(outcome, Outcome::Evaluations(vec![UnknownJob]));
}

#[test]
fn the_best_version_is_kept() {
    let mut fixture = Fixture::running(MEASURED);
    for loss in [3.0, 1.0, 2.0, 2.5, 2.6] {
        fixture.measured(loss);
        fixture.next_version();
    }
    let job = fixture.job();
    assert_eq!(job.best_version(), Some(1));
    let kept: Vec<bool> = (0..6).map(|version| job.keeps(version)).collect();
    assert_eq!(kept, [true, true, false, true, true, true], "the initial, the best, the three newest");
    assert!(job.takes_results(1) && !job.takes_results(2) && !job.takes_results(6));
    fixture.measured(0.5);
    assert_eq!((fixture.job().best_version(), fixture.job().keeps(1)), (Some(5), false));
}

#[test]
fn a_larger_number_may_be_the_better_one() {
    let fields = r#","goal":1,"rounds":9,"deadline":null,"evaluate":{"min_results":1,"metric":"loss","goal":"max"}"#;
    let mut fixture = Fixture::running(fields);
    for loss in [3.0, 1.0, 3.0] {
        fixture.measured(loss);
        fixture.next_version();
    }
    assert_eq!(fixture.job().best_version(), Some(0), "of equals the first");
    assert_eq!(fixture.job().plateau(), None, "no patience, no end");
}

/// Reaching the limits of numbers spoils nothing but the number itself.
#[test]
fn numbers_out_of_range_make_nothing_the_best() {
    let mut fixture = Fixture::running(MEASURED);
    fixture.evaluate(0, vec![result(1, u64::MAX, f64::MAX), result(2, u64::MAX, -f64::MAX)]);
    fixture.evaluate(0, vec![result(3, 0, f64::NAN)]);
    let evaluation = fixture.job().evaluation(0).unwrap().view();
    assert!(evaluation.metrics.values().all(|value| value.is_finite()));
    let many = (0..100).map(|i| (format!("m{i}"), 1.0)).collect();
    fixture.evaluate(0, vec![EvaluationResult { client: client(4), num_samples: 1, metrics: many }]);
    assert!(fixture.job().evaluation(0).unwrap().view().metrics.len() <= 64);
}

#[test]
fn patience_ends_with_a_reason() {
    let mut fixture = Fixture::running(MEASURED);
    for (loss, ends) in [(3.0, false), (1.0, false), (2.0, false), (0.9, false), (0.9, false), (1.0, true)] {
        fixture.measured(loss);
        assert_eq!(fixture.job().plateau().is_some(), ends, "{loss}");
        fixture.next_version();
    }
    let reason = fixture.job().plateau().unwrap();
    assert!(reason.contains("version 3") && reason.contains("`loss` is 0.9"), "{reason}");
    let receipt = fixture.accept(fixture.round().number, 7, 0);
    assert!(receipt.is_accepted());
    let completed = |reason: &str| Record::JobCompleted { uid: JOB, reason: reason.to_owned(), at_ms: 9 };
    assert_eq!(fixture.apply(completed(&reason)), Outcome::Done);
    let view = fixture.job().view();
    assert_eq!((view.state, view.reason.as_deref(), view.best_version), (JobState::Completed, Some(&*reason), Some(3)));
    assert!(is_ignored(&fixture.apply(completed("again"))));
    // What is measured after the end still counts.
    assert_eq!(fixture.evaluate(6, vec![result(1, 1, 0.1), result(2, 1, 0.1)]).len(), 2);
    assert_eq!(fixture.job().best_version(), Some(6));
    let mut waiting = Fixture::waiting(MEASURED);
    assert!(is_ignored(&waiting.apply(completed("before it began"))));
}

#[test]
fn old_versions_forget_who_measured_them() {
    let fields = r#","goal":1,"rounds":50,"deadline":null,"evaluate":{"min_results":1}"#;
    let mut fixture = Fixture::running(fields);
    for round in 0..=MEASURED_MAX {
        fixture.measured(round as f64);
        fixture.next_version();
    }
    let job = fixture.job();
    assert!(!job.evaluation(0).unwrap().has(&client(1)) && job.evaluation(MEASURED_MAX).unwrap().has(&client(1)));
    assert_eq!(job.evaluation(0).unwrap().results(), 2, "what it amounts to stays");
    assert!(!job.takes_results(0));
    assert_eq!(fixture.evaluate(0, vec![result(9, 1, 0.0)]), [EvaluateOutcome::UnknownVersion]);
}

#[tokio::test]
async fn the_driver_appends_results_in_groups() {
    let bus = Bus::in_memory();
    let ledger = Ledger::open(bus.log.clone(), [1; 16]).await.unwrap();
    let jobs = [JOB, JobUid::from_bytes([2; 16])];
    for (uid, name) in jobs.into_iter().zip(["a", "b"]) {
        ledger.propose(created(uid, spec(name, MEASURED))).await.unwrap();
        ledger
            .propose(Record::ModelPut { uid, model: initial_model(), needs: Default::default(), at_ms: 0 })
            .await
            .unwrap();
    }
    let before = ledger.read(|state| state.sequence());
    let calls = (0..300).map(|number| {
        let (ledger, uid) = (ledger.clone(), jobs[number as usize % 2]);
        async move { ledger.evaluate(uid, 0, result(number / 3, 1, (number / 3) as f64)).await.unwrap() }
    });
    let outcomes = futures::future::join_all(calls).await;
    // Of three calls with one client's name two or one go to each job.
    let counted = outcomes.iter().filter(|outcome| **outcome == EvaluateOutcome::Counted).count();
    let again = outcomes.iter().filter(|outcome| **outcome == EvaluateOutcome::Duplicate).count();
    assert_eq!((counted, again), (200, 100));
    let (after, results) = ledger.read(|state| {
        let of = |uid| state.job(uid).unwrap().evaluation(0).unwrap().results();
        (state.sequence(), jobs.map(of))
    });
    assert_eq!(results, [100, 100]);
    assert!(after - before < 100, "{} records for 300 results", after - before);
    let unknown = ledger.evaluate(JobUid::from_bytes([7; 16]), 0, result(1, 1, 1.0)).await.unwrap();
    assert_eq!(unknown, EvaluateOutcome::UnknownJob);
    let replayed = Ledger::open(bus.log.clone(), [2; 16]).await.unwrap();
    let jobs = |ledger: &Ledger| ledger.read(|state| state.jobs().cloned().collect::<Vec<_>>());
    assert_eq!(jobs(&replayed), jobs(&ledger));
}
