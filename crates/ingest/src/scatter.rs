//! Brings the data of a body to its slab, tensor by tensor, in the order it arrives.
//!
//! Bytes that are in memory already are copied there ([`Scatter::feed`]). Bytes that still wait in a socket are received
//! right where they belong: [`Scatter::room`] says where the next ones go, [`Scatter::landed`] takes note of them.
//! Either way they are screened, and widened where the slab has another type, while they are in cache.

use crate::closer::{self, Base, not_finite, refused};
use crate::range::{first_beyond, first_inexact, first_nearer};
use crate::screen::first_non_finite;
use crate::widen::widen;
use catchment_types::{Code, Dtype, Fit, Placed, Problem};
use std::array::from_fn;
use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::Arc;

/// Tensors that one read from a socket may reach into.
const PIECES: usize = 16;

/// Where the next bytes of a body go, in order. Unused places are empty and come last.
pub type Room<'m> = [IoSliceMut<'m>; PIECES + 1];

/// The data of one body on its way into `memory`, which is exactly as long as the fit says.
///
/// Works on any memory, so that the place it writes to need not be known here.
#[derive(Debug)]
pub struct Scatter {
    fit: Arc<Fit>,
    /// The tensor that the next byte belongs to.
    current: usize,
    /// Bytes of the data that have come.
    position: u64,
    /// Bytes of the current tensor that have been screened.
    screened: usize,
    /// The model that deltas are added to.
    base: Option<Arc<dyn Base>>,
}

impl Scatter {
    /// Begins at the first byte after the header.
    pub fn new(fit: impl Into<Arc<Fit>>) -> Self {
        Self { fit: fit.into(), current: 0, position: 0, screened: 0, base: None }
    }

    /// The same for deltas of this model.
    pub fn of_deltas(fit: impl Into<Arc<Fit>>, base: Option<Arc<dyn Base>>) -> Self {
        Self { base, ..Self::new(fit) }
    }

    /// Goes on behind the first `position` bytes of the data, of which [`Scatter::places`] are filled. `None` when there
    /// are not so many.
    pub fn resumed(fit: impl Into<Arc<Fit>>, base: Option<Arc<dyn Base>>, position: u64) -> Option<Self> {
        let mut scatter = Self { position, ..Self::of_deltas(fit, base) };
        // The first that is not complete; empty ones at its beginning are passed with those before.
        scatter.current = scatter.fit.tensors.partition_point(|tensor| tensor.end <= position);
        if let Some(tensor) = scatter.fit.tensors.get(scatter.current) {
            scatter.screened = whole_elements(tensor, position);
        } else if scatter.fit.tensors.last().map_or(0, |last| last.end) != position {
            return None;
        }
        Some(scatter)
    }

    /// Where in memory all is that has come so far. It does not change any more, whatever else comes, unless it is the rest
    /// of an element that has not come whole.
    pub fn places(&self) -> Vec<Range<usize>> {
        let mut places = Vec::new();
        let (complete, rest) = self.fit.tensors.split_at(self.current);
        for tensor in complete {
            if let Some(offset) = tensor.slab_offset {
                places.push(offset as usize..(offset + tensor.stored_bytes() + tensor.padding) as usize);
            }
        }
        if let Some(tensor) = rest.first()
            && let (Some(offset), Some(landing)) = (tensor.slab_offset, tensor.landing())
        {
            let (written, screened) = ((self.position - tensor.begin) as usize, whole_elements(tensor, self.position));
            let (offset, landing) = (offset as usize, landing as usize);
            if tensor.stored == tensor.dtype {
                places.push(offset..offset + written);
            } else {
                let elements = screened / (tensor.dtype.bits() / 8) as usize;
                places.push(offset..offset + elements * (tensor.stored.bits() / 8) as usize);
                places.push(landing + screened..landing + written);
            }
        }
        places.retain(|place| !place.is_empty());
        places
    }

    /// Writes the next bytes of the data.
    ///
    /// # Errors
    /// `not_finite` and `out_of_range`, naming tensor and index; `invalid_safetensors` for bytes after the last tensor.
    pub fn feed(&mut self, mut chunk: &[u8], memory: &mut [u8]) -> Result<(), Problem> {
        self.pass_finished(memory);
        while !chunk.is_empty() {
            let tensor = self.current()?;
            let take = chunk.len().min((tensor.end - self.position) as usize);
            let (part, rest) = chunk.split_at(take);
            if let Some(place) = self.place(tensor, take) {
                memory[place].copy_from_slice(part);
            }
            self.advance(take, memory)?;
            chunk = rest;
        }
        Ok(())
    }

