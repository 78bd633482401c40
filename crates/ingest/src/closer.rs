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
            return Err(not_finite(tensor, index, true));
        }
        if let Some((most, cause)) = most.filter(|(most, _)| size > *most) {
            return Err(beyond(tensor, index, &told(number, most, cause)).with("bound", most));
        }
        if size > free
            && let Some(model) = &mut model
        {
            let own = model.element(index).map_err(unreadable)?;
            if !number.fits_beside(own, model.added.dtype) {
                let dtype = model.added.dtype;
                let largest = if dtype.exceeds_f64() { Number::Whole((1 << 53) - 1) } else { largest_of(dtype) };
                let what = format!(
                    "is {number}: added to the model's {own} it leaves the range of {dtype} (up to {largest}); make the \
                     step smaller"
                );
                return Err(beyond(tensor, index, &what).with("bound", dtype.largest()));
            }
        }
    }
    Ok(())
}

fn told(number: Number, most: f64, cause: Cause) -> String {
    match cause {
        Cause::Exact => format!("is further from zero than the job's exact.bound, {most}"),
        Cause::Dtype(dtype) => {
            let largest = largest_of(dtype);
            format!("is {number}: the model's {dtype} holds numbers up to {largest}; the update does not fit the model")
        }
        Cause::Weight(weight) => format!(
            "is {number}: times the update's weight {} it leaves the range of sums (f64); send it with a weight of at \
             most {:e}",
            Number::Float(weight),
            f64::MAX / number.size()
        ),
    }
}

/// The largest number of a type, for people.
fn largest_of(dtype: Dtype) -> Number {
    Number::Float(dtype.largest())
}

fn beyond(tensor: &Placed, index: usize, what: &str) -> Problem {
    refused(Code::OutOfRange, tensor, index, what)
}

/// An element that is no number. `follows_rules`: the job can be told to leave the tensor alone.
pub fn not_finite(tensor: &Placed, index: usize, follows_rules: bool) -> Problem {
    let what = if follows_rules {
        format!("is NaN or infinite; {}", remedy(&tensor.name))
    } else {
        "is NaN or infinite".to_owned()
    };
    refused(Code::NotFinite, tensor, index, &what)
}

