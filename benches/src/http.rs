//! Just enough HTTP/1.1 to put load on a server without taking CPU from it.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::io::{Cursor, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

/// A connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// When the last call's last byte had been given to the kernel.
    pub last_byte: Option<Instant>,
}

impl Connection {
    /// Connects to `host:port`.
    pub fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 1 << 20], last_byte: None })
    }

    /// One call; the answer's status and body.
    pub fn call(&mut self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        self.send(method, path, body.len() as u64, |to| Ok(to.write_all(body)?))
    }

    /// The same with a body of so many bytes that is written as it goes.
    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        bytes: u64,
        write: impl FnOnce(&mut TcpStream) -> Result<()>,
    ) -> Result<(u16, Vec<u8>)> {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {bytes}\r\n\r\n");
        self.stream.write_all(head.as_bytes())?;
        let written = write(&mut self.stream);
        self.last_byte = Some(Instant::now());
        // Whoever does not take all of a body says why.
        let answered = self.head();
        let (status, length, mut read) = match written {
            Ok(()) => answered?,
            Err(error) => answered.map_err(|_| error)?,
        };
        while (read.len() as u64) < length {
            let taken = self.stream.read(&mut self.buffer)?;
            if taken == 0 {
                bail!("the server hung up");
            }
            read.extend_from_slice(&self.buffer[..taken]);
        }
        Ok((status, read))
    }

    /// A call that must succeed with JSON.
    pub fn json(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Value> {
        let (status, answer) = self.call(method, path, body)?;
        if !(200..300).contains(&status) {
            bail!("{method} {path}: {status} {}", String::from_utf8_lossy(&answer));
        }
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Asks for something or a range of it: the status, how long the body is, and the body, to be read to its end before
    /// the next call.
    pub fn get(&mut self, path: &str, range: Option<&str>) -> Result<(u16, u64, impl Read)> {
        let range = range.map(|range| format!("range: {range}\r\n")).unwrap_or_default();
        self.stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: bench\r\n{range}\r\n").as_bytes())?;
        let (status, length, read) = self.head()?;
        let left = length - read.len() as u64;
        Ok((status, length, Cursor::new(read).chain((&self.stream).take(left))))
    }

    /// Fetches and forgets; the number of bytes.
    pub fn fetch(&mut self, path: &str) -> Result<u64> {
        self.stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n").as_bytes())?;
        let (status, length, read) = self.head()?;
        if status != 200 {
            bail!("GET {path}: {status}");
        }
        let mut left = length - read.len() as u64;
        while left > 0 {
            let taken = self.stream.read(&mut self.buffer)?;
            if taken == 0 {
                bail!("the server hung up");
            }
            left -= taken as u64;
        }
        Ok(length)
    }

    /// Status, length of the body, and what came of it with the head.
    fn head(&mut self) -> Result<(u16, u64, Vec<u8>)> {
        let mut read = Vec::new();
        loop {
            let taken = self.stream.read(&mut self.buffer)?;
            if taken == 0 {
                bail!("the server hung up");
            }
            read.extend_from_slice(&self.buffer[..taken]);
            if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
                let status = head.get(9..12).and_then(|code| code.parse().ok()).context("a status")?;
                let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
                let length = length.map_or(Ok(0), |length| length.trim().parse())?;
                return Ok((status, length, read.split_off(end + 4)));
            }
        }
    }
}
