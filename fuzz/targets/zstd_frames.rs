//! Frames of a zstd body: never a panic, and what is found never depends on how the bytes were cut.
#![no_main]

use catchment_ingest::ZstdFrames;
use libfuzzer_sys::fuzz_target;

const WINDOW_MAX: u64 = 8 << 20;

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (step, body) = input;
    let whole = follow(&body, body.len().max(1));
    assert_eq!(whole, follow(&body, usize::from(step).max(1)));
    assert_eq!(whole, follow(&body, 1));
    let Some((is_between, window)) = whole else { return };
    assert!(window <= WINDOW_MAX);
    // Another body after a whole one is the two of them.
    if is_between {
        let twice = [&body[..], &body].concat();
        assert_eq!(follow(&twice, usize::from(step).max(1)), Some((true, window)));
    }
});

/// Whether the body may end here, and its largest window; `None` for one that is refused.
fn follow(body: &[u8], step: usize) -> Option<(bool, u64)> {
    let mut frames = ZstdFrames::new(WINDOW_MAX);
    body.chunks(step).try_for_each(|chunk| frames.feed(chunk)).ok()?;
    Some((frames.is_between(), frames.window()))
}
