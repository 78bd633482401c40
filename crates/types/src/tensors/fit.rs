//! Where each byte of an update's body goes in its slab.
//!
//! The body lists tensors in its author's order and dtypes; the slab holds segments in the job's order. A [`Fit`] is
//! worked out from the header alone, before a slab is granted, so that a body that does not fit costs nothing.
//!
//! A section has one dtype, so that a range of it is one window. Where tensors of a segment come in several, the section
//! has the narrowest one that holds them all exactly, and elements are widened on their way into the slab.

use super::bounds::Bounds;
use super::header::{Header, TensorInfo};
use super::layout::{Layout, Rule};
use crate::Dtype;
use serde::{Deserialize, Serialize};

/// An update that does not have the model's layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor `{tensor}`: expected {expected}, found {found}")]
pub struct LayoutError {
    /// The tensor.
    pub tensor: String,
    /// What the job's model asks for.
    pub expected: String,
    /// What the update holds.
    pub found: String,
}

/// One segment of the update within its slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// Element type in the slab, which may differ from the model's.
    pub dtype: Dtype,
    /// First byte within the slab: a multiple of 64.
    pub offset: u64,
    /// Its length in bytes, padding included.
    pub bytes: u64,
}

/// One tensor of the body, in body order.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// Its name, for errors.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its element type in the slab: the same, or a wider one that holds all of its numbers.
    pub stored: Dtype,
    /// Its range in the body's data.
    pub begin: u64,
    /// One past its last byte.
    pub end: u64,
    /// Its first byte in the slab; `None` for tensors that are read and dropped.
    pub slab_offset: Option<u64>,
    /// Bytes of padding after it in the slab, which the writer must zero.
    pub padding: u64,
    /// How far from zero its elements may be.
    pub bounds: Bounds,
    /// No element may be nearer to zero, but zero itself, where there is such a bound.
    pub least: Option<f64>,
}

impl Placed {
    /// Bytes of its elements in the slab.
    pub fn stored_bytes(&self) -> u64 {
        // Types of less than a byte are never widened.
        let bytes = self.end - self.begin;
        if self.stored == self.dtype { bytes } else { bytes / (self.dtype.bits() / 8) * (self.stored.bits() / 8) }
    }

    /// Where in the slab its bytes come to as they are in the body: the end of its place. Where elements are widened,
    /// each can then be written to its own place as soon as it is there, without reaching one that is not widened yet.
    pub fn landing(&self) -> Option<u64> {
        Some(self.slab_offset? + self.stored_bytes() - (self.end - self.begin))
    }
}

/// How an update fits a layout.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// One for each of the layout's segments.
    pub sections: Vec<Section>,
    /// The tensors in the order of their bytes in the body.
    pub tensors: Vec<Placed>,
    /// Bytes the slab needs.
    pub slab_bytes: u64,
    /// Where the file's head is kept in the slab, when its tensors have no coordinates.
    pub head_at: Option<u64>,
}

impl Fit {
    /// Fits an update with this header into `layout`. `dtypes` are the float types an update may use beside the
    /// model's own.
    pub fn new(layout: &Layout, update: &Header, dtypes: &[Dtype]) -> Result<Self, LayoutError> {
        let section_dtypes = section_dtypes(layout, update, dtypes)?;
        let mut slab_bytes = 0;
        let sections: Vec<Section> = layout
            .segments()
            .iter()
            .zip(section_dtypes)
            .map(|(segment, dtype)| {
                let bytes = segment.elements * dtype.bits() / 8;
                let section = Section { dtype, offset: slab_bytes, bytes };
                slab_bytes += bytes;
                section
            })
            .collect();
        let tensors = update.tensors.iter().map(|info| placed(layout, &sections, info)).collect();
        Ok(Self { sections, tensors, slab_bytes, head_at: None })
    }

    /// The same fit with a bound on how near to zero elements of averaged tensors may be.
    pub fn at_least(mut self, layout: &Layout, least: f64) -> Self {
        for tensor in self.tensors.iter_mut().filter(|tensor| layout.rule(&tensor.name) == Some(Rule::Mean)) {
            tensor.least = Some(least);
        }
        self
    }
}

