//! Replay equals live, whatever the records.

use crate::common::*;
use catchment_ledger::{Envelope, Job, State, Stocked};
use catchment_types::{
    CloseReason, Code, Digest, DurationText, EvaluationResult, JobAction, JobUid, LEVEL_MAX, LogId, ModelCommit,
    NodeId, ReceiptId, Record, SpecPatch, TimeMs,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use std::fmt::Debug;

/// Which round a record speaks of: one that fits the state, or any.
#[derive(Debug, Clone, Copy)]
enum Which {
    Current,
    Next,
    Any(u64),
}

impl Which {
    fn number(self, job: Option<&Job>) -> u64 {
        let current = job.map_or(0, Job::round_number);
        match self {
            Self::Current => current,
            Self::Next => current + 1,
            Self::Any(number) => number,
        }
    }
}

/// Which receipts: the round's updates with these places, or one made up.
#[derive(Debug, Clone)]
enum Receipts {
    Places(Vec<usize>),
    All,
    Invented(u8),
}

impl Receipts {
    fn of(&self, job: Option<&Job>, round: u64) -> Vec<ReceiptId> {
        let there: Vec<_> = job
            .and_then(|job| job.round_numbered(round))
            .map_or_else(Vec::new, |round| round.updates().map(|update| update.receipt).collect());
        match self {
            Self::Places(_) if there.is_empty() => Vec::new(),
            Self::Places(places) => places.iter().map(|place| there[place % there.len()]).collect(),
            Self::All => there,
            Self::Invented(byte) => vec![ReceiptId::from_bytes([*byte; 16])],
        }
    }
}

/// A record that may depend on the state it meets, so that random sequences get far.
#[derive(Debug, Clone)]
enum Step {
    Ready(Record),
    Opened(JobUid, Which, Option<TimeMs>, TimeMs),
    Extended(JobUid, Which, TimeMs),
    Closed(JobUid, Which, CloseReason, TimeMs),
    Accepted(Vec<(JobUid, Which, u64, u8)>),
    Folded(JobUid, Which, Receipts),
    Discarded(JobUid, Which, Receipts),
    Lost(JobUid, Which, Receipts),
    Committed(JobUid, Which, TimeMs),
    GivenUp(JobUid, Which, bool, TimeMs),
}

impl Step {
    fn record(self, state: &State) -> Record {
        let number = |uid, which: Which| which.number(state.job(uid));
        let receipts = |uid, which, receipts: Receipts| receipts.of(state.job(uid), number(uid, which));
        match self {
            Self::Ready(record) => record,
            Self::Opened(uid, which, deadline_ms, at_ms) => {
                Record::RoundOpened { uid, round: number(uid, which), deadline_ms, places: vec![], at_ms }
            }
            Self::Extended(uid, which, deadline_ms) => {
                Record::RoundExtended { uid, round: number(uid, which), deadline_ms: Some(deadline_ms) }
            }
            Self::Closed(uid, which, reason, at_ms) => {
                Record::RoundClosed { uid, round: number(uid, which), reason, at_ms }
            }
            Self::Accepted(group) => {
                let accept = |(uid, which, client, body)| accept(uid, number(uid, which), client, body);
                Record::Accepted(group.into_iter().map(accept).collect())
            }
            Self::Folded(uid, which, picked) => {
                Record::Folded { uid, round: number(uid, which), receipts: receipts(uid, which, picked) }
            }
            Self::Discarded(uid, which, picked) => Record::Discarded {
                uid,
                round: number(uid, which),
                receipt: receipts(uid, which, picked).first().copied().unwrap_or(ReceiptId::from_bytes([0; 16])),
                code: Code::FunctionTrap,
                reason: "trap".to_owned(),
            },
            Self::Lost(uid, which, picked) => {
                Record::Lost { uid, round: number(uid, which), receipts: receipts(uid, which, picked), at_ms: 7 }
            }
            Self::Committed(uid, which, at_ms) => {
                let round = number(uid, which);
                let found = state.job(uid).and_then(|job| Some((job, job.round_numbered(round)?)));
                let model = found.map_or_else(initial_model, |(job, round)| commit_of(job, round));
                Record::Committed { uid, round, model, at_ms }
            }
            Self::GivenUp(uid, which, fits, at_ms) => {
                let round = number(uid, which);
                let found = state.job(uid).and_then(|job| job.round_numbered(round)).filter(|_| fits);
                let contribution = found.map_or(digest(9), |round| round.contribution());
                Record::RoundGivenUp { uid, round, contribution, reason: "infinite".to_owned(), at_ms }
            }
        }
    }
}

fn uid() -> impl Strategy<Value = JobUid> {
    prop_oneof![6 => Just(1u8), 2 => Just(2), 1 => Just(3)].prop_map(|byte| JobUid::from_bytes([byte; 16]))
}

fn time() -> impl Strategy<Value = TimeMs> {
    prop_oneof![8 => 0..2_000u64, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

fn which() -> impl Strategy<Value = Which> {
    prop_oneof![8 => Just(Which::Current), 1 => Just(Which::Next), 1 => any::<u64>().prop_map(Which::Any),
        1 => (0..4u64).prop_map(Which::Any)]
}

fn receipts() -> impl Strategy<Value = Receipts> {
    prop_oneof![
        4 => Just(Receipts::All),
        4 => vec(any::<usize>(), 0..4).prop_map(Receipts::Places),
        1 => any::<u8>().prop_map(Receipts::Invented),
    ]
}

fn spec_text() -> impl Strategy<Value = String> {
    let fields = [
        r#","goal":3,"rounds":5,"deadline":null"#,
        r#","goal":2,"min_updates":2,"rounds":20,"receipts":"500ms""#,
        r#","goal":1,"rounds":100,"receipts":"0ms","evaluate":{"min_results":1,"patience":2}"#,
        r#","goal":4,"on_shortfall":"skip","topology":{"tree":{"leaves":3,"middles":2}}"#,
        r#","goal":0"#,
    ];
    (select(vec!["a", "b"]), select(fields.to_vec())).prop_map(|(name, fields)| spec(name, fields))
}

fn patch() -> impl Strategy<Value = SpecPatch> {
    let count = || proptest::option::of(prop_oneof![4 => 0..6u64, 1 => any::<u64>()]);
    (count(), count(), proptest::option::of(any::<u64>())).prop_map(|(rounds, goal, deadline)| SpecPatch {
        rounds,
        goal,
        deadline: deadline.map(DurationText::from_ms),
    })
}

fn action() -> impl Strategy<Value = JobAction> {
    prop_oneof![8 => Just(JobAction::Pause), 16 => Just(JobAction::Resume), 1 => Just(JobAction::Stop),
        1 => Just(JobAction::Delete)]
}

fn model() -> impl Strategy<Value = ModelCommit> {
    (0..3u64, proptest::option::of(any::<[u8; 32]>())).prop_map(|(version, digest)| ModelCommit {
        version,
        contribution: digest.map(Digest::from_bytes),
        gathered: false,
        ..initial_model()
    })
}

fn result() -> impl Strategy<Value = EvaluationResult> {
    let value = prop_oneof![4 => -2.0..2.0f64, 1 => any::<f64>()];
    (0..5u64, 0..3u64, proptest::option::of(value)).prop_map(|(number, num_samples, loss)| EvaluationResult {
        client: client(number),
        num_samples,
        metrics: loss.filter(|loss| !loss.is_nan()).map(|loss| ("loss".to_owned(), loss)).into_iter().collect(),
    })
}

/// One kind of step, as proptest takes it.
fn boxed<S: Strategy<Value = Step> + 'static>(strategy: S) -> BoxedStrategy<Step> {
    strategy.boxed()
}

fn reason() -> impl Strategy<Value = CloseReason> {
    select(vec![CloseReason::Deadline, CloseReason::Deadline, CloseReason::Shortfall, CloseReason::Stopped])
}

fn ready<S: Strategy<Value = Record> + 'static>(strategy: S) -> BoxedStrategy<Step> {
    boxed(strategy.prop_map(Step::Ready))
}

fn step() -> impl Strategy<Value = Step> {
    let accepted = (uid(), which(), 0..7u64, 0..3u8);
    prop_oneof![
        2 => ready((uid(), spec_text(), time()).prop_map(|(uid, spec, at_ms)| Record::JobCreated { uid, spec, at_ms })),
        1 => ready((uid(), patch(), time()).prop_map(|(uid, patch, at_ms)| Record::JobPatched { uid, patch, at_ms })),
        2 => ready((uid(), action(), time()).prop_map(|(uid, action, at_ms)| Record::JobActed { uid, action, at_ms })),
        2 => ready((uid(), model(), time()).prop_map(|(uid, model, at_ms)| Record::ModelPut { uid, model, needs: Default::default(), at_ms })),
        6 => ready((uid(), 0..4u64, vec(result(), 0..4)).prop_map(|(uid, version, results)| {
            Record::Evaluated { uid, version, results }
        })),
        1 => ready((1..=LEVEL_MAX, time()).prop_map(|(level, at_ms)| {
            Record::LevelRaised { level, log: LogId::from_bytes([4; 16]), at_ms }
        })),
        1 => ready((uid(), 0..4u64, 0..2u32, time()).prop_map(|(uid, round, leaf, at_ms)| {
            Record::SumLost { uid, round, node: NodeId(1), leaf, at_ms }
        })),
        1 => ready((uid(), time()).prop_map(|(uid, at_ms)| {
            Record::JobCompleted { uid, reason: "no better".to_owned(), at_ms }
        })),
        1 => ready((uid(), 0..4u64, model(), time()).prop_map(|(uid, round, model, at_ms)| {
            Record::Committed { uid, round, model, at_ms }
        })),
        12 => boxed((uid(), any::<bool>(), proptest::option::of(time()), time()).prop_map(|(uid, fits, deadline, at)| {
            Step::Opened(uid, if fits { Which::Next } else { Which::Current }, deadline, at)
        })),
        2 => boxed((uid(), which(), time()).prop_map(|(uid, which, deadline)| Step::Extended(uid, which, deadline))),
        2 => boxed((uid(), which(), reason(), time()).prop_map(|(uid, which, why, at)| Step::Closed(uid, which, why, at))),
        24 => boxed(vec(accepted, 0..6).prop_map(Step::Accepted)),
        14 => boxed((uid(), which(), receipts()).prop_map(|(uid, which, picked)| Step::Folded(uid, which, picked))),
        3 => boxed((uid(), which(), receipts()).prop_map(|(uid, which, picked)| Step::Discarded(uid, which, picked))),
        3 => boxed((uid(), which(), receipts()).prop_map(|(uid, which, picked)| Step::Lost(uid, which, picked))),
        14 => boxed((uid(), which(), time()).prop_map(|(uid, which, at)| Step::Committed(uid, which, at))),
        6 => boxed((uid(), which(), any::<bool>(), time()).prop_map(|(uid, which, fits, at)| {
            Step::GivenUp(uid, which, fits, at)
        })),
    ]
}

/// A job that runs, then anything.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 0..120).prop_map(|mut steps| {
        let begin = [
            created(JOB, spec("a", r#","goal":3,"min_updates":2,"rounds":8,"receipts":"1s","evaluate":{"min_results":2},"checkpoints":{"keep_last":1}"#)),
            Record::ModelPut { uid: JOB, model: initial_model(), needs: Default::default(), at_ms: 0 },
        ];
        steps.splice(0..0, begin.map(Step::Ready));
        steps
    })
}

