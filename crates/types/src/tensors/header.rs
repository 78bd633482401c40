//! The header of a safetensors file: 8 bytes of length, then JSON naming every tensor's dtype, shape and byte range.
//!
//! Read before a slab is granted, from bytes nobody has vouched for; so every size is limited, every product is
//! checked, and the tensors must cover the data exactly: no hole, no overlap, no tensor named twice.

use crate::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// Bytes of data that a header may describe: a thousand times more than any file has, and far enough from where sums and
/// multiples of them overflow.
const DATA_BYTES_MAX: u64 = 1 << 56;

/// What a header may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the JSON text.
    pub header_bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of one tensor's name.
    pub name_bytes: usize,
    /// Dimensions of one tensor.
    pub rank: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { header_bytes: 16 << 20, tensors: 100_000, name_bytes: 1024, rank: 16 }
    }
}

/// One tensor as the header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// First byte, counted from the end of the header.
    pub begin: u64,
    /// One past the last byte.
    pub end: u64,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// A safetensors header that holds together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Tensors in the order of their bytes.
    pub tensors: Vec<TensorInfo>,
    /// The `__metadata__` map, if there is one.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Where the data begins in the file: 8 + the length of the JSON text.
    pub data_begin: u64,
    /// Bytes of data after the header.
    pub data_bytes: u64,
}

/// A header that does not hold together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum HeaderError {
    #[error("the header length {length} is over the limit of {limit} bytes")]
    TooLong { length: u64, limit: u64 },
    #[error("the header is longer than the file: {length} bytes declared, {available} bytes follow")]
    LongerThanFile { length: u64, available: u64 },
    #[error("the header is not safetensors JSON: {0}")]
    Json(String),
    #[error("tensor `{tensor}`: {problem}")]
    Tensor { tensor: String, problem: String },
    #[error("tensors `{first}` and `{second}` overlap")]
    Overlap { first: String, second: String },
    #[error("bytes {begin}..{end} of the data belong to no tensor")]
    Hole { begin: u64, end: u64 },
    #[error("the file holds {found} bytes of data, its header describes {expected}")]
    DataLength { expected: u64, found: u64 },
}

impl Header {
    /// Length of the prefix that holds the JSON text's length.
    pub const PREFIX_BYTES: usize = 8;

    /// The length of the JSON text, from a file's first eight bytes. `file_bytes` is the whole file's length when it
    /// is known.
    pub fn text_bytes(prefix: [u8; 8], file_bytes: Option<u64>, limits: &Limits) -> Result<u64, HeaderError> {
        let length = u64::from_le_bytes(prefix);
        if let Some(file_bytes) = file_bytes {
            let available = file_bytes.saturating_sub(Self::PREFIX_BYTES as u64);
            if length > available {
                return Err(HeaderError::LongerThanFile { length, available });
            }
        }
        if length > limits.header_bytes {
            return Err(HeaderError::TooLong { length, limit: limits.header_bytes });
        }
        Ok(length)
    }

    /// Reads the JSON text of a header.
    pub fn parse(text: &[u8], limits: &Limits) -> Result<Self, HeaderError> {
        if text.len() as u64 > limits.header_bytes {
            return Err(HeaderError::TooLong { length: text.len() as u64, limit: limits.header_bytes });
        }
        if text.first() != Some(&b'{') {
            return Err(HeaderError::Json("it must begin with '{'".to_owned()));
        }
        let raw: Raw = serde_json::from_slice(text).map_err(|error| HeaderError::Json(error.to_string()))?;
        if raw.tensors.len() > limits.tensors {
            let problem = format!("{} tensors, the limit is {}", raw.tensors.len(), limits.tensors);
            return Err(HeaderError::Json(problem));
        }
        let mut tensors = Vec::with_capacity(raw.tensors.len());
        for (name, entry) in raw.tensors {
            tensors.push(check_tensor(name, entry, limits)?);
        }
        tensors.sort_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
        let data_bytes = check_cover(&tensors)?;
        let data_begin = (Self::PREFIX_BYTES + text.len()) as u64;
        Ok(Self { tensors, metadata: raw.metadata, data_begin, data_bytes })
    }

