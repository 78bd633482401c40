//! What release 90cd469 stored is read by this one: data directories, logs, snapshots, slabs, and a round whose folding was
//! cut off. They lie in `tests/fixtures/90cd469`, as that release's own program wrote them; `written` makes them again.

mod packed;
mod read;
mod world;
mod written;

use catchment_tests::root;
use std::path::PathBuf;

/// A committed file.
fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/90cd469").join(name)
}
