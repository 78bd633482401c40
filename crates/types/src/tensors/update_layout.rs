//! Updates whose tensors are not the model's: what a function says of them, and how one is checked and placed.
//!
//! Such an update has no coordinates. Each of its tensors gets a place of its own in the slab, in the order of its
//! file, and the file's head is kept behind them, so that names and shapes can be read again after a crash.

use super::fit::{Fit, LayoutError, Placed};
use super::header::{Header, TensorInfo};
use super::layout::{Rule, matches};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Where tensors begin within a slab.
const ALIGN_BYTES: u64 = 64;

/// What tensors an update holds, as its function says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum UpdateLayout {
    /// The model's.
    #[default]
    AsModel,
    /// Those of the model whose names match one of these patterns.
    Subset(Vec<String>),
    /// Others, which belong to tensors of the model.
    Template(Template),
    /// Any.
    Free {
        /// Bytes of an update's tensors.
        bytes_max: u64,
    },
}

/// Tensors that belong to tensors of the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// The tensors of the model that are made anew.
    pub of: TensorTemplate,
    /// What an update holds for each of them: all or none.
    pub tensors: Vec<TensorTemplate>,
    /// What names in an update may begin with.
    pub prefix: String,
    /// The largest value of a dimension that the model does not fix.
    pub dimension_max: u64,
}

/// A kind of tensor: `{}` stands for any text, equal names of dimensions for equal numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorTemplate {
    /// The name, with one `{}`.
    pub name: String,
    /// The names of its dimensions.
    pub shape: Vec<String>,
}

/// Dimensions by name.
type Dimensions = BTreeMap<String, u64>;

impl TensorTemplate {
    /// What `{}` stands for in this name.
    fn stem<'a>(&self, name: &'a str) -> Option<&'a str> {
        let (before, after) = self.name.split_once("{}")?;
        name.strip_prefix(before)?.strip_suffix(after)
    }

    /// Takes a shape's dimensions over. `false` when it has others than are known.
    fn bind(&self, shape: &[u64], known: &mut Dimensions) -> bool {
        let mut names = self.shape.iter().zip(shape);
        shape.len() == self.shape.len() && names.all(|(name, d)| *known.entry(name.clone()).or_insert(*d) == *d)
    }

    fn shown(&self, known: &Dimensions) -> String {
        let one = |name: &String| known.get(name).map_or(name.clone(), u64::to_string);
        format!("a float [{}]", self.shape.iter().map(one).collect::<Vec<_>>().join(", "))
    }
}

impl UpdateLayout {
    /// Whether an update has the model's coordinates.
    pub fn has_coordinates(&self) -> bool {
        matches!(self, Self::AsModel | Self::Subset(_))
    }

    /// The rule of a tensor of the model that the function does not make, whatever the spec says. `None`: it makes it.
    pub(super) fn rule_of_others(&self, info: &TensorInfo) -> Option<Rule> {
        match self {
            Self::AsModel | Self::Free { .. } => None,
            Self::Subset(patterns) => {
                let is_made = patterns.iter().any(|pattern| matches(pattern, &info.name));
                (!is_made).then_some(Rule::Exclude)
            }
            Self::Template(template) => (!template.is_of(info)).then_some(Rule::Keep),
        }
    }

    /// Bytes that an update's tensors may have at most beside this model, in elements of up to 8 bytes.
    pub fn bytes_max(&self, model: &Header) -> u64 {
        match self {
            Self::AsModel | Self::Subset(_) => u64::MAX,
            Self::Free { bytes_max } => *bytes_max,
            Self::Template(template) => template.bytes_max(model),
        }
    }

    /// Places an update's tensors, which must be what the layout says.
    ///
    /// # Errors
    /// Names the tensor, what was expected and what was found.
    pub fn place(&self, model: &Header, update: &Header) -> Result<Fit, LayoutError> {
        for info in &update.tensors {
            if !info.dtype.is_float() {
                return Err(wrong(info, "a float type that functions read"));
            }
        }
        match self {
            Self::Template(template) => template.check(model, update)?,
            Self::Free { bytes_max } if update.data_bytes > *bytes_max => {
                let (expected, found) = (format!("at most {bytes_max} bytes"), update.data_bytes.to_string());
                return Err(LayoutError { tensor: "the update as a whole".to_owned(), expected, found });
            }
            _ => {}
        }
        let mut at = 0;
        let mut place = |info: &TensorInfo| {
            let (bytes, offset) = (info.end - info.begin, at);
            at += bytes.next_multiple_of(ALIGN_BYTES);
            Placed {
                name: info.name.clone(),
                dtype: info.dtype,
                stored: info.dtype,
                begin: info.begin,
                end: info.end,
                slab_offset: Some(offset),
                padding: bytes.next_multiple_of(ALIGN_BYTES) - bytes,
                bounds: Default::default(),
                least: None,
            }
        };
        let tensors = update.tensors.iter().map(&mut place).collect();
        Ok(Fit { sections: Vec::new(), tensors, slab_bytes: at + update.data_begin, head_at: Some(at) })
    }
}

