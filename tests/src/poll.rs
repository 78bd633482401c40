//! Waiting for something to become true, without guessing how long it takes.

use std::time::{Duration, Instant};

/// How long a test waits for what must come. Generous: only a failing test ever waits this long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks `look` again and again until it has an answer.
///
/// # Panics
/// After [`PATIENCE`], saying `what` did not come.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = look().await {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "still not so after {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
