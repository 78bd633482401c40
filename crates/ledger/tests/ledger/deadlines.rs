//! When a deadline passes does not depend on whose clock is right.

use crate::common::*;
use catchment_ledger::{Deadlines, Envelope, Moment, Outcome, State, Stocked};
use catchment_types::{Accept, JobAction, LEVEL_MAX, LogId, NodeId, Record, TimeMs};

const MINUTE: u64 = 60_000;
/// How long an update may have been on its way.
const WAY: u64 = 10_000;
/// What everybody begins at.
const BEGUN_MS: TimeMs = 1_700_000_000_000;
/// Of clocks that are wrong.
const AHEAD: i64 = 15 * MINUTE as i64;

/// A log whose writers have clocks that are off.
struct Log {
    state: State,
    now_ms: u64,
    numbers: [u64; 256],
}

impl Log {
    /// With one running job, of this deadline, that has no round yet.
    fn new(level: u32, deadline: &str) -> Self {
        let mut log = Self { state: State::default(), now_ms: 0, numbers: [0; 256] };
        if level > 1 {
            log.write(9, Record::LevelRaised { level: LEVEL_MAX, log: LogId::from_bytes([1; 16]), at_ms: BEGUN_MS });
        }
        let fields = format!(r#","goal":99,"rounds":99,"min_updates":1,"deadline":"{deadline}""#);
        log.write(9, Record::JobCreated { uid: JOB, spec: spec("a", &fields), at_ms: BEGUN_MS });
        let model = initial_model();
        log.write(9, Record::ModelPut { uid: JOB, model, needs: Default::default(), at_ms: BEGUN_MS });
        log
    }

    fn write(&mut self, writer: u8, record: Record) {
        self.numbers[usize::from(writer)] += 1;
        let number = self.numbers[usize::from(writer)];
        let envelope = Envelope { writer: [writer; 16], number, guard: None, seen: None, record };
        let sequence = self.state.sequence() + 1;
        let outcome = self.state.take(sequence, &Stocked::Record(Box::new(envelope)));
        assert!(!matches!(outcome, Outcome::Ignored(_)), "{outcome:?}");
    }

    fn clock(&self, skew_ms: i64) -> TimeMs {
        (BEGUN_MS + self.now_ms).saturating_add_signed(skew_ms)
    }

    fn moment(&self, skew_ms: i64) -> Moment {
        Moment { clock_ms: self.clock(skew_ms), passed_ms: 77 + self.now_ms }
    }

    fn open(&mut self, skew_ms: i64) {
        let at_ms = self.clock(skew_ms);
        let round = self.state.job(JOB).unwrap().round_number() + 1;
        let deadline_ms = self.state.job(JOB).unwrap().spec.deadline.map(|deadline| at_ms + deadline.ms());
        self.write(1, Record::RoundOpened { uid: JOB, round, deadline_ms, places: vec![], at_ms });
    }

    fn extend(&mut self, skew_ms: i64) {
        let job = self.state.job(JOB).unwrap();
        let deadline_ms = job.spec.deadline.map(|deadline| self.clock(skew_ms) + deadline.ms());
        let round = job.round_number();
        self.write(2, Record::RoundExtended { uid: JOB, round, deadline_ms });
    }

    fn act(&mut self, action: JobAction, skew_ms: i64) {
        let at_ms = self.clock(skew_ms);
        self.write(3, Record::JobActed { uid: JOB, action, at_ms });
    }

    /// An update that comes by a gateway.
    fn send(&mut self, gateway: u8, skew_ms: i64, client: u64) {
        let round = self.state.job(JOB).unwrap().round_number();
        let (node, at_ms) = (NodeId(gateway.into()), self.clock(skew_ms));
        let accept = Accept { node, at_ms, ..accept(JOB, round, client, 1) };
        self.write(gateway, Record::Accepted(vec![accept]));
    }
}

/// What is left as somebody sees it now whose clock is off by this.
fn left(deadlines: &mut Deadlines, log: &Log, skew_ms: i64) -> u64 {
    deadlines.look(&log.state, log.moment(skew_ms));
    deadlines.left_ms(log.state.job(JOB).unwrap(), log.moment(skew_ms)).expect("it has a deadline")
}

#[test]
fn whoever_follows_the_log_agrees_whatever_their_clocks_say() {
    for level in [1, LEVEL_MAX] {
        for writer in [-AHEAD, 0, AHEAD] {
            let mut log = Log::new(level, "10m");
            let mut watchers = [-AHEAD, 0, AHEAD].map(|skew| (skew, Deadlines::new(false)));
            let mut agreed = |log: &Log| {
                let all = watchers.each_mut().map(|(skew, deadlines)| {
                    deadlines.look(&log.state, log.moment(*skew));
                    deadlines.left_ms(log.state.job(JOB).unwrap(), log.moment(*skew))
                });
                assert!(all.iter().all(|left| *left == all[0]), "{all:?}");
                all[0]
            };
            assert_eq!(agreed(&log), None, "no round is open");
            log.open(writer);
            assert_eq!(agreed(&log), Some(10 * MINUTE));
            log.now_ms += 4 * MINUTE;
            assert_eq!(agreed(&log), Some(6 * MINUTE));
            log.now_ms += 6 * MINUTE - 1;
            assert_eq!(agreed(&log), Some(1));
            log.now_ms += 1;
            assert_eq!(agreed(&log), Some(0));
            // Somebody else extends it, with another clock.
            log.extend(-writer);
            assert_eq!(agreed(&log), Some(10 * MINUTE), "level {level}, {writer}");
            log.now_ms += 3 * MINUTE;
            assert_eq!(agreed(&log), Some(7 * MINUTE));
        }
    }
}

#[test]
fn a_pause_uses_nothing_up_whoever_ends_it() {
    for level in [1, LEVEL_MAX] {
        for skew in [-AHEAD, 0, AHEAD] {
            let (mut log, mut deadlines) = (Log::new(level, "10m"), Deadlines::new(false));
            log.open(0);
            assert_eq!(left(&mut deadlines, &log, 0), 10 * MINUTE);
            log.now_ms += MINUTE;
            // Just before, so that nothing of what was counted is in doubt.
            assert_eq!(left(&mut deadlines, &log, 0), 9 * MINUTE);
            log.act(JobAction::Pause, 0);
            assert_eq!(left(&mut deadlines, &log, 0), 9 * MINUTE);
            log.now_ms += 60 * MINUTE;
            assert_eq!(left(&mut deadlines, &log, 0), 9 * MINUTE);
            log.act(JobAction::Resume, skew);
            assert_eq!(left(&mut deadlines, &log, 0), 9 * MINUTE);
            log.now_ms += 2 * MINUTE;
            assert_eq!(left(&mut deadlines, &log, 0), 7 * MINUTE);
        }
    }
}

/// A look that comes late, because its process was busy or the log away, still sees that there was a pause.
#[test]
fn a_pause_that_nobody_saw_uses_nothing_up() {
    let (mut log, mut deadlines) = (Log::new(LEVEL_MAX, "10m"), Deadlines::new(false));
    log.open(AHEAD);
    assert_eq!(left(&mut deadlines, &log, 0), 10 * MINUTE);
    log.now_ms += MINUTE;
    log.act(JobAction::Pause, 0);
    log.now_ms += 5 * MINUTE;
    log.act(JobAction::Resume, 0);
    log.now_ms += MINUTE;
    assert_eq!(left(&mut deadlines, &log, 0), 8 * MINUTE);
    // Only its end is seen in time.
    log.act(JobAction::Pause, 0);
    log.now_ms += 5 * MINUTE;
    left(&mut deadlines, &log, 0);
    log.now_ms += MINUTE;
    log.act(JobAction::Resume, 0);
    assert_eq!(left(&mut deadlines, &log, 0), 8 * MINUTE);
    // With a clock that is behind, what came late counts; with one that is ahead, no more than that is taken back.
    log.now_ms += MINUTE;
    left(&mut deadlines, &log, 0);
    log.act(JobAction::Pause, 0);
    log.now_ms += MINUTE;
    left(&mut deadlines, &log, 0);
    log.act(JobAction::Resume, AHEAD);
    assert_eq!(left(&mut deadlines, &log, 0), 7 * MINUTE);
}

#[test]
fn the_next_round_has_all_of_its_time() {
    let (mut log, mut deadlines) = (Log::new(LEVEL_MAX, "10m"), Deadlines::new(false));
    log.open(0);
    left(&mut deadlines, &log, 0);
    log.now_ms += 11 * MINUTE;
    assert_eq!(left(&mut deadlines, &log, 0), 0);
    let (reason, at_ms) = (catchment_types::CloseReason::Shortfall, log.clock(0));
    log.write(1, Record::RoundClosed { uid: JOB, round: 1, reason, at_ms });
    log.open(AHEAD);
    assert_eq!(left(&mut deadlines, &log, 0), 10 * MINUTE);
}

/// Whoever starts goes on from what the log shows, which its own clock and the first writer's have no part in.
#[test]
fn a_start_believes_the_log_and_no_clock() {
    for skew in [-AHEAD, 0, AHEAD] {
        let mut log = Log::new(LEVEL_MAX, "10m");
        log.open(skew);
        log.now_ms += MINUTE;
        assert_eq!(left(&mut Deadlines::new(false), &log, skew), 10 * MINUTE, "nobody has written since");
        // By two gateways, one of which is off as well: what they say of the same time counts once.
        for client in 0..8 {
            log.send(10, 0, client);
            log.send(11, -skew, 100 + client);
            log.now_ms += MINUTE / 2;
        }
        let seen = left(&mut Deadlines::new(false), &log, -skew);
        assert_eq!(seen, 10 * MINUTE - (7 * MINUTE / 2 - WAY), "from the first update to the last");
        // What a snapshot carries is the same.
        log.state = State::from_snapshot(&log.state.to_snapshot().unwrap()).unwrap();
        assert_eq!(left(&mut Deadlines::new(false), &log, -skew), seen);
    }
}

/// However often they all start anew, a round to which updates come is over in the end.
#[test]
fn starts_do_not_put_a_deadline_off_for_ever() {
    let mut log = Log::new(LEVEL_MAX, "10m");
    log.open(AHEAD);
    for client in 0.. {
        if left(&mut Deadlines::new(false), &log, 0) == 0 {
            break;
        }
        assert!(log.now_ms < 11 * MINUTE, "it is too late");
        log.send(10, -AHEAD, client);
        log.now_ms += MINUTE / 2;
    }
    assert!(log.now_ms >= 10 * MINUTE, "it is too early");
}

#[test]
fn a_pause_before_a_start_uses_nothing_up() {
    let mut log = Log::new(LEVEL_MAX, "10m");
    log.open(0);
    log.send(10, 0, 1);
    log.now_ms += MINUTE;
    log.send(10, 0, 2);
    log.act(JobAction::Pause, 0);
    log.now_ms += MINUTE;
    assert_eq!(left(&mut Deadlines::new(false), &log, 0), 9 * MINUTE + WAY);
    log.act(JobAction::Resume, AHEAD);
    log.send(10, 0, 3);
    log.now_ms += MINUTE;
    log.send(10, 0, 4);
    assert_eq!(left(&mut Deadlines::new(false), &log, 0), 8 * MINUTE + 2 * WAY);
}

/// Of one process everything is by the same clock, and its time goes on while it is away.
#[test]
fn a_process_that_is_alone_believes_its_clock() {
    for level in [1, LEVEL_MAX] {
        let mut log = Log::new(level, "10m");
        log.open(0);
        log.now_ms += 3 * MINUTE;
        assert_eq!(left(&mut Deadlines::new(true), &log, 0), 7 * MINUTE);
        assert_eq!(left(&mut Deadlines::new(true), &log, -AHEAD), 10 * MINUTE, "never more than there was");
        log.act(JobAction::Pause, 0);
        log.now_ms += 60 * MINUTE;
        assert_eq!(left(&mut Deadlines::new(true), &log, 0), 7 * MINUTE);
        log.act(JobAction::Resume, 0);
        assert_eq!(left(&mut Deadlines::new(true), &log, 0), 7 * MINUTE);
        log.now_ms += 60 * MINUTE;
        assert_eq!(left(&mut Deadlines::new(true), &log, 0), 0);
        // What is opened while it runs is timed from there, even if its clock jumps.
        let mut deadlines = Deadlines::new(true);
        left(&mut deadlines, &log, 0);
        log.extend(0);
        assert_eq!(left(&mut deadlines, &log, AHEAD), 10 * MINUTE);
    }
}

/// How long receipts are kept is judged by the log's own time, which a wrong clock moves by an hour at most.
#[test]
fn a_clock_that_is_years_off_drops_no_receipts() {
    let mut log = Log::new(LEVEL_MAX, "10m");
    let year_ms = 365 * 24 * 60 * MINUTE as i64;
    log.open(0);
    log.send(10, 0, 1);
    let receipt = log.state.job(JOB).unwrap().round.as_ref().unwrap().updates().next().unwrap().receipt;
    let (reason, at_ms) = (catchment_types::CloseReason::Shortfall, log.clock(0));
    log.write(1, Record::RoundClosed { uid: JOB, round: 1, reason, at_ms });
    for _ in 0..50 {
        log.now_ms += 1_000;
        let (round, at_ms) = (log.state.job(JOB).unwrap().round_number() + 1, log.clock(year_ms));
        log.write(2, Record::RoundOpened { uid: JOB, round, deadline_ms: None, places: vec![], at_ms });
        log.write(2, Record::RoundClosed { uid: JOB, round, reason, at_ms: log.clock(year_ms) });
    }
    assert!(log.state.receipt(receipt).is_some());
}
