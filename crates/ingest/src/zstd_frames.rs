//! Follows the frames of a zstd body (RFC 8878, section 3) without decompressing it.
//!
//! A body may be several frames, one after the other, with skippable ones between them. Each names the window that its
//! decoder needs, so what a body takes is known before it takes it; and what is no frame is told from a frame that is not
//! all here yet.

use catchment_types::{Code, Problem};

/// First bytes of a frame, as a little-endian number.
const MAGIC: u32 = 0xfd2f_b528;
/// The same of a skippable frame, but for its last four bits.
const SKIPPABLE: u32 = 0x184d_2a50;
/// Bytes of the longest part that is looked at as a whole: a frame's header after its descriptor.
const PART_BYTES_MAX: usize = 13;

/// Where in a body the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// In the four bytes that begin a frame.
    Magic,
    /// In the length of a skippable frame.
    SkipLength,
    /// At the byte that describes a frame's header.
    Descriptor,
    /// In that header, whose descriptor this is.
    Header(u8),
    /// In a block's header.
    Block,
    /// So many bytes before `Block` or the frame's end.
    Content {
        /// Bytes that are passed over.
        left: u64,
        /// What comes after them.
        next: Next,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Block,
    Frame,
}

/// The frames of a body, as far as it has come.
#[derive(Debug)]
pub struct ZstdFrames {
    part: Part,
    /// What has come of a part that is looked at as a whole.
    bytes: [u8; PART_BYTES_MAX],
    held: usize,
    /// Bytes of the body that have been passed.
    position: u64,
    /// Where the frame began that the position is in.
    begin: u64,
    has_checksum: bool,
    window: u64,
    window_max: u64,
}

impl ZstdFrames {
    /// The beginning of a body whose windows may have up to `window_max` bytes.
    pub fn new(window_max: u64) -> Self {
        let bytes = [0; PART_BYTES_MAX];
        Self { part: Part::Magic, bytes, held: 0, position: 0, begin: 0, has_checksum: false, window: 0, window_max }
    }

