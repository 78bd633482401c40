//! Models in and out. What arrives is checked against its ETag, which is the file's BLAKE3 digest: a model that was
//! cut or damaged on the way would otherwise train on as if nothing had happened.

use crate::attempts::Repeat;
use crate::call::{Call, Payload};
use crate::client::Paging;
use crate::error::ClientError;
use crate::job::JobClient;
use bytes::{Bytes, BytesMut};
use catchment_types::{Code, Digest, ModelView};
use reqwest::header::ETAG;
use reqwest::{Method, Response, StatusCode};
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

/// Largest model that is read into memory; larger ones go to a file.
const MEMORY_BYTES_MAX: u64 = 8 << 30;

/// A model version in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Its version; 0 is the initial one.
    pub version: u64,
    /// BLAKE3 of the bytes.
    pub etag: Digest,
    /// The safetensors file.
    pub bytes: Bytes,
}

/// A model version that was written to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Its version; 0 is the initial one.
    pub version: u64,
    /// BLAKE3 of the file.
    pub etag: Digest,
    /// Length of the file.
    pub bytes: u64,
}

impl JobClient {
    /// Sends the initial model, which opens the first round. Repeating it is success as long as it is the same file.
    ///
    /// # Errors
    /// `wrong_state` when the job has another model already; `layout`, `not_finite`, `invalid_safetensors`, `too_large`.
    pub async fn put_model(&self, model: impl Into<Bytes>) -> Result<ModelView, ClientError> {
        let bytes: Bytes = model.into();
        let digest = Digest::from(blake3::hash(&bytes));
        self.put(Payload::Bytes(bytes), digest).await
    }

    /// The same from a file, without holding it in memory.
    pub async fn put_model_file(&self, path: &Path) -> Result<ModelView, ClientError> {
        let (digest, length) = digest_file(path).await?;
        self.put(Payload::File(path.to_owned(), 0..length), digest).await
    }

    async fn put(&self, payload: Payload, digest: Digest) -> Result<ModelView, ClientError> {
        let call = self.call(Method::PUT, &["model"]).payload(payload);
        let mut attempts = self.client.attempts(Repeat::Safe);
        loop {
            match self.client.exchange_json(&call).await {
                Ok((_, view)) => return Ok(view),
                Err(error) if error.is(Code::WrongState) => {
                    let initial = self.initial_model().await?;
                    return initial.filter(|model| model.etag == digest).ok_or(error);
                }
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    async fn initial_model(&self) -> Result<Option<ModelView>, ClientError> {
        // The list goes from new to old, so version 0 is what comes after version 1.
        let page = self.models(&Paging { limit: Some(1), cursor: Some("1".to_owned()) }).await?;
        Ok(page.items.into_iter().find(|model| model.version == 0))
    }

    /// A model version; the newest when `version` is `None`.
    pub async fn model(&self, version: Option<u64>) -> Result<Model, ClientError> {
        let call = self.get_model(version, None);
        let mut attempts = self.client.attempts(Repeat::Safe);
        loop {
            match self.receive(&call).await {
                Ok(Some(model)) => return Ok(model),
                Ok(None) => return Err(ClientError::Argument("304 to a question without If-None-Match".to_owned())),
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    /// A model version, unless it is the one known by `etag`: then `None`.
    pub async fn model_unless(&self, version: Option<u64>, etag: Digest) -> Result<Option<Model>, ClientError> {
        let call = self.get_model(version, Some(etag));
        let mut attempts = self.client.attempts(Repeat::Safe);
        loop {
            match self.receive(&call).await {
                Ok(model) => return Ok(model),
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    /// Writes a model version to `path`, without holding it in memory. The file appears whole or not at all: it is
    /// written beside `path` with the ending `.part`, and takes its name once its digest is right.
    pub async fn model_to_file(&self, version: Option<u64>, path: &Path) -> Result<ModelFile, ClientError> {
        let call = self.get_model(version, None);
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let mut attempts = self.client.attempts(Repeat::Safe);
        let got = loop {
            match self.receive_file(&call, &part).await {
                Ok(file) => break Ok(file),
                Err(error) => {
                    if let Err(error) = attempts.after(error).await {
                        break Err(error);
                    }
                }
            }
        };
        match got {
            Ok(file) => tokio::fs::rename(&part, path).await.map_err(at("rename to", path)).map(|()| file),
            Err(error) => {
                tokio::fs::remove_file(&part).await.ok();
                Err(error)
            }
        }
    }

    fn get_model(&self, version: Option<u64>, known: Option<Digest>) -> Call {
        self.call(Method::GET, &["model"])
            .query("version", version)
            .header("if-none-match", known.map(|etag| format!("\"{etag}\"")))
    }

    async fn receive(&self, call: &Call) -> Result<Option<Model>, ClientError> {
        let mut response = self.client.exchange(call).await?;
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let (version, etag) = describe(&response)?;
        let mut body = BytesMut::new();
        while let Some(chunk) = self.client.chunk(&mut response).await? {
            if (body.len() + chunk.len()) as u64 > MEMORY_BYTES_MAX {
                return Err(ClientError::TooLarge { limit_bytes: MEMORY_BYTES_MAX });
            }
            body.extend_from_slice(&chunk);
        }
        check(etag, blake3::hash(&body))?;
        Ok(Some(Model { version, etag, bytes: body.freeze() }))
    }

    async fn receive_file(&self, call: &Call, part: &Path) -> Result<ModelFile, ClientError> {
        let mut response = self.client.exchange(call).await?;
        let (version, etag) = describe(&response)?;
        let mut file = File::create(part).await.map_err(at("create", part))?;
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
        while let Some(chunk) = self.client.chunk(&mut response).await? {
            hasher.update(&chunk);
            bytes += chunk.len() as u64;
            file.write_all(&chunk).await.map_err(at("write", part))?;
        }
        check(etag, hasher.finalize())?;
        file.sync_all().await.map_err(at("write", part))?;
        Ok(ModelFile { version, etag, bytes })
    }
}

/// BLAKE3 and length of a file.
pub(crate) async fn digest_file(path: &Path) -> Result<(Digest, u64), ClientError> {
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(std::fs::File::open(owned)?)?;
        Ok::<_, std::io::Error>((Digest::from(hasher.finalize()), hasher.count()))
    });
    let read = read.await.map_err(|error| ClientError::Argument(format!("read {}: {error}", path.display())))?;
    read.map_err(at("read", path))
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ClientError {
    move |source| ClientError::File { doing, path: path.to_owned(), source }
}

/// Version and digest of the model that an answer carries.
fn describe(response: &Response) -> Result<(u64, Digest), ClientError> {
    let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let missing = |what: &str| ClientError::Answer {
        url: response.url().path().to_owned(),
        why: format!("no valid {what} header"),
    };
    let version = text("catchment-model-version").and_then(|text| text.parse().ok());
    let etag = text(ETAG.as_str()).and_then(|text| text.trim_matches('"').parse().ok());
    Ok((version.ok_or_else(|| missing("Catchment-Model-Version"))?, etag.ok_or_else(|| missing("ETag"))?))
}

fn check(expected: Digest, found: blake3::Hash) -> Result<(), ClientError> {
    let found = Digest::from(found);
    if expected == found { Ok(()) } else { Err(ClientError::Damaged { expected, found }) }
}
