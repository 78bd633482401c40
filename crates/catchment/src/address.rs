//! Addresses to listen on and to be reached at, as people write them.

use anyhow::{Context as _, Result, bail};
use catchment_fleet::is_address;
use std::net::SocketAddr;
use std::str::FromStr;
use tokio::net::{TcpListener, lookup_host};

/// Where to listen: `host:port`, the host an address or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen(String);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.parse::<SocketAddr>().is_ok() {
            return Ok(Self(text.to_owned()));
        }
        if let Some((_, rest)) = text.split_once("://") {
            let rest = rest.trim_end_matches('/');
            return Err(format!("an address to listen on has no scheme: {rest}"));
        }
        let is_port = |port: &str| port.parse::<u16>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit());
        match text.rsplit_once(':') {
            // Everybody who can reach this machine may then do everything, so nobody gets that by leaving something out.
            Some(("", port)) if is_port(port) => Err(which(port)),
            None if is_port(text) => Err(which(text)),
            Some((host, port)) if is_port(port) && is_host(host) => Ok(Self(text.to_owned())),
            None if is_host(text) => Err(format!("the port is missing, as in {text}:7070")),
            _ => Err("expected host:port, like 127.0.0.1:7070, [::1]:7070 or localhost:7070".to_owned()),
        }
    }
}

/// What somebody may mean who names only a port.
fn which(port: &str) -> String {
    format!("which address? 127.0.0.1:{port} serves this machine only, 0.0.0.0:{port} everybody who can reach it")
}

/// Whether this may be a host's name.
fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    text.len() <= 253 && text.trim_end_matches('.').split('.').all(is_label)
}

impl Listen {
    /// Listens there. Of a name's addresses the first of IPv4 is taken, or the first where there is none.
    pub async fn bind(&self) -> Result<TcpListener> {
        let Self(text) = self;
        let found: Vec<SocketAddr> =
            lookup_host(text.as_str()).await.with_context(|| format!("find the address of {text}"))?.collect();
        let Some(address) = found.iter().find(|address| address.is_ipv4()).or(found.first()) else {
            bail!("{text} has no address");
        };
        TcpListener::bind(address).await.with_context(|| match address.to_string() {
            address if address == *text => format!("listen on {text}"),
            address => format!("listen on {text}, which is {address}"),
        })
    }
}

/// Where others reach a node: a URL, or `host:port` of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertised(pub String);

impl FromStr for Advertised {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text.trim_end_matches('/');
        let rest = match bare.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => {
                return Err(format!("nodes speak http, not {scheme}: an address is like http://10.0.0.7:7070"));
            }
            None => bare,
        };
        if rest.is_empty() || rest.starts_with(':') || rest.parse::<u16>().is_ok() {
            return Err("the host is missing: an address that others reach is like http://10.0.0.7:7070".to_owned());
        }
        let url = format!("http://{rest}");
        if !is_address(&url) {
            return Err(format!("{url} is not an address of a node: one is like http://10.0.0.7:7070"));
        }
        Ok(Self(url))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_and_addresses_are_listened_on() {
        for text in ["127.0.0.1:0", "localhost:0"] {
            let bound = text.parse::<Listen>().unwrap().bind().await.unwrap().local_addr().unwrap();
            assert_eq!(bound.ip().to_string(), "127.0.0.1", "{text}");
        }
        for text in ["[::1]:7070", "0.0.0.0:7070", "node-1.example.com:7070", "my_host:0"] {
            assert!(text.parse::<Listen>().is_ok(), "{text}");
        }
        let error = "nosuch.invalid:0".parse::<Listen>().unwrap().bind().await.unwrap_err();
        assert!(error.to_string().contains("nosuch.invalid:0"), "{error}");
    }

    #[test]
    fn what_is_no_address_is_told_what_would_be() {
        for (text, says) in [
            (":7070", "0.0.0.0:7070"),
            ("7070", "127.0.0.1:7070"),
            ("localhost", "localhost:7070"),
            ("127.0.0.1", "127.0.0.1:7070"),
            ("http://127.0.0.1:7070/", "no scheme: 127.0.0.1:7070"),
            ("::1:7070", "[::1]:7070"),
            ("localhost:http", "host:port"),
            ("localhost:70707", "host:port"),
            ("localhost:+70", "host:port"),
            ("", "host:port"),
            (":", "host:port"),
            ("a b:7070", "host:port"),
        ] {
            let error = text.parse::<Listen>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn an_advertised_address_may_leave_its_scheme_out() {
        for (text, url) in [
            ("http://10.0.0.7:7070/", "http://10.0.0.7:7070"),
            ("10.0.0.7:7070", "http://10.0.0.7:7070"),
            ("node-1.example.com", "http://node-1.example.com"),
            ("[fd00::7]:7070", "http://[fd00::7]:7070"),
        ] {
            assert_eq!(text.parse::<Advertised>().unwrap().0, url);
        }
        for (text, says) in [
            (":7070", "host"),
            ("7070", "host"),
            ("https://a:7070", "not https"),
            ("", "host"),
            // Others would not hear it.
            ("http://me:secret@a:7070", "not an address"),
            ("http://a:7070/?b", "not an address"),
        ] {
            let error = text.parse::<Advertised>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