fn wrong(info: &TensorInfo, expected: impl Into<String>) -> LayoutError {
    let found = format!("{} {:?}", info.dtype, info.shape);
    LayoutError { tensor: info.name.clone(), expected: expected.into(), found }
}

impl Template {
    /// Whether a tensor of the model is made anew.
    fn is_of(&self, info: &TensorInfo) -> bool {
        info.dtype.is_float() && self.of.stem(&info.name).is_some() && self.of.bind(&info.shape, &mut Dimensions::new())
    }

    fn bytes_max(&self, model: &Header) -> u64 {
        let of = |info: &TensorInfo| {
            let mut known = Dimensions::new();
            self.of.bind(&info.shape, &mut known);
            let dimension = |name: &String| known.get(name).copied().unwrap_or(self.dimension_max);
            let elements = |t: &TensorTemplate| t.shape.iter().map(dimension).fold(1, u64::saturating_mul);
            self.tensors.iter().map(|t| elements(t).saturating_mul(8)).fold(0, u64::saturating_add)
        };
        model.tensors.iter().filter(|info| self.is_of(info)).map(of).fold(0, u64::saturating_add)
    }

    fn check(&self, model: &Header, update: &Header) -> Result<(), LayoutError> {
        let targets = model.tensors.iter().filter(|target| self.is_of(target));
        let targets: HashMap<&str, &TensorInfo> = targets.map(|target| (target.name.as_str(), target)).collect();
        // For each tensor of the model: its dimensions, and which of the kinds are there.
        let mut found: BTreeMap<&str, (Dimensions, BTreeSet<usize>)> = BTreeMap::new();
        for info in &update.tensors {
            let name = info.name.strip_prefix(&self.prefix).unwrap_or(&info.name);
            let Some((kind, stem)) = self.tensors.iter().enumerate().find_map(|(i, kind)| Some((i, kind.stem(name)?)))
            else {
                let names: Vec<&str> = self.tensors.iter().map(|kind| kind.name.as_str()).collect();
                return Err(wrong(info, format!("a name like {}", names.join(" or "))));
            };
            let of = self.of.name.replace("{}", stem);
            let Some(target) = targets.get(of.as_str()) else {
                return Err(wrong(info, format!("a tensor for `{of}` of the model, which it does not have")));
            };
            let (known, kinds) = found.entry(stem).or_insert_with(|| {
                let mut known = Dimensions::new();
                self.of.bind(&target.shape, &mut known);
                (known, BTreeSet::new())
            });
            let expected = self.tensors[kind].shown(known);
            let fits = self.tensors[kind].bind(&info.shape, known) && kinds.insert(kind);
            let fixed = |name: &String| self.of.shape.contains(name);
            // Such a dimension may be 0: factors of rank 0 are an update's way to say that it has nothing for a tensor.
            if !fits || known.iter().any(|(name, d)| !fixed(name) && *d > self.dimension_max) {
                return Err(wrong(info, format!("{expected}, once, with dimensions up to {}", self.dimension_max)));
            }
        }
        for (stem, (known, kinds)) in &found {
            if let Some(kind) = (0..self.tensors.len()).find(|kind| !kinds.contains(kind)) {
                let kind = &self.tensors[kind];
                let (tensor, expected) = (kind.name.replace("{}", stem), kind.shown(known));
                return Err(LayoutError { tensor, expected, found: "nothing".to_owned() });
            }
        }
        if found.is_empty() {
            let tensor = self.tensors.first().map_or_else(String::new, |kind| kind.name.clone());
            return Err(LayoutError { tensor, expected: "one at least".to_owned(), found: "nothing".to_owned() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::tensors::header::Limits;

    fn header(tensors: &[(&str, &str, &[u64])]) -> Header {
        let mut at = 0;
        let mut entry = |(name, dtype, shape): &(&str, &str, &[u64])| {
            let end = at + shape.iter().product::<u64>() * Dtype::from_name(dtype).unwrap().bits() / 8;
            let entry = format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{at},{end}]}}"#);
            at = end;
            entry
        };
        let entries: Vec<String> = tensors.iter().map(&mut entry).collect();
        Header::parse(format!("{{{}}}", entries.join(",")).as_bytes(), &Limits::default()).unwrap()
    }

    fn lora() -> UpdateLayout {
        serde_json::from_str(
            r#"{"template": {"of": {"name": "{}.weight", "shape": ["d", "m"]}, "prefix": "base.", "dimension_max": 8,
            "tensors": [{"name": "{}.A.weight", "shape": ["r", "m"]}, {"name": "{}.B.weight", "shape": ["d", "r"]}]}}"#,
        )
        .unwrap()
    }

    fn model() -> Header {
        header(&[
            ("q.weight", "F32", &[4, 6]),
            ("q.bias", "F32", &[4]),
            ("k.weight", "F32", &[4, 6]),
            ("n.weight", "F32", &[4]),
        ])
    }

    #[test]
    fn updates_of_any_rank_are_placed() {
        let update = header(&[("base.q.A.weight", "F32", &[3, 6]), ("q.B.weight", "BF16", &[4, 3])]);
        let fit = lora().place(&model(), &update).unwrap();
        let places: Vec<_> = fit.tensors.iter().map(|t| (t.slab_offset, t.padding)).collect();
        assert_eq!(places, [(Some(0), 56), (Some(128), 40)]);
        assert_eq!((fit.head_at, fit.slab_bytes), (Some(192), 192 + update.data_begin));
        assert_eq!(lora().bytes_max(&model()), 2 * (8 * 6 + 4 * 8) * 8);
    }

    /// As a method that chooses ranks by itself leaves some layers without any.
    #[test]
    fn factors_of_rank_0_have_no_bytes_and_a_partner_all_the_same() {
        let update = header(&[
            ("q.A.weight", "F32", &[0, 6]),
            ("k.B.weight", "F64", &[4, 2]),
            ("q.B.weight", "F32", &[4, 0]),
            ("k.A.weight", "F16", &[2, 6]),
        ]);
        let fit = lora().place(&model(), &update).unwrap();
        let places: Vec<_> = fit.tensors.iter().map(|t| (t.name.as_str(), t.end - t.begin, t.slab_offset)).collect();
        let empty = |name| places.iter().any(|(found, bytes, at)| *found == name && *bytes == 0 && at.is_some());
        assert!(empty("q.A.weight") && empty("q.B.weight"), "{places:?}");
        let all = header(&[("q.A.weight", "F32", &[0, 6]), ("q.B.weight", "BF16", &[4, 0])]);
        assert_eq!(lora().place(&model(), &all).unwrap().head_at, Some(0));
        for (tensors, expected) in [
            (&[("q.A.weight", "F32", &[0u64, 6][..])][..], "`q.B.weight`: expected a float [4, 0], found nothing"),
            (&[("q.A.weight", "F32", &[0, 5]), ("q.B.weight", "F32", &[4, 0])], "expected a float [r, 6]"),
            (&[("q.A.weight", "F32", &[0, 6]), ("q.B.weight", "F32", &[4, 1])], "expected a float [4, 0]"),
            (&[("q.A.weight", "F32", &[1, 6]), ("q.B.weight", "F32", &[4, 0])], "expected a float [4, 1]"),
        ] {
            let error = lora().place(&model(), &header(tensors)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (tensors, expected) in [
            (&[("q.A.weight", "F32", &[3u64, 6][..])][..], "`q.B.weight`: expected a float [4, 3], found nothing"),
            (
                &[("q.A.weight", "F32", &[3, 6]), ("q.B.weight", "F32", &[4, 2])],
                "`q.B.weight`: expected a float [4, 3], once",
            ),
            (&[("q.A.weight", "F32", &[9, 6]), ("q.B.weight", "F32", &[4, 9])], "with dimensions up to 8"),
            (&[("q.A.weight", "F32", &[3, 6]), ("base.q.A.weight", "F32", &[3, 6])], "once"),
            (&[("q.C.weight", "F32", &[3, 6])], "a name like {}.A.weight or {}.B.weight"),
            (&[("v.A.weight", "F32", &[3, 6])], "`v.weight` of the model, which it does not have"),
            (&[("n.A.weight", "F32", &[3, 6])], "which it does not have"),
            (&[("q.A.weight", "I32", &[3, 6])], "a float type"),
            (&[], "expected one at least, found nothing"),
        ] {
            let error = lora().place(&model(), &header(tensors)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let free = UpdateLayout::Free { bytes_max: 7 };
        assert!(
            free.place(&model(), &header(&[("x", "F32", &[2])])).unwrap_err().to_string().contains("at most 7 bytes")
        );
    }

    #[test]
    fn tensors_that_the_function_does_not_make_stay() {
        let rule =
            |layout: &UpdateLayout, name: &str| crate::Layout::made_by(layout, &model(), &[]).unwrap().rule(name);
        assert_eq!((rule(&lora(), "q.weight"), rule(&lora(), "q.bias")), (Some(Rule::Mean), Some(Rule::Keep)));
        assert_eq!(rule(&lora(), "n.weight"), Some(Rule::Keep));
        let subset = UpdateLayout::Subset(vec!["*.bias".to_owned()]);
        assert_eq!((rule(&subset, "q.weight"), rule(&subset, "q.bias")), (Some(Rule::Exclude), Some(Rule::Mean)));
    }

    /// A name is a name, also where it looks like a pattern.
    #[test]
    fn a_tensor_that_is_not_made_takes_no_other_along() {
        let model = header(&[
            ("*.weight", "F32", &[4]),
            ("q.weight", "F32", &[4, 6]),
            ("\u{1f600}*", "F32", &[2]),
            ("", "F32", &[1, 1]),
        ]);
        let layout = crate::Layout::made_by(&lora(), &model, &[]).unwrap();
        let rules: Vec<_> = model.tensors.iter().map(|info| layout.rule(&info.name).unwrap()).collect();
        assert_eq!(rules, [Rule::Keep, Rule::Mean, Rule::Keep, Rule::Keep]);
        let subset = UpdateLayout::Subset(vec!["q.*".to_owned()]);
        let layout = crate::Layout::made_by(&subset, &model, &[]).unwrap();
        assert_eq!(layout.rule("q.weight"), Some(Rule::Mean));
    }
}
