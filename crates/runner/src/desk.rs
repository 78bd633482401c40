//! Where orders lie until a runner takes them, and answers until they are fetched.
//!
//! It is why descriptors may be lost or come twice: an order is given to one runner only, and an answer counts only from
//! the runner that took it.

use crate::lock;
use crate::order::Done;
use catchment_proxy::RunnerId;
use catchment_runtime::{Compiled, FunctionError, HostError, Reply};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An order and what goes with it.
pub struct Parcel {
    pub message: Vec<u8>,
    pub files: Vec<OwnedFd>,
    pub compiled: Compiled,
}

/// What came of an order.
pub type Outcome = Result<Done, FunctionError>;

enum Stage {
    Offered(Box<Parcel>),
    Taken { by: RunnerId, since: Instant, begun: bool },
    Answered(Outcome),
}

struct Seat {
    number: u64,
    offered: Instant,
    /// For each call, whether it is asked for a number.
    expected: Vec<bool>,
    stage: Stage,
}

/// Where an order is.
pub enum Progress {
    /// Nobody has asked for it yet.
    Offered,
    /// This runner has it, for so long.
    Taken(RunnerId, Duration),
    /// It is done, and off the desk.
    Answered(Outcome),
}

/// One seat for each lane.
#[derive(Default)]
pub struct Desk {
    seats: Mutex<HashMap<u64, Seat>>,
    changed: Condvar,
}

impl Desk {
    fn seats(&self) -> MutexGuard<'_, HashMap<u64, Seat>> {
        lock(&self.seats)
    }

    /// Puts an order there. A lane has one at a time.
    pub fn offer(&self, route: u64, number: u64, expected: Vec<bool>, parcel: Parcel) {
        let before = self
            .seats()
            .insert(route, Seat { number, offered: Instant::now(), expected, stage: Stage::Offered(Box::new(parcel)) });
        assert!(before.is_none(), "a lane gives its next order when it has the answer to the one before");
    }

    /// Gives the order to a runner, unless another has it.
    pub fn take(&self, route: u64, by: RunnerId) -> Option<Parcel> {
        let mut seats = self.seats();
        let seat = seats.get_mut(&route)?;
        if !matches!(seat.stage, Stage::Offered(_)) {
            return None;
        }
        match std::mem::replace(&mut seat.stage, Stage::Taken { by, since: Instant::now(), begun: false }) {
            Stage::Offered(parcel) => Some(*parcel),
            _ => unreachable!("it was just looked at"),
        }
    }

    /// Enters that a runner is at work on an order.
    pub fn begun(&self, route: u64, number: u64, from: RunnerId) {
        if let Some(seat) = self.seats().get_mut(&route)
            && seat.number == number
            && let Stage::Taken { by, begun, .. } = &mut seat.stage
            && *by == from
        {
            *begun = true;
        }
    }

    /// Enters what came of an order.
    ///
    /// # Errors
    /// What no runner says that can be believed.
    pub fn answer(&self, route: u64, number: u64, from: RunnerId, outcome: Outcome) -> std::io::Result<()> {
        if let Some(seat) = self.seats().get_mut(&route)
            && seat.number == number
            && let Stage::Taken { by, since, .. } = seat.stage
            && by == from
        {
            let believable = match &outcome {
                Ok(done) => done
                    .replies
                    .iter()
                    .map(|reply| matches!(reply, Reply::Scalars(_)))
                    .eq(seat.expected.iter().copied()),
                Err(error) => !matches!(error, FunctionError::Host(HostError::Lost { .. })),
            };
            if !believable {
                return Err(std::io::Error::other("its answer does not fit the order"));
            }
            let waited = since.duration_since(seat.offered);
            seat.stage = Stage::Answered(outcome.map(|done| Done { waited, ..done }));
        }
        self.changed.notify_all();
        Ok(())
    }

    /// Enters that a runner has ended: nobody works any more on what it had taken.
    pub fn ended(&self, runner: RunnerId, reason: &str) {
        for seat in self.seats().values_mut() {
            if let Stage::Taken { by, begun, .. } = seat.stage
                && by == runner
            {
                seat.stage = Stage::Answered(Err(HostError::Lost { reason: reason.to_owned(), begun }.into()));
            }
        }
        self.changed.notify_all();
    }

    /// Takes an order that nobody asked for off the desk; `false` when it is too late for that.
    pub fn withdraw(&self, route: u64) -> bool {
        let mut seats = self.seats();
        let offered = seats.get(&route).is_some_and(|seat| matches!(seat.stage, Stage::Offered(_)));
        offered && seats.remove(&route).is_some()
    }

    /// Waits for an answer, so long at most.
    pub fn wait(&self, route: u64, timeout: Duration) -> Progress {
        let answered = |seats: &mut HashMap<u64, Seat>| !matches!(seats[&route].stage, Stage::Answered(_));
        let waited = self.changed.wait_timeout_while(self.seats(), timeout, answered);
        let (mut seats, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match &seats[&route].stage {
            Stage::Offered(_) => Progress::Offered,
            Stage::Taken { by, since, .. } => Progress::Taken(*by, since.elapsed()),
            Stage::Answered(_) => match seats.remove(&route).map(|seat| seat.stage) {
                Some(Stage::Answered(outcome)) => Progress::Answered(outcome),
                _ => unreachable!("it was just looked at"),
            },
        }
    }
}
