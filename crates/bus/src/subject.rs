//! Subjects and patterns, as NATS defines them: tokens between dots; in a pattern `*` stands for one
//! token and a last `>` for one or more. Checked here for every bus, so that a subject that works in
//! process also works on a server, and bytes from outside never end a protocol line.

use crate::BusError;

/// The longest subject, pattern or queue group.
pub const SUBJECT_BYTES_MAX: usize = 512;

/// A subject to publish on: no wildcards.
pub(crate) fn check_subject(subject: &str) -> Result<(), BusError> {
    check(subject)?;
    if subject.split('.').any(|token| matches!(token, "*" | ">")) {
        return refuse(subject, "a message's subject has no wildcards");
    }
    Ok(())
}

/// A pattern to subscribe to.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), BusError> {
    check(pattern)?;
    let mut tokens = pattern.split('.').rev();
    tokens.next();
    if tokens.any(|token| token == ">") {
        return refuse(pattern, "> may only be the last token");
    }
    Ok(())
}

/// A queue group: one token.
pub(crate) fn check_group(group: &str) -> Result<(), BusError> {
    check(group)?;
    if group.contains(['.', '*', '>']) {
        return refuse(group, "a queue group is a plain word");
    }
    Ok(())
}

fn check(subject: &str) -> Result<(), BusError> {
    if subject.len() > SUBJECT_BYTES_MAX {
        let mut end = 32;
        while !subject.is_char_boundary(end) {
            end += 1;
        }
        return refuse(&subject[..end], "it is longer than 512 bytes");
    }
    if subject.split('.').any(str::is_empty) {
        return refuse(subject, "a token is empty");
    }
    if subject.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return refuse(subject, "it contains white space or control characters");
    }
    Ok(())
}

fn refuse(subject: &str, reason: &'static str) -> Result<(), BusError> {
    Err(BusError::Subject { subject: subject.to_owned(), reason })
}

/// Whether `subject` falls under `pattern`. Both have been checked.
pub(crate) fn matches(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in pattern.split('.') {
        match (wanted, tokens.next()) {
            (_, None) => return false,
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wildcards_match_as_in_nats() {
        let cases = [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.b.c", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("*.*", "a.b", true),
            ("a.*.c", "a.b.c", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            (">", "a.b.c", true),
            ("a.*.>", "a.b", false),
            ("a.*.>", "a.b.c", true),
            ("a*", "ab", false),
        ];
        for (pattern, subject, expected) in cases {
            assert_eq!(matches(pattern, subject), expected, "{pattern} {subject}");
        }
    }

    #[test]
    fn what_is_no_subject_is_refused() {
        let long = "x".repeat(SUBJECT_BYTES_MAX + 1);
        let wide = "é".repeat(SUBJECT_BYTES_MAX);
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a\r\nb", "a\0", &long, &wide] {
            assert!(check_subject(bad).is_err(), "{bad:?}");
            assert!(check_pattern(bad).is_err(), "{bad:?}");
            assert!(check_group(bad).is_err(), "{bad:?}");
        }
        assert!(check_subject("a.*").is_err() && check_subject("a.>").is_err());
        assert!(check_pattern("a.>.b").is_err() && check_group("a.b").is_err());
        for good in ["a", "catchment.v1.default.job.accepted", "a_b-c", &"x".repeat(512)] {
            assert!(check_subject(good).is_ok(), "{good}");
        }
        assert!(check_pattern("*.a.>").is_ok() && check_group("nodes").is_ok());
    }

    /// The definition, token by token, as a recursion.
    fn oracle(pattern: &[&str], subject: &[&str]) -> bool {
        match (pattern, subject) {
            ([], []) => true,
            ([">"], [_, ..]) => true,
            (["*", p @ ..], [_, s @ ..]) => oracle(p, s),
            ([a, p @ ..], [b, s @ ..]) => a == b && oracle(p, s),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_its_definition(
            pattern in "([ab*]\\.){0,3}[ab*>]",
            subject in "([ab]\\.){0,4}[ab]",
        ) {
            let p: Vec<_> = pattern.split('.').collect();
            let s: Vec<_> = subject.split('.').collect();
            prop_assert_eq!(matches(&pattern, &subject), oracle(&p, &s));
        }

        #[test]
        fn checks_never_panic(text in "\\PC{0,700}|[.*> \\r\\n]{0,20}") {
            let _ = (check_subject(&text), check_pattern(&text), check_group(&text));
        }
    }
}
