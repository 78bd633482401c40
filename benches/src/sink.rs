//! The machine's own ceiling: a server that reads bodies and forgets them, or has the kernel send one file. It does
//! nothing else, so no server can be much faster.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// The server process: says its address, then serves, one thread a connection.
pub fn child(file: Option<&Path>) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let file = file.map(File::open).transpose()?.map(Arc::new);
    for stream in listener.incoming() {
        let (stream, file) = (stream?, file.clone());
        std::thread::spawn(move || serve(stream, file.as_deref()));
    }
    Ok(())
}

fn serve(mut stream: TcpStream, file: Option<&File>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 1 << 20];
    let mut ahead = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = ahead.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            let taken = stream.read(&mut buffer)?;
            if taken == 0 {
                return Ok(());
            }
            ahead.extend_from_slice(&buffer[..taken]);
        };
        let head = String::from_utf8_lossy(&ahead[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let mut left: u64 = length.map_or(Ok(0), |length| length.trim().parse())?;
        let body = ahead.split_off(end);
        left -= body.len() as u64;
        while left > 0 {
            let taken = stream.read(&mut buffer)?;
            if taken == 0 {
                return Ok(());
            }
            left -= taken as u64;
        }
        ahead.clear();
        match file {
            None => stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}")?,
            Some(file) => {
                let length = file.metadata()?.len();
                stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes())?;
                let mut offset = 0;
                while offset < length {
                    let left = (length - offset) as usize;
                    rustix::fs::sendfile(&stream, file, Some(&mut offset), left)?;
                }
            }
        }
    }
}

/// A sink process.
pub struct Sink {
    child: Child,
    /// `host:port`.
    pub address: String,
}

impl Sink {
    /// Starts one.
    pub fn start(file: Option<&Path>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("sink").stdout(Stdio::piped());
        if let Some(file) = file {
            command.arg("--file").arg(file);
        }
        let mut child = command.spawn().context("start a sink")?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut address)?;
        Ok(Self { child, address: address.trim().to_owned() })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
