//! As much HTTP as the demo needs: one request a connection, over loopback.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;

/// The server of the demo.
pub struct Server {
    url: String,
    address: String,
}

impl Server {
    /// The server at `url`.
    pub fn new(url: &str) -> Result<Self> {
        let address = url.strip_prefix("http://").with_context(|| format!("`{url}` is no address"))?;
        Ok(Self { url: url.to_owned(), address: address.to_owned() })
    }

    /// Sends a request and returns the body of a successful answer.
    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>> {
        let mut stream = TcpStream::connect(&self.address).with_context(|| format!("connect to {}", self.url))?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n",
            self.address
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let split = answer.windows(4).position(|window| window == b"\r\n\r\n").context("read the answer's head")?;
        let head = String::from_utf8_lossy(&answer[..split]).into_owned();
        let body = dechunk(&head, &answer[split + 4..])?;
        match head.split_whitespace().nth(1) {
            Some(status) if status.starts_with('2') => Ok(body),
            _ => bail!("{method} {path}: {}", String::from_utf8_lossy(&body)),
        }
    }

    /// Gets bytes.
    pub fn bytes(&self, path: &str) -> Result<Vec<u8>> {
        self.send("GET", path, b"")
    }

    /// Gets text.
    pub fn text(&self, path: &str) -> Result<String> {
        String::from_utf8(self.bytes(path)?).context("read text")
    }

    /// Gets JSON.
    pub fn json(&self, path: &str) -> Result<Value> {
        serde_json::from_slice(&self.bytes(path)?).context("read JSON")
    }
}

fn dechunk(head: &str, body: &[u8]) -> Result<Vec<u8>> {
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return Ok(body.to_vec());
    }
    let (mut whole, mut rest) = (Vec::new(), body);
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n").context("read a chunk's length")?;
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end])?.trim(), 16)?;
        if length == 0 {
            return Ok(whole);
        }
        whole.extend_from_slice(rest.get(end + 2..end + 2 + length).context("read a chunk")?);
        rest = rest.get(end + 4 + length..).context("read on after a chunk")?;
    }
}

/// Sum of a metric over its labels.
pub fn metric_sum(text: &str, name: &str) -> f64 {
    let series = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
