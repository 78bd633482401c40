//! How the program ends: the exit status that scripts branch on, and the message that says what to do.
//!
//! Statuses agree with those of `catchment-worker`; `catchment --help` lists them.

use catchment_client::ClientError;
use catchment_types::{FieldError, Problem, printable};
use std::process::ExitCode;

const FAILED: u8 = 1;
const UNREACHABLE: u8 = 3;
const REFUSED: u8 = 4;
const CONFIG: u8 = 64;
/// Ended by SIGINT.
pub const INTERRUPTED: u8 = 130;
/// Ended by SIGTERM.
pub const TERMINATED: u8 = 143;

/// Ends that are no failed call.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A spec file or an address does not read.
    #[error("{0}")]
    Config(String),
    /// The server did what it was asked, and the outcome is not what the caller hoped for.
    #[error("{0}")]
    Outcome(String),
    /// A log is not what it should be.
    #[error("the log is not sound: {0}")]
    Unsound(String),
    /// Whoever read standard output has had enough.
    #[error("standard output is closed")]
    ReaderGone,
}

/// Says on standard error what went wrong and gives the status.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if matches!(error.downcast_ref(), Some(Failure::ReaderGone)) {
        return ExitCode::SUCCESS; // `catchment job list | head`: what was asked for was given
    }
    eprintln!("error: {}", printable(&message(error)));
    ExitCode::from(status(error))
}

fn status(error: &anyhow::Error) -> u8 {
    match (error.downcast_ref::<Failure>(), error.downcast_ref::<ClientError>()) {
        (Some(Failure::Config(_)), _) => CONFIG,
        (Some(Failure::Outcome(_)), _) => REFUSED,
        (_, Some(ClientError::Unreachable { .. } | ClientError::Broken { .. })) => UNREACHABLE,
        (_, Some(ClientError::Problem { .. })) => REFUSED,
        _ => FAILED,
    }
}

/// The chain of what was tried and why it failed, down to the call, whose message holds its own causes.
fn message(error: &anyhow::Error) -> String {
    let mut parts = Vec::new();
    for cause in error.chain() {
        if let Some(call) = cause.downcast_ref::<ClientError>() {
            parts.push(call_message(call));
            break;
        }
        parts.push(cause.to_string());
    }
    parts.join(": ")
}

fn call_message(error: &ClientError) -> String {
    match error {
        ClientError::Unreachable { url, why } => format!(
            "no connection to {url}: {why}\n  is `catchment up` running there? --url or CATCHMENT_URL names another \
             server"
        ),
        ClientError::Status { .. } => format!("{error}\n  is this a Catchment server? --url or CATCHMENT_URL names it"),
        ClientError::Problem { problem, .. } => problem_message(problem),
        _ => error.to_string(),
    }
}

fn problem_message(problem: &Problem) -> String {
    let fields = problem.extra.get("fields").cloned().unwrap_or_default();
    let fields: Vec<FieldError> = serde_json::from_value(fields).unwrap_or_default();
    if !fields.is_empty() {
        let lines: String = fields.iter().map(|bad| format!("\n  {}: {}", field_name(bad), bad.message)).collect();
        return format!("the job spec is refused ({} {}):{lines}", problem.status, problem.code);
    }
    match next_step(problem) {
        Some(step) => format!("{problem}\n  {step}"),
        None => problem.to_string(),
    }
}

fn field_name(bad: &FieldError) -> &str {
    if bad.field.is_empty() { "(the whole spec)" } else { &bad.field }
}

/// What the person at the keyboard can do, where the server's words do not say it.
fn next_step(problem: &Problem) -> Option<String> {
    match problem.code.as_str() {
        "round_closed" => problem.extra.get("next_round").and_then(serde_json::Value::as_u64).map(|round| {
            format!("round {round} is next: train on its model (`catchment model get`) and give --round {round}")
        }),
        "exists" => Some("choose another name, or forget that job with `catchment job delete`".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};
    use catchment_types::Code;

    fn refused(problem: Problem) -> anyhow::Error {
        ClientError::Problem { problem: Box::new(problem), retry_after: None }.into()
    }

    #[test]
    fn statuses_tell_ends_apart() {
        let unreachable = || ClientError::Unreachable { url: "http://a/".to_owned(), why: "refused".to_owned() };
        assert_eq!(status(&anyhow!("x")), 1);
        assert_eq!(status(&unreachable().into()), 3);
        assert_eq!(status(&anyhow::Error::new(unreachable()).context("list jobs")), 3);
        assert_eq!(status(&refused(Problem::new(Code::NotFound, "no"))), 4);
        assert_eq!(status(&Failure::Outcome("the job failed".to_owned()).into()), 4);
        assert_eq!(status(&Failure::Config("bad".to_owned()).into()), 64);
    }

    #[test]
    fn every_bad_field_has_a_line() {
        let fields = serde_json::json!([
            {"field": "goal", "message": "0 is not from 1 to 9"}, {"field": "", "message": "not JSON"}]);
        let error = refused(Problem::new(Code::InvalidSpec, "goal: …; …").with("fields", fields));
        assert_eq!(
            message(&error),
            "the job spec is refused (422 invalid_spec):\n  goal: 0 is not from 1 to 9\n  (the whole spec): not JSON"
        );
    }

    #[test]
    fn messages_say_what_to_do() {
        let closed = refused(Problem::new(Code::RoundClosed, "round 3 is closed").with("next_round", 4));
        assert!(message(&closed).ends_with("give --round 4"), "{}", message(&closed));
        let url = "http://127.0.0.1:1/".to_owned();
        let away: Result<(), _> = Err(ClientError::Unreachable { url, why: "refused".to_owned() });
        let away = message(&away.context("ask for the job").unwrap_err());
        assert!(away.starts_with("ask for the job: no connection to http://127.0.0.1:1/: refused\n"), "{away}");
        assert!(away.contains("is `catchment up` running"));
    }

    #[test]
    fn a_file_error_names_its_cause_once() {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = anyhow::Error::from(ClientError::File { doing: "read", path: "a".into(), source });
        assert_eq!(message(&error), "read a: entity not found");
    }
}
