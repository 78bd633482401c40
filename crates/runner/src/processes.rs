//! Runner processes: started, watched, replaced; and the way of work to them.

use crate::desk::{Desk, Outcome, Parcel, Progress};
use crate::message::{Setup, ToNode, ToRunner};
use crate::order::{Done, Lane, Order, Work};
use crate::process::{Control, Process};
use crate::survey::{Counts, RouteInfo, RunnerInfo, Survey};
use crate::wire;
use crate::{Runners, lock};
use catchment_proxy::{CpuTime, Link, LinkError, Report, Route, RunnerId};
use catchment_runtime::{Compiled, Function, FunctionError, HostError};
use catchment_types::{Digest, JobUid};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A hint that nobody followed is given again after this.
const HINT_AGAIN: Duration = Duration::from_millis(100);
/// How long work waits for a runner to be there.
const RUNNER_WAIT: Duration = Duration::from_secs(20);
/// A runner that lived shorter is started again with a pause.
const SHORT_LIFE: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Which processes to start, and how.
#[derive(Debug)]
pub struct ProcessesConfig {
    /// The program; it calls [`serve`](crate::serve) with its standard input.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// How many.
    pub count: u32,
    /// How each is set up.
    pub setup: Setup,
    /// Environment variables for the first ones, and not for those that replace them.
    pub once: Vec<&'static str>,
    /// The lock of the slab store, which no runner may outlive.
    pub lock: OwnedFd,
    /// A runner that has had an order for so long is asked for a sign of life, and ended when it gives none for as long.
    pub patience: Duration,
}

/// No runner processes.
#[derive(Debug, thiserror::Error)]
#[error("start runner {number} ({program}): {error}")]
pub struct StartError {
    number: u32,
    program: String,
    error: Error,
}

/// Makes calls in runner processes. Dropping it ends them.
pub struct Processes {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    config: ProcessesConfig,
    link: Arc<dyn Link>,
    report: Report,
    desk: Desk,
    roster: Mutex<Roster>,
    /// Told when the roster has changed.
    joined: Condvar,
    compiled: Mutex<HashMap<Digest, Compiled>>,
    orders: AtomicU64,
    next_id: AtomicU32,
    restarts: AtomicU64,
    stopping: AtomicBool,
}

#[derive(Default)]
struct Roster {
    members: BTreeMap<RunnerId, Member>,
    /// Where each lane's orders go.
    places: HashMap<Route, (Lane, Option<RunnerId>)>,
    /// What went along routes that are gone, by job.
    past: HashMap<JobUid, Counts>,
    /// CPU time of runners that have ended.
    past_cpu: Option<CpuTime>,
}

struct Member {
    control: Arc<Control>,
    pid: u32,
    pinged: Option<Instant>,
}

impl Processes {
    /// Starts the runners and waits until each is ready.
    ///
    /// # Errors
    /// One that does not start; those that did are ended.
    pub fn start(config: ProcessesConfig, (link, report): (Arc<dyn Link>, Report)) -> Result<Self, StartError> {
        let (count, program) = (config.count, config.program.display().to_string());
        let shared = Arc::new(Shared {
            config,
            link,
            report,
            desk: Desk::default(),
            roster: Mutex::default(),
            joined: Condvar::new(),
            compiled: Mutex::default(),
            orders: AtomicU64::new(1),
            next_id: AtomicU32::new(1),
            restarts: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        });
        let mut this = Self { shared, threads: Vec::new() };
        let (sender, first) = channel();
        let failed = |number, error| StartError { number, program: program.clone(), error };
        for number in 0..count {
            let (shared, sender) = (this.shared.clone(), sender.clone());
            let thread = std::thread::Builder::new().name(format!("runner-{number}"));
            let spawned = thread.spawn(move || shared.keep_one(sender));
            this.threads.push(spawned.map_err(|error| failed(number, error))?);
        }
        drop(sender);
        for number in 0..count {
            let begun = first.recv().unwrap_or_else(|_| Err(Error::other("its thread ended")));
            begun.map_err(|error| failed(number, error))?;
        }
        Ok(this)
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Relaxed);
        for member in lock(&self.shared.roster).members.values() {
            member.control.close();
        }
        self.shared.joined.notify_all();
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Keeps one runner going: starts it, listens to it, and starts the next when it has ended.
    fn keep_one(&self, first: Sender<Result<(), Error>>) {
        let (mut first, mut pause) = (Some(first), PAUSE_MIN);
        while !self.is_stopping() {
            let begun = Instant::now();
            let id = RunnerId(self.next_id.fetch_add(1, Relaxed));
            let started = self.start_one(id);
            let report = started.as_ref().map(drop).map_err(|error| Error::new(error.kind(), error.to_string()));
            match first.take() {
                Some(first) => {
                    let failed = report.is_err();
                    first.send(report).ok();
                    if failed {
                        return;
                    }
                }
                None => _ = self.restarts.fetch_add(1, Relaxed),
            }
            match started {
                Ok((process, control)) => self.listen(id, process, &control),
                Err(error) => tracing::error!(%error, runner = id.0, "start a runner"),
            }
            pause = if begun.elapsed() < SHORT_LIFE { (2 * pause).min(PAUSE_MAX) } else { PAUSE_MIN };
            if begun.elapsed() < SHORT_LIFE && !self.is_stopping() {
                let stopping = |_: &mut Roster| !self.is_stopping();
                drop(self.joined.wait_timeout_while(lock(&self.roster), pause, stopping));
            }
        }
    }

