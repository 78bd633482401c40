//! What the demo runs: everything in one process, or a cluster of nodes and coordinators on NATS.

use super::programs::{Program, Usage, free_port, release_binary, wait_for_port};
use crate::setup::Setup;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a process may take to be ready.
const READY_TIME: Duration = Duration::from_secs(60);

/// The demo's folder of shared memory, removed at its end.
struct SharedMemory(PathBuf);

impl Drop for SharedMemory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A process that takes updates.
struct Server {
    name: String,
    command: Vec<String>,
    program: Program,
    url: String,
}

/// The processes of the platform. They end in this order.
pub struct Platform {
    servers: Vec<Server>,
    coordinators: Vec<Program>,
    dir: PathBuf,
    _nats: Option<Program>,
    _memory: SharedMemory,
}

impl Platform {
    /// Everything in one process, its event log embedded or on NATS.
    pub fn one(dir: &Path, on_nats: bool, runners: u32) -> Result<Self> {
        let mut platform = Self::empty(dir);
        let nats = on_nats.then(|| platform.start_nats()).transpose()?;
        let mut command = vec!["up".to_owned(), "--runners".to_owned(), runners.to_string()];
        command.extend(nats.map(|url| ["--nats".to_owned(), url]).into_iter().flatten());
        platform.start_server("catchment", command, 0)?;
        Ok(platform)
    }

    /// So many nodes, and two coordinators.
    pub fn cluster(dir: &Path, nodes: usize) -> Result<Self> {
        let mut platform = Self::empty(dir);
        let nats = platform.start_nats()?;
        for number in 1..=2 {
            let command = ["coordinator", "--nats", &nats, "--listen", "127.0.0.1:0"].map(str::to_owned);
            let name = format!("coordinator-{number}");
            let program = Program::start(&name, &release_binary("catchment")?, command, dir)?;
            program.ready_line(READY_TIME)?;
            platform.coordinators.push(program);
        }
        for number in 1..=nodes {
            let name = format!("node-{number}");
            let command = ["node", "--nats", &nats, "--name", &name, "--slab-mib", "256"].map(str::to_owned);
            platform.start_server(&name, command.to_vec(), free_port()?)?;
        }
        Ok(platform)
    }

    fn empty(dir: &Path) -> Self {
        let memory = SharedMemory(PathBuf::from(format!("/dev/shm/catchment-demo-{}", std::process::id())));
        Self { servers: Vec::new(), coordinators: Vec::new(), dir: dir.to_owned(), _nats: None, _memory: memory }
    }

    fn start_nats(&mut self) -> Result<String> {
        let port = free_port()?;
        let server = Setup::this().nats_server()?;
        let arguments = ["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"].map(str::to_owned);
        let store = self.dir.join("nats").display().to_string();
        let program = Program::start("nats-server", &server, arguments.into_iter().chain([store]), &self.dir)?;
        wait_for_port(port, Duration::from_secs(20)).context("start nats-server")?;
        self._nats = Some(program);
        Ok(format!("nats://127.0.0.1:{port}"))
    }

    fn start_server(&mut self, name: &str, mut command: Vec<String>, port: u16) -> Result<()> {
        let slabs = self._memory.0.join(name).display().to_string();
        let data = self.dir.join(format!("data-{name}")).display().to_string();
        let listen = format!("127.0.0.1:{port}");
        command.extend(["--listen", &listen, "--data", &data, "--slabs", &slabs].map(str::to_owned));
        let program = Program::start(name, &release_binary("catchment")?, command.clone(), &self.dir)?;
        let url = program.ready_line(READY_TIME)?;
        self.servers.push(Server { name: name.to_owned(), command, program, url });
        Ok(())
    }

    /// Where gateways are.
    pub fn urls(&self) -> Vec<&str> {
        self.servers.iter().map(|server| server.url.as_str()).collect()
    }

    /// Ends the last node as `kill -9` does and starts it again with what it left. Gives its name.
    pub fn kill_a_node(&mut self) -> Result<String> {
        let dir = self.dir.clone();
        let server = self.servers.last_mut().context("there is a node")?;
        server.program.kill();
        server.program = Program::start(&server.name, &release_binary("catchment")?, server.command.clone(), &dir)?;
        server.program.ready_line(READY_TIME)?;
        Ok(server.name.clone())
    }

    /// Ends a coordinator as `kill -9` does, for good. Gives its name.
    pub fn kill_a_coordinator(&mut self) -> Option<String> {
        self.coordinators.pop().map(|program| program.name().to_owned())
    }

    /// What all servers have used: CPU time together, and the memory of the largest.
    pub fn usage(&self) -> Result<Usage> {
        let programs = self.servers.iter().map(|server| &server.program).chain(&self.coordinators);
        let mut all = Usage { cpu_seconds: 0.0, peak_bytes: 0 };
        for program in programs {
            let Usage { cpu_seconds, peak_bytes } = program.usage()?;
            all = Usage { cpu_seconds: all.cpu_seconds + cpu_seconds, peak_bytes: all.peak_bytes.max(peak_bytes) };
        }
        Ok(all)
    }

    /// Asks everything to stop and waits.
    pub fn stop(self) -> Result<()> {
        self.servers.into_iter().try_for_each(|server| server.program.stop())?;
        self.coordinators.into_iter().try_for_each(Program::stop)
    }
}
