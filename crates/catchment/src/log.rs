//! The log on standard error, one line for each event, whatever clients send.
//!
//! Names of tensors, details of problems, subjects, messages of panics: much of what is logged was chosen by somebody
//! outside, and may have line ends or what moves a terminal's cursor. It is written here, in the one place that every field
//! passes, so that nobody who logs has to think of it.

use catchment_types::OneLine;
use std::error::Error;
use std::fmt::{self, Debug, Write as _};
use std::io::IsTerminal as _;
use std::panic::PanicHookInfo;
use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::{RecordFields, VisitOutput as _};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};

/// Writes to standard error from now on, also what a panic says. `RUST_LOG` chooses what, else `level`.
pub fn to_stderr(level: &str, json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let builder = builder.with_ansi(std::io::stderr().is_terminal());
    if json {
        builder.json().init()
    } else {
        builder.fmt_fields(Fields).init()
    }
    std::panic::set_hook(Box::new(log_panic));
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let said = panic.payload_as_str().unwrap_or("(no text)");
    let thread = std::thread::current();
    let (thread, at) = (thread.name().unwrap_or("unnamed"), panic.location().map(ToString::to_string));
    tracing::error!(thread, "panicked at {}: {said}", at.unwrap_or_default());
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        eprintln!("{backtrace}");
    }
}

/// Fields as usual, each value in one line.
struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut values = Values(DefaultVisitor::new(writer, true));
        fields.record(&mut values);
        values.0.finish()
    }
}

struct Values<'w>(DefaultVisitor<'w>);

impl Visit for Values<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.record_debug(field, &Shown(&|f| write!(OneLine(f), "{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            // In quotes, as Rust writes it.
            _ => self.record_debug(field, &value),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let (mut text, mut next) = (value.to_string(), value.source());
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        self.record_debug(field, &format_args!("{text}"));
    }
}

/// What a function writes.
struct Shown<'a>(&'a dyn Fn(&mut fmt::Formatter<'_>) -> fmt::Result);

impl Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0)(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(log: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let builder = tracing_subscriber::fmt().with_ansi(false).without_time().with_target(false);
        let subscriber = builder.fmt_fields(Fields).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn fields_are_written_as_ever() {
        let error = std::io::Error::other("disk");
        let text = logged(|| {
            let _span = tracing::info_span!("update", job = %"a", round = 3).entered();
            tracing::info!(code = %"layout", ready = true, why = "b c", part = 0.5, ?error, "update {}", "refused");
        });
        let expected = " INFO update{job=a round=3}: update refused code=layout ready=true why=\"b c\" part=0.5 \
                        error=Custom { kind: Other, error: \"disk\" }\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let bad = "w\n2026-01-01 INFO forged\r\u{1b}[31m\u{9b}0m\u{2028}";
        let error = std::io::Error::other(bad);
        let text = logged(|| {
            let span = tracing::info_span!("update", client = %bad, late = tracing::field::Empty).entered();
            span.record("late", tracing::field::display(bad));
            tracing::info!(detail = %bad, text = bad, debug = ?bad, "{bad}");
            tracing::info!(error = &error as &(dyn std::error::Error + 'static), bad);
        });
        assert_eq!(text.matches('\n').count(), 2, "{text}");
        assert!(!text.trim_end().contains(|c: char| c != '\n' && c.is_control() || c == '\u{2028}'), "{text:?}");
        assert_eq!(text.matches("forged").count(), 10, "{text}");
    }
}
