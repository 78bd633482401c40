//! Values as people read them. Pure, so that what a terminal shows is tested without one.

use catchment_client::JobInfo;
use catchment_types::{Digest, TimeMs};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// A value of one of the interface's enums, in words: `waiting for model`.
pub fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text.replace('_', " "),
        Ok(other) => other.to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// What is there, or a dash.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Characters of a digest that are shown.
const SHORT: usize = 12;

/// The begin of a digest: enough to tell files apart by eye.
pub fn short(digest: Digest) -> String {
    digest.to_string().chars().take(SHORT).collect()
}

/// A length of time with about two digits that mean something: `85 ms`, `4.2 s`, `3 m 20 s`.
pub fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{} s", s, ms % 1000 / 100),
        60_000..3_600_000 => format!("{} m {} s", s / 60, s % 60),
        _ => format!("{} h {} m", s / 3600, s / 60 % 60),
    }
}

/// Numbers that clients reported: `accuracy 0.9412, loss 0.2101`.
pub fn metrics(metrics: &BTreeMap<String, f64>) -> String {
    metrics.iter().map(|(name, value)| format!("{name} {}", number(*value))).collect::<Vec<_>>().join(", ")
}

fn number(value: f64) -> String {
    if value == 0.0 || (1e-3..1e6).contains(&value.abs()) { format!("{value:.4}") } else { format!("{value:.3e}") }
}

/// One of something, or many: `1 update`, `2 updates`.
pub fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Names and values below each other, values in one column; a value's further lines too.
pub fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let line = |(name, value): &(&str, String)| {
        format!("{name:width$}  {}", value.replace('\n', &format!("\n{:width$}  ", "")))
    };
    pairs.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The milliseconds of an RFC 3339 time, if it is one.
pub fn time_ms(text: &str) -> Option<TimeMs> {
    text.parse::<jiff::Timestamp>().ok()?.as_millisecond().try_into().ok()
}

/// A deadline and how far off it is: `2026-01-01T00:10:00.000Z (in 4.2 s)`.
pub fn deadline(at: &str, now_ms: TimeMs) -> String {
    match time_ms(at).map(|at_ms| at_ms.checked_sub(now_ms)) {
        Some(Some(left_ms)) => format!("{at} (in {})", duration(left_ms)),
        Some(None) => format!("{at} (past)"),
        None => at.to_owned(),
    }
}

/// A number of the job's spec.
pub fn spec_count(job: &JobInfo, field: &str) -> Option<u64> {
    job.spec.get(field).and_then(Value::as_u64)
}

/// A text of the job's spec; empty when a newer server has no such field.
pub fn spec_text<'a>(job: &'a JobInfo, field: &str) -> &'a str {
    job.spec.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The job's function, of a pinned one the begin of its digest.
pub fn function(job: &JobInfo) -> String {
    let function = spec_text(job, "function");
    match function.split_once('@') {
        Some((name, digest)) => format!("{name}@{}", digest.chars().take(SHORT).collect::<String>()),
        None => function.to_owned(),
    }
}

/// `3 of 20`: the newest round and the last.
pub fn round_of(job: &JobInfo) -> String {
    match spec_count(job, "rounds") {
        Some(rounds) => format!("{} of {rounds}", job.round.round),
        None => job.round.round.to_string(),
    }
}

/// `4 of 10 received, 2 folded`.
pub fn updates_of(job: &JobInfo) -> String {
    format!("{} of {} received, {} folded", job.round.received, job.round.goal, job.round.folded)
}