    /// Reads the header of a whole file held in memory and checks that its data has the described length.
    pub fn of_file(file: &[u8], limits: &Limits) -> Result<Self, HeaderError> {
        let Some((prefix, rest)) = file.split_first_chunk::<8>() else {
            return Err(HeaderError::LongerThanFile {
                length: Self::PREFIX_BYTES as u64,
                available: file.len() as u64,
            });
        };
        let length = Self::text_bytes(*prefix, Some(file.len() as u64), limits)?;
        let (text, data) = rest.split_at(length as usize);
        let header = Self::parse(text, limits)?;
        header.check_data_bytes(data.len() as u64)?;
        Ok(header)
    }

    /// Checks the length of the data that follows the header.
    pub fn check_data_bytes(&self, found: u64) -> Result<(), HeaderError> {
        if found == self.data_bytes {
            Ok(())
        } else {
            Err(HeaderError::DataLength { expected: self.data_bytes, found })
        }
    }
}

fn check_tensor(name: String, entry: RawTensor, limits: &Limits) -> Result<TensorInfo, HeaderError> {
    let fail = |problem: String| HeaderError::Tensor { tensor: name.chars().take(120).collect(), problem };
    if name.len() > limits.name_bytes {
        return Err(fail(format!("its name has {} bytes, the limit is {}", name.len(), limits.name_bytes)));
    }
    let dtype = Dtype::from_name(&entry.dtype).ok_or_else(|| fail(format!("unknown dtype `{}`", entry.dtype)))?;
    if entry.shape.len() > limits.rank {
        return Err(fail(format!("{} dimensions, the limit is {}", entry.shape.len(), limits.rank)));
    }
    let [begin, end] = entry.data_offsets;
    if end > DATA_BYTES_MAX {
        return Err(fail(format!("its data_offsets end at {end}, and no file has more than {DATA_BYTES_MAX} bytes")));
    }
    let bytes = entry
        .shape
        .iter()
        .try_fold(1u64, |product, dimension| product.checked_mul(*dimension))
        .and_then(|elements| dtype.bytes(elements))
        .ok_or_else(|| {
            fail(format!("shape {:?} of {dtype} is not a whole number of addressable bytes", entry.shape))
        })?;
    match end.checked_sub(begin) {
        Some(length) if length == bytes => {}
        Some(length) => {
            return Err(fail(format!("{dtype} {:?} takes {bytes} bytes, its data_offsets give {length}", entry.shape)));
        }
        None => return Err(fail(format!("its data_offsets [{begin}, {end}] run backwards"))),
    }
    Ok(TensorInfo { name, dtype, shape: entry.shape, begin, end })
}

