//! The Rust client of Catchment: typed calls, and retries that are safe.
//!
//! An update that was sent twice is counted once: the same bytes, weight and metrics from the same client for the
//! same round get the same receipt. That is what allows this crate to repeat a submission whose answer was lost, and
//! without it every caller would have to choose between losing updates and counting some twice. Each call says
//! whether it may be repeated blindly; those that may not (creating a job) are repeated only when the server cannot
//! have acted.
//!
//! ```no_run
//! # async fn example() -> Result<(), catchment_client::ClientError> {
//! use catchment_client::{Client, Update};
//! use catchment_types::Name;
//!
//! let client = Client::new("http://127.0.0.1:7070")?;
//! let job = client.job(Name::default_namespace(), "digits".parse().expect("a name"));
//! let round = job.round(None).await?;
//! // Of this job only, should it be deleted and another get its name while this client trains.
//! let job = job.identified(round.uid);
//! let model = job.model(round.model_version).await?;
//! # let trained = model.bytes.clone();
//! let me = "client-3".parse().expect("a client id");
//! let update = Update { num_samples: Some(120), base: Some(model.etag), ..Update::new(round.round, me, trained) };
//! let sent = job.submit(&update).await?;
//! println!("receipt {}", sent.receipt.receipt);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod attempts;
mod call;
mod client;
mod error;
mod evaluate;
mod job;
mod model;
mod pacer;
mod submit;

pub use attempts::RetryPolicy;
pub use client::{Builder, Client, Paging};
pub use error::ClientError;
pub use evaluate::Measurement;
pub use job::{JobClient, JobInfo, Waiting};
pub use model::{Model, ModelFile};
pub use pacer::{Pacer, SystemPacer};
pub use submit::{METRICS_BYTES_MAX, Submitted, Update, UpdateBody};
