//! Safetensors files, good and bad, and the arithmetic they are checked with.

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor of raw elements.
    pub fn new(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
    }

    fn view(&self) -> TensorView<'_> {
        TensorView::new(self.dtype, self.shape.clone(), &self.bytes).expect("bytes that fit the shape")
    }

    /// F32.
    pub fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self::new(name, Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// F64.
    pub fn f64(name: &str, shape: &[usize], values: &[f64]) -> Self {
        Self::new(name, Dtype::F64, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// I64.
    pub fn i64(name: &str, shape: &[usize], values: &[i64]) -> Self {
        Self::new(name, Dtype::I64, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// U64.
    pub fn u64(name: &str, shape: &[usize], values: &[u64]) -> Self {
        Self::new(name, Dtype::U64, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// BF16, from its bits.
    pub fn bf16(name: &str, shape: &[usize], bits: &[u16]) -> Self {
        Self::new(name, Dtype::BF16, shape, bits.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// F16, from its bits.
    pub fn f16(name: &str, shape: &[usize], bits: &[u16]) -> Self {
        Self::new(name, Dtype::F16, shape, bits.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
}

/// A file with these tensors.
pub fn file(tensors: &[Tensor]) -> Vec<u8> {
    file_with(tensors, &[])
}

/// A file with these tensors and metadata.
pub fn file_with(tensors: &[Tensor], metadata: &[(&str, &str)]) -> Vec<u8> {
    let map: HashMap<String, String> = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let metadata = (!map.is_empty()).then_some(map);
    let views = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.view()));
    safetensors::serialize(views, metadata).expect("a file")
}

/// A file with this text for a header, whatever it says.
pub fn raw_file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// The numbers of a file's F32, F64, I64 and U64 tensors, by name.
pub type Values = BTreeMap<String, Vec<f64>>;

/// Reads the numbers of a file.
pub fn read(bytes: &[u8]) -> Values {
    fn each<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        data.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)).collect()
    }
    let parsed = SafeTensors::deserialize(bytes).expect("a safetensors file");
    let numbers = |view: TensorView<'_>| match view.dtype() {
        Dtype::F32 => each(view.data(), |b| f32::from_le_bytes(b).into()),
        Dtype::F64 => each(view.data(), f64::from_le_bytes),
        Dtype::I64 => each(view.data(), |b| i64::from_le_bytes(b) as f64),
        Dtype::U64 => each(view.data(), |b| u64::from_le_bytes(b) as f64),
        other => panic!("{other:?} is not read here"),
    };
    parsed.tensors().into_iter().map(|(name, view)| (name, numbers(view))).collect()
}

/// The weighted mean of updates, in float64.
pub fn weighted_mean(updates: &[(f64, Values)]) -> Values {
    let total: f64 = updates.iter().map(|(weight, _)| weight).sum();
    let mut mean = Values::new();
    for (weight, values) in updates {
        for (name, values) in values {
            let sums = mean.entry(name.clone()).or_insert_with(|| vec![0.0; values.len()]);
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight / total * value);
        }
    }
    mean
}

/// Checks that two models have the same tensors and numbers, within `tolerance` relative to each number.
#[track_caller]
pub fn assert_close(found: &Values, expected: &Values, tolerance: f64) {
    let names = |values: &Values| values.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for (name, expected) in expected {
        let found = &found[name];
        assert_eq!(found.len(), expected.len(), "elements of {name}");
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let allowed = tolerance * expected.abs();
            assert!((found - expected).abs() <= allowed, "{name}[{i}] is {found}, expected {expected}");
        }
    }
}
