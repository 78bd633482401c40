//! What a client measured of a model.

use crate::attempts::Repeat;
use crate::call::Payload;
use crate::error::ClientError;
use crate::job::JobClient;
use crate::submit::metrics_json;
use bytes::Bytes;
use catchment_types::{ClientId, EvaluationView};
use reqwest::Method;
use std::collections::BTreeMap;

/// What a client measured of a model on its own data.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// The model's version.
    pub version: u64,
    /// Who measured it.
    pub client: ClientId,
    /// Samples it was measured on; 1 when absent.
    pub num_samples: Option<u64>,
    /// What was found, such as `loss` and `accuracy`; at least one number.
    pub metrics: BTreeMap<String, f64>,
}

impl JobClient {
    /// Reports a measurement, and gives what all clients found so far. The same again counts once.
    ///
    /// # Errors
    /// `conflict` when this client has reported other numbers for this version; `not_found` when the version is too old
    /// to be measured; `uid_required` when another job had the name and this one is not [`JobClient::identified`].
    pub async fn report(&self, measured: &Measurement) -> Result<EvaluationView, ClientError> {
        if measured.metrics.is_empty() {
            return Err(ClientError::Argument("a measurement names at least one number".to_owned()));
        }
        let text = metrics_json(&measured.metrics)?;
        let path = ["models", &measured.version.to_string(), "evaluations", measured.client.as_str()];
        let call = self.call(Method::PUT, &path).query("num_samples", measured.num_samples);
        self.client.json(&call.payload(Payload::Json(Bytes::from(text))), Repeat::Safe).await
    }
}