    /// Where the next bytes of the data go: at most `bytes_max`, none when all have come. Bytes of tensors that are
    /// not stored go to `sink`.
    pub fn room<'m>(&self, memory: &'m mut [u8], sink: &'m mut [u8], bytes_max: usize) -> Room<'m> {
        let mut places: [Range<usize>; PIECES] = from_fn(|_| 0..0);
        let mut sunk = 0;
        let (mut position, mut left) = (self.position, bytes_max);
        let mut free = places.iter_mut();
        for tensor in self.fit.tensors[self.current..].iter().filter(|tensor| tensor.end > tensor.begin) {
            let take = left.min((tensor.end - position) as usize);
            match tensor.landing() {
                // The sink is one piece, and what it takes comes last: everything in it is passed over at once.
                None => {
                    sunk = take.min(sink.len());
                    break;
                }
                Some(landing) => {
                    let Some(place) = free.next().filter(|_| take > 0) else { break };
                    let at = (landing + position - tensor.begin) as usize;
                    *place = at..at + take;
                }
            }
            position += take as u64;
            left -= take;
        }
        let stored = memory.get_disjoint_mut(places).expect("tensors have places of their own");
        let mut pieces = stored.into_iter().chain([&mut sink[..sunk]]);
        from_fn(|_| IoSliceMut::new(pieces.next().unwrap_or_default()))
    }

    /// Takes note of the next `bytes` bytes, which lie where [`Scatter::room`] said. Hands each run of them to `each`,
    /// in the order of the body.
    ///
    /// # Errors
    /// As [`Scatter::feed`].
    pub fn landed(
        &mut self,
        mut bytes: usize,
        memory: &mut [u8],
        sink: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Problem> {
        self.pass_finished(memory);
        while bytes > 0 {
            let tensor = self.current()?;
            let take = bytes.min((tensor.end - self.position) as usize);
            match self.place(tensor, take) {
                Some(place) => each(&memory[place]),
                None => each(&sink[..take]),
            }
            self.advance(take, memory)?;
            bytes -= take;
        }
        Ok(())
    }

    /// Bytes of the data that are in their places.
    pub fn position(&self) -> u64 {
        self.position
    }

    fn current(&self) -> Result<&Placed, Problem> {
        self.fit.tensors.get(self.current).ok_or_else(|| {
            let detail = "the body goes on after the last tensor that its header describes";
            Problem::new(Code::InvalidSafetensors, detail)
        })
    }

    /// Where the next `bytes` bytes of the current tensor go, if they are stored.
    fn place(&self, tensor: &Placed, bytes: usize) -> Option<Range<usize>> {
        let at = (tensor.landing()? + self.position - tensor.begin) as usize;
        Some(at..at + bytes)
    }

    /// Passes bytes of the current tensor that are in their place.
    fn advance(&mut self, bytes: usize, memory: &mut [u8]) -> Result<(), Problem> {
        self.position += bytes as u64;
        let before = self.screened;
        self.screen(memory)?;
        self.widen(before, memory);
        self.pass_finished(memory);
        Ok(())
    }

    /// Checks that everything came.
    ///
    /// # Errors
    /// `truncated`.
    pub fn finish(mut self, memory: &mut [u8]) -> Result<(), Problem> {
        self.pass_finished(memory);
        match self.fit.tensors.get(self.current) {
            None => Ok(()),
            Some(tensor) => Err(Problem::new(
                Code::Truncated,
                format!("the body ended at byte {} of its data, within tensor `{}`", self.position, tensor.name),
            )),
        }
    }

    /// Moves past tensors that are complete, and zeroes the padding after each, where an older update may lie.
    fn pass_finished(&mut self, memory: &mut [u8]) {
        while let Some(tensor) = self.fit.tensors.get(self.current).filter(|tensor| tensor.end == self.position) {
            if let Some(offset) = tensor.slab_offset {
                let end = (offset + tensor.stored_bytes()) as usize;
                memory[end..end + tensor.padding as usize].fill(0);
            }
            self.current += 1;
            self.screened = 0;
        }
    }

    fn screen(&mut self, memory: &[u8]) -> Result<(), Problem> {
        let tensor = &self.fit.tensors[self.current];
        let Some(landing) = tensor.landing() else { return Ok(()) };
        let width = (tensor.dtype.bits() / 8) as usize;
        let written = (self.position - tensor.begin) as usize;
        let whole = written - written % width;
        let bytes = &memory[landing as usize + self.screened..landing as usize + whole];
        let first = self.screened / width;
        match tensor.bounds.screened(tensor.dtype) {
            None => {
                if let Some(at) = first_non_finite(tensor.dtype, bytes) {
                    // Tensors without coordinates follow no rule.
                    return Err(not_finite(tensor, first + at, self.fit.head_at.is_none()));
                }
            }
            Some(limit) => {
                if let Some(at) = first_beyond(tensor.dtype, bytes, limit) {
                    closer::look(tensor, first + at, &bytes[at * width..], self.base.as_deref())?;
                }
            }
        }
        if let Some((at, what)) = outside_f64(tensor, bytes) {
            return Err(refused(Code::OutOfRange, tensor, first + at, &what));
        }
        self.screened = whole;
        Ok(())
    }

    /// Brings what was screened since `before` from where it landed to where it belongs, if that is another type's place.
    fn widen(&self, before: usize, memory: &mut [u8]) {
        let tensor = &self.fit.tensors[self.current];
        let (Some(place), Some(landing)) = (tensor.slab_offset, tensor.landing()) else { return };
        if tensor.stored == tensor.dtype {
            return;
        }
        let width = (tensor.dtype.bits() / 8) as usize;
        let (first, count) = (before / width, (self.screened - before) / width);
        let to = place as usize + first * (tensor.stored.bits() / 8) as usize;
        widen((tensor.dtype, landing as usize + before), (tensor.stored, to), count, memory);
    }
}

/// Bytes of a tensor's elements that are there whole once the data has come to `position`: those are screened.
fn whole_elements(tensor: &Placed, position: u64) -> usize {
    let written = (position - tensor.begin) as usize;
    // Types of less than a byte are not stored.
    let width = ((tensor.dtype.bits() / 8) as usize).max(1);
    if tensor.landing().is_some() { written - written % width } else { 0 }
}

/// The first element that functions, which compute in f64, would not take for what it is, and what is wrong with it.
fn outside_f64(tensor: &Placed, bytes: &[u8]) -> Option<(usize, String)> {
    if let Some(at) = first_inexact(tensor.dtype, bytes) {
        let what = "is a whole number beyond 2^53 - 1, and means and maxima are computed in f64, which would round it: send \
                    smaller numbers, or give the tensor the rule `keep`";
        return Some((at, what.to_owned()));
    }
    let least = tensor.least.filter(|_| tensor.dtype == Dtype::F64)?;
    let what = format!(
        "is nearer to zero than {least:e}, so that times the update's weight it would lose digits: multiply the weights \
         of all clients by the same number"
    );
    first_nearer(bytes, least).map(|at| (at, what))
}

#[cfg(test)]
#[path = "scatter_types_tests.rs"]
mod types_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UpdateDigest;
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

