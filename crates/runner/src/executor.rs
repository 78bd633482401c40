//! Instances, and the calls they make, in the process that has them.

use crate::order::{Blueprint, Done, Work};
use crate::{Runners, lock};
use catchment_runtime::{Call, Function, FunctionError, HostError, Instance};
use catchment_types::JobUid;
use serde_json::Value;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Instances kept for the next call at most.
const IDLE_MAX: usize = 64;

/// Makes calls in this process, on the thread that asks.
#[derive(Debug, Default)]
pub struct InProcess {
    idle: Mutex<Vec<(Blueprint, Instance)>>,
}

impl InProcess {
    fn idle(&self) -> MutexGuard<'_, Vec<(Blueprint, Instance)>> {
        lock(&self.idle)
    }

    /// Makes calls of `function` on an instance that fits `blueprint`.
    pub(crate) fn execute(
        &self,
        blueprint: &Blueprint,
        function: &Function,
        calls: &[Call<BorrowedFd<'_>>],
    ) -> Result<Done, FunctionError> {
        let (mut instance, cold_start) = self.take(blueprint, function)?;
        let before = instance.cpu_ns();
        let replies = calls.iter().map(|call| instance.call_any(call)).collect::<Result<Vec<_>, _>>();
        let cpu = Duration::from_nanos(instance.cpu_ns() - before);
        if !instance.is_spent() {
            let mut idle = self.idle();
            if idle.len() >= IDLE_MAX {
                idle.remove(0);
            }
            idle.push((blueprint.clone(), instance));
        }
        Ok(Done { replies: replies?, cpu, cold_start, waited: Duration::ZERO })
    }

    fn take(&self, blueprint: &Blueprint, function: &Function) -> Result<(Instance, Option<Duration>), FunctionError> {
        {
            let mut idle = self.idle();
            if let Some(found) = idle.iter().rposition(|(of, _)| of == blueprint) {
                return Ok((idle.swap_remove(found).1, None));
            }
        }
        let begun = Instant::now();
        let made = match instantiate(blueprint, function) {
            Err(FunctionError::Host(HostError::NoRoom { .. })) => {
                // Others' instances may have all the room there is, and nothing to do.
                self.idle().clear();
                instantiate(blueprint, function)
            }
            other => other,
        };
        Ok((made?, Some(begun.elapsed())))
    }
}

fn instantiate(blueprint: &Blueprint, function: &Function) -> Result<Instance, FunctionError> {
    let config: Value = serde_json::from_str(&blueprint.config)
        .map_err(|error| HostError::argument_of("the configuration of an instance", error))?;
    function.instantiate_with(&config, blueprint.exact(), blueprint.limits)
}

impl Runners for InProcess {
    fn run(&self, work: Work<'_>) -> Result<Done, FunctionError> {
        self.execute(work.blueprint, work.function, &work.calls)
    }

    fn forget(&self, job: JobUid) {
        self.idle().retain(|(blueprint, _)| blueprint.job != job);
    }
}