fn shown(dtype: Dtype, shape: &[u64]) -> String {
    format!("{dtype} {shape:?}")
}

/// Checks names, shapes and dtypes; gives each segment's dtype in the slab.
fn section_dtypes(layout: &Layout, update: &Header, dtypes: &[Dtype]) -> Result<Vec<Dtype>, LayoutError> {
    let mut present = vec![false; layout.tensors.len()];
    let mut found_in: Vec<Vec<Dtype>> = vec![Vec::new(); layout.segments().len()];
    for info in &update.tensors {
        let fail = |expected: String, found: String| LayoutError { tensor: info.name.clone(), expected, found };
        let found = || shown(info.dtype, &info.shape);
        let Some(&index) = layout.by_name.get(&info.name) else {
            return Err(fail("no such tensor in the job's model".to_owned(), found()));
        };
        let expected = &layout.tensors[index];
        let dtype_fits = info.dtype == expected.dtype
            || (expected.dtype.is_float() && info.dtype.is_float() && dtypes.contains(&info.dtype));
        if info.shape != expected.shape || !dtype_fits {
            return Err(fail(shown(expected.dtype, &expected.shape), found()));
        }
        present[index] = true;
        // A tensor without elements has nothing to hold.
        if let Some((segment, _)) = expected.place.filter(|_| info.elements() > 0) {
            let known = &mut found_in[segment];
            if !known.contains(&info.dtype) {
                known.push(info.dtype);
            }
        }
    }
    for (tensor, present) in layout.tensors.iter().zip(present) {
        if !present && tensor.rule != Rule::Exclude {
            return Err(LayoutError {
                tensor: tensor.name.clone(),
                expected: shown(tensor.dtype, &tensor.shape),
                found: "nothing".to_owned(),
            });
        }
    }
    let own = layout.segments().iter().map(|segment| segment.dtype);
    Ok(found_in.iter().zip(own).map(|(found, own)| Dtype::holding(found).unwrap_or(own)).collect())
}

