//! Collects the head of a safetensors body: its length prefix and its JSON text.

use crate::header_problem;
use catchment_types::{Header, Limits, Problem};

/// A head being received.
pub struct Head {
    bytes: Vec<u8>,
    text_bytes: Option<u64>,
    body_bytes: Option<u64>,
    limits: Limits,
}

impl Head {
    /// A head of a body whose length is `body_bytes`, when that is known.
    pub fn new(body_bytes: Option<u64>) -> Self {
        Self { bytes: Vec::with_capacity(4096), text_bytes: None, body_bytes, limits: Limits::default() }
    }

    /// Takes what belongs to the head from the front of `chunk` and returns how much that was, and the header once it
    /// is complete.
    ///
    /// # Errors
    /// `invalid_safetensors` or `too_large`, saying what does not hold together.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(usize, Option<Header>), Problem> {
        let mut taken = self.take(chunk, Header::PREFIX_BYTES);
        if self.text_bytes.is_none() {
            let Some(prefix) = self.bytes.first_chunk::<8>() else { return Ok((taken, None)) };
            let length = Header::text_bytes(*prefix, self.body_bytes, &self.limits).map_err(|e| header_problem(&e))?;
            self.text_bytes = Some(length);
        }
        let whole = Header::PREFIX_BYTES + self.text_bytes.unwrap_or_default() as usize;
        taken += self.take(&chunk[taken..], whole);
        if self.bytes.len() < whole {
            return Ok((taken, None));
        }
        let header =
            Header::parse(&self.bytes[Header::PREFIX_BYTES..], &self.limits).map_err(|e| header_problem(&e))?;
        if let Some(body_bytes) = self.body_bytes {
            let data_bytes = body_bytes.saturating_sub(header.data_begin);
            header.check_data_bytes(data_bytes).map_err(|e| header_problem(&e))?;
        }
        Ok((taken, Some(header)))
    }

    /// Bytes of the whole head, once its length is known.
    pub fn declared_bytes(&self) -> Option<u64> {
        self.text_bytes.map(|text| text + Header::PREFIX_BYTES as u64)
    }

    /// The head's bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn take(&mut self, chunk: &[u8], up_to: usize) -> usize {
        let taken = up_to.saturating_sub(self.bytes.len()).min(chunk.len());
        self.bytes.extend_from_slice(&chunk[..taken]);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Vec<u8> {
        let text = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let mut body = (text.len() as u64).to_le_bytes().to_vec();
        body.extend(text);
        body.extend([0; 8]);
        body
    }

    #[test]
    fn any_cut_gives_the_same_header() {
        let body = body();
        for step in 1..body.len() {
            let mut head = Head::new(Some(body.len() as u64));
            let mut at = 0;
            let header = loop {
                let (taken, header) = head.feed(&body[at..(at + step).min(body.len())]).unwrap();
                at += taken;
                if let Some(header) = header {
                    break header;
                }
            };
            assert_eq!((at as u64, header.data_bytes), (header.data_begin, 8));
            assert_eq!(head.bytes(), &body[..at]);
        }
    }

    #[test]
    fn a_length_that_lies_is_refused_at_once() {
        let problem = Head::new(Some(20)).feed(&u64::MAX.to_le_bytes()).unwrap_err();
        assert_eq!(problem.code, "invalid_safetensors");
        assert!(problem.detail.contains("longer than the file"), "{problem}");
        let problem = Head::new(None).feed(&u64::MAX.to_le_bytes()).unwrap_err();
        assert_eq!(problem.code, "too_large");
        let body = body();
        let problem = Head::new(Some(body.len() as u64 + 1)).feed(&body).unwrap_err();
        assert!(problem.detail.contains("holds 9 bytes of data, its header describes 8"), "{problem}");
    }
}
