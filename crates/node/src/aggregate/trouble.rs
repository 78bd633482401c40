//! Steps of a job's aggregation that failed for no reason of its updates: told, counted, shown, and tried again.
//!
//! They may fail again and again, a full disk or a mistake in this program for example, and the job waits all that time. So
//! nobody should have to search a log to see why.

use super::job::StepError;
use crate::context::Context;
use catchment_types::JobUid;
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Failures in a row from which on a job shows them. What passes at the next try, nobody needs to know.
const SHOWN_FROM: u64 = 2;

struct Trouble {
    times: u64,
    is_panic: bool,
    reason: String,
}

/// The jobs of this node whose last step failed.
#[derive(Default)]
pub struct Troubles {
    known: Mutex<HashMap<JobUid, Trouble>>,
}

impl Troubles {
    /// Takes note of a step that failed and is tried again.
    pub(super) fn failed(&self, context: &Context, uid: JobUid, error: &StepError) {
        let is_panic = matches!(error, StepError::Panicked(_));
        let named = context.ledger.read(|state| {
            let spec = &state.job(uid)?.spec;
            let kind = if is_panic { "panic" } else { "outside" };
            let labels = [spec.namespace.as_str(), spec.name.as_str(), kind];
            context.metrics.step_failures.with_label_values(&labels).inc();
            Some(spec.name.to_string())
        });
        let job = named.unwrap_or_else(|| uid.to_string());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let times = known.get(&uid).map_or(0, |trouble| trouble.times) + 1;
        known.insert(uid, Trouble { times, is_panic, reason: error.to_string() });
        drop(known);
        if is_panic {
            tracing::error!(job, times, %error, "a step of the aggregation panicked; trying again");
        } else {
            tracing::warn!(job, times, reason = %error, "aggregate; trying again");
        }
    }

    /// A step went through, or there is nothing to do.
    pub fn over(&self, uid: JobUid) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
    }

    /// Why a job does not get on here, for its owner.
    pub fn shown(&self, uid: JobUid) -> Option<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Trouble { times, reason, .. } =
            known.get(&uid).filter(|trouble| trouble.is_panic || trouble.times >= SHOWN_FROM)?;
        let count = if *times == 1 { "once".to_owned() } else { format!("{times} times in a row") };
        Some(format!("its aggregation failed {count} and is tried again: {reason}"))
    }
}

/// What a panic said.
pub fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it did not say why".to_owned())
}
