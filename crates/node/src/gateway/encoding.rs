//! Bodies that come compressed.
//!
//! They are decompressed as they arrive. Limits count the decompressed bytes, so that a small body cannot become a large
//! one unnoticed, and a zstd window has a limit of its own, because a body chooses how much memory it takes.

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::Body;
use axum::http::{HeaderMap, header};
use catchment_types::{Code, Problem};
use futures::TryStreamExt;
use std::io;
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

/// Bytes decompressed at one time.
const CHUNK_BYTES: usize = 64 << 10;
/// Largest window of a zstd body: 8 MiB, what its standard levels need.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// The body as its sender had it before it was compressed, and its length when that is declared.
///
/// # Errors
/// `unsupported_encoding`.
pub fn decoded(headers: &HeaderMap, body: Body) -> Result<(Body, Option<u64>), Problem> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let encoding = headers.get(header::CONTENT_ENCODING).map_or("identity", |value| value.to_str().unwrap_or("?"));
    let compressed = |body: Body| StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    match encoding.trim().to_ascii_lowercase().as_str() {
        "identity" | "" => Ok((body, declared)),
        "gzip" | "x-gzip" => Ok((plain(GzipDecoder::new(compressed(body))), None)),
        "zstd" => {
            let window = [DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX)];
            Ok((plain(ZstdDecoder::with_params(compressed(body), &window)), None))
        }
        other => {
            let detail = format!("Content-Encoding `{other}`: send the body plain, or with gzip or zstd");
            Err(Problem::new(Code::UnsupportedEncoding, detail))
        }
    }
}

fn plain(reader: impl AsyncRead + Send + 'static) -> Body {
    Body::from_stream(ReaderStream::with_capacity(reader, CHUNK_BYTES))
}
