//! The desk of this node, and the way to those of others.
//!
//! A client may check in at any gateway, but one node is a job's home and knows who has a task and who waits. The others
//! ask it over the bus. When it does not answer, they answer themselves: they may hand out a few tasks too many, which
//! costs a client some work, where no answer would cost a round.

use crate::context::Context;
use crate::requests;
use crate::subjects;
use catchment_bus::{BusError, Message};
use catchment_ledger::{Deadlines, Ledger, Moment, State};
use catchment_tasks::home;
use catchment_types::{CheckIn, ClientId, Clock, JobUid, Name, NodeId, Task, TaskKind, read_object};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How long a job's home has to answer.
const HOME_TIME: Duration = Duration::from_secs(2);
/// Jobs that a client which names none is offered to, in the order of their names.
const JOBS_MAX: usize = 16;
/// When a client asks again for whom there is no job at all.
const NO_JOB_RETRY_MS: u64 = 2_000;
/// How long it may be unknown that a deadline was set: with every update there is a record to look behind.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// This node's desk. Every use of it is a few table look-ups.
pub struct Desk {
    tasks: Mutex<catchment_tasks::Desk>,
    deadlines: Mutex<Deadlines>,
    /// What the time of deadlines is counted from.
    begun: Instant,
}

impl Desk {
    /// A desk that knows nobody yet. `seed`: fresh random bytes. `alone`: whether there is no other node.
    pub fn new(seed: [u8; 16], alone: bool) -> Self {
        let (tasks, deadlines) = (catchment_tasks::Desk::new(seed), Deadlines::new(alone));
        Self { tasks: Mutex::new(tasks), deadlines: Mutex::new(deadlines), begun: Instant::now() }
    }

    fn now(&self, clock: &dyn Clock) -> Moment {
        Moment { clock_ms: clock.now_ms(), passed_ms: self.begun.elapsed().as_millis() as u64 }
    }

    /// What a client should do for this job. `None`: the job is gone.
    fn task(&self, state: &State, uid: JobUid, client: &ClientId, checkin: &CheckIn, now: Moment) -> Option<Task> {
        let job = state.job(uid)?;
        let left_ms = self.deadlines.lock().unwrap_or_else(PoisonError::into_inner).left_ms(job, now);
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        Some(tasks.task(job, client, checkin, now.clock_ms, left_ms))
    }

    /// Takes note of deadlines for as long as there is a log.
    async fn follow(&self, ledger: &Ledger, clock: &dyn Clock) {
        let mut changes = ledger.watch();
        loop {
            changes.mark_unchanged();
            let look = |state: &State| {
                self.deadlines.lock().unwrap_or_else(PoisonError::into_inner).look(state, self.now(clock));
            };
            ledger.read(look);
            if changes.changed().await.is_err() {
                return;
            }
            sleep(LOOK_PAUSE).await;
        }
    }

    /// Forgets jobs that are gone.
    pub fn retain(&self, alive: &HashSet<JobUid>) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).retain(alive);
    }
}

/// A check-in on its way to the job's home, as JSON: fields may be added, and unknown ones are ignored.
#[derive(Debug, Serialize, Deserialize)]
struct Forwarded {
    uid: JobUid,
    client: ClientId,
    checkin: CheckIn,
}

/// What `client` should do now. `None`: the job that it names does not exist.
pub async fn check_in(context: &Arc<Context>, client: &ClientId, checkin: &CheckIn) -> Option<Task> {
    let namespace = checkin.namespace.clone().unwrap_or_else(Name::default_namespace);
    if let Some(name) = &checkin.job {
        let look = || context.ledger.read(|state| state.job_named(&namespace, name).map(|job| job.uid));
        let mut uid = look();
        if uid.is_none() {
            // Another node may just have created it.
            context.refresh().await;
            uid = look();
        }
        return ask(context, uid?, client, checkin).await;
    }
    let jobs: Vec<JobUid> = context.ledger.read(|state| {
        let jobs = state.jobs_by_name().filter(|job| job.spec.namespace == namespace && !job.state.is_over());
        jobs.take(JOBS_MAX).map(|job| job.uid).collect()
    });
    let mut retry_ms = None;
    for uid in jobs {
        match ask(context, uid, client, checkin).await {
            Some(task) if matches!(task.task, TaskKind::Train | TaskKind::Evaluate) => return Some(task),
            Some(task) => retry_ms = retry_ms.into_iter().chain(task.retry_after_ms).min(),
            None => {}
        }
    }
    Some(catchment_tasks::wait(retry_ms.unwrap_or(NO_JOB_RETRY_MS)))
}

/// Asks the desk that knows the job's clients.
async fn ask(context: &Arc<Context>, uid: JobUid, client: &ClientId, checkin: &CheckIn) -> Option<Task> {
    let live = context.peers.fleet.live();
    let home = home(uid, live.iter().filter(|beat| !beat.draining).map(|beat| beat.node));
    if let Some(home) = home.filter(|home| *home != context.node)
        && let Some(task) = forward(context, home, uid, client, checkin).await
    {
        return Some(task);
    }
    answer(context, uid, client, checkin)
}

fn answer(context: &Context, uid: JobUid, client: &ClientId, checkin: &CheckIn) -> Option<Task> {
    let now = context.desk.now(context.clock.as_ref());
    context.ledger.read(|state| context.desk.task(state, uid, client, checkin, now))
}

/// The answer of a job's home, if there is one in time.
async fn forward(context: &Context, home: NodeId, uid: JobUid, client: &ClientId, checkin: &CheckIn) -> Option<Task> {
    let forwarded = Forwarded { uid, client: client.clone(), checkin: checkin.clone() };
    let payload = serde_json::to_vec(&forwarded).expect("plain fields serialise");
    let subject = subjects::checkin(home);
    let asked = context.bus.events.request(&subject, Vec::new(), payload.into(), HOME_TIME);
    // It has a limit of its own.
    let answer = context.within(2 * HOME_TIME, asked).await.ok()?;
    let task = answer.map(|reply| serde_json::from_slice::<Option<Task>>(&reply.payload));
    match task {
        Ok(Ok(task)) => task,
        Ok(Err(error)) => {
            tracing::warn!(%error, ?home, "read the task that a job's home gave");
            None
        }
        Err(error) => {
            tracing::debug!(%error, ?home, job = %uid, "ask a job's home; this node answers itself");
            None
        }
    }
}

/// Answers other nodes' requests until `stop`, and keeps deadlines in view.
///
/// # Errors
/// When the subject cannot be subscribed to.
pub async fn run(context: Arc<Context>, stop: CancellationToken) -> Result<(), BusError> {
    let subject = subjects::checkin(context.node);
    let serve = requests::serve(context.clone(), &subject, None, stop, reply);
    let follow = async {
        context.desk.follow(&context.ledger, context.clock.as_ref()).await;
        std::future::pending().await
    };
    tokio::select! {
        served = serve => served,
        () = follow => Ok(()),
    }
}

async fn reply(context: Arc<Context>, request: Arc<Message>) -> Vec<u8> {
    let task = match read_object::<Forwarded>(&request.payload) {
        Ok(Forwarded { uid, client, checkin }) => answer(&context, uid, &client, &checkin),
        Err(error) => {
            tracing::warn!(%error, "read a check-in that another node passed on");
            None
        }
    };
    serde_json::to_vec(&task).expect("plain fields serialise")
}
