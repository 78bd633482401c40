//! Hosts of a test's own: network namespaces on one bridge, whose links can be cut, healed and spoiled.
//!
//! Everything is named after the process that made it, so that what a killed run leaves behind is found and removed by
//! the next. The subnets are from the range that is set aside for tests of networks (RFC 2544).

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

/// Subnets to choose from: 198.18.0.0/24 to 198.19.255.0/24.
const SUBNETS: u32 = 512;
/// Ways to spoil a link, the best that the kernel has: what each is called, and its calls of `tc`.
const SPOILT: [(&str, &[&str]); 3] = [
    ("netem", &["qdisc replace dev LINK root netem delay 15ms 10ms loss 3% reorder 10% 50%"]),
    // The same of what most kernels have: packets draw a class. One keeps nothing; one is narrow, so that packets queue up
    // in it for up to some ten milliseconds, and those of the first overtake them.
    (
        "classes",
        &[
            "qdisc replace dev LINK root handle 1: htb default 10",
            "class add dev LINK parent 1: classid 1:10 htb rate 100mbit quantum 1514",
            "class add dev LINK parent 1: classid 1:11 htb rate 3mbit quantum 1514",
            "class add dev LINK parent 1: classid 1:12 htb rate 1mbit quantum 1514",
            "qdisc add dev LINK parent 1:11 pfifo limit 12",
            "qdisc add dev LINK parent 1:12 bfifo limit 1",
            "filter add dev LINK parent 1: bpf bytecode DRAW",
        ],
    ),
    // So narrow that packets queue up and are dropped.
    ("narrow", &["qdisc replace dev LINK root tbf rate 12mbit burst 8k limit 16k"]),
];
/// Of a hundred packets 60 go to class 1:10, 37 to 1:11, 3 to 1:12. In classic BPF: a random number modulo 100; at least 40,
/// at least 3, or less.
const DRAW: &str = "7,32 0 0 4294963256,148 0 0 100,53 0 1 40,6 0 0 65552,53 0 1 3,6 0 0 65553,6 0 0 65554";

/// A bridge in the root namespace. The test itself is reachable on it, too.
pub struct Network {
    number: u32,
    hosts: u32,
}

/// A network namespace with one link to the bridge.
pub struct Host {
    namespace: String,
    link: String,
    address: Ipv4Addr,
}

