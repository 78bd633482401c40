//! The UCI handwritten digits, carried in the binary.
//!
//! A demo or a test that first has to download its data fails on the machine that has no way out. 57 kB of real data
//! are enough to tell a model that learns from one that does not.

use candle_core::{Device, Tensor};
use std::io::Read;

/// Pixels of a side of an image.
pub const SIDE: usize = 8;
/// Pixels of an image.
pub const PIXELS: usize = SIDE * SIDE;
/// Classes, the digits 0 to 9.
pub const CLASSES: usize = 10;

const CSV_GZ: &[u8] = include_bytes!("../data/digits.csv.gz");
/// The file unpacked is 270 kB; a larger one is not the file this crate was built with.
const CSV_BYTES_MAX: u64 = 1 << 20;
const PIXEL_MAX: f32 = 16.0;

/// The digits cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The compressed file does not unpack.
    #[error("unpack the digits: {0}")]
    Unpack(#[from] std::io::Error),
    /// A line is not 64 pixels of 0 to 16 and a class of 0 to 9.
    #[error("line {line} of the digits: {found} is not {expected}")]
    Line {
        /// From 1.
        line: usize,
        /// What is there.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
}

/// Labelled images, in a fixed order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples {
    pixels: Vec<f32>,
    labels: Vec<u8>,
}

impl Samples {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The classes, 0 to 9, one an image.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// Images per class.
    pub fn label_counts(&self) -> [usize; CLASSES] {
        let mut counts = [0; CLASSES];
        for label in &self.labels {
            counts[usize::from(*label)] += 1;
        }
        counts
    }

    /// The images at `indices`, in that order.
    ///
    /// # Panics
    /// When an index is not below [`Samples::len`].
    pub fn select(&self, indices: &[usize]) -> Self {
        let mut chosen =
            Self { pixels: Vec::with_capacity(indices.len() * PIXELS), labels: Vec::with_capacity(indices.len()) };
        for index in indices {
            chosen.pixels.extend_from_slice(&self.pixels[index * PIXELS..(index + 1) * PIXELS]);
            chosen.labels.push(self.labels[*index]);
        }
        chosen
    }

    /// The images at `indices` as F32 `[n, 64]` with values of 0 to 1, and their classes as U32 `[n]`.
    ///
    /// # Panics
    /// When an index is not below [`Samples::len`].
    pub fn batch(&self, indices: &[usize], device: &Device) -> candle_core::Result<(Tensor, Tensor)> {
        let chosen = self.select(indices);
        let labels: Vec<u32> = chosen.labels.iter().map(|label| u32::from(*label)).collect();
        let count = labels.len();
        Ok((Tensor::from_vec(chosen.pixels, (count, PIXELS), device)?, Tensor::from_vec(labels, count, device)?))
    }
}

/// All 1,797 digits in the order of the file.
pub fn digits() -> Result<Samples, DataError> {
    let mut csv = String::new();
    flate2::read::GzDecoder::new(CSV_GZ).take(CSV_BYTES_MAX).read_to_string(&mut csv)?;
    parse(&csv)
}

fn parse(csv: &str) -> Result<Samples, DataError> {
    let mut samples = Samples::default();
    for (i, line) in csv.lines().enumerate() {
        let wrong = |found: &str, expected| DataError::Line { line: i + 1, found: format!("`{found}`"), expected };
        let fields: Vec<&str> = line.split(',').collect();
        if fields.len() != PIXELS + 1 {
            return Err(wrong(&format!("{} fields", fields.len()), "64 pixels and a class"));
        }
        for field in &fields[..PIXELS] {
            let pixel: f32 = field.trim().parse().map_err(|_| wrong(field, "a pixel"))?;
            if !(0.0..=PIXEL_MAX).contains(&pixel) {
                return Err(wrong(field, "a pixel of 0 to 16"));
            }
            samples.pixels.push(pixel / PIXEL_MAX);
        }
        let label: u8 = fields[PIXELS].trim().parse().map_err(|_| wrong(fields[PIXELS], "a class"))?;
        if usize::from(label) >= CLASSES {
            return Err(wrong(fields[PIXELS], "a class of 0 to 9"));
        }
        samples.labels.push(label);
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_digits_are_there() {
        let digits = digits().unwrap();
        assert_eq!(digits.len(), 1797);
        assert_eq!(digits.label_counts(), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        assert!(digits.pixels.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
        let (images, labels) = digits.batch(&[0, 1796], &Device::Cpu).unwrap();
        assert_eq!((images.dims(), labels.to_vec1::<u32>().unwrap()), (&[2, 64][..], vec![0, 8]));
    }

    #[test]
    fn bad_lines_are_named() {
        let good = ["1"; 65].join(",");
        assert!(parse(&good).is_ok());
        for (bad, why) in [("1,2", "2 fields"), (&good.replacen('1', "17", 1), "17"), (&good.replace('1', "x"), "x")] {
            let error = parse(&format!("{good}\n{bad}")).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains(why), "{error}");
        }
    }
}
