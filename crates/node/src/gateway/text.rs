//! A request's body that is a short text, read whole.

use super::problem::Failure;
use crate::buffers::ends;
use crate::context::{Context, Late};
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use catchment_types::{Code, Problem, SPEC_BYTES_MAX};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::sync::Arc;
use std::time::Duration;

/// How long such a body may take. Longer, and a few clients that send nothing would hold every connection.
const TEXT_TIME: Duration = Duration::from_secs(15);

/// A body of at most [`SPEC_BYTES_MAX`] bytes.
pub struct Text(pub Bytes);

impl FromRequest<Arc<Context>> for Text {
    type Rejection = Failure;

    async fn from_request(request: Request, context: &Arc<Context>) -> Result<Self, Failure> {
        let body = Limited::new(request.into_body(), SPEC_BYTES_MAX).collect();
        let problem = match context.within(TEXT_TIME, body).await {
            Ok(Ok(body)) => return Ok(Self(body.to_bytes())),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                Problem::new(Code::TooLarge, format!("this call takes at most {SPEC_BYTES_MAX} bytes"))
            }
            Ok(Err(error)) => Problem::new(Code::Truncated, format!("the body broke off: {error}")),
            Err(Late::Ends) => ends(),
            Err(Late::Time) => {
                Problem::new(Code::TooSlow, format!("the body took more than {} s", TEXT_TIME.as_secs()))
            }
        };
        Err(problem.into())
    }
}
