//! Writes the data of a body to its slab, tensor by tensor, in the order it arrives.

use crate::range::first_beyond;
use crate::screen::first_non_finite;
use catchment_types::{Code, Fit, Placed, Problem};

/// The data of one body on its way into `memory`, which is exactly as long as the fit says.
///
/// Works on any memory, so that the place it writes to need not be known here.
pub struct Scatter<'a> {
    tensors: std::slice::Iter<'a, Placed>,
    current: Option<&'a Placed>,
    position: u64,
    screened: usize,
}

impl<'a> Scatter<'a> {
    /// Begins at the first byte after the header.
    pub fn new(fit: &'a Fit) -> Self {
        let mut tensors = fit.tensors.iter();
        let current = tensors.next();
        Self { tensors, current, position: 0, screened: 0 }
    }

    /// Writes the next bytes of the data.
    ///
    /// # Errors
    /// `not_finite` and `out_of_range`, naming tensor and index; `invalid_safetensors` for bytes after the last tensor.
    pub fn feed(&mut self, mut chunk: &[u8], memory: &mut [u8]) -> Result<(), Problem> {
        self.pass_finished(memory);
        while !chunk.is_empty() {
            let Some(tensor) = self.current else {
                let detail = "the body goes on after the last tensor that its header describes";
                return Err(Problem::new(Code::InvalidSafetensors, detail));
            };
            let take = chunk.len().min((tensor.end - self.position) as usize);
            let (part, rest) = chunk.split_at(take);
            if let Some(offset) = tensor.slab_offset {
                let at = (offset + self.position - tensor.begin) as usize;
                memory[at..at + take].copy_from_slice(part);
            }
            self.position += take as u64;
            self.screen(tensor, memory)?;
            self.pass_finished(memory);
            chunk = rest;
        }
        Ok(())
    }

    /// Checks that everything came.
    ///
    /// # Errors
    /// `truncated`.
    pub fn finish(mut self, memory: &mut [u8]) -> Result<(), Problem> {
        self.pass_finished(memory);
        match self.current {
            None => Ok(()),
            Some(tensor) => Err(Problem::new(
                Code::Truncated,
                format!("the body ended at byte {} of its data, within tensor `{}`", self.position, tensor.name),
            )),
        }
    }

    /// Moves past tensors that are complete, and zeroes the padding after each, where an older update may lie.
    fn pass_finished(&mut self, memory: &mut [u8]) {
        while let Some(tensor) = self.current.filter(|tensor| tensor.end == self.position) {
            if let Some(offset) = tensor.slab_offset {
                let end = (offset + tensor.end - tensor.begin) as usize;
                memory[end..end + tensor.padding as usize].fill(0);
            }
            self.current = self.tensors.next();
            self.screened = 0;
        }
    }

    fn screen(&mut self, tensor: &Placed, memory: &[u8]) -> Result<(), Problem> {
        let Some(offset) = tensor.slab_offset else { return Ok(()) };
        let width = (tensor.dtype.bits() / 8) as usize;
        let written = (self.position - tensor.begin) as usize;
        let whole = written - written % width;
        let bytes = &memory[offset as usize + self.screened..offset as usize + whole];
        let found = match tensor.bound {
            None => first_non_finite(tensor.dtype, bytes),
            Some(bound) => first_beyond(tensor.dtype, bytes, bound),
        };
        if let Some(at) = found {
            let index = self.screened / width + at;
            let is_number = first_non_finite(tensor.dtype, &bytes[at * width..][..width]).is_none();
            let (code, what) = match tensor.bound.filter(|_| is_number) {
                None => (Code::NotFinite, "is NaN or infinite".to_owned()),
                Some(bound) => (Code::OutOfRange, format!("is further from zero than the job's exact.bound, {bound}")),
            };
            let detail = format!("tensor `{}`: element {index} {what}", tensor.name);
            return Err(Problem::new(code, detail).with("tensor", tensor.name.as_str()).with("index", index as u64));
        }
        self.screened = whole;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use catchment_types::{Header, Layout, Limits};
    use proptest::prelude::*;

    fn fit(text: &str) -> Fit {
        let header = Header::parse(text.as_bytes(), &Limits::default()).unwrap();
        Fit::new(&Layout::new(&header, &[]).unwrap(), &header, &[]).unwrap()
    }

    const TWO: &str = r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},
        "n":{"dtype":"I64","shape":[],"data_offsets":[12,20]},
        "e":{"dtype":"F32","shape":[0],"data_offsets":[20,20]},
        "b":{"dtype":"F32","shape":[2],"data_offsets":[20,28]}}"#;

    fn data(values: [f32; 5]) -> Vec<u8> {
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        [bytes(&values[..3]), vec![0xff; 8], bytes(&values[3..])].concat()
    }

    fn write(fit: &Fit, data: &[u8], step: usize) -> Result<Vec<u8>, Problem> {
        let mut memory = vec![0xaa; fit.slab_bytes as usize];
        let mut scatter = Scatter::new(fit);
        for chunk in data.chunks(step.max(1)) {
            scatter.feed(chunk, &mut memory)?;
        }
        scatter.finish(&mut memory)?;
        Ok(memory)
    }

    proptest! {
        #[test]
        fn any_cut_writes_the_same_bytes(step in 1usize..40) {
            let fit = fit(TWO);
            let memory = write(&fit, &data([1.0, 2.0, 3.0, 4.0, 5.0]), step).unwrap();
            let mut expected = vec![0u8; 512];
            expected[..12].copy_from_slice(&data([1.0, 2.0, 3.0, 0.0, 0.0])[..12]);
            expected[256..264].copy_from_slice(&data([0.0, 0.0, 0.0, 4.0, 5.0])[20..]);
            prop_assert_eq!(memory, expected);
        }

        #[test]
        fn a_nan_is_named_wherever_the_cut_falls(step in 1usize..40, at in 0usize..5) {
            let mut values = [1.0; 5];
            values[at] = f32::NAN;
            let problem = write(&fit(TWO), &data(values), step).unwrap_err();
            let (tensor, index) = if at < 3 { ("w", at) } else { ("b", at - 3) };
            prop_assert_eq!(&problem.code, "not_finite");
            prop_assert_eq!(problem.extra["tensor"].as_str(), Some(tensor));
            prop_assert_eq!(problem.extra["index"].as_u64(), Some(index as u64));
        }
    }

    #[test]
    fn elements_beyond_the_bound_are_named() {
        let header = Header::parse(TWO.as_bytes(), &Limits::default()).unwrap();
        let layout = Layout::new(&header, &[]).unwrap();
        let fit = Fit::new(&layout, &header, &[]).unwrap().within(&layout, Some(2.0));
        assert!(write(&fit, &data([1.0, -2.0, 2.0, 0.0, 0.0]), 7).is_ok());
        for (bad, code) in [(2.0000002, "out_of_range"), (f32::NEG_INFINITY, "not_finite")] {
            let problem = write(&fit, &data([1.0, 2.0, 0.0, 0.5, bad]), 7).unwrap_err();
            assert_eq!((problem.code.as_str(), problem.extra["index"].as_u64()), (code, Some(1)), "{problem}");
            assert_eq!(problem.extra["tensor"], "b");
        }
    }

    #[test]
    fn too_little_and_too_much_are_refused() {
        let data = data([0.0; 5]);
        assert_eq!(write(&fit(TWO), &data[..27], 8).unwrap_err().code, "truncated");
        assert_eq!(write(&fit(TWO), &[&data[..], &[0]].concat(), 8).unwrap_err().code, "invalid_safetensors");
        assert!(write(&fit("{}"), &[], 1).is_ok());
    }
}
