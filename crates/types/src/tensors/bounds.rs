//! How far from zero the elements of an update may be, so that it alone does not leave the range of the model's dtype.
//!
//! Worked out for each tensor before its bytes come. Where no element of the update's dtype can be too large, there is
//! nothing to compare with, and the usual screen for NaN is all.

use super::fit::Fit;
use super::layout::{Layout, Rule};
use crate::Dtype;

/// Why no element may be further from zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cause {
    /// The job's exact sums have room for no larger ones.
    Exact,
    /// The model's elements are of this type.
    Dtype(Dtype),
    /// Times the update's weight, a larger one is no finite f64, and sums are of those.
    Weight(f64),
}

/// A delta is added to the model's element, and what comes of it must fit the model's type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Added {
    /// Up to here from zero, a delta fits whatever element of this tensor it is added to.
    pub free: f64,
    /// The type of the model's elements.
    pub dtype: Dtype,
    /// Where they begin in the model's data.
    pub begin: u64,
    /// Where they end there.
    pub end: u64,
}

/// What holds for the elements of one tensor.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bounds {
    /// No element is further from zero, and why.
    pub most: Option<(f64, Cause)>,
    /// What it is added to, if it is.
    pub added: Option<Added>,
}

impl Bounds {
    /// Elements of `dtype` up to here from zero need no closer look. `None`: none of them does.
    pub fn screened(&self, dtype: Dtype) -> Option<f64> {
        let most = self.most.map(|(most, _)| most).into_iter();
        let least = most.chain(self.added.map(|added| added.free)).reduce(f64::min)?;
        (least < dtype.largest()).then_some(least)
    }

    fn tighten(&mut self, most: f64, cause: Cause) {
        if self.most.is_none_or(|(known, _)| most < known) {
            self.most = Some((most, cause));
        }
    }
}

impl Dtype {
    /// The largest finite number of a type that functions read; infinite for others.
    pub const fn largest(self) -> f64 {
        match self {
            Self::F64 => f64::MAX,
            Self::F32 => f32::MAX as f64,
            Self::Bf16 => 255.0 / 128.0 * POWER_127,
            Self::F16 => 65504.0,
            Self::F8E4M3 => 448.0,
            Self::F8E5M2 => 57344.0,
            Self::I64 => i64::MAX as f64,
            Self::I32 => i32::MAX as f64,
            Self::I16 => i16::MAX as f64,
            Self::I8 => i8::MAX as f64,
            Self::U64 => u64::MAX as f64,
            Self::U32 => u32::MAX as f64,
            Self::U16 => u16::MAX as f64,
            Self::U8 => u8::MAX as f64,
            _ => f64::INFINITY,
        }
    }

    /// The largest number that is rounded to a finite one of a float type: up to half a step beyond [`Dtype::largest`].
    /// Half a step itself goes to the even neighbour, which for all but F8_E4M3 is infinity.
    pub const fn rounds_up_to(self) -> f64 {
        match self {
            Self::F32 => (POWER_127 * 2.0 - POWER_103).next_down(),
            Self::Bf16 => (511.0 / 256.0 * POWER_127).next_down(),
            Self::F16 => 65520f64.next_down(),
            Self::F8E4M3 => 464.0,
            Self::F8E5M2 => 61440f64.next_down(),
            other => other.largest(),
        }
    }

    /// How far from zero an element and what is added to it may come: of 64-bit integers only to where f64, which functions
    /// compute in, still tells neighbours apart.
    pub const fn sums_up_to(self) -> f64 {
        match self {
            Self::I64 | Self::U64 => ((1u64 << 53) - 1) as f64,
            other => other.rounds_up_to(),
        }
    }
}

const POWER_127: f64 = (1u128 << 127) as f64;
const POWER_103: f64 = (1u128 << 103) as f64;

/// Room for the rounding of a bound: what lies between is looked at closely, and nothing is lost by that.
const SLACK: f64 = 1.0 - 1e-12;

impl Fit {
    /// The same fit with a bound on the elements of averaged tensors, for exact sums.
    #[must_use]
    pub fn within(mut self, layout: &Layout, bound: Option<f64>) -> Self {
        if let Some(bound) = bound {
            self.bound(layout, |bounds, rule, _, _| {
                if rule == Rule::Mean {
                    bounds.tighten(bound, Cause::Exact);
                }
            });
        }
        self
    }

    /// The same for updates that are whole weights: what is no number of the model's type is none of a model.
    #[must_use]
    pub fn as_weights(mut self, layout: &Layout) -> Self {
        self.bound(layout, |bounds, _, model, _| bounds.tighten(model.dtype.rounds_up_to(), Cause::Dtype(model.dtype)));
        self
    }

    /// The same for updates of this weight of which weighted sums are taken in f64.
    #[must_use]
    pub fn in_sums(mut self, layout: &Layout, weight: f64) -> Self {
        let mut most = f64::MAX / weight;
        while !(most * weight).is_finite() {
            most = most.next_down();
        }
        self.bound(layout, |bounds, rule, _, _| {
            if rule == Rule::Mean {
                bounds.tighten(most, Cause::Weight(weight));
            }
        });
        self
    }