    fn start_one(&self, id: RunnerId) -> Result<(Process, Arc<Control>), Error> {
        let config = &self.config;
        let link = self.link.attach(id).map_err(Error::other)?;
        let with = if id.0 > config.count { &[] } else { config.once.as_slice() };
        let (program, store) = (&config.program, config.lock.as_fd());
        let started = Process::start(program, &config.arguments, config.setup, link, store, with);
        let (process, control) = started.inspect_err(|_| self.link.detach(id))?;
        let (pid, control) = (process.pid(), Arc::new(control));
        if let Err(error) = self.link.meter(pid) {
            tracing::warn!(%error, pid, "meter a runner");
        }
        tracing::info!(runner = id.0, pid, confined = process.confined, "a runner is up");
        let member = Member { control: control.clone(), pid, pinged: None };
        lock(&self.roster).members.insert(id, member);
        if self.is_stopping() {
            control.close();
        }
        self.joined.notify_all();
        Ok((process, control))
    }

    /// Serves a runner until it is gone, and makes certain that it is.
    fn listen(&self, id: RunnerId, process: Process, control: &Control) {
        let reason = loop {
            match control.receive() {
                Ok(Some(message)) => {
                    if let Err(error) = self.hear(id, control, message) {
                        break format!("send to it: {error}");
                    }
                }
                Ok(None) => break "it closed its control socket".to_owned(),
                Err(error) => break format!("receive from it: {error}"),
            }
        };
        let pid = process.pid();
        {
            let mut roster = lock(&self.roster);
            roster.members.remove(&id);
            roster.places.values_mut().filter(|(_, at)| *at == Some(id)).for_each(|(_, at)| *at = None);
            if let Some(used) = self.link.unmeter(pid) {
                roster.past_cpu = Some(roster.past_cpu.unwrap_or_default() + used);
            }
        }
        self.link.detach(id);
        let status = process.end();
        if !self.is_stopping() {
            tracing::warn!(runner = id.0, pid, reason, status, "a runner has ended; its work is done again");
        }
        self.desk.ended(id, &status);
    }

    fn hear(&self, id: RunnerId, control: &Control, message: ToNode) -> Result<(), Error> {
        match message {
            ToNode::Take { route } => {
                self.link.credit(id, 1);
                if let Some(Parcel { message, files, compiled }) = self.desk.take(route, id) {
                    let files = std::iter::once(compiled.file()).chain(files.iter().map(AsFd::as_fd));
                    let files: Vec<BorrowedFd<'_>> = files.collect();
                    control.send_bytes(&message, &files)?;
                }
            }
            ToNode::Begun { route, number } => self.desk.begun(route, number, id),
            ToNode::Answer { route, number, result } => self.desk.answer(route, number, id, result)?,
            ToNode::Pong => {
                if let Some(member) = lock(&self.roster).members.get_mut(&id) {
                    member.pinged = None;
                }
            }
            ToNode::Ready { .. } | ToNode::Failed { .. } => {}
        }
        Ok(())
    }

    /// Sees that a lane has a runner: the one with the fewest lanes. `None` when there is none.
    fn ensure_placed(&self, lane: Lane) -> Result<Option<RunnerId>, LinkError> {
        let mut roster = lock(&self.roster);
        let route = Route(lane.route().0);
        if let Some((_, Some(runner))) = roster.places.get(&route) {
            return Ok(Some(*runner));
        }
        let lanes = |id: &RunnerId| roster.places.values().filter(|(_, at)| *at == Some(*id)).count();
        let Some(runner) = roster.members.keys().min_by_key(|id| lanes(id)).copied() else { return Ok(None) };
        self.link.place(route, runner)?;
        roster.places.insert(route, (lane, Some(runner)));
        Ok(Some(runner))
    }

    /// Asks a runner that takes long for a sign of life, and ends it when it gives none.
    fn watch(&self, runner: RunnerId) {
        let mut roster = lock(&self.roster);
        let Some(member) = roster.members.get_mut(&runner) else { return };
        match member.pinged {
            None => {
                member.pinged = Some(Instant::now());
                let control = member.control.clone();
                drop(roster);
                control.send(&ToRunner::Ping).ok();
            }
            Some(pinged) if pinged.elapsed() > self.config.patience => {
                tracing::error!(runner = runner.0, "a runner is silent; end it");
                // It is still in the roster, so it was not waited for, and its number is still its own.
                member.control.kill();
            }
            Some(_) => {}
        }
    }