impl Network {
    /// Makes one, or says why this machine or this user cannot.
    pub fn make() -> Result<Self, String> {
        sweep();
        let mut last = String::new();
        for step in 0..SUBNETS {
            let number = (std::process::id().wrapping_mul(7) + step) % SUBNETS;
            // The kernel takes a name once: whoever makes the bridge has the number.
            match ip(&["link", "add", &bridge(number), "type", "bridge"]) {
                Ok(_) => return Self { number, hosts: 1 }.set_up(),
                Err(error) if error.contains("File exists") => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    fn set_up(self) -> Result<Self, String> {
        let (bridge, address) = (bridge(self.number), format!("{}/24", address(self.number, 1)));
        ip(&["link", "set", &bridge, "alias", &owner(std::process::id())])?;
        ip(&["addr", "add", &address, "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        Ok(self)
    }

    /// Adds a host.
    pub fn host(&mut self, name: &str) -> Result<Host, String> {
        self.hosts += 1;
        let (number, bridge, address) = (self.number, bridge(self.number), address(self.number, self.hosts));
        let namespace = format!("{}-{number}-{name}", owner(std::process::id()));
        let host = Host { namespace, link: format!("{bridge}-{}", self.hosts), address };
        let (namespace, link) = (host.namespace.as_str(), host.link.as_str());
        ip(&["netns", "add", namespace])?;
        ip(&["link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace])?;
        ip(&["link", "set", link, "master", &bridge, "up"])?;
        ip(&["-n", namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        ip(&["-n", namespace, "link", "set", "eth0", "up"])?;
        Ok(host)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        ip(&["link", "del", &bridge(self.number)]).ok();
    }
}

impl Host {
    /// Its address on the bridge.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A command that runs `program` on this host, and ends with the thread that runs it.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, "setpriv", "--pdeathsig", "KILL"]).arg(program);
        command
    }

    /// Cuts its link: nothing arrives, nobody is told.
    pub fn cut(&self) {
        ip(&["link", "set", &self.link, "down"]).expect("cut a link");
    }

    /// Makes its link whole, as it was at first.
    pub fn heal(&self) {
        ip(&["link", "set", &self.link, "up"]).expect("heal a link");
        self.clear();
    }

    /// Lets only so much out of its link, such as `80mbit`.
    pub fn narrow(&self, rate: &str) {
        let shape = ["qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "64k", "latency", "50ms"];
        ip(&[&["netns", "exec", &self.namespace, "tc"][..], &shape].concat()).expect("make a link narrow");
    }

    /// Bytes that have left it.
    pub fn bytes_out(&self) -> u64 {
        let path = format!("/sys/class/net/{}/statistics/rx_bytes", self.link);
        let text = std::fs::read_to_string(path).expect("the link counts");
        text.trim().parse().expect("a number")
    }

    /// Makes its link a bad one, both ways: packets are lost, delayed, and overtaken by others; or, where the kernel has too
    /// little for that, lost and delayed. Says how.
    pub fn spoil(&self) -> &'static str {
        let way = SPOILT.into_iter().find(|(_, calls)| {
            self.clear();
            calls.iter().all(|call| self.shape(call).is_ok())
        });
        way.expect("spoil a link").0
    }

    /// Calls `tc` for both ends of its link.
    fn shape(&self, call: &str) -> Result<(), String> {
        let arguments = |link| {
            let word = move |word| match word {
                "LINK" => link,
                "DRAW" => DRAW,
                word => word,
            };
            call.split(' ').map(word).collect::<Vec<&str>>()
        };
        tc(&arguments(&self.link))?;
        ip(&[&["netns", "exec", &self.namespace, "tc"][..], &arguments("eth0")].concat())?;
        Ok(())
    }

    fn clear(&self) {
        self.shape("qdisc del dev LINK root").ok();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The link goes at once; with the namespace alone it would go at some time later.
        ip(&["link", "del", &self.link]).ok();
        ip(&["netns", "del", &self.namespace]).ok();
    }
}

fn bridge(number: u32) -> String {
    format!("cmt{number}")
}

fn address(number: u32, host: u32) -> Ipv4Addr {
    Ipv4Addr::new(198, 18 + (number / 256) as u8, (number % 256) as u8, host as u8)
}

fn owner(process: u32) -> String {
    format!("catchment-tests-{process}")
}

/// Removes what runs left behind that were killed.
fn sweep() {
    let is_left = |owner: &str| {
        let process = owner.strip_prefix("catchment-tests-").and_then(|rest| rest.split('-').next());
        process.is_some_and(|id| id.parse::<u32>().is_ok() && !Path::new("/proc").join(id).exists())
    };
    for line in ip(&["netns", "list"]).unwrap_or_default().lines() {
        let namespace = line.split(' ').next().unwrap_or_default();
        if is_left(namespace) {
            ip(&["netns", "del", namespace]).ok();
        }
    }
    let bridges = ip(&["-j", "link", "show", "type", "bridge"]).unwrap_or_default();
    let bridges: serde_json::Value = serde_json::from_str(&bridges).unwrap_or_default();
    for bridge in bridges.as_array().into_iter().flatten() {
        if let (Some(name), Some(owner)) = (bridge["ifname"].as_str(), bridge["ifalias"].as_str())
            && is_left(owner)
        {
            ip(&["link", "del", name]).ok();
        }
    }
}

fn ip(arguments: &[&str]) -> Result<String, String> {
    run("ip", arguments)
}

fn tc(arguments: &[&str]) -> Result<String, String> {
    run("tc", arguments)
}

/// Runs a short command to its end; the error is what it said.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stderr);
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{program} {}: {said}", arguments.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    const SENT: usize = 400;

    /// Has a host send numbers, one a packet, twenty at a time; gives those that come, in the order in which they come.
    fn received(network: &Network, host: &Host) -> Vec<usize> {
        let to = address(network.number, 1);
        let socket = UdpSocket::bind((to, 0)).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
        let port = socket.local_addr().expect("an address").port();
        let send = "printf '%400d' $i >&3; [ $((i % 20)) != 0 ] || sleep 0.01";
        let script = format!("exec 3> /dev/udp/{to}/{port}; for ((i = 1; i <= {SENT}; i++)); do {send}; done");
        let mut sender = host.command(Path::new("bash")).args(["-c", &script]).spawn().expect("bash");
        let (mut bytes, mut numbers) = ([0; 400], Vec::new());
        while let Ok(length) = socket.recv(&mut bytes) {
            let text = std::str::from_utf8(&bytes[..length]).expect("a number");
            numbers.push(text.trim().parse().expect("a number"));
        }
        sender.wait().expect("bash ends");
        numbers
    }

    #[test]
    fn a_spoiled_link_loses_packets_and_mixes_them_up() {
        let (network, host) = match Network::make().and_then(|mut network| {
            let host = network.host("spoiled")?;
            Ok((network, host))
        }) {
            Ok(made) => made,
            Err(why) => return eprintln!("SKIPPED: a link that is spoiled: {}", why.trim()),
        };
        let in_order: Vec<usize> = (1..=SENT).collect();
        assert_eq!(received(&network, &host), in_order, "a link is a good one at first");
        let how = host.spoil();
        let through = received(&network, &host);
        let overtaken = through.windows(2).filter(|pair| pair[0] > pair[1]).count();
        eprintln!("{how}: {} of {SENT} came, {overtaken} after a later one", through.len());
        assert!((SENT / 4..SENT).contains(&through.len()), "{how}: {} of {SENT} came", through.len());
        assert!(how == "narrow" || overtaken > 0, "{how}: every packet came in its place");
        host.heal();
        assert_eq!(received(&network, &host), in_order, "a link that was healed is a good one");
    }
}
