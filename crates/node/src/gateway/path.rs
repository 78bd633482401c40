//! The job that an address names.

use super::problem::Failure;
use crate::context::Context;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use catchment_ledger::{Job, State};
use catchment_types::{BadId, Code, Name, Problem};
use std::str::FromStr;
use std::sync::Arc;

/// Namespace and name of the job in the address, and its other parts.
pub struct At {
    /// The namespace; `default` when the address has none.
    pub namespace: Name,
    /// Whether the address has one.
    pub has_namespace: bool,
    job: Option<Name>,
    parts: Vec<(String, String)>,
}

impl FromRequestParts<Arc<Context>> for At {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<Context>) -> Result<Self, Failure> {
        let params = RawPathParams::from_request_parts(parts, state)
            .await
            .map_err(|error| Failure(Problem::new(Code::BadRequest, format!("the address does not parse: {error}"))))?;
        let parts: Vec<_> = params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut at = Self { namespace: Name::default_namespace(), has_namespace: false, job: None, parts };
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
    /// Reads on in the log when the job is not known: another node may just have created it.
    async fn await_job(&self, context: &Context) {
        let known = |name| context.ledger.read(|state| state.job_named(&self.namespace, name).is_some());
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

    /// The job in `state`.
    pub fn find<'s>(&self, state: &'s State) -> Result<&'s Job, Failure> {
        let name = self.job.as_ref().ok_or_else(|| missing("job"))?;
        state.job_named(&self.namespace, name).ok_or_else(|| {
            let detail = format!("there is no job `{name}` in namespace `{}`; GET /v1/jobs lists them", self.namespace);
            Failure(Problem::new(Code::NotFound, detail))
        })
    }
}

fn missing(part: &str) -> Failure {
    Failure(Problem::new(Code::BadRequest, format!("the address names no {part}")))
}
