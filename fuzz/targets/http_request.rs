//! Heads of requests: never a panic, and where a request ends never depends on how its bytes were cut.
#![no_main]

use bytes::BytesMut;
use catchment_ingest::{Way, classify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (cut, bytes) = input;
    let whole = end(&bytes);
    // More bytes after a complete head change nothing.
    let longer = [&bytes[..], b"GET / HTTP/1.1\r\n\r\n"].concat();
    if let Some(whole) = whole {
        assert_eq!(end(&longer), Some(whole));
    }
    // A head that is complete early was complete there.
    let part = &bytes[..usize::from(cut).min(bytes.len())];
    if let (Some(early), Some(whole)) = (end(part), whole) {
        assert_eq!(early, whole);
    }
});

/// Where the request ends, when that is known; `None` while its head is not complete.
fn end(bytes: &[u8]) -> Option<Option<u64>> {
    let mut ahead = BytesMut::from(bytes);
    match classify(&mut ahead)? {
        Way::Direct { body_bytes, .. } => {
            let head = bytes.len() - ahead.len();
            assert!(
                bytes[..head].ends_with(b"\r\n\r\n")
                    || bytes[..head].ends_with(b"\n\n")
                    || bytes[..head].ends_with(b"\n\r\n")
            );
            Some(body_bytes.checked_add(head as u64))
        }
        Way::Hyper { request_bytes } => {
            assert_eq!(ahead, bytes);
            Some(request_bytes)
        }
    }
}