    fn compiled(&self, digest: Digest, function: &Function) -> Result<Compiled, FunctionError> {
        let mut known = lock(&self.compiled);
        if let Some(compiled) = known.get(&digest) {
            return Ok(compiled.clone());
        }
        let compiled = function.compiled().map_err(|error| HostError::Engine(error.to_string()))?;
        known.insert(digest, compiled.clone());
        Ok(compiled)
    }

    fn wait_for(&self, lane: Lane, hint: impl Fn() -> Result<(), LinkError>) -> Outcome {
        let (route, begun) = (lane.route().0, Instant::now());
        let mut progress = Progress::Offered;
        loop {
            match progress {
                Progress::Answered(outcome) => return outcome,
                Progress::Taken(runner, since) if since > self.config.patience => self.watch(runner),
                Progress::Taken(..) => {}
                Progress::Offered => {
                    let placed = self.ensure_placed(lane);
                    if let Ok(Some(runner)) = placed
                        && begun.elapsed() > self.config.patience
                    {
                        self.watch(runner);
                    }
                    if let Err(error) = placed.and_then(|at| at.map_or(Ok(()), |_| hint())) {
                        tracing::debug!(%error, "send a descriptor");
                    }
                    if begun.elapsed() > RUNNER_WAIT.max(4 * self.config.patience) && self.desk.withdraw(route) {
                        return Err(HostError::Unserved.into());
                    }
                }
            }
            progress = self.desk.wait(route, HINT_AGAIN);
        }
    }
}

impl Runners for Processes {
    fn run(&self, work: Work<'_>) -> Result<Done, FunctionError> {
        let (shared, lane) = (&self.shared, work.lane);
        let compiled = shared.compiled(work.blueprint.function, work.function)?;
        let (order, files) = Order::of(work)?;
        let number = shared.orders.fetch_add(1, Relaxed);
        let (descriptor, expected) = (order.descriptor(lane, number), order.expected());
        let route = lane.route().0;
        let message = wire::encode(&ToRunner::Order { route, number, order }).map_err(|_| HostError::TooLong)?;
        shared.desk.offer(route, number, expected, Parcel { message, files, compiled });
        shared.wait_for(lane, || shared.link.send(&descriptor))
    }

    fn forget(&self, job: JobUid) {
        let mut roster = lock(&self.shared.roster);
        let gone: Vec<Route> =
            roster.places.extract_if(|_, (lane, _)| lane.job == job).map(|(route, _)| route).collect();
        for route in gone {
            if let Some(count) = self.shared.link.remove(route) {
                roster.past.entry(job).or_default().add(&count);
            }
        }
        let controls: Vec<Arc<Control>> = roster.members.values().map(|member| member.control.clone()).collect();
        drop(roster);
        for control in controls {
            control.send(&ToRunner::Forget { job }).ok();
        }
    }
    fn erase(&self, job: JobUid) {
        self.forget(job);
        lock(&self.shared.roster).past.remove(&job);
    }

    fn survey(&self) -> Survey {
        let shared = &self.shared;
        let roster = lock(&shared.roster);
        let mut jobs = roster.past.clone();
        let mut routes = Vec::new();
        for count in shared.link.routes() {
            if let Some((lane, _)) = roster.places.get(&count.route) {
                jobs.entry(lane.job).or_default().add(&count);
                routes.push(RouteInfo { lane: *lane, count });
            }
        }
        let runner = |(id, member): (&RunnerId, &Member)| {
            let lanes = roster.places.values().filter(|(_, at)| *at == Some(*id)).count();
            RunnerInfo { id: *id, pid: member.pid, lanes, cpu: shared.link.cpu(member.pid) }
        };
        let runners: Vec<RunnerInfo> = roster.members.iter().map(runner).collect();
        let used = runners.iter().filter_map(|runner| runner.cpu).chain(roster.past_cpu);
        let cpu = used.reduce(|a, b| a + b);
        let (report, restarts) = (Some(shared.report.clone()), shared.restarts.load(Relaxed));
        Survey { report, runners, restarts, cpu, routes, jobs }
    }

    fn place(&self, route: Route, runner: RunnerId) -> Result<(), LinkError> {
        let mut roster = lock(&self.shared.roster);
        let Some((lane, _)) = roster.places.get(&route).copied() else { return Err(LinkError::Unplaced(route)) };
        if !roster.members.contains_key(&runner) {
            return Err(LinkError::Unknown(runner));
        }
        self.shared.link.place(route, runner)?;
        roster.places.insert(route, (lane, Some(runner)));
        Ok(())
    }
}
