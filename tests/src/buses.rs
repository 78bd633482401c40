//! The same test on both buses.

use std::time::Duration;

/// What carries the event log and the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// In process, the log in the data directory.
    Embedded,
    /// A real NATS server of the test's own.
    Nats,
}

/// Longest time of one test.
const TEST_TIME_MAX: Duration = Duration::from_secs(150);

/// Runs one test to its end, or fails it while everything it holds is still alive to tell why.
pub async fn run(test: impl Future<Output = ()>) {
    let mut test = std::pin::pin!(test);
    tokio::select! {
        () = &mut test => {}
        () = tokio::time::sleep(TEST_TIME_MAX) => panic!("the test takes longer than {TEST_TIME_MAX:?}"),
    }
}

/// Makes two tests of each function: `<name>::embedded` and `<name>::nats`.
#[macro_export]
macro_rules! on_both_buses {
    ($($(#[doc = $doc:literal])* async fn $name:ident($bus:ident: $kind:ty) $body:block)*) => {$(
        $(#[doc = $doc])*
        mod $name {
            use super::*;

            async fn test($bus: $kind) $body

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn embedded() {
                $crate::run(test($crate::Bus::Embedded)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn nats() {
                $crate::run(test($crate::Bus::Nats)).await;
            }
        }
    )*};
}
