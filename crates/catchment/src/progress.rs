//! Progress of transfers, on standard error and only while a person watches it.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a download looks at what has arrived.
const LOOK: Duration = Duration::from_millis(100);

fn bar(length: Option<u64>, template: &str) -> ProgressBar {
    let hidden = !std::io::stderr().is_terminal();
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template(template).expect("templates are fixed").progress_chars("=> ");
    ProgressBar::with_draw_target(length, target).with_style(style)
}

/// Runs `transfer`, which sends the file at `path`, with a sign of life. How much the server has taken is not known.
pub async fn sending<T>(path: &Path, transfer: impl Future<Output = T>) -> T {
    let bar = bar(None, "{spinner} sending {msg} ({elapsed})").with_message(path.display().to_string());
    bar.enable_steady_tick(LOOK);
    let outcome = transfer.await;
    bar.finish_and_clear();
    outcome
}

/// How far something is that is counted, such as records.
pub fn counting(count: u64, what: &str) -> ProgressBar {
    let bar = bar(Some(count), "{msg} {bar:40} {human_pos}/{human_len} {per_sec}, {eta} left");
    // A walk over records may end early.
    bar.with_message(what.to_owned()).with_finish(ProgressFinish::AndClear)
}

/// Removes an unfinished file when its command is interrupted.
pub struct Unfinished(pub PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok(); // absent once the file is whole
    }
}

/// Runs `transfer`, which writes `path` through `path` with the ending `.part`, and shows how much is there.
pub async fn receiving<T>(path: &Path, length: Option<u64>, transfer: impl Future<Output = T>) -> T {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = Unfinished(PathBuf::from(part));
    let template = match length {
        Some(_) => "{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left",
        None => "{spinner} {binary_bytes} {binary_bytes_per_sec}",
    };
    let bar = bar(length, template);
    tokio::pin!(transfer);
    loop {
        tokio::select! {
            outcome = &mut transfer => {
                bar.finish_and_clear();
                return outcome;
            }
            () = tokio::time::sleep(LOOK), if !bar.is_hidden() => {
                if let Ok(metadata) = tokio::fs::metadata(&part.0).await {
                    bar.set_position(metadata.len());
                }
            }
        }
    }
}
