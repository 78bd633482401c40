//! A closer look at elements that are far from zero: whether the update alone would leave the range of the model's dtype.
//!
//! Only where the screen has found an element beyond what is fine whatever the model holds, so it may take its time: the
//! model's own elements are read from its file, a piece at a time.

use crate::range::Number;
use catchment_types::{Added, Bounds, Cause, Code, Dtype, Placed, Problem};
use std::fmt;
use std::io;

/// Bytes of the model read at one time.
const READ_BYTES: usize = 64 << 10;

/// The model that deltas are added to.
pub trait Base: fmt::Debug + Send + Sync {
    /// Reads its data from byte `begin` on.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&self, begin: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Looks at some elements of a tensor, of which the first is number `first`.
///
/// # Errors
/// `not_finite` and `out_of_range`, naming tensor and index; `not_ready` when the model cannot be read.
pub fn look(tensor: &Placed, first: usize, bytes: &[u8], base: Option<&dyn Base>) -> Result<(), Problem> {
    let width = (tensor.dtype.bits() / 8) as usize;
    let Bounds { most, added } = tensor.bounds;
    let free = added.map_or(f64::INFINITY, |added| added.free);
    let mut model = added.zip(base).map(|(added, base)| Model { added, base, from: 0, read: Vec::new() });
    for (i, bytes) in bytes.chunks_exact(width).enumerate() {
        let (index, number) = (first + i, Number::read(tensor.dtype, bytes));
        let size = number.size();
        if !size.is_finite() {
            return Err(refused(Code::NotFinite, tensor, index, "is NaN or infinite"));
        }
        if let Some((most, cause)) = most.filter(|(most, _)| size > *most) {
            return Err(beyond(tensor, index, &told(number, most, cause)).with("bound", most));
        }
        if size > free && let Some(model) = &mut model {
            let own = model.element(index).map_err(unreadable)?;
            if !number.fits_beside(own, model.added.dtype) {
                let Dtypes { dtype, largest } = Dtypes::of(model.added.dtype);
                let what = format!(
                    "is {number}: added to the model's {own} it leaves the range of {dtype} (up to {largest}); make the \
                     step smaller"
                );
                return Err(beyond(tensor, index, &what).with("bound", largest));
            }
        }
    }
    Ok(())
}

fn told(number: Number, most: f64, cause: Cause) -> String {
    match cause {
        Cause::Exact => format!("is further from zero than the job's exact.bound, {most}"),
        Cause::Dtype(dtype) => {
            let Dtypes { dtype, largest } = Dtypes::of(dtype);
            format!("is {number}: the model's {dtype} holds numbers up to {largest}; the update does not fit the model")
        }
        Cause::Weight(weight) => format!(
            "is {number}: times the update's weight {weight} it leaves the range of sums (f64); send it with a weight of at \
             most {:e}",
            f64::MAX / number.size()
        ),
    }
}

/// A type and its largest number, for people.
struct Dtypes {
    dtype: Dtype,
    largest: f64,
}

impl Dtypes {
    fn of(dtype: Dtype) -> Self {
        Self { dtype, largest: dtype.largest() }
    }
}

fn beyond(tensor: &Placed, index: usize, what: &str) -> Problem {
    refused(Code::OutOfRange, tensor, index, what)
}

/// An element that is refused, as the caller is told.
pub fn refused(code: Code, tensor: &Placed, index: usize, what: &str) -> Problem {
    let detail = format!("tensor `{}`: element {index} {what}", tensor.name);
    Problem::new(code, detail).with("tensor", tensor.name.as_str()).with("index", index as u64)
}

fn unreadable(error: io::Error) -> Problem {
    Problem::new(Code::NotReady, format!("the model that the update is added to cannot be read now: {error}"))
}

/// Elements of the model's tensor, read as they are asked for, in order.
struct Model<'a> {
    added: Added,
    base: &'a dyn Base,
    /// The first element that was read.
    from: usize,
    read: Vec<u8>,
}

impl Model<'_> {
    fn element(&mut self, index: usize) -> io::Result<Number> {
        let width = (self.added.dtype.bits() / 8) as usize;
        if index < self.from || (index - self.from + 1) * width > self.read.len() {
            let (begin, end) = (self.added.begin + (index * width) as u64, self.added.end);
            let bytes = (READ_BYTES as u64).min(end.saturating_sub(begin)) as usize;
            self.read.resize(bytes.max(width), 0);
            self.base.read(begin, &mut self.read)?;
            self.from = index;
        }
        Ok(Number::read(self.added.dtype, &self.read[(index - self.from) * width..][..width]))
    }
}
