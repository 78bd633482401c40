//! What a PATCH says of the part of a body that it carries, in the structured fields (RFC 9651) of resumable uploads.

use crate::parse_digest;
use catchment_types::{Code, Digest, Problem};

/// Digits of a structured field's integer.
const DIGITS_MAX: usize = 15;

/// A part of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Bytes of the body before it: `Upload-Offset`.
    pub offset: u64,
    /// Whether the body ends with it: `Upload-Complete`. When that is not said, its length says it.
    pub ends: Option<bool>,
    /// Digest of the whole body, when it is said again: `Catchment-Digest`.
    pub body_digest: Option<Digest>,
}

impl Part {
    /// Reads the fields that `field` finds by their names. Parameters mean nothing here.
    ///
    /// # Errors
    /// `bad_request`, naming the field and its value.
    pub fn parse<'f>(field: impl Fn(&str) -> Option<&'f str>) -> Result<Self, Problem> {
        let bad = |name: &str, text: &str, expected: &str| {
            Problem::new(Code::BadRequest, format!("{name}: `{}`: expected {expected}", text.escape_debug()))
        };
        let missing = "a PATCH says with Upload-Offset where it goes on; HEAD on the same address tells";
        let offset = field("upload-offset").ok_or_else(|| Problem::new(Code::BadRequest, missing))?;
        let digits = Some(item(offset)).filter(|text| (1..=DIGITS_MAX).contains(&text.len()));
        let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number = digits.and_then(|text| text.parse().ok());
        let number = number.ok_or_else(|| bad("Upload-Offset", offset, "a whole number of at most 15 digits"))?;
        let ends = match field("upload-complete").map(item) {
            None => None,
            Some("?0") => Some(false),
            Some("?1") => Some(true),
            Some(other) => return Err(bad("Upload-Complete", other, "?0 or ?1")),
        };
        Ok(Self { offset: number, ends, body_digest: parse_digest("Catchment-Digest", field("catchment-digest"))? })
    }
}

/// A field's item without its parameters.
fn item(text: &str) -> &str {
    text.split(';').next().unwrap_or_default().trim_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(offset: Option<&str>, complete: Option<&str>) -> Result<(u64, Option<bool>), Problem> {
        let field =
            |name: &str| if name == "upload-offset" { offset } else { complete.filter(|_| name != "catchment-digest") };
        Part::parse(field).map(|part| (part.offset, part.ends))
    }

    #[test]
    fn fields_are_read_as_they_are_written() {
        assert_eq!(part(Some("0"), None), Ok((0, None)));
        assert_eq!(part(Some(" 007 "), Some("?1")), Ok((7, Some(true))));
        assert_eq!(part(Some("999999999999999;a=b"), Some(" ?0;x")), Ok((999_999_999_999_999, Some(false))));
        for offset in ["", "-1", "+1", "1.0", "0x1", "1, 1", "1000000000000000", "99999999999999999999999", "ten", "١"]
        {
            assert_eq!(part(Some(offset), None).unwrap_err().code, "bad_request", "{offset}");
        }
        for complete in ["", "1", "true", "?2", "?1, ?1", "?"] {
            let problem = part(Some("1"), Some(complete)).unwrap_err();
            assert!(problem.detail.contains("Upload-Complete"), "{problem}");
        }
        assert!(part(None, Some("?1")).unwrap_err().detail.contains("HEAD"));
    }
}