/// What to do about a tensor that is meant to hold what is no number, as an attention mask does.
pub fn remedy(name: &str) -> String {
    let rule = serde_json::json!({"match": name, "rule": "keep"});
    format!(
        "where that is meant, as in a mask, the job is to leave the tensor as it is: create it with \"tensors\": [{rule}], or \
         with \"exclude\" as the rule if updates shall not carry it"
    )
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scatter, largest};
    use catchment_types::{Fit, Header, Layout, Limits};
    use half::f16;
    use proptest::prelude::*;
    use std::sync::Arc;

    #[derive(Debug)]
    struct Bytes(Vec<u8>);

    impl Base for Bytes {
        fn read(&self, begin: u64, into: &mut [u8]) -> io::Result<()> {
            let from = self.0.get(begin as usize..).and_then(|rest| rest.get(..into.len()));
            into.copy_from_slice(from.ok_or_else(|| io::Error::other("beyond the end"))?);
            Ok(())
        }
    }

    /// Two tensors, so that the second does not begin where the file does.
    fn header(dtype: &str, width: usize, count: usize) -> Header {
        let (first, end) = (3 * width, (3 + count) * width);
        let text = format!(
            r#"{{"v":{{"dtype":"{dtype}","shape":[3],"data_offsets":[0,{first}]}},
            "w":{{"dtype":"{dtype}","shape":[{count}],"data_offsets":[{first},{end}]}}}}"#
        );
        Header::parse(text.as_bytes(), &Limits::default()).unwrap()
    }

    fn send(fit: Fit, base: Option<Bytes>, data: &[u8], step: usize) -> Result<(), Problem> {
        let mut memory = vec![0; fit.slab_bytes as usize];
        let base = base.map(|base| Arc::new(base) as Arc<dyn Base>);
        let mut scatter = Scatter::of_deltas(fit, base);
        data.chunks(step.max(1)).try_for_each(|chunk| scatter.feed(chunk, &mut memory))?;
        scatter.finish(&mut memory)
    }

    /// Deltas of F16 for a model of F16, in a file of `v` and `w`.
    fn send_deltas(model: &[f32], deltas: &[f32], step: usize) -> Result<(), Problem> {
        let bytes = |values: &[f32]| -> Vec<u8> {
            let all = [0.0; 3].iter().chain(values);
            all.flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
        };
        let header = header("F16", 2, model.len());
        let layout = Layout::new(&header, &[]).unwrap();
        let data = bytes(model);
        let sizes = [0.0, largest(Dtype::F16, &data[6..])];
        let fit = Fit::new(&layout, &header, &[]).unwrap().as_deltas(&layout, |tensor| Some(sizes[tensor]));
        send(fit, Some(Bytes(data)), &bytes(deltas), step)
    }

    proptest! {
        /// A delta is refused exactly when the model's element and it together are no number of the model's type.
        #[test]
        fn what_is_refused_is_what_would_not_fit(
            pairs in proptest::collection::vec((-65504.0f32..65504.0, -65504.0f32..65504.0), 1..40), step in 1usize..50,
        ) {
            let (model, deltas): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
            let rounded = |x: f32| f16::from_f32(x).to_f64();
            let fits = |(own, delta): &(f32, f32)| f16::from_f64(rounded(*own) + rounded(*delta)).is_finite();
            let first = pairs.iter().position(|pair| !fits(pair));
            let refused = send_deltas(&model, &deltas, step).err().map(|problem| {
                assert_eq!((problem.code.as_str(), problem.extra["tensor"].as_str()), ("out_of_range", Some("w")));
                problem.extra["index"].as_u64().unwrap() as usize
            });
            prop_assert_eq!(refused, first);
        }

        #[test]
        fn numbers_are_what_they_stand_for(bits in any::<u64>()) {
            let bytes = bits.to_le_bytes();
            let size = |dtype| Number::read(dtype, &bytes[..(dtype.bits() / 8) as usize]).size();
            for (dtype, value) in [
                (Dtype::F64, f64::from_bits(bits)),
                (Dtype::F32, f32::from_bits(bits as u32).into()),
                (Dtype::F16, f16::from_bits(bits as u16).to_f64()),
                (Dtype::Bf16, half::bf16::from_bits(bits as u16).to_f64()),
                (Dtype::I32, (bits as i32).into()),
                (Dtype::I8, (bits as i8).into()),
                (Dtype::U16, (bits as u16).into()),
            ] {
                let (found, value) = (size(dtype), value.abs());
                prop_assert!(found == value || !(found.is_finite() || value.is_finite()), "{} {} {}", dtype, found, value);
                let most = largest(dtype, &bytes);
                prop_assert!(most >= found || !found.is_finite());
                prop_assert_eq!(most.is_finite(), bytes.chunks((dtype.bits() / 8) as usize).all(|b| Number::read(dtype, b).size().is_finite()));
            }
        }
    }

    #[test]
    fn a_model_longer_than_one_piece_is_read_on() {
        let (mut model, mut deltas) = (vec![60000.0; 100_000], vec![-6000.0; 100_000]);
        send_deltas(&model, &deltas, 1 << 14).unwrap();
        deltas[99_999] = 6000.0;
        let problem = send_deltas(&model, &deltas, 1 << 14).unwrap_err();
        assert_eq!(problem.extra["index"], 99_999);
        for said in ["is 6000:", "model's 60000", "F16", "65504"] {
            assert!(problem.detail.contains(said), "{problem}");
        }
        model[99_999] = 1.0;
        send_deltas(&model, &deltas, 1 << 14).unwrap();
    }

    #[test]
    fn integers_are_added_exactly() {
        let fits =
            |x: i64, own: i64, dtype: Dtype| Number::Whole(x.into()).fits_beside(Number::Whole(own.into()), dtype);
        let most = (1 << 53) - 1;
        assert!(fits(most, -1, Dtype::I64) && !fits(most, 1, Dtype::I64) && fits(-most, 0, Dtype::I64));
        assert!(!fits(-most, -1, Dtype::I64) && fits(most, 0, Dtype::U64) && !fits(most, 1, Dtype::U64));
        assert!(
            fits(100, 27, Dtype::I8)
                && !fits(100, 28, Dtype::I8)
                && fits(-100, -28, Dtype::I8)
                && !fits(-100, -29, Dtype::I8)
        );
        assert!(fits(200, 55, Dtype::U8) && !fits(200, 56, Dtype::U8));
    }

    #[test]
    fn each_bound_has_its_reason() {
        let header = header("F64", 8, 1);
        let layout = Layout::new(&header, &[]).unwrap();
        let fit = Fit::new(&layout, &header, &[]).unwrap();
        let data = |x: f64| [0.0, 0.0, 0.0, x].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let weighted = fit.clone().in_sums(&layout, 1e12);
        assert!(send(weighted.clone(), None, &data(1e296), 7).is_ok());
        let problem = send(weighted, None, &data(-1e300), 7).unwrap_err();
        assert!(problem.detail.contains("is -1e300: times the update's weight 1e12"), "{problem}");
        let exact = fit.within(&layout, Some(8.0));
        let problem = send(exact, None, &data(9.0), 7).unwrap_err();
        assert!(problem.detail.contains("exact.bound, 8"), "{problem}");
        let narrow = Layout::new(&self::header("F8_E5M2", 1, 1), &[]).unwrap();
        let fit = Fit::new(&narrow, &header, &[Dtype::F64]).unwrap().as_weights(&narrow);
        let problem = send(fit, None, &data(7e4), 7).unwrap_err();
        assert!(problem.detail.contains("is 70000: the model's F8_E5M2 holds numbers up to 57344"), "{problem}");
    }

    #[test]
    fn a_model_that_cannot_be_read_refuses_for_now() {
        let header = header("F16", 2, 1);
        let layout = Layout::new(&header, &[]).unwrap();
        let fit = Fit::new(&layout, &header, &[]).unwrap().as_deltas(&layout, |_| Some(65504.0));
        let data: Vec<u8> = [0.0, 0.0, 0.0, 100.0].iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        let problem = send(fit, Some(Bytes(Vec::new())), &data, 8).unwrap_err();
        assert_eq!((problem.code.as_str(), problem.retryable), ("not_ready", true));
    }
}
