//! The layout of each job's model, worked out once from its initial checkpoint.

use crate::models::Models;
use catchment_types::{Digest, Fit, Header, JobSpec, JobUid, Layout};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// A job's model: its file's head and its place in memory.
#[derive(Debug)]
pub struct ModelLayout {
    /// The bytes of the file up to the data: every version begins with them.
    pub head: Vec<u8>,
    /// The same, read.
    pub header: Header,
    /// The coordinates.
    pub layout: Layout,
    /// How the model itself fits its layout: the dtypes and offsets of its own elements.
    pub own: Arc<Fit>,
}

impl ModelLayout {
    /// Works the layout out.
    pub fn new(head: Vec<u8>, header: Header, spec: &JobSpec) -> Result<Self, String> {
        let layout = Layout::new(&header, &spec.tensors).map_err(|error| error.to_string())?;
        let own = Fit::new(&layout, &header, &[]).map_err(|error| error.to_string())?;
        Ok(Self { head, header, layout, own: Arc::new(own) })
    }
}

/// Layouts by job.
#[derive(Debug, Default)]
pub struct Layouts {
    known: Mutex<HashMap<JobUid, Arc<ModelLayout>>>,
}

impl Layouts {
    /// The layout of a job whose initial model has this ETag.
    pub fn get(&self, models: &Models, uid: JobUid, spec: &JobSpec, etag: Digest) -> io::Result<Arc<ModelLayout>> {
        if let Some(known) = self.lock().get(&uid) {
            return Ok(known.clone());
        }
        let (head, header) = models.head(uid, 0, etag)?;
        let layout = ModelLayout::new(head, header, spec).map_err(io::Error::other)?;
        Ok(self.lock().entry(uid).or_insert_with(|| Arc::new(layout)).clone())
    }

    /// Forgets a deleted job.
    pub fn forget(&self, uid: JobUid) {
        self.lock().remove(&uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobUid, Arc<ModelLayout>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
