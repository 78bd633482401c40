//! Real runner processes: what they compute, what happens when they end, hang, or hear nothing.

mod common;

use catchment_proxy::{Link, LinkError, Route, RouteCount, RunnerId};
use catchment_runner::{Done, InProcess, Lane, Processes, Runners};
use catchment_runtime::{FunctionError, HostError};
use catchment_types::{Descriptor, JobUid, NoSteps};
use common::{Batch, ELEMENTS, Functions, blueprint, kill, socket_link, start, start_program};
use rustix::process::Signal;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Not a test: this program again, as the runner that the tests start.
#[test]
#[ignore = "a runner process of other tests"]
#[allow(clippy::disallowed_methods, reason = "its threads may still be at work, as in the program")]
fn runner_process() {
    let control = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    catchment_runner::serve(UnixStream::from(control), Arc::new(NoSteps)).unwrap();
    std::process::exit(0);
}

#[test]
fn runners_compute_what_this_process_does() {
    let functions = Functions::new();
    let fedavg = &functions.fedavg;
    let processes = start(2, socket_link());
    let here = InProcess::default();
    let runners: [&dyn Runners; 2] = [&processes, &here];
    for runners in runners {
        let cold_starts = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for lane in 0..4 {
                let cold_starts = &cold_starts;
                scope.spawn(move || {
                    let blueprint = blueprint(fedavg, 1);
                    for turn in 0..50 {
                        let batch = Batch::new(u64::from(lane) * 1000 + turn);
                        let done: Done = runners.run(batch.fold(fedavg, &blueprint, lane)).unwrap();
                        cold_starts.fetch_add(u64::from(done.cold_start.is_some()), Relaxed);
                        batch.check();
                    }
                });
            }
        });
        assert!((1..=4).contains(&cold_starts.into_inner()), "instances are kept between orders");
    }
    let lanes: Vec<usize> = processes.survey().runners.iter().map(|runner| runner.lanes).collect();
    assert_eq!(lanes, [2, 2], "lanes are spread");
    processes.forget(JobUid::from_bytes([1; 16]));
    assert!(processes.survey().runners.iter().all(|runner| runner.lanes == 0));
    assert_eq!(processes.survey().restarts, 0);
}

/// Has a runner that is stuck in a function get a signal; gives what came of the work.
fn interrupted(processes: &Processes, functions: &Functions, signal: Signal) -> Result<Done, FunctionError> {
    let mut never = blueprint(&functions.endless, 2);
    never.limits.cpu_ms = 60_000;
    let batch = Batch::new(1);
    std::thread::scope(|scope| {
        let stuck = scope.spawn(|| processes.run(batch.fold(&functions.endless, &never, 0)));
        std::thread::sleep(Duration::from_millis(300));
        let [runner] = &processes.survey().runners[..] else { panic!("there is one") };
        kill(runner.pid, signal);
        stuck.join().unwrap()
    })
}

fn still_folds(processes: &Processes, functions: &Functions) {
    let batch = Batch::new(2);
    processes.run(batch.fold(&functions.fedavg, &blueprint(&functions.fedavg, 1), 0)).unwrap();
    batch.check();
}

#[test]
fn a_runner_that_is_killed_gives_its_work_back_and_is_replaced() {
    let functions = Functions::new();
    let processes = start(1, socket_link());
    let lost = interrupted(&processes, &functions, Signal::KILL);
    assert!(matches!(lost, Err(FunctionError::Host(HostError::Lost { begun: true, .. }))), "{lost:?}");
    still_folds(&processes, &functions);
    assert_eq!(processes.survey().restarts, 1);
}

