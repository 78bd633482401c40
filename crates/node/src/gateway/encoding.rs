//! Bodies that come compressed.
//!
//! They are decompressed as they arrive. Limits count the decompressed bytes, so that a small body cannot become a large
//! one unnoticed, and decoders share the budget of [`Buffers`](crate::buffers::Buffers), because a body chooses how much
//! memory it takes.
//!
//! A body may be several gzip members (RFC 1952, 2.2) or zstd frames (RFC 8878, 3.1), skippable ones included, one after
//! the other: that is their contents one after the other. Nothing else may follow the last, zeros neither.

use crate::buffers::{Buffer, Use};
use crate::context::Context;
use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use catchment_ingest::ZstdFrames;
use catchment_types::{Code, Problem};
use futures::{Stream, StreamExt, TryStreamExt};
use std::io;
use std::sync::Arc;
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

/// Bytes decompressed at one time.
const CHUNK_BYTES: usize = 64 << 10;
/// What a decoder takes beside its window: its tables, and what it has just read and made.
const GZIP_BYTES: u64 = 128 << 10;
const ZSTD_BYTES: u64 = 512 << 10;
/// Largest window of a zstd body: 8 MiB, what its standard levels need.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// How a connection that breaks is told from bytes that do not decode.
const BROKEN: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// The body as its sender had it before it was compressed, and its length when that is declared.
///
/// # Errors
/// `unsupported_encoding`; `no_room` for another decoder.
pub async fn decoded(context: &Arc<Context>, headers: &HeaderMap, body: Body) -> Result<(Body, Option<u64>), Problem> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let encoding = headers.get(header::CONTENT_ENCODING).map_or("identity", |value| value.to_str().unwrap_or("?"));
    match encoding.trim().to_ascii_lowercase().as_str() {
        "identity" | "" => Ok((body, declared)),
        "gzip" | "x-gzip" => {
            let buffer = context.buffers.take(context, Use::Decoder, GZIP_BYTES).await?;
            let mut decoder = GzipDecoder::new(StreamReader::new(received(body)));
            decoder.multiple_members(true);
            Ok((plain("gzip", decoder, buffer), None))
        }
        "zstd" => {
            let buffer = context.buffers.take(context, Use::Decoder, ZSTD_BYTES).await?;
            let window = [DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX)];
            let mut decoder = ZstdDecoder::with_params(StreamReader::new(followed(context.clone(), body)), &window);
            decoder.multiple_members(true);
            Ok((plain("zstd", decoder, buffer), None))
        }
        other => {
            let detail = format!("Content-Encoding `{other}`: send the body plain, or with gzip or zstd");
            Err(Problem::new(Code::UnsupportedEncoding, detail))
        }
    }
}

fn received(body: Body) -> impl Stream<Item = io::Result<Bytes>> + Send {
    body.into_data_stream().map_err(|error| io::Error::new(BROKEN, error))
}

/// The same bytes. Room for the windows that its frames ask for is taken before the decoder sees them.
fn followed(context: Arc<Context>, body: Body) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let begun = (Box::pin(received(body)), ZstdFrames::new(1 << ZSTD_WINDOW_LOG_MAX), Vec::<Buffer>::new(), 0);
    futures::stream::try_unfold(begun, move |(mut body, mut frames, mut windows, mut window)| {
        let context = context.clone();
        async move {
            let Some(chunk) = body.next().await.transpose()? else { return Ok(None) };
            frames.feed(&chunk).map_err(io::Error::other)?;
            let more = frames.window() - window;
            if more > 0 {
                windows.push(context.buffers.take(&context, Use::Decoder, more).await.map_err(io::Error::other)?);
                window = frames.window();
            }
            Ok(Some((chunk, (body, frames, windows, window))))
        }
    })
}

fn plain(name: &'static str, reader: impl AsyncRead + Send + 'static, buffer: Buffer) -> Body {
    let bytes = ReaderStream::with_capacity(reader, CHUNK_BYTES).map_err(move |error| {
        let _for_as_long = &buffer;
        explained(name, error)
    });
    Body::from_stream(bytes)
}

/// Bytes that cannot be decoded are refused for good; a body that only ended may be sent again.
fn explained(name: &str, error: io::Error) -> io::Error {
    let is_refusal = error.get_ref().is_some_and(|inner| inner.is::<Problem>());
    if is_refusal || matches!(error.kind(), BROKEN | io::ErrorKind::UnexpectedEof) {
        return error;
    }
    let detail = format!(
        "the body does not decompress: {error}; Content-Encoding says {name}, so it is one or several {name} streams, one \
         after the other, and nothing else"
    );
    io::Error::other(Problem::new(Code::InvalidSafetensors, detail))
}