fn placed(layout: &Layout, sections: &[Section], info: &TensorInfo) -> Placed {
    let place = layout.by_name.get(&info.name).and_then(|index| layout.tensors[*index].place);
    let stored = place.map_or(info.dtype, |(segment, _)| sections[segment].dtype);
    let width = stored.bits() / 8;
    let padded = info.elements().next_multiple_of(super::ALIGN_ELEMENTS);
    Placed {
        name: info.name.clone(),
        dtype: info.dtype,
        stored,
        begin: info.begin,
        end: info.end,
        slab_offset: place.map(|(segment, first)| sections[segment].offset + first * width),
        padding: if place.is_some() { (padded - info.elements()) * width } else { 0 },
        bounds: Bounds::default(),
        least: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::header::Limits;
    use crate::tensors::layout::TensorRule;

    fn header(tensors: &[(&str, &str, &[u64])]) -> Header {
        let mut at = 0;
        let entries: Vec<String> = tensors
            .iter()
            .map(|(name, dtype, shape)| {
                let end = at + shape.iter().product::<u64>() * Dtype::from_name(dtype).unwrap().bits() / 8;
                let entry = format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{at},{end}]}}"#);
                at = end;
                entry
            })
            .collect();
        Header::parse(format!("{{{}}}", entries.join(",")).as_bytes(), &Limits::default()).unwrap()
    }

    fn layout() -> Layout {
        let rules = [TensorRule { pattern: "private*".to_owned(), rule: Rule::Exclude }];
        let model = header(&[("w", "F32", &[2, 3]), ("n", "I64", &[]), ("b", "F32", &[3]), ("private", "F32", &[2])]);
        Layout::new(&model, &rules).unwrap()
    }

    #[test]
    fn places_do_not_depend_on_the_order_of_the_body() {
        let fit =
            Fit::new(&layout(), &header(&[("b", "F32", &[3]), ("n", "I64", &[]), ("w", "F32", &[2, 3])]), &[]).unwrap();
        let offsets: Vec<_> = fit.tensors.iter().map(|t| (t.name.as_str(), t.slab_offset, t.padding)).collect();
        assert_eq!(offsets, [("b", Some(256), 244), ("n", None, 0), ("w", Some(0), 232)]);
        assert_eq!((fit.slab_bytes, fit.sections.len()), (512, 1));
    }

    #[test]
    fn other_float_types_fit_when_the_spec_allows_them() {
        let update = header(&[("w", "BF16", &[2, 3]), ("n", "I64", &[]), ("b", "BF16", &[3])]);
        assert!(Fit::new(&layout(), &update, &[]).unwrap_err().to_string().contains("expected F32 [2, 3], found BF16"));
        assert_eq!(Fit::new(&layout(), &update, &[Dtype::Bf16]).unwrap().slab_bytes, 256);
        let refused = header(&[("w", "BF16", &[2, 3]), ("n", "I64", &[]), ("b", "F16", &[3])]);
        let error = Fit::new(&layout(), &refused, &[Dtype::Bf16]).unwrap_err().to_string();
        assert!(error.contains("`b`: expected F32 [3], found F16 [3]"), "{error}");
    }

    /// As training in mixed precision leaves them.
    #[test]
    fn one_update_may_have_several_float_types() {
        let dtypes = [Dtype::Bf16, Dtype::F16, Dtype::F8E4M3, Dtype::F8E5M2, Dtype::F64];
        for (w, b, stored, bytes) in [
            ("BF16", "F32", Dtype::F32, 512),
            ("F32", "BF16", Dtype::F32, 512),
            ("F16", "BF16", Dtype::F32, 512),
            ("F8_E4M3", "F64", Dtype::F64, 1024),
            ("F8_E5M2", "F8_E4M3", Dtype::Bf16, 256),
            ("F8_E4M3", "F16", Dtype::F16, 256),
            ("F8_E4M3", "F8_E4M3", Dtype::F8E4M3, 128),
        ] {
            let update = header(&[("b", b, &[3]), ("n", "I64", &[]), ("w", w, &[2, 3])]);
            let fit = Fit::new(&layout(), &update, &dtypes).unwrap();
            assert_eq!((fit.sections[0].dtype, fit.slab_bytes), (stored, bytes), "{w} {b}");
            let width = stored.bits() / 8;
            for (tensor, first) in [(&fit.tensors[0], 64), (&fit.tensors[2], 0)] {
                let (count, own) = (tensor.padding / width, tensor.end - tensor.begin);
                assert_eq!((tensor.stored, tensor.slab_offset), (stored, Some(first * width)));
                assert_eq!(tensor.landing(), Some((first + 64 - count) * width - own), "they end where its place ends");
            }
            assert_eq!((fit.tensors[1].stored, fit.tensors[1].landing()), (Dtype::I64, None));
        }
    }

    #[test]
    fn a_tensor_without_elements_widens_nothing() {
        let model = header(&[("w", "F32", &[3]), ("e", "F32", &[0, 3])]);
        let layout = Layout::new(&model, &[]).unwrap();
        let update = header(&[("w", "BF16", &[3]), ("e", "F64", &[0, 3])]);
        let fit = Fit::new(&layout, &update, &[Dtype::Bf16, Dtype::F64]).unwrap();
        assert_eq!((fit.sections[0].dtype, fit.slab_bytes, fit.tensors[1].landing()), (Dtype::Bf16, 128, Some(128)));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (update, expected) in [
            (
                header(&[("w", "F32", &[3, 2]), ("n", "I64", &[]), ("b", "F32", &[3])]),
                "`w`: expected F32 [2, 3], found F32 [3, 2]",
            ),
            (header(&[("w", "F32", &[2, 3]), ("b", "F32", &[3])]), "`n`: expected I64 [], found nothing"),
            (
                header(&[("w", "F32", &[2, 3]), ("n", "I32", &[]), ("b", "F32", &[3])]),
                "`n`: expected I64 [], found I32 []",
            ),
            (header(&[("x", "F32", &[1])]), "`x`: expected no such tensor"),
        ] {
            let error = Fit::new(&layout(), &update, &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