/// Everything that `job status` shows.
pub fn job(job: &JobInfo, now_ms: TimeMs) -> String {
    let mut shown = vec![
        ("job", spec_text(job, "name").to_owned()),
        ("namespace", spec_text(job, "namespace").to_owned()),
        ("uid", job.uid.to_string()),
        ("function", function(job)),
        ("state", word(job.state)),
    ];
    shown.extend(job.reason.clone().map(|reason| ("reason", reason)));
    let round = if job.round.round == 0 {
        format!("none of {}", or_dash(spec_count(job, "rounds")))
    } else {
        format!("{}, {}", round_of(job), word(job.round.state))
    };
    shown.push(("round", round));
    shown.push(("updates", updates_of(job)));
    shown.push(("model", or_dash(job.model_version)));
    shown.extend(job.best_version.map(|version| ("best", version.to_string())));
    if !job.state.is_over() {
        shown.extend(job.round.deadline_at.as_deref().map(|at| ("deadline", deadline(at, now_ms))));
    }
    shown.push(("created", job.created_at.clone()));
    pairs(&shown)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use catchment_types::JobState;

    pub fn example() -> JobInfo {
        let uid = "ab".repeat(16);
        serde_json::from_value(serde_json::json!({
            "uid": uid, "state": "running", "created_at": "2026-01-01T00:00:00.000Z", "model_version": 2,
            "spec": {"name": "digits", "namespace": "default", "function": "fedavg", "rounds": 20, "goal": 10},
            "round": {"uid": uid, "revision": 9, "round": 3, "state": "open", "job_state": "running",
                "model_version": 2, "goal": 10, "received": 4, "folded": 2, "deadline_at": "2026-01-01T00:10:00.000Z"},
        }))
        .unwrap()
    }

    #[test]
    fn a_job_as_people_read_it() {
        let now_ms = time_ms("2026-01-01T00:09:30.000Z").unwrap();
        let expected = "\
job        digits
namespace  default
uid        abababababababababababababababab
function   fedavg
state      running
round      3 of 20, open
updates    4 of 10 received, 2 folded
model      2
deadline   2026-01-01T00:10:00.000Z (in 30.0 s)
created    2026-01-01T00:00:00.000Z";
        assert_eq!(job(&example(), now_ms), expected);
    }

    #[test]
    fn a_pinned_function_is_shown_with_the_begin_of_its_digest() {
        let mut pinned = example();
        pinned.spec.insert("function".to_owned(), format!("fedavg@{}", "0123456789abcdef".repeat(4)).into());
        assert_eq!((function(&pinned).as_str(), function(&example()).as_str()), ("fedavg@0123456789ab", "fedavg"));
    }

    #[test]
    fn a_job_that_is_over_has_a_reason_and_no_deadline() {
        let failed = JobInfo { state: JobState::Failed, reason: Some("too few updates".to_owned()), ..example() };
        let text = job(&failed, 0);
        assert!(text.contains("state      failed\nreason     too few updates\n"), "{text}");
        assert!(!text.contains("deadline"));
    }

    #[test]
    fn durations_keep_two_digits() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1000, "1.0 s"),
            (59_999, "59.9 s"),
            (60_000, "1 m 0 s"),
            (3_599_999, "59 m 59 s"),
            (90_000_000, "25 h 0 m"),
        ] {
            assert_eq!(duration(ms), text);
        }
    }

    #[test]
    fn numbers_stay_readable() {
        let numbers = [("a", 0.0), ("b", -0.5), ("c", 1e-9), ("d", 123_456_789.0)];
        let map = numbers.map(|(name, value)| (name.to_owned(), value)).into();
        assert_eq!(metrics(&map), "a 0.0000, b -0.5000, c 1.000e-9, d 1.235e8");
        assert_eq!((count(1, "update"), count(0, "update")), ("1 update".to_owned(), "0 updates".to_owned()));
    }

    #[test]
    fn words_and_pairs() {
        assert_eq!(word(JobState::WaitingForModel), "waiting for model");
        assert_eq!(pairs(&[("a", "1\n2".to_owned()), ("long", "3".to_owned())]), "a     1\n      2\nlong  3");
        assert_eq!(deadline("soon", 0), "soon");
        assert!(deadline("2026-01-01T00:00:00Z", u64::MAX).ends_with("(past)"));
    }
}
