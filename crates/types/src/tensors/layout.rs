//! The canonical layout of a job's model: which tensors are folded, and at which coordinates.
//!
//! Tensors with one rule and one dtype form a segment, in the order of the model's file. Each begins at a multiple of
//! [`ALIGN_ELEMENTS`] elements, so that it is 64-byte aligned whatever the width of its elements, and one coordinate
//! names the same element in the model, in every update and in every partial.

use super::header::Header;
use super::update_layout::UpdateLayout;
use crate::Dtype;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Tensors begin at multiples of this many elements.
pub const ALIGN_ELEMENTS: u64 = 64;

/// What becomes of a tensor in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The function's weighted mean (or whatever it computes).
    Mean,
    /// The elementwise maximum over clients.
    Max,
    /// The previous model's; an update must carry it, as a `state_dict` does, but it is not used.
    Keep,
    /// The previous model's; an update may leave it out. For tensors that stay with their owners.
    Exclude,
}

impl Rule {
    /// Whether tensors with this rule go to the function.
    pub const fn is_folded(self) -> bool {
        matches!(self, Self::Mean | Self::Max)
    }
}

/// One line of a spec's `tensors`: tensors whose names match get the rule. The first match decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TensorRule {
    /// A pattern in which `*` stands for any text, `.` included.
    #[serde(rename = "match")]
    pub pattern: String,
    /// The rule.
    pub rule: Rule,
}

impl TensorRule {
    /// Whether `name` matches the pattern.
    pub fn matches(&self, name: &str) -> bool {
        matches(&self.pattern, name)
    }
}

/// Whether `name` matches `pattern`, in which `*` stands for any text.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// A rule that a tensor's dtype cannot follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tensor `{tensor}` is {dtype}: its elements cannot be folded, so its rule must be `keep` or `exclude`, not `{rule:?}`"
)]
pub struct SpecRuleError {
    /// The tensor.
    pub tensor: String,
    /// Its dtype.
    pub dtype: Dtype,
    /// The rule it was given.
    pub rule: Rule,
}

/// A run of coordinates with one rule and one dtype.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The rule of its tensors.
    pub rule: Rule,
    /// The dtype of its tensors in the model.
    pub dtype: Dtype,
    /// Its first coordinate: a multiple of [`ALIGN_ELEMENTS`].
    pub base: u64,
    /// Its number of coordinates, padding included: a multiple of [`ALIGN_ELEMENTS`].
    pub elements: u64,
}

/// One tensor of the model and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LaidOut {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub rule: Rule,
    /// Segment and first element within it, for folded tensors.
    pub place: Option<(usize, u64)>,
    /// Byte range in the model's data.
    pub begin: u64,
    pub end: u64,
}

/// The canonical layout of a job's model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub(super) tensors: Vec<LaidOut>,
    pub(super) by_name: HashMap<String, usize>,
    segments: Vec<Segment>,
}

impl Layout {
    /// Lays out the model whose header is `model` by the spec's rules.
    pub fn new(model: &Header, rules: &[TensorRule]) -> Result<Self, SpecRuleError> {
        Self::made_by(&UpdateLayout::AsModel, model, rules)
    }

    /// The same for a function that may not make all of the model's tensors.
    pub fn made_by(function: &UpdateLayout, model: &Header, rules: &[TensorRule]) -> Result<Self, SpecRuleError> {
        let mut tensors = Vec::with_capacity(model.tensors.len());
        let mut segments: Vec<Segment> = Vec::new();
        for info in &model.tensors {
            let ruled = || rules.iter().find(|rule| rule.matches(&info.name)).map(|rule| rule.rule);
            let explicit = function.rule_of_others(info).or_else(ruled);
            let rule = explicit.unwrap_or(if info.dtype.is_float() { Rule::Mean } else { Rule::Keep });
            if rule.is_folded() && !info.dtype.is_foldable() {
                return Err(SpecRuleError { tensor: info.name.clone(), dtype: info.dtype, rule });
            }
            let place = rule.is_folded().then(|| place(&mut segments, rule, info.dtype, info.elements()));
            tensors.push(LaidOut {
                name: info.name.clone(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                rule,
                place,
                begin: info.begin,
                end: info.end,
            });
        }
        let mut base = 0;
        for segment in &mut segments {
            segment.base = base;
            base += segment.elements;
        }
        let by_name = tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        Ok(Self { tensors, by_name, segments })
    }

    /// The runs of coordinates, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Number of coordinates, padding included.
    pub fn elements(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.base + segment.elements)
    }

    /// The rule of the tensor with this name.
    pub fn rule(&self, name: &str) -> Option<Rule> {
        self.by_name.get(name).map(|i| self.tensors[*i].rule)
    }
}

/// Appends `elements` to the segment of this rule and dtype.
fn place(segments: &mut Vec<Segment>, rule: Rule, dtype: Dtype, elements: u64) -> (usize, u64) {
    let known = segments.iter().position(|segment| segment.rule == rule && segment.dtype == dtype);
    let index = known.unwrap_or_else(|| {
        segments.push(Segment { rule, dtype, base: 0, elements: 0 });
        segments.len() - 1
    });
    let start = segments[index].elements;
    segments[index].elements += elements.next_multiple_of(ALIGN_ELEMENTS);
    (index, start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::header::Limits;

    fn rule(pattern: &str, rule: Rule) -> TensorRule {
        TensorRule { pattern: pattern.to_owned(), rule }
    }

    #[test]
    fn patterns_match_as_people_expect() {
        for (pattern, name, expected) in [
            ("*.running_*", "bn1.running_mean", true),
            ("*.running_*", "running_mean", false),
            ("*", "", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*.num_batches_tracked", "layer.1.bn.num_batches_tracked", true),
            ("a*b*c", "a-c-b-c", true),
        ] {
            assert_eq!(rule(pattern, Rule::Keep).matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn floats_fold_and_counters_stay() {
        let text = br#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},
            "n":{"dtype":"I64","shape":[],"data_offsets":[12,20]},
            "v":{"dtype":"F32","shape":[65],"data_offsets":[20,280]},
            "m":{"dtype":"F32","shape":[1],"data_offsets":[280,284]}}"#;
        let header = Header::parse(text, &Limits::default()).unwrap();
        let layout = Layout::new(&header, &[rule("m", Rule::Max)]).unwrap();
        assert_eq!(layout.rule("n"), Some(Rule::Keep));
        assert_eq!(
            layout.segments(),
            &[
                Segment { rule: Rule::Mean, dtype: Dtype::F32, base: 0, elements: 192 },
                Segment { rule: Rule::Max, dtype: Dtype::F32, base: 192, elements: 64 }
            ]
        );
        assert_eq!(layout.elements(), 256);
        let counters = Layout::new(&header, &[rule("n", Rule::Max)]).unwrap();
        assert_eq!(counters.segments()[1].dtype, Dtype::I64);
    }

    #[test]
    fn packed_formats_cannot_be_folded() {
        let text = br#"{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#;
        let header = Header::parse(text, &Limits::default()).unwrap();
        assert!(Layout::new(&header, &[]).is_ok());
        assert!(Layout::new(&header, &[rule("w", Rule::Mean)]).unwrap_err().to_string().contains("`w` is F4"));
    }
}
