//! HTTP by hand, for what no well-behaved client would send.

use crate::Answer;
use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(40);

/// A connection that sends exactly what it is told.
pub struct Raw {
    stream: TcpStream,
    /// What came after the last answer.
    ahead: Vec<u8>,
}

/// The head of a PUT to `path` with these header lines.
pub fn request_head(path: &str, headers: &[(&str, &str)]) -> String {
    request_head_of("PUT", path, headers)
}

/// The head of a request.
pub fn request_head_of(method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{lines}\r\n")
}

impl Raw {
    /// Connects.
    pub async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("connect to the server");
        stream.set_nodelay(true).ok();
        Self { stream, ahead: Vec::new() }
    }

    /// Sends bytes; an error is not one of the test's, because the server may have closed already.
    pub async fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Says that nothing more will be sent, and still listens.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.ok();
    }

    /// Reads one answer. `None` when the server closes the connection instead.
    pub async fn answer(&mut self) -> Option<Answer> {
        tokio::time::timeout(ANSWER_TIME_MAX, self.read()).await.expect("the server answers or hangs up")
    }

    async fn read(&mut self) -> Option<Answer> {
        loop {
            match parse(&self.ahead) {
                Some((answer, bytes)) => {
                    self.ahead.drain(..bytes);
                    if answer.status != 100 {
                        return Some(answer);
                    }
                }
                None if self.stream.read_buf(&mut self.ahead).await.ok()? == 0 => return None,
                None => {}
            }
        }
    }

    /// Waits until the server has closed the connection.
    pub async fn closed(&mut self) {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(ANSWER_TIME_MAX, self.stream.read_to_end(&mut rest)).await;
        end.expect("the server hangs up").ok();
    }
}

/// The first answer, and how long it is.
fn parse(bytes: &[u8]) -> Option<(Answer, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).expect("a head in ASCII");
    let mut lines = head.split("\r\n");
    let status: u16 = lines.next()?.split(' ').nth(1)?.parse().expect("a status");
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').expect("a header line");
        let name: HeaderName = name.parse().expect("a header's name");
        headers.insert(name, HeaderValue::from_str(value.trim()).expect("a header's value"));
    }
    let length = headers.get("content-length").map_or(0, |v| v.to_str().expect("ASCII").parse().expect("a length"));
    let body = bytes.get(end + 4..end + 4 + length)?;
    Some((Answer { status, headers, body: Bytes::copy_from_slice(body) }, end + 4 + length))
}