/// The tensors, in order, must cover the data from 0 on. Returns the data's length.
fn check_cover(tensors: &[TensorInfo]) -> Result<u64, HeaderError> {
    let mut covered = 0;
    let mut previous = "";
    for tensor in tensors {
        if tensor.begin > covered {
            return Err(HeaderError::Hole { begin: covered, end: tensor.begin });
        }
        if tensor.begin < covered {
            return Err(HeaderError::Overlap { first: previous.to_owned(), second: tensor.name.clone() });
        }
        covered = tensor.end;
        previous = &tensor.name;
    }
    Ok(covered)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

struct Raw {
    tensors: Vec<(String, RawTensor)>,
    metadata: Option<BTreeMap<String, String>>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from tensor names to dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut seen = HashSet::new();
        let mut raw = Raw { tensors: Vec::new(), metadata: None };
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                map.next_value::<IgnoredAny>()?;
                return Err(A::Error::custom(format!("tensor `{name}` is named twice")));
            }
            if name == "__metadata__" {
                raw.metadata = Some(map.next_value()?);
            } else {
                raw.tensors.push((name, map.next_value()?));
            }
        }
        Ok(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Header, HeaderError> {
        Header::parse(text.as_bytes(), &Limits::default())
    }

    fn one(dtype: &str, shape: &str, offsets: &str) -> String {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    }

    #[test]
    fn reads_what_the_reference_library_writes() {
        use safetensors::tensor::TensorView;
        let (x, y) = ([0u8; 24], [1u8; 8]);
        let views = [
            ("x", TensorView::new(safetensors::Dtype::F32, vec![2, 3], &x).unwrap()),
            ("n", TensorView::new(safetensors::Dtype::I64, vec![], &y).unwrap()),
        ];
        let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let file = safetensors::serialize(views, Some(metadata)).unwrap();
        let header = Header::of_file(&file, &Limits::default()).unwrap();
        assert_eq!(header.tensors.len(), 2);
        assert_eq!(header.data_bytes, 32);
        assert_eq!(header.metadata.unwrap()["format"], "pt");
        let n = header.tensors.iter().find(|t| t.name == "n").unwrap();
        assert_eq!((n.dtype, n.shape.len(), n.elements()), (Dtype::I64, 0, 1));
    }

    #[test]
    fn refuses_what_does_not_hold_together() {
        for (text, expected) in [
            (one("F32", "[2]", "[0,9]"), "takes 8 bytes"),
            (one("F32", "[2]", "[8,0]"), "run backwards"),
            (one("F99", "[2]", "[0,8]"), "unknown dtype"),
            (one("F32", "[2]", "[4,12]"), "belong to no tensor"),
            (one("F4", "[3]", "[0,1]"), "whole number"),
            (one("F32", "[4294967296,4294967296]", "[0,8]"), "whole number"),
            (one("F32", "[-1]", "[0,8]"), "not safetensors JSON"),
            (one("U8", "[18446744073709551615]", "[0,18446744073709551615]"), "no file has more"),
            (one("F8_E4M3", "[72057594037927937]", "[0,72057594037927937]"), "no file has more"),
            (one("F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]"), "dimensions"),
            ("[]".to_owned(), "begin with"),
            ("{\"a\"".to_owned(), "not safetensors JSON"),
            (r#"{"__metadata__":{"a":1}}"#.to_owned(), "not safetensors JSON"),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let a = r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
        let b = r#""b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}"#;
        assert!(matches!(parse(&format!("{{{a},{b}}}")), Err(HeaderError::Overlap { .. })));
        assert!(parse(&format!("{{{a},{a}}}")).unwrap_err().to_string().contains("named twice"));
    }

    #[test]
    fn a_header_longer_than_the_file_is_refused_before_it_is_read() {
        let limits = Limits::default();
        assert!(matches!(
            Header::text_bytes(u64::MAX.to_le_bytes(), Some(100), &limits),
            Err(HeaderError::LongerThanFile { .. })
        ));
        assert!(matches!(Header::text_bytes(u64::MAX.to_le_bytes(), None, &limits), Err(HeaderError::TooLong { .. })));
    }

    #[test]
    fn an_empty_file_has_no_tensors() {
        assert_eq!(parse("{}").unwrap().data_bytes, 0);
        assert_eq!(parse("{}   ").unwrap().data_begin, 13);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::of_file(&bytes, &Limits::default());
        }

        #[test]
        fn agrees_with_the_reference_library(shape in proptest::collection::vec(0u64..5, 0..4), lie in 0u64..3) {
            let bytes = shape.iter().product::<u64>() * 4 + lie;
            let text = format!(r#"{{"t":{{"dtype":"F32","shape":{shape:?},"data_offsets":[0,{bytes}]}}}}"#);
            let mut file = (text.len() as u64).to_le_bytes().to_vec();
            file.extend(text.as_bytes());
            file.resize(file.len() + bytes as usize, 0);
            let ours = Header::of_file(&file, &Limits::default()).is_ok();
            prop_assert_eq!(ours, safetensors::SafeTensors::deserialize(&file).is_ok());
        }
    }
}