    /// The largest window that a frame has asked for.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// Whether the body may end here.
    pub fn is_between(&self) -> bool {
        self.part == Part::Magic && self.held == 0
    }

    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// `invalid_safetensors` for what is no frame, `unsupported_encoding` for one that needs too large a window.
    pub fn feed(&mut self, mut chunk: &[u8]) -> Result<(), Problem> {
        while !chunk.is_empty() {
            let taken = match self.part {
                Part::Content { left, next } => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
                    self.pass(left - taken as u64, next);
                    taken
                }
                part => {
                    let wanted = wanted(part);
                    let taken = (wanted - self.held).min(chunk.len());
                    self.bytes[self.held..self.held + taken].copy_from_slice(&chunk[..taken]);
                    self.held += taken;
                    if part == Part::Magic {
                        self.check_magic()?;
                    }
                    if self.held == wanted {
                        self.held = 0;
                        self.step(part)?;
                    }
                    taken
                }
            };
            self.position += taken as u64;
            chunk = &chunk[taken..];
            if self.is_between() {
                self.begin = self.position;
            }
        }
        Ok(())
    }

    fn number(&self, bytes: std::ops::Range<usize>) -> u64 {
        self.bytes[bytes].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Refuses what cannot become the beginning of a frame as soon as that is known.
    fn check_magic(&self) -> Result<(), Problem> {
        let found = self.number(0..self.held) as u32;
        let known = |magic: u32, free: u32| {
            let seen = (u64::MAX >> (64 - 8 * self.held)) as u32 & !free;
            found & seen == magic & seen
        };
        if known(MAGIC, 0) || known(SKIPPABLE, 0xf) {
            return Ok(());
        }
        let detail = match self.begin {
            0 => "the body is no zstd frame, and Content-Encoding says that it is".to_owned(),
            begin => format!("after the zstd frame that ends at byte {begin} comes something that is no frame"),
        };
        Err(Problem::new(Code::InvalidSafetensors, detail))
    }

    /// A part is complete.
    fn step(&mut self, part: Part) -> Result<(), Problem> {
        match part {
            Part::Magic if self.number(0..4) as u32 == MAGIC => self.part = Part::Descriptor,
            Part::Magic => self.part = Part::SkipLength,
            Part::SkipLength => self.pass(self.number(0..4), Next::Frame),
            Part::Descriptor => {
                let descriptor = self.bytes[0];
                self.has_checksum = descriptor & 4 != 0;
                if descriptor & 8 != 0 {
                    return Err(self.damaged("a header with its reserved bit set"));
                }
                self.part = Part::Header(descriptor);
            }
            Part::Header(descriptor) => {
                self.note_window(descriptor)?;
                self.part = Part::Block;
            }
            Part::Block => {
                let header = self.number(0..3);
                let (is_last, kind, size) = (header & 1 != 0, header >> 1 & 3, header >> 3);
                // One byte that is repeated, or bytes as they are, or compressed.
                let content = match kind {
                    1 => 1,
                    0 | 2 => size,
                    _ => return Err(self.damaged("a block of an unknown type")),
                };
                match is_last {
                    true => self.pass(content + if self.has_checksum { 4 } else { 0 }, Next::Frame),
                    false => self.pass(content, Next::Block),
                }
            }
            Part::Content { .. } => {}
        }
        Ok(())
    }

    fn pass(&mut self, left: u64, next: Next) {
        self.part = match (left, next) {
            (0, Next::Block) => Part::Block,
            (0, Next::Frame) => Part::Magic,
            (left, next) => Part::Content { left, next },
        };
    }

    fn note_window(&mut self, descriptor: u8) -> Result<(), Problem> {
        let is_single = is_single(descriptor);
        let window = if is_single {
            // The window is the content, whose size follows the dictionary's number.
            let (begin, bytes) = (dictionary_bytes(descriptor), size_bytes(descriptor));
            self.number(begin..begin + bytes) + if bytes == 2 { 256 } else { 0 }
        } else {
            let (exponent, mantissa) = (u32::from(self.bytes[0] >> 3), u64::from(self.bytes[0] & 7));
            let base = 1u64 << (10 + exponent);
            base + base / 8 * mantissa
        };
        if window > self.window_max {
            let detail = format!(
                "the zstd frame at byte {} needs a window of {window} bytes, the limit is {}: compress with a level of at \
                 most 19, without --ultra or --long",
                self.begin, self.window_max
            );
            return Err(Problem::new(Code::UnsupportedEncoding, detail).with("limit", self.window_max));
        }
        self.window = self.window.max(window);
        Ok(())
    }

    fn damaged(&self, what: &str) -> Problem {
        let detail = format!("the zstd frame at byte {} is damaged: {what}", self.begin);
        Problem::new(Code::InvalidSafetensors, detail)
    }
}

/// Bytes of a part that is looked at as a whole.
fn wanted(part: Part) -> usize {
    match part {
        Part::Magic | Part::SkipLength => 4,
        Part::Descriptor => 1,
        Part::Header(descriptor) => {
            let window = if is_single(descriptor) { 0 } else { 1 };
            window + dictionary_bytes(descriptor) + size_bytes(descriptor)
        }
        Part::Block => 3,
        Part::Content { .. } => 0,
    }
}

fn is_single(descriptor: u8) -> bool {
    descriptor & 0x20 != 0
}

fn dictionary_bytes(descriptor: u8) -> usize {
    [0, 1, 2, 4][usize::from(descriptor & 3)]
}

