//! Taking part in a job: check in, train, submit, wait for the next round.
//!
//! Everything a client must get right lies here. The revision of the round is read *before* the check-in, so that a change
//! between the two ends the following wait at once instead of being slept through. One of a few clients that wait asks
//! again as soon as the round changes; one of a crowd only when it was told to, because everybody would ask at once
//! otherwise. Training is deterministic,
//! so a worker that is killed after it submitted and started again sends the same bytes and gets the same receipt.
//! Task kinds and configuration fields that this version does not know are left alone.

use crate::data::Samples;
use crate::model::{Architecture, Model, ModelError};
use crate::rng::stream;
use crate::train::{Metrics, TrainConfig, TrainError, evaluate, train};
use candle_core::Device;
use catchment_client::{Client, ClientError, JobClient, Measurement, Model as ModelBytes, Update, Waiting};
use catchment_types::{CheckIn, ClientId, Code, JobState, RoundView, Task, TaskKind};
use serde::Serialize;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How long a finished client waits for the round to change before it checks in all the same: its update may have
/// been lost with a node, and then the check-in asks for it again.
const NEXT_ROUND_WAIT: Duration = Duration::from_secs(30);
/// Whoever is told to come again within this time is one of a few, or one of few that are told so.
const CROWD_WAIT: Duration = Duration::from_secs(2);
/// When to ask again, if the server does not say.
const RETRY_TIME: Duration = Duration::from_millis(500);
/// Longest pause after updates were refused in a row.
const REFUSED_WAIT_MAX: Duration = Duration::from_secs(5);

/// One client of a job.
pub struct Participant {
    /// The server.
    pub server: Client,
    /// The job on it.
    pub job: JobClient,
    /// The client's name.
    pub id: ClientId,
    /// Its index, for the shuffling.
    pub index: u64,
    /// Seeds the shuffling.
    pub seed: u64,
    /// What it trains on.
    pub samples: Arc<Samples>,
    /// Where it trains.
    pub device: Device,
    /// Refuse models of another architecture.
    pub architecture: Option<Architecture>,
}

/// What happened, for whoever watches.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The server has this round's update.
    Submitted {
        /// The round.
        round: u64,
        /// The model it was trained from.
        model_version: u64,
        /// The receipt's name.
        receipt: String,
        /// Whether the server had it already.
        known: bool,
        /// Milliseconds of training.
        train_ms: u64,
        /// Over the last local epoch.
        #[serde(flatten)]
        metrics: Metrics,
    },
    /// The server knows what this client measured of a model.
    Measured {
        /// The model.
        model_version: u64,
        /// What was found.
        #[serde(flatten)]
        metrics: Metrics,
    },
    /// The server did not take the update or the measurement, and the client goes on.
    Refused {
        /// The round.
        round: u64,
        /// The published code.
        code: String,
        /// What the server said.
        detail: String,
    },
    /// The job is over.
    Ended {
        /// How.
        state: JobState,
    },
}