    pub fn write(fit: &Fit, data: &[u8], step: usize) -> Result<Vec<u8>, Problem> {
        let mut memory = vec![0xaa; fit.slab_bytes as usize];
        let mut scatter = Scatter::new(fit.clone());
        for chunk in data.chunks(step.max(1)) {
            scatter.feed(chunk, &mut memory)?;
        }
        scatter.finish(&mut memory)?;
        Ok(memory)
    }

    /// The same as from a socket that has `step` bytes at a time; returns what was handed on as well.
    pub fn receive(fit: &Fit, mut data: &[u8], step: usize, sink: usize) -> Result<(Vec<u8>, Vec<u8>), Problem> {
        let (mut memory, mut sink, mut seen) = (vec![0xaa; fit.slab_bytes as usize], vec![0; sink], Vec::new());
        let mut scatter = Scatter::new(fit.clone());
        while !data.is_empty() {
            let mut room = scatter.room(&mut memory, &mut sink, step);
            let taken = std::io::Read::read_vectored(&mut data, &mut room).unwrap();
            assert!(taken > 0, "there is room while there is data");
            scatter.landed(taken, &mut memory, &sink, |bytes| seen.extend_from_slice(bytes))?;
        }
        assert!(scatter.room(&mut memory, &mut sink, step).iter().all(|piece| piece.is_empty()));
        scatter.finish(&mut memory)?;
        Ok((memory, seen))
    }

