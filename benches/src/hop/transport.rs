//! How a payload goes to another process over the network: in messages of gRPC's framing, or through a NATS server.

use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Bytes of one message over TCP: what gRPC servers of federated learning send at a time.
const MESSAGE_BYTES: usize = 2 << 20;
/// A message's head in gRPC: a flag and the length.
const HEAD_BYTES: usize = 5;
/// Bytes of one NATS message: the most that a server takes unless told otherwise.
const CHUNK_BYTES: usize = 1 << 20;
const SUBJECT: &str = "bench.update";

/// Sends payloads.
pub enum Sender {
    /// Length-prefixed messages over one connection.
    Tcp(TcpStream),
    /// Published chunks.
    Nats(TcpStream),
}

impl Sender {
    /// Sends bytes and waits for nothing.
    pub fn send(&mut self, payload: &[u8]) -> Result<()> {
        match self {
            Self::Tcp(stream) => {
                for message in payload.chunks(MESSAGE_BYTES) {
                    let mut head = [0; HEAD_BYTES];
                    head[1..].copy_from_slice(&(message.len() as u32).to_be_bytes());
                    stream.write_all(&head)?;
                    stream.write_all(message)?;
                }
            }
            Self::Nats(stream) => {
                for chunk in payload.chunks(CHUNK_BYTES) {
                    stream.write_all(format!("PUB {SUBJECT} {}\r\n", chunk.len()).as_bytes())?;
                    stream.write_all(chunk)?;
                    stream.write_all(b"\r\n")?;
                }
            }
        }
        Ok(())
    }
}

/// Receives payloads, each right into its place.
pub enum Receiver {
    /// Length-prefixed messages.
    Tcp(TcpStream),
    /// A subscription.
    Nats(BufReader<TcpStream>),
}

impl Receiver {
    /// Waits until `payload` is full.
    pub fn receive(&mut self, payload: &mut [u8]) -> Result<()> {
        let mut at = 0;
        while at < payload.len() {
            match self {
                Self::Tcp(stream) => {
                    let mut head = [0; HEAD_BYTES];
                    stream.read_exact(&mut head)?;
                    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                    stream.read_exact(payload.get_mut(at..at + length).context("a message too many")?)?;
                    at += length;
                }
                Self::Nats(stream) => {
                    let Some(length) = message(stream)? else { continue };
                    stream.read_exact(payload.get_mut(at..at + length).context("a chunk too many")?)?;
                    stream.read_exact(&mut [0; 2])?;
                    at += length;
                }
            }
        }
        Ok(())
    }
}

/// Reads one line of the NATS protocol; of a message its length.
fn message(stream: &mut BufReader<TcpStream>) -> Result<Option<usize>> {
    let mut line = String::new();
    ensure!(stream.read_line(&mut line)? > 0, "the NATS server hung up");
    let line = line.trim_end();
    match line.split(' ').next() {
        Some("MSG") => Ok(Some(line.rsplit(' ').next().context("a length")?.parse()?)),
        Some("PING") => {
            stream.get_mut().write_all(b"PONG\r\n")?;
            Ok(None)
        }
        Some("-ERR") => bail!("the NATS server says {line}"),
        _ => Ok(None),
    }
}

/// Opens the receiving end: says where it can be reached, and waits for the sender.
pub fn receiver(nats: Option<&str>) -> Result<Receiver> {
    match nats {
        None => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            println!("{}", listener.local_addr()?);
            std::io::stdout().flush()?;
            let (stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            Ok(Receiver::Tcp(stream))
        }
        Some(address) => {
            let mut stream = greeted(address)?;
            stream.get_mut().write_all(format!("SUB {SUBJECT} 1\r\nPING\r\n").as_bytes())?;
            let mut line = String::new();
            while line.trim_end() != "PONG" {
                line.clear();
                ensure!(stream.read_line(&mut line)? > 0, "the NATS server hung up");
            }
            println!("{address}");
            std::io::stdout().flush()?;
            Ok(Receiver::Nats(stream))
        }
    }
}

/// Opens the sending end.
pub fn sender(address: &str, is_nats: bool) -> Result<Sender> {
    if is_nats {
        return Ok(Sender::Nats(greeted(address)?.into_inner()));
    }
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(Sender::Tcp(stream))
}

fn greeted(address: &str) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    let mut info = String::new();
    stream.read_line(&mut info)?;
    ensure!(info.starts_with("INFO"), "no NATS server: {info}");
    stream.get_mut().write_all(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\n")?;
    Ok(stream)
}

/// A NATS server of a bench's own, allowed to hold a whole update for a slow subscriber.
pub struct Nats {
    child: Child,
    /// `host:port`.
    pub address: String,
    _dir: TempDir,
}

impl Nats {
    /// Starts the one in `NATS_SERVER`, on the path or in the system's folders.
    pub fn start() -> Result<Self> {
        let dir = TempDir::new()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = dir.path().join("nats.conf");
        let text = format!("listen: \"127.0.0.1:{port}\"\nmax_pending: 2GB\nwrite_deadline: \"60s\"\n");
        std::fs::write(&config, text)?;
        let mut command = Command::new(program()?);
        command.arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("start a NATS server")?;
        let this = Self { child, address: format!("127.0.0.1:{port}"), _dir: dir };
        for _ in 0..500 {
            if greeted(&this.address).is_ok() {
                return Ok(this);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the NATS server does not start")
    }
}

fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("NATS_SERVER") {
        return Ok(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin"].map(PathBuf::from);
    let mut places = std::env::split_paths(&path).chain(system).map(|dir| dir.join("nats-server"));
    places.find(|path| path.is_file()).context("no nats-server: install one, or set NATS_SERVER")
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