fn size_bytes(descriptor: u8) -> usize {
    match descriptor >> 6 {
        0 => usize::from(is_single(descriptor)),
        1 => 2,
        2 => 4,
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of raw blocks, with a window of 2^`exponent` KiB and a checksum that nobody looks at here.
    fn frame(blocks: &[&[u8]], exponent: u8) -> Vec<u8> {
        let mut frame = [&MAGIC.to_le_bytes()[..], &[4, exponent << 3]].concat();
        for (i, block) in blocks.iter().enumerate() {
            let header = (block.len() as u32) << 3 | u32::from(i + 1 == blocks.len());
            frame.extend(&header.to_le_bytes()[..3]);
            frame.extend(*block);
        }
        frame.extend([1, 2, 3, 4]);
        frame
    }

    fn skippable(bytes: &[u8]) -> Vec<u8> {
        [&(SKIPPABLE + 7).to_le_bytes()[..], &(bytes.len() as u32).to_le_bytes(), bytes].concat()
    }

    fn follow(bytes: &[u8], step: usize) -> Result<(bool, u64), Problem> {
        let mut frames = ZstdFrames::new(8 << 20);
        for chunk in bytes.chunks(step) {
            frames.feed(chunk)?;
        }
        Ok((frames.is_between(), frames.window()))
    }

    #[test]
    fn frames_follow_one_another_however_they_are_cut() {
        let empty = [&MAGIC.to_le_bytes()[..], &[0x20, 0, 1, 0, 0]].concat();
        let body =
            [frame(&[b"abc", b"", b"defg"], 2), skippable(b"note"), skippable(b""), empty, frame(&[b"h"], 0)].concat();
        for step in 1..=body.len() {
            assert_eq!(follow(&body, step).unwrap(), (true, 4096), "steps of {step}");
        }
        // The one place within it where a body may end is between two frames.
        let ends = (1..body.len()).filter(|end| follow(&body[..*end], 1).unwrap().0);
        assert_eq!(ends.collect::<Vec<_>>(), [26, 38, 46, 55]);
    }

    #[test]
    fn what_follows_a_frame_is_a_frame() {
        let first = frame(&[b"abc"], 0);
        for rubbish in [&b"x"[..], &[0], &[0; 64], b"\x28\xb5\x2f\xfe", b"\x1f\x8b\x08"] {
            for step in [1, 3, 1000] {
                let problem = follow(&[&first[..], rubbish].concat(), step).unwrap_err();
                assert_eq!(problem.code, "invalid_safetensors", "{problem}");
                assert!(problem.detail.contains(&format!("ends at byte {}", first.len())), "{problem}");
            }
        }
        assert!(follow(b"PK\x03\x04", 1).unwrap_err().detail.contains("no zstd frame"));
        assert!(follow(&[&first[..], &MAGIC.to_le_bytes()[..3]].concat(), 2).is_ok_and(|(is_between, _)| !is_between));
    }

    #[test]
    fn a_window_that_is_too_large_is_refused_before_it_is_taken() {
        assert_eq!(follow(&frame(&[b"a"], 13), 2).unwrap().1, 8 << 20);
        let later = [frame(&[b"a"], 3), frame(&[b"a"], 14)].concat();
        assert_eq!(follow(&later, 5).unwrap_err().code, "unsupported_encoding");
        // Of a single segment, the content is the window.
        let single = |bytes: u64| [&MAGIC.to_le_bytes()[..], &[0xe0], &bytes.to_le_bytes()].concat();
        assert_eq!(follow(&single(8 << 20), 4).unwrap(), (false, 8 << 20));
        assert_eq!(follow(&single(u64::MAX), 4).unwrap_err().code, "unsupported_encoding");
        // A number of two bytes counts from 256.
        let short = [&MAGIC.to_le_bytes()[..], &[0x60, 1, 0]].concat();
        assert_eq!(follow(&short, 1).unwrap(), (false, 257));
    }

    #[test]
    fn damage_is_named() {
        for (bytes, says) in [
            ([&MAGIC.to_le_bytes()[..], &[0x08]].concat(), "reserved bit"),
            ([&MAGIC.to_le_bytes()[..], &[0, 0, 7, 0, 0]].concat(), "unknown type"),
        ] {
            let problem = follow(&bytes, 1).unwrap_err();
            assert!(problem.is(Code::InvalidSafetensors) && problem.detail.contains(says), "{problem}");
        }
    }
}