    /// The same for deltas, which are added to a model. `largest` says how far from zero the elements of its tensor with
    /// this place in the file are at most.
    #[must_use]
    pub fn as_deltas(mut self, layout: &Layout, largest: impl Fn(usize) -> Option<f64>) -> Self {
        self.bound(layout, |bounds, _, model, index| {
            let reach = model.dtype.sums_up_to();
            // A model that is not finite itself says nothing of what is added to it.
            bounds.added = largest(index).filter(|largest| largest.is_finite() && reach.is_finite()).map(|largest| {
                let Own { dtype, begin, end } = model;
                Added { free: ((reach - largest) * SLACK).max(0.0), dtype, begin, end }
            });
        });
        self
    }

    fn bound(&mut self, layout: &Layout, mut bound: impl FnMut(&mut Bounds, Rule, Own, usize)) {
        for placed in self.tensors.iter_mut().filter(|placed| placed.slab_offset.is_some()) {
            let Some(&index) = layout.by_name.get(&placed.name) else { continue };
            let own = &layout.tensors[index];
            bound(&mut placed.bounds, own.rule, Own { dtype: own.dtype, begin: own.begin, end: own.end }, index);
        }
    }
}

/// A tensor of the model.
#[derive(Clone, Copy)]
struct Own {
    dtype: Dtype,
    begin: u64,
    end: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, Limits};

    fn header(dtype: &str, bytes: u64) -> Header {
        let text = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{bytes}]}}}}"#);
        Header::parse(text.as_bytes(), &Limits::default()).unwrap()
    }

    /// A fit of an update of `update` for a model of `model`.
    fn fit(model: (&str, u64), update: (&str, u64)) -> (Layout, Fit) {
        let layout = Layout::new(&header(model.0, model.1), &[]).unwrap();
        let dtypes: Vec<Dtype> = Dtype::from_name(update.0).into_iter().collect();
        let fit = Fit::new(&layout, &header(update.0, update.1), &dtypes).unwrap();
        (layout, fit)
    }

    fn screened(fit: &Fit) -> Option<f64> {
        fit.tensors[0].bounds.screened(fit.tensors[0].dtype)
    }

    #[test]
    fn the_usual_update_needs_no_closer_look() {
        for (name, bytes) in [("F64", 16), ("F32", 8), ("BF16", 4), ("F16", 4), ("F8_E4M3", 2), ("F8_E5M2", 2)] {
            let (layout, fit) = fit((name, bytes), (name, bytes));
            assert_eq!(screened(&fit.clone().as_weights(&layout).in_sums(&layout, 1.0)), None, "{name}");
            // Weights of common models, and deltas of whatever size.
            let deltas = fit.as_deltas(&layout, |_| Some(2.0));
            assert_eq!(screened(&deltas).is_some(), name == "F64", "{name}: {:?}", deltas.tensors[0].bounds);
        }
        // Weights that only extreme numbers are too large for.
        let (layout, fit) = fit(("F32", 8), ("F32", 8));
        assert_eq!(screened(&fit.in_sums(&layout, 1e12)), None);
    }

    #[test]
    fn wider_types_are_bounded_by_the_models() {
        for (model, bytes, most) in
            [("F16", 4, 65520.0), ("BF16", 4, 3.3962e38), ("F8_E4M3", 2, 464.1), ("F8_E5M2", 2, 61440.0)]
        {
            let (layout, fit) = fit((model, bytes), ("F64", 16));
            let (found, cause) = fit.as_weights(&layout).tensors[0].bounds.most.unwrap();
            assert!(found < most && found > most * 0.998, "{model}: {found}");
            assert_eq!(cause, Cause::Dtype(Dtype::from_name(model).unwrap()));
        }
        let (layout, fit) = fit(("F16", 4), ("F32", 8));
        let fit = fit.as_weights(&layout).within(&layout, Some(8.0));
        assert_eq!(fit.tensors[0].bounds.most, Some((8.0, Cause::Exact)), "the tighter one");
    }

    #[test]
    fn the_largest_element_times_the_weight_is_finite() {
        let (layout, fit) = fit(("F64", 16), ("F64", 16));
        for weight in [1.0, 3.0, 1e12, 1e300, f64::MAX, 0.1] {
            let (most, _) = fit.clone().in_sums(&layout, weight).tensors[0].bounds.most.unwrap();
            assert!((most * weight).is_finite() && most > 0.0, "{weight}");
            assert!(weight <= 1.0 || !(most * 1.000001 * weight).is_finite(), "{weight}: {most} is too tight");
        }
        assert_eq!(screened(&fit.in_sums(&layout, 0.1)), None);
    }

    #[test]
    fn deltas_beside_large_elements_are_looked_at_closely() {
        let (layout, fit) = fit(("F16", 4), ("F16", 4));
        let free = |largest: f64| screened(&fit.clone().as_deltas(&layout, |_| Some(largest)));
        assert_eq!((free(1.0), free(15.9)), (None, None));
        assert!(free(60000.0).is_some_and(|free| (5519.0..5520.0).contains(&free)));
        assert_eq!(free(65504.0).map(|free| free < 16.0), Some(true));
        assert_eq!(free(f64::INFINITY), None);
    }
}