/// Why a client gave up.
#[derive(Debug, thiserror::Error)]
pub enum ParticipateError {
    /// The server cannot be reached, or refused for good.
    #[error(transparent)]
    Server(#[from] ClientError),
    /// Training failed.
    #[error("train for round {round}: {source}")]
    Train {
        /// The round.
        round: u64,
        /// Why.
        source: TrainError,
    },
    /// The task lacks something, or its configuration does not read.
    #[error("the task does not read: {0}")]
    Task(String),
    /// The job failed.
    #[error("the job failed: {0}")]
    JobFailed(String),
}

/// What became of a task.
enum Step {
    /// The server has an update of this client for the round.
    Done,
    /// It has none; there may be another task at once.
    Refused,
}

/// The part of a task's configuration that names the network.
#[derive(serde::Deserialize)]
struct ModelConfig {
    model: Option<Architecture>,
}

/// Ends the training on another thread when the future that waits for it is dropped.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Participant {
    /// Takes part until the job is over, and says how it ended. Dropping the future ends a running training.
    pub async fn run(&self, observe: &mut (dyn FnMut(Event) + Send)) -> Result<JobState, ParticipateError> {
        let checkin = CheckIn {
            job: Some(self.job.name().clone()),
            namespace: Some(self.job.namespace().clone()),
            num_samples: Some(self.samples.len() as u64),
            ..CheckIn::default()
        };
        let mut model = None;
        let mut refused: u32 = 0;
        let mut measured = None;
        let (mut seen, mut is_crowded) = (None, false);
        loop {
            if seen.is_none() && !is_crowded {
                seen = Some(self.job.round(None).await?);
            }
            let task = self.server.checkin(&self.id, &checkin).await?;
            tracing::debug!(kind = ?task.task, round = task.round, "checked in");
            let step = match task.task {
                TaskKind::Train => {
                    // Read late, it may be of a later round; then this one's update is refused, and nobody waits.
                    let before = match seen.take() {
                        Some(seen) => seen,
                        None => self.job.round(None).await?,
                    };
                    let step = self.work(&task, &mut model, observe).await?;
                    if matches!(step, Step::Done) {
                        seen = Some(self.wait(&before, &task, NEXT_ROUND_WAIT).await?);
                        is_crowded = false;
                    }
                    step
                }
                TaskKind::Evaluate if task.model_version.is_some() && task.model_version != measured => {
                    let step = self.measure(&task, &mut model, observe).await?;
                    measured = task.model_version.filter(|_| matches!(step, Step::Done));
                    step
                }
                TaskKind::Stop => return self.ended(observe).await,
                TaskKind::Wait | TaskKind::Evaluate | TaskKind::Other => {
                    let asked = task.retry_after_ms.map_or(RETRY_TIME, Duration::from_millis);
                    is_crowded = asked > CROWD_WAIT;
                    match seen.take().filter(|_| !is_crowded) {
                        Some(before) => seen = Some(self.wait(&before, &task, asked).await?),
                        None => self.server.rest(&task).await,
                    }
                    continue;
                }
            };
            match step {
                Step::Done => refused = 0,
                Step::Refused => {
                    let pause = Duration::from_millis(200).saturating_mul(refused).min(REFUSED_WAIT_MAX);
                    refused += 1;
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    /// Waits until the round is another than `seen`, at most for `limit`. Returns what it is then.
    async fn wait(&self, seen: &RoundView, task: &Task, limit: Duration) -> Result<RoundView, ParticipateError> {
        let begun = Instant::now();
        let asked = task.retry_after_ms.map_or(RETRY_TIME, Duration::from_millis).min(NEXT_ROUND_WAIT);
        let waiting = Waiting { after: seen.revision, wait: limit.max(asked) };
        let view = self.job.round(Some(waiting)).await?;
        if view.revision == seen.revision && view.uid == seen.uid {
            // A server that cannot wait answers at once; then its own pace is kept.
            tokio::time::sleep_until(begun + asked).await;
        }
        Ok(view)
    }

    async fn ended(&self, observe: &mut (dyn FnMut(Event) + Send)) -> Result<JobState, ParticipateError> {
        let job = self.job.get().await?;
        if job.state == JobState::Failed {
            return Err(ParticipateError::JobFailed(job.reason.unwrap_or_else(|| "no reason given".to_owned())));
        }
        observe(Event::Ended { state: job.state });
        Ok(job.state)
    }

    /// Fetches, trains, submits.
    async fn work(
        &self,
        task: &Task,
        model: &mut Option<ModelBytes>,
        observe: &mut (dyn FnMut(Event) + Send),
    ) -> Result<Step, ParticipateError> {
        let round = task.round.ok_or_else(|| ParticipateError::Task("it names no round".to_owned()))?;
        let base = match self.fetch(task, model.take()).await {
            Ok(base) => model.insert(base),
            Err(error) => {
                observe(refusal(round, error)?);
                return Ok(Step::Refused);
            }
        };
        let begun = Instant::now();
        let (bytes, metrics) = self.train(round, &task.config, base).await?;
        let update = Update {
            num_samples: Some(self.samples.len() as u64),
            task: task.task_id,
            metrics: [("loss".to_owned(), metrics.loss), ("accuracy".to_owned(), metrics.accuracy)].into(),
            base: Some(base.etag),
            ..Update::new(round, self.id.clone(), bytes)
        };
        let train_ms = begun.elapsed().as_millis() as u64;
        match self.job_of(task).submit(&update).await {
            Ok(sent) => {
                let (receipt, known) = (sent.receipt.receipt.to_string(), sent.known);
                observe(Event::Submitted { round, model_version: base.version, receipt, known, train_ms, metrics });
                Ok(Step::Done)
            }
            Err(error) => {
                // An update of this client stands already, so there is nothing to add to this round.
                let step = if error.is(Code::Conflict) { Step::Done } else { Step::Refused };
                observe(refusal(round, error)?);
                Ok(step)
            }
        }
    }

    /// Fetches, measures on the client's own samples, reports.
    async fn measure(
        &self,
        task: &Task,
        model: &mut Option<ModelBytes>,
        observe: &mut (dyn FnMut(Event) + Send),
    ) -> Result<Step, ParticipateError> {
        let round = task.round.unwrap_or_default();
        let base = match self.fetch(task, model.take()).await {
            Ok(base) => model.insert(base),
            Err(error) => {
                observe(refusal(round, error)?);
                return Ok(Step::Refused);
            }
        };
        let architecture = self.architecture.or(read_config(&task.config)?.1);
        let (bytes, samples, device) = (base.bytes.clone(), self.samples.clone(), self.device.clone());
        let measuring = tokio::task::spawn_blocking(move || -> Result<_, TrainError> {
            evaluate(&Model::from_safetensors_as(&bytes, architecture, &device)?, &samples)
        });
        let metrics = measuring.await.unwrap_or_else(|error| Err(thread_ended(error)));
        let metrics = metrics.map_err(|source| ParticipateError::Train { round, source })?;
        let measured = Measurement {
            version: base.version,
            client: self.id.clone(),
            num_samples: Some(self.samples.len() as u64),
            metrics: [("loss".to_owned(), metrics.loss), ("accuracy".to_owned(), metrics.accuracy)].into(),
        };
        match self.job.identified(task.uid).report(&measured).await {
            Ok(_) => {
                observe(Event::Measured { model_version: base.version, metrics });
                Ok(Step::Done)
            }
            Err(error) => {
                let step = if error.is(Code::Conflict) { Step::Done } else { Step::Refused };
                observe(refusal(round, error)?);
                Ok(step)
            }
        }
    }

    /// The task's model: the one at hand if it is the same, else the server's.
    async fn fetch(&self, task: &Task, at_hand: Option<ModelBytes>) -> Result<ModelBytes, ClientError> {
        match at_hand {
            Some(model) if task.etag == Some(model.etag) => Ok(model),
            _ => self.job_of(task).model(task.model_version).await,
        }
    }

    /// The job of a task, and no namesake that was made meanwhile, at the gateway that it names.
    fn job_of(&self, task: &Task) -> JobClient {
        self.job.identified(task.uid).through(task.gateway.as_deref())
    }

    async fn train(
        &self,
        round: u64,
        config: &Map<String, Value>,
        base: &ModelBytes,
    ) -> Result<(Vec<u8>, Metrics), ParticipateError> {
        let (config, named) = read_config(config)?;
        let architecture = self.architecture.or(named);
        let rng = stream(self.seed, "shuffle", &[self.index, round]);
        let (bytes, samples, device) = (base.bytes.clone(), self.samples.clone(), self.device.clone());
        let cancel = CancelOnDrop(Arc::new(AtomicBool::new(false)));
        let cancelled = cancel.0.clone();
        let training = tokio::task::spawn_blocking(move || -> Result<_, TrainError> {
            let model = Model::from_safetensors_as(&bytes, architecture, &device)?;
            let metrics = train(&model, &samples, &config, rng, &cancelled)?;
            Ok((model.to_safetensors()?, metrics))
        });
        let trained = training.await.unwrap_or_else(|error| Err(thread_ended(error)));
        drop(cancel);
        trained.map_err(|source| ParticipateError::Train { round, source })
    }
}

fn thread_ended(error: tokio::task::JoinError) -> TrainError {
    ModelError::Compute(candle_core::Error::Msg(format!("the working thread ended: {error}"))).into()
}

/// What a refusal that passes is to whoever watches; any other ends the client.
fn refusal(round: u64, error: ClientError) -> Result<Event, ParticipateError> {
    match error.problem() {
        Some(problem) if is_passing(&error) => {
            Ok(Event::Refused { round, code: problem.code.clone(), detail: problem.detail.clone() })
        }
        _ => Err(ParticipateError::from(error)),
    }
}

/// The fields of a configuration that this worker knows.
fn read_config(config: &Map<String, Value>) -> Result<(TrainConfig, Option<Architecture>), ParticipateError> {
    let bad = |error: serde_json::Error| ParticipateError::Task(format!("client_config: {error}"));
    let value = Value::Object(config.clone());
    let named: ModelConfig = serde_json::from_value(value.clone()).map_err(bad)?;
    Ok((serde_json::from_value(value).map_err(bad)?, named.model))
}

/// Refusals after which a client goes on: the round, not the update, was at fault.
fn is_passing(error: &ClientError) -> bool {
    [Code::RoundClosed, Code::StaleBase, Code::Conflict, Code::WrongState, Code::NotFound]
        .into_iter()
        .any(|code| error.is(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<(TrainConfig, Option<Architecture>), ParticipateError> {
        let Value::Object(map) = value else { panic!("an object") };
        read_config(&map)
    }

    #[test]
    fn configurations_override_defaults_and_may_say_more() {
        let (config, model) = read(json!({"local_epochs": 5, "model": "cnn", "dropout": 0.5})).unwrap();
        assert_eq!(
            (config, model),
            (TrainConfig { local_epochs: 5, ..TrainConfig::default() }, Some(Architecture::Cnn))
        );
        assert_eq!(read(json!({})).unwrap(), (TrainConfig::default(), None));
        assert!(read(json!({"learning_rate": "fast"})).unwrap_err().to_string().contains("client_config"));
        assert!(read(json!({"model": "transformer"})).is_err());
    }
}
