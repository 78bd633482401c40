//! One update as functions are given it: where its numbers lie, and what is known of it beside them.

use super::finish::function_dtype;
use super::job::StepError;
use super::ranges::Range;
use super::scratch::ScratchSlab;
use super::worker::Worker;
use crate::context::Context;
use crate::layouts::ModelLayout;
use crate::slab_meta::SlabMeta;
use catchment_ledger::Update;
use catchment_runtime::{FunctionError, HostError, TensorPlace, UpdateFacts, UpdateWindow, Window};
use catchment_slab::{Slab, SlabError};
use catchment_types::{Accept, Header, Limits, Mode, Placed, TensorInfo};
use std::os::fd::BorrowedFd;

/// A slab that cannot be opened.
pub fn unreadable(error: SlabError) -> FunctionError {
    HostError::Map { what: "a slab".to_owned(), reason: error.to_string() }.into()
}

/// One update of a batch.
pub struct Input {
    slab: Slab,
    meta: SlabMeta,
    /// The first element of each segment that is there; without any, all are.
    firsts: Vec<u64>,
    /// Gives the slab back, when it is a copy of another node's.
    _copy: Option<ScratchSlab>,
    weight: f64,
    num_samples: f64,
    staleness: u32,
}

impl Input {
    /// The update in its slab.
    pub fn find(context: &Context, update: &Update, mode: Mode) -> Result<Self, StepError> {
        let missing = || StepError::Missing { round: update.accept.round, receipt: update.receipt };
        let slab = context.store.get(update.accept.slab).ok_or_else(missing)?;
        let meta =
            SlabMeta::decode(slab.meta()).filter(|meta| meta.digest == update.accept.digest).ok_or_else(missing)?;
        Ok(Self::new(slab, meta, update, mode))
    }

    fn new(slab: Slab, meta: SlabMeta, update: &Update, mode: Mode) -> Self {
        let Accept { weight, num_samples, .. } = update.accept;
        let staleness = u32::try_from(update.staleness).unwrap_or(u32::MAX);
        let weight = weight * mode.factor(update.staleness);
        Self { slab, meta, firsts: Vec::new(), _copy: None, weight, num_samples: num_samples as f64, staleness }
    }

    /// The same of a slab that another node's update was copied to, all of it or, with `firsts`, some of each segment.
    pub fn copied(worker: &Worker, slab: Slab, firsts: Vec<u64>, update: &Update) -> Result<Self, StepError> {
        let copy = Some(ScratchSlab::new(worker.context.clone(), slab.clone()));
        let meta = SlabMeta::decode(slab.meta()).filter(|meta| meta.digest == update.accept.digest);
        let meta = meta.ok_or_else(|| StepError::Again("another node sent another update".to_owned()))?;
        Ok(Self { firsts, _copy: copy, ..Self::new(slab, meta, update, worker.spec.mode) })
    }

    /// What its slab's header says of it.
    pub fn noted(&self) -> &[u8] {
        self.slab.meta()
    }

    /// What is known of it beside its numbers.
    pub fn facts(&self) -> UpdateFacts {
        UpdateFacts { weight: self.weight, num_samples: self.num_samples, staleness: self.staleness }
    }

    /// All of its bytes.
    pub fn whole(&self) -> Result<Window<BorrowedFd<'_>>, FunctionError> {
        let fd = self.slab.fd().map_err(unreadable)?;
        Ok(Window { file: fd, offset_bytes: self.slab.data_offset(), len_bytes: self.slab.len() })
    }

    /// Where its tensors are, when they have no coordinates: read from the head of its file again.
    pub fn tensors(&self, model: &ModelLayout) -> Result<Vec<TensorPlace>, FunctionError> {
        let broken = |reason: String| HostError::argument_of("the head of an update", reason);
        let (at, len) = self.meta.head.ok_or_else(|| broken("it was not kept".to_owned()))?;
        let bytes = self.slab.bytes().map_err(unreadable)?;
        let text = bytes.get(at as usize..(at + len) as usize).and_then(|head| head.get(Header::PREFIX_BYTES..));
        let text = text.ok_or_else(|| broken("it is cut off".to_owned()))?;
        let header = Header::parse(text, &Limits::default()).map_err(|error| broken(error.to_string()))?;
        let fit = model.takes.layout.place(&model.header, &header).map_err(|error| broken(error.to_string()))?;
        let place = |(info, placed): (&TensorInfo, &Placed)| TensorPlace {
            name: info.name.clone(),
            shape: info.shape.clone(),
            dtype: function_dtype(info.dtype),
            offset: placed.slab_offset.unwrap_or_default(),
        };
        Ok(header.tensors.iter().zip(&fit.tensors).map(place).collect())
    }

    /// Where some elements of a segment are. `None`: it does not have them.
    pub fn elements(
        &self,
        segment: usize,
        first: u64,
        elements: u64,
    ) -> Option<Result<Window<BorrowedFd<'_>>, SlabError>> {
        let section = self.meta.sections.get(segment)?;
        let width = section.dtype.bits() / 8;
        let (offset, len_bytes) = (first.checked_mul(width)?, elements.checked_mul(width)?);
        if offset.checked_add(len_bytes)? > section.bytes {
            return None;
        }
        let offset_bytes = self.slab.data_offset() + section.offset + offset;
        Some(self.slab.fd().map(|file| Window { file, offset_bytes, len_bytes }))
    }

    /// Its numbers of a range.
    pub fn window(&self, range: &Range) -> Result<UpdateWindow<BorrowedFd<'_>>, FunctionError> {
        let section = &self.meta.sections[range.segment];
        let (width, skipped) = (section.dtype.bits() / 8, self.firsts.get(range.segment).copied().unwrap_or_default());
        let window = Window {
            file: self.slab.fd().map_err(unreadable)?,
            offset_bytes: self.slab.data_offset() + section.offset + (range.first - skipped) * width,
            len_bytes: range.elements * width,
        };
        let dtype = function_dtype(section.dtype);
        Ok(UpdateWindow {
            window,
            dtype,
            weight: self.weight,
            num_samples: self.num_samples,
            staleness: self.staleness,
        })
    }
}