fn check(state: &State, record: &impl Debug) -> Result<(), TestCaseError> {
    state.audit().map_err(|why| TestCaseError::fail(format!("{why}, after {record:?}")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_replay_of_the_bytes_gives_the_live_state(steps in steps()) {
        let (mut live, mut log) = (State::default(), Vec::new());
        for step in steps {
            let record = step.record(&live);
            let sequence = live.sequence() + 1;
            let envelope = Envelope { writer: [1; 16], number: sequence, guard: None, seen: None, record };
            let bytes = envelope.to_bytes(LEVEL_MAX, usize::MAX).unwrap();
            let stocked = Stocked::Record(Box::new(envelope));
            log.push((bytes, live.take(sequence, &stocked)));
            check(&live, &stocked)?;
        }
        let mut replayed = State::default();
        for (bytes, outcome) in &log {
            let sequence = replayed.sequence() + 1;
            let stocked = Envelope::read(sequence, bytes, replayed.level()).unwrap();
            prop_assert_eq!(&replayed.take(sequence, &stocked), outcome);
        }
        prop_assert_eq!(&replayed, &live);
        for job in live.jobs() {
            // The views are made without a panic, whatever the numbers.
            let _ = (job.view(), job.round_view(), job.next_round(), job.plateau());
            job.models.iter().for_each(|model| drop(job.model_view(model)));
        }
    }

    /// Wherever a snapshot is taken, it and the records after it are the whole log.
    #[test]
    fn a_snapshot_and_the_rest_give_the_live_state(steps in steps(), cut in any::<prop::sample::Index>()) {
        let (mut live, mut log) = (State::default(), Vec::new());
        for step in steps {
            let record = step.record(&live);
            let outcome = live.apply(live.sequence() + 1, &record);
            log.push((record, outcome));
        }
        let (before, after) = log.split_at(cut.index(log.len() + 1));
        let mut state = State::default();
        for (record, _) in before {
            state.apply(state.sequence() + 1, record);
        }
        let mut restored = State::from_snapshot(&state.to_snapshot().unwrap()).unwrap();
        prop_assert_eq!(&restored, &state);
        for (record, outcome) in after {
            prop_assert_eq!(&restored.apply(restored.sequence() + 1, record), outcome);
        }
        prop_assert_eq!(&restored, &live);
        prop_assert_eq!(restored.audit(), Ok(()));
    }

    /// Records out of their order, or twice: nothing holds together any more but the state itself.
    #[test]
    fn any_records_in_any_order_keep_the_state_whole(steps in steps(), picks in vec(any::<prop::sample::Index>(), 1..150)) {
        let mut made = State::default();
        let mut records = Vec::new();
        for step in steps {
            records.push(step.record(&made));
            made.apply(made.sequence() + 1, records.last().unwrap());
        }
        let mut state = State::default();
        for pick in picks {
            let record = pick.get(&records);
            state.apply(state.sequence() + 1, record);
            check(&state, record)?;
        }
    }

    /// A record that changed nothing changes nothing: the state differs in its sequence alone.
    #[test]
    fn ignored_is_ignored(steps in steps()) {
        let (mut with, mut without) = (State::default(), State::default());
        for step in steps {
            let record = step.record(&with);
            if !is_ignored(&with.apply(with.sequence() + 1, &record)) {
                without.apply(without.sequence() + 1, &record);
            }
        }
        let unrevised = |mut job: Job| {
            job.revision = 0;
            job
        };
        let jobs = |state: &State| state.jobs().cloned().map(unrevised).collect::<Vec<_>>();
        prop_assert_eq!(jobs(&with), jobs(&without));
    }
}
