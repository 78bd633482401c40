//! The layout of each job's model, worked out once from its initial checkpoint.

use crate::functions::{Functions, Takes};
use crate::models::Models;
use catchment_types::{Digest, Dtype, Fit, Header, JobSpec, JobUid, Layout, LayoutError, UpdateKind};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Weights below it are small enough to make numbers vanish: with 2^-64, those below 2^-958.
const WEIGHT_SMALL: f64 = 1.0 / (1u128 << 64) as f64;

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
    /// What its function takes.
    pub takes: Takes,
}

impl ModelLayout {
    /// Works the layout out.
    pub fn new(head: Vec<u8>, header: Header, spec: &JobSpec, takes: Takes) -> Result<Self, String> {
        let layout = Layout::made_by(&takes.layout, &header, &spec.tensors).map_err(|error| error.to_string())?;
        let own = Fit::new(&layout, &header, &[]).map_err(|error| error.to_string())?;
        Ok(Self { head, header, layout, own: Arc::new(own), takes })
    }

    /// How an update with this header fits.
    pub fn fit(&self, update: &Header, spec: &JobSpec) -> Result<Fit, LayoutError> {
        if self.takes.layout.has_coordinates() {
            let fit = Fit::new(&self.layout, update, &spec.update_dtypes)?;
            let fit = fit.within(&self.layout, spec.exact.map(|exact| exact.bound));
            Ok(if spec.update == UpdateKind::Weights { fit.as_weights(&self.layout) } else { fit })
        } else {
            self.takes.layout.place(&self.header, update)
        }
    }

    /// The same of an update with this weight. In a sum of f64 a very small weight would take small numbers to where f64
    /// has few digits left, and their mean would have no more; so they are refused.
    ///
    /// Beside weights from [`WEIGHT_SMALL`] on, that could happen to numbers that are as good as zero only.
    pub fn weighed(&self, fit: Fit, spec: &JobSpec, weight: f64) -> Fit {
        let is_summed = self.takes.layout.has_coordinates() && !self.takes.gathers() && spec.exact.is_none();
        if is_summed && weight < WEIGHT_SMALL { fit.at_least(&self.layout, f64::MIN_POSITIVE / weight) } else { fit }
    }

    /// Bytes of shared memory that one update takes at most.
    pub fn update_bytes_max(&self, spec: &JobSpec) -> u64 {
        if !self.takes.layout.has_coordinates() {
            return self.takes.layout.bytes_max(&self.header).min(spec.limits.update_bytes);
        }
        // Where tensors come in several types, they are stored in one that holds them all.
        let floats = |own| Dtype::holding(&[&[own][..], &spec.update_dtypes].concat()).unwrap_or(own);
        let widest = |own: Dtype| if own.is_float() { floats(own) } else { own };
        self.layout.segments().iter().map(|segment| segment.elements * widest(segment.dtype).bits() / 8).sum()
    }
}

/// Layouts by job.
#[derive(Debug, Default)]
pub struct Layouts {
    known: Mutex<HashMap<JobUid, Arc<ModelLayout>>>,
}

impl Layouts {
    /// The layout of a job whose initial model has this ETag.
    pub fn get(
        &self,
        models: &Models,
        functions: &Functions,
        uid: JobUid,
        spec: &JobSpec,
        etag: Digest,
    ) -> io::Result<Arc<ModelLayout>> {
        if let Some(known) = self.lock().get(&uid) {
            return Ok(known.clone());
        }
        let (head, header) = models.head(uid, 0, etag)?;
        let takes = functions.takes(spec).map_err(io::Error::other)?;
        let layout = ModelLayout::new(head, header, spec, takes).map_err(io::Error::other)?;
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
