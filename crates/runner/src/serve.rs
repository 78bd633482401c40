//! The runner's end: takes orders, makes their calls, answers.

use crate::confine::confine;
use crate::executor::InProcess;
use crate::message::{Setup, ToNode, ToRunner, VERSION};
use crate::order::{Done, Order};
use crate::wire::{self, MESSAGE_BYTES_MAX};
use crate::{Runners, lock};
use catchment_proxy::Inbox;
use catchment_runtime::{Compiled, Function, FunctionError, HostError, Runtime};
use catchment_types::{Digest, Step, Steps};
use std::collections::{HashMap, VecDeque};
use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Why a runner does not serve.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ServeError {
    #[error("the control socket: {0}")]
    Control(#[from] Error),
    #[error("a runner is started by its node, and the first message is its setup")]
    NotStarted,
    #[error("the runner is of version {VERSION}, its node of {0}: they must be one build")]
    Version(u32),
    #[error("set up: {0}")]
    Setup(String),
}

/// Serves until the node is gone. Threads may still be at work then: the caller ends the process.
///
/// `steps` is told of the runner's. Nothing else may run in the process yet: rights are given up for this thread and
/// those it starts.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(control: UnixStream, steps: Arc<dyn Steps>) -> Result<(), ServeError> {
    let (setup, files) = match wire::receive(&control, MESSAGE_BYTES_MAX)? {
        Some((ToRunner::Start { version: VERSION, setup }, files)) => (setup, files),
        Some((ToRunner::Start { version, .. }, _)) => return Err(ServeError::Version(version)),
        _ => return Err(ServeError::NotStarted),
    };
    let prepared = prepare(&setup, files);
    let (inbox, runtime, confined, _lock) = match prepared {
        Ok(prepared) => prepared,
        Err(reason) => {
            wire::send(&control, &ToNode::Failed { reason: reason.clone() }, &[])?;
            return Err(ServeError::Setup(reason));
        }
    };
    wire::send(&control, &ToNode::Ready { confined }, &[])?;
    // A worker that panicked would owe its answer for ever; the node replaces a process that has ended.
    let said = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        said(info);
        std::process::abort();
    }));
    let runner = Arc::new(Runner {
        executor: InProcess::default(),
        runtime,
        functions: Mutex::default(),
        answers: Mutex::new(control.try_clone()?),
        queue: Mutex::default(),
        queued: Condvar::new(),
        steps,
    });
    for _ in 0..setup.workers.max(1) {
        let runner = runner.clone();
        std::thread::Builder::new().name("worker".to_owned()).spawn(move || runner.work())?;
    }
    let taker = runner.clone();
    std::thread::Builder::new().name("link".to_owned()).spawn(move || taker.follow(inbox))?;
    while let Some((message, files)) = wire::receive(&control, MESSAGE_BYTES_MAX)? {
        match message {
            ToRunner::Order { route, number, order } => runner.enqueue(Queued { route, number, order, files }),
            ToRunner::Forget { job } => runner.executor.forget(job),
            ToRunner::Ping => runner.send(&ToNode::Pong)?,
            ToRunner::Start { .. } => return Err(ServeError::NotStarted),
        }
    }
    Ok(())
}

type Prepared = (Inbox, Runtime, String, OwnedFd);

fn prepare(setup: &Setup, files: Vec<OwnedFd>) -> Result<Prepared, String> {
    let [link, lock] = <[OwnedFd; 2]>::try_from(files).map_err(|files| format!("{} files came", files.len()))?;
    let inbox = Inbox::new(link).map_err(|error| format!("the link: {error}"))?;
    let confined = confine(setup.user).map_err(|error| format!("give up rights: {error}"))?;
    // The node has proven it, with this program on this machine.
    let runtime = Runtime::proven(setup.runtime).map_err(|error| error.to_string())?;
    Ok((inbox, runtime, confined, lock))
}

struct Queued {
    route: u64,
    number: u64,
    order: Order,
    files: Vec<OwnedFd>,
}

struct Runner {
    executor: InProcess,
    runtime: Runtime,
    functions: Mutex<HashMap<Digest, Function>>,
    answers: Mutex<UnixStream>,
    queue: Mutex<VecDeque<Queued>>,
    queued: Condvar,
    steps: Arc<dyn Steps>,
}

impl Runner {
    fn send(&self, message: &ToNode) -> Result<(), Error> {
        wire::send(&lock(&self.answers), message, &[])
    }

    /// Asks for the order behind each descriptor.
    fn follow(&self, mut inbox: Inbox) {
        let mut descriptors = Vec::new();
        loop {
            descriptors.clear();
            match inbox.recv(&mut descriptors) {
                Ok(0) => return,
                Ok(_) => {}
                // One message of a kind that this build does not know.
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    tracing::warn!(%error, "read a descriptor");
                    continue;
                }
                // Without hints this runner is of no use; a fresh one is.
                Err(error) => panic!("the link broke: {error}"),
            }
            for descriptor in &descriptors {
                if self.send(&ToNode::Take { route: descriptor.function.0 }).is_err() {
                    return;
                }
            }
        }
    }

    fn enqueue(&self, order: Queued) {
        lock(&self.queue).push_back(order);
        self.queued.notify_one();
    }

    fn work(&self) {
        loop {
            let queue = self.queued.wait_while(lock(&self.queue), |queue| queue.is_empty());
            let next = queue.unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(Queued { route, number, order, files }) = next else { continue };
            if self.send(&ToNode::Begun { route, number }).is_err() {
                return;
            }
            self.steps.done(Step::RunnerTook);
            let result = self.execute(order, files);
            self.steps.done(Step::RunnerCalled);
            if let Err(error) = self.send(&ToNode::Answer { route, number, result }) {
                panic!("an answer that is owed cannot be given: {error}");
            }
            self.steps.done(Step::RunnerAnswered);
        }
    }

    fn execute(&self, order: Order, mut files: Vec<OwnedFd>) -> Result<Done, FunctionError> {
        if files.is_empty() {
            return Err(HostError::argument_of("an order", "the function is missing").into());
        }
        let function = self.function(order.blueprint.function, files.remove(0))?;
        let blueprint = order.blueprint.clone();
        self.executor.execute(&blueprint, &function, &order.calls(&files)?)
    }

    fn function(&self, digest: Digest, code: OwnedFd) -> Result<Function, FunctionError> {
        let mut functions = lock(&self.functions);
        if let Some(function) = functions.get(&digest) {
            return Ok(function.clone());
        }
        let unusable = |reason: String| FunctionError::from(HostError::Engine(reason));
        let compiled = Compiled::trusted(code, digest.to_string()).map_err(|error| unusable(error.to_string()))?;
        let function = self.runtime.load_compiled(compiled).map_err(|error| unusable(error.to_string()))?;
        functions.insert(digest, function.clone());
        Ok(function)
    }
}