#[test]
fn a_runner_that_gives_no_sign_of_life_is_ended() {
    let functions = Functions::new();
    let processes = start(1, socket_link());
    let begun = Instant::now();
    let lost = interrupted(&processes, &functions, Signal::STOP);
    assert!(matches!(lost, Err(FunctionError::Host(HostError::Lost { begun: true, .. }))), "{lost:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
    still_folds(&processes, &functions);
}

#[test]
fn work_for_a_runner_that_sleeps_is_done_by_the_next() {
    let functions = Functions::new();
    let processes = start(1, socket_link());
    let [runner] = &processes.survey().runners[..] else { panic!("there is one") };
    kill(runner.pid, Signal::STOP);
    // A signal takes its time.
    std::thread::sleep(Duration::from_millis(100));
    still_folds(&processes, &functions);
    assert_eq!(processes.survey().restarts, 1);
}

#[test]
fn a_function_that_never_ends_is_stopped_there_and_the_runner_lives() {
    let functions = Functions::new();
    let processes = start(1, socket_link());
    let batch = Batch::new(1);
    let stopped = processes.run(batch.fold(&functions.endless, &blueprint(&functions.endless, 2), 0));
    assert_eq!(stopped, Err(FunctionError::TimedOut { call: "fold".into(), limit_ms: 300 }));
    still_folds(&processes, &functions);
    assert_eq!(processes.survey().restarts, 0);
}

#[test]
fn runners_end_with_their_node() {
    let processes = start(2, socket_link());
    let pids: Vec<u32> = processes.survey().runners.iter().map(|runner| runner.pid).collect();
    drop(processes);
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid} is waited for");
    }
}

#[test]
fn a_program_that_is_no_runner_is_named() {
    for (program, says) in [("/no/such/program", "No such file"), ("/bin/true", "ended at once")] {
        let Err(error) = start_program(program.into(), vec![], 2, socket_link()) else { panic!("it is no runner") };
        let error = error.to_string();
        assert!(error.contains(program) && error.contains(says), "{error}");
    }
}

/// Loses every third descriptor and sends every second of the others twice.
struct Unreliable {
    link: Arc<dyn Link>,
    sent: AtomicU64,
}

impl Link for Unreliable {
    fn attach(&self, runner: RunnerId) -> Result<OwnedFd, LinkError> {
        self.link.attach(runner)
    }
    fn detach(&self, runner: RunnerId) {
        self.link.detach(runner);
    }
    fn place(&self, route: Route, runner: RunnerId) -> Result<(), LinkError> {
        self.link.place(route, runner)
    }
    fn remove(&self, route: Route) -> Option<RouteCount> {
        self.link.remove(route)
    }
    fn send(&self, descriptor: &Descriptor) -> Result<(), LinkError> {
        let number = self.sent.fetch_add(1, Relaxed);
        if number.is_multiple_of(3) {
            return Ok(());
        }
        if number.is_multiple_of(2) {
            self.link.send(descriptor)?;
        }
        self.link.send(descriptor)
    }
    fn credit(&self, runner: RunnerId, count: u32) {
        self.link.credit(runner, count);
    }
    fn routes(&self) -> Vec<RouteCount> {
        self.link.routes()
    }
}

#[test]
fn lost_and_doubled_descriptors_change_nothing() {
    let functions = Functions::new();
    let (link, report) = socket_link();
    let processes = start(2, (Arc::new(Unreliable { link, sent: AtomicU64::new(0) }), report));
    let blueprint = blueprint(&functions.fedavg, 1);
    for turn in 0..60 {
        let batch = Batch::new(turn);
        let done = processes.run(batch.fold(&functions.fedavg, &blueprint, (turn % 2) as u32)).unwrap();
        assert_eq!(done.replies.len(), 1);
        batch.check();
    }
}

#[test]
fn a_lane_moves_while_it_works() {
    let functions = Functions::new();
    let processes = start(2, socket_link());
    let blueprint = blueprint(&functions.fedavg, 1);
    let lane = Lane { job: blueprint.job, index: 0 };
    let route = Route(lane.route().0);
    let runners: Vec<RunnerId> = processes.survey().runners.iter().map(|runner| runner.id).collect();
    for turn in 0..40 {
        let batch = Batch::new(turn);
        processes.run(batch.fold(&functions.fedavg, &blueprint, 0)).unwrap();
        batch.check();
        processes.place(route, runners[turn as usize % 2]).unwrap();
    }
    let survey = processes.survey();
    let [only] = &survey.routes[..] else { panic!("one lane has one route") };
    assert_eq!((only.lane, only.count.route, only.count.delivered()), (lane, route, 40));
    assert_eq!(only.count.payload_bytes, 40 * 4 * ELEMENTS as u64 * 4);
    processes.forget(lane.job);
    assert_eq!(processes.survey().jobs[&lane.job].by_path["socket"], 40, "counts outlive their route");
}
