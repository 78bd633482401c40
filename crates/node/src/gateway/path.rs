//! The job that an address names.

use super::problem::Failure;
use crate::context::Context;
use crate::meant::Meant;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use catchment_ledger::{Job, State};
use catchment_types::{BadId, Code, JobUid, Name, Problem};
use std::str::FromStr;
use std::sync::Arc;

/// Namespace and name of the job in the address, and its other parts.
pub struct At {
    /// The namespace; `default` when the address has none.
    pub namespace: Name,
    /// Whether the address has one.
    pub has_namespace: bool,
    /// The job's identity, where the query says it: `uid`.
    pub uid: Option<JobUid>,
    job: Option<Name>,
    parts: Vec<(String, String)>,
}

impl FromRequestParts<Arc<Context>> for At {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<Context>) -> Result<Self, Failure> {
        let uri = parts.uri.clone();
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|error| Failure(Problem::new(Code::BadRequest, format!("the address does not parse: {error}"))))?;
        let parts: Vec<_> = params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let uid = uid(uri.query().unwrap_or_default())?;
        let mut at = Self { namespace: Name::default_namespace(), has_namespace: false, uid, job: None, parts };
        if let Some(namespace) = at.optional("namespace")? {
            at.namespace = namespace;
            at.has_namespace = true;
        }
        at.job = at.optional("job")?;
        at.await_job(state).await;
        Ok(at)
    }
}

impl At {
    /// Reads on in the log when the job is not known: another node may just have created it, in another's place or not.
    async fn await_job(&self, context: &Context) {
        let is_meant = |job: &Job| self.uid.is_none_or(|uid| uid == job.uid);
        let known = |name| context.ledger.read(|state| state.job_named(&self.namespace, name).is_some_and(is_meant));
        if self.job.as_ref().is_some_and(|name| !known(name)) {
            context.refresh().await;
        }
    }

    fn optional<T: FromStr<Err = E>, E: ToString>(&self, part: &str) -> Result<Option<T>, Failure> {
        let Some((_, text)) = self.parts.iter().find(|(name, _)| name == part) else { return Ok(None) };
        text.parse().map(Some).map_err(|error: E| Failure(Problem::new(Code::BadRequest, error.to_string())))
    }

    /// A part of the address that its route guarantees.
    pub fn part<T: FromStr<Err = BadId>>(&self, part: &str) -> Result<T, Failure> {
        self.optional(part)?.ok_or_else(|| missing(part))
    }

    /// A number in the address.
    pub fn number(&self, part: &str) -> Result<u64, Failure> {
        let text = self.parts.iter().find(|(name, _)| name == part).ok_or_else(|| missing(part))?;
        text.1
            .parse()
            .map_err(|_| Failure(Problem::new(Code::BadRequest, format!("{part} `{}` is not a whole number", text.1))))
    }

    /// The job in `state`: the one with the identity that is said, if one is.
    pub fn find<'s>(&self, state: &'s State) -> Result<&'s Job, Failure> {
        let name = self.job.as_ref().ok_or_else(|| missing("job"))?;
        let job = state.job_named(&self.namespace, name).ok_or_else(|| {
            let detail = format!("there is no job `{name}` in namespace `{}`; GET /v1/jobs lists them", self.namespace);
            Failure(Problem::new(Code::NotFound, detail))
        })?;
        Meant { uid: self.uid, ..Meant::default() }.check_uid(job)?;
        Ok(job)
    }
}

/// The identity that a query names.
fn uid(query: &str) -> Result<Option<JobUid>, Failure> {
    let mut uids = query.split('&').filter_map(|pair| pair.strip_prefix("uid="));
    let bad = |why: String| Failure(Problem::new(Code::BadRequest, why));
    let Some(text) = uids.next() else { return Ok(None) };
    if uids.next().is_some() {
        return Err(bad("`uid` is in the address twice".to_owned()));
    }
    text.parse().map(Some).map_err(|error| bad(format!("uid=`{text}` in the address: {error}")))
}

fn missing(part: &str) -> Failure {
    Failure(Problem::new(Code::BadRequest, format!("the address names no {part}")))
}