    proptest! {
        #[test]
        fn any_cut_writes_the_same_bytes(step in 1usize..40) {
            let fit = fit(TWO);
            let memory = write(&fit, &data([1.0, 2.0, 3.0, 4.0, 5.0]), step).unwrap();
            let mut expected = vec![0u8; 512];
            expected[..12].copy_from_slice(&data([1.0, 2.0, 3.0, 0.0, 0.0])[..12]);
            expected[256..264].copy_from_slice(&data([0.0, 0.0, 0.0, 4.0, 5.0])[20..]);
            prop_assert_eq!(&memory, &expected);
            let (received, seen) = receive(&fit, &data([1.0, 2.0, 3.0, 4.0, 5.0]), step, 1 + step % 9).unwrap();
            prop_assert_eq!(received, memory);
            prop_assert_eq!(seen, data([1.0, 2.0, 3.0, 4.0, 5.0]));
        }

        /// The connection breaks at `cut`, and the rest comes another way.
        #[test]
        fn what_goes_on_after_a_break_is_what_one_piece_would_be(cut in 0usize..=28, step in 1usize..40, nan in 0usize..8) {
            let mut values = [1.0, 2.0, 3.0, 4.0, 5.0];
            if let Some(value) = values.get_mut(nan) {
                *value = f32::NAN;
            }
            let (fit, data) = (fit(TWO), data(values));
            let run = |(first, rest): (&[u8], &[u8])| {
                let (mut memory, mut sink) = (vec![0xaa; fit.slab_bytes as usize], [0; 5]);
                let (mut scatter, mut digest) = (Scatter::new(fit.clone()), UpdateDigest::default());
                let mut left = first;
                while !left.is_empty() {
                    let mut room = scatter.room(&mut memory, &mut sink, step);
                    let taken = std::io::Read::read_vectored(&mut left, &mut room).unwrap();
                    scatter.landed(taken, &mut memory, &sink, |bytes| digest.feed(bytes))?;
                }
                assert_eq!(scatter.position(), first.len() as u64);
                for chunk in rest.chunks(step) {
                    digest.feed(chunk);
                    scatter.feed(chunk, &mut memory)?;
                }
                scatter.finish(&mut memory)?;
                Ok::<_, Problem>((memory, digest.body()))
            };
            let broken = run(data.split_at(cut));
            prop_assert_eq!(&broken, &run((&data, &[])));
            prop_assert_eq!(&broken, &run((&[], &data)));
            prop_assert_eq!(broken.is_ok(), nan >= 5);
        }

        #[test]
        fn many_small_tensors_land_in_their_places(count in 1u64..50, step in 1usize..300) {
            let entries: Vec<String> = (0..count).map(|k| {
                let dtype = if k % 5 == 4 { "I32" } else { "F32" };
                format!(r#""t{k}":{{"dtype":"{dtype}","shape":[1],"data_offsets":[{},{}]}}"#, k * 4, k * 4 + 4)
            }).collect();
            let fit = fit(&format!("{{{}}}", entries.join(",")));
            let data: Vec<u8> = (0..count).flat_map(|k| (k as f32).to_le_bytes()).collect();
            let (received, seen) = receive(&fit, &data, step, 3).unwrap();
            prop_assert_eq!(received, write(&fit, &data, 7).unwrap());
            prop_assert_eq!(seen, data);
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
    fn a_mask_is_refused_with_its_remedy_and_kept_with_the_rule() {
        let header = Header::parse(TWO.as_bytes(), &Limits::default()).unwrap();
        for bad in [f32::NEG_INFINITY, f32::INFINITY, f32::NAN] {
            let problem = write(&fit(TWO), &data([1.0, bad, 2.0, 0.0, 0.0]), 7).unwrap_err();
            assert_eq!((problem.code.as_str(), problem.extra["index"].as_u64()), ("not_finite", Some(1)));
            let rule = r#""tensors": [{"match":"w","rule":"keep"}]"#;
            assert!(problem.detail.contains(rule) && problem.detail.contains("exclude"), "{problem}");
            // What it says to do helps.
            for rule in [catchment_types::Rule::Keep, catchment_types::Rule::Exclude] {
                let rules = [catchment_types::TensorRule { pattern: "w".to_owned(), rule }];
                let layout = Layout::new(&header, &rules).unwrap();
                let fit = Fit::new(&layout, &header, &[]).unwrap();
                for step in [1, 7, 100] {
                    assert!(write(&fit, &data([1.0, bad, bad, 3.0, 4.0]), step).is_ok());
                    assert!(receive(&fit, &data([1.0, bad, bad, 3.0, 4.0]), step, 5).is_ok());
                }
                assert_eq!(write(&fit, &data([bad, bad, bad, 3.0, bad]), 7).unwrap_err().extra["tensor"], "b");
            }
        }
        // Names are written as JSON has them.
        assert!(closer::remedy("a\"b").contains(r#"{"match":"a\"b","rule":"keep"}"#), "{}", closer::remedy("a\"b"));
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
