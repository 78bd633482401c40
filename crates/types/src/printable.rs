//! Text from outside, made fit for a line that people read.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// What would end a line, move a cursor, or show text in another order than it has.
fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Passes text on with everything harmful in it written as JSON does, so that what is written stays one line.
pub struct OneLine<W>(pub W);

impl<W: Write> Write for OneLine<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_harmful(*c)) {
            self.0.write_str(&rest[..at])?;
            match c {
                '\n' => self.0.write_str("\\n")?,
                '\r' => self.0.write_str("\\r")?,
                '\t' => self.0.write_str("\\t")?,
                c => write!(self.0, "\\u{:04x}", u32::from(c))?,
            }
            rest = &rest[at + c.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

/// The same for text that may have lines, and columns between tabs.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_kept = |c: char| matches!(c, '\n' | '\t');
    if !text.contains(|c: char| is_harmful(c) && !is_kept(c)) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for part in text.split_inclusive(is_kept) {
        let (body, end) = part.split_at(part.trim_end_matches(is_kept).len());
        OneLine(&mut shown).write_str(body).expect("a string grows");
        shown.push_str(end);
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one_line(text: &str) -> String {
        let mut shown = String::new();
        OneLine(&mut shown).write_str(text).unwrap();
        shown
    }

    #[test]
    fn what_would_break_out_of_a_line_is_written_as_json_does() {
        for (text, shown) in [
            ("", ""),
            ("Größe 3 µm \\n", "Größe 3 µm \\n"),
            ("a\nb\r\nc\td", "a\\nb\\r\\nc\\td"),
            ("\u{1b}[2J\u{9b}2J\u{7f}\0", "\\u001b[2J\\u009b2J\\u007f\\u0000"),
            ("a\u{2028}b\u{202e}c\u{2066}d\u{85}", "a\\u2028b\\u202ec\\u2066d\\u0085"),
        ] {
            assert_eq!(one_line(text), shown);
        }
        assert_eq!(printable("a\tb\n\u{1b}c\r\n\n"), "a\tb\n\\u001bc\\r\n\n");
        assert!(matches!(printable("a\tb\n"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn nothing_harmful_is_left(text in "(\\PC|\\p{Cc}|[\u{2028}-\u{202e}\u{2060}-\u{206f}]){0,40}") {
            let shown = one_line(&text);
            prop_assert!(!shown.contains(is_harmful));
            let lines = printable(&text);
            prop_assert_eq!(lines.matches('\n').count(), text.matches('\n').count());
            prop_assert!(!lines.replace(['\n', '\t'], "").contains(is_harmful));
            // JSON reads it as what it was.
            if !text.contains(['\\', '"']) {
                prop_assert_eq!(serde_json::from_str::<String>(&format!("\"{shown}\"")).unwrap(), text);
            }
        }
    }
}
