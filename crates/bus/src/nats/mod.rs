//! Log and events on a NATS server. One server may be as old as 2.9; a cluster that must survive the kill of a server
//! needs newer ones.
//!
//! The client restores a lost connection by itself, for ever, and its subscriptions with it. While
//! the connection is down every call fails at once instead of queueing up: a queue would be sent
//! later, when whoever waited has long been told otherwise.
//!
//! An acknowledged record is on the server's disk in the sense of the server's own `sync_interval`,
//! which defaults to two minutes: it survives the server's death, but not a power failure. Set
//! `jetstream { sync_interval: always }` (server 2.10), or run three replicas in different places.

mod events;
mod log;
pub(crate) mod offline;
mod patience;
mod security;
mod snapshots;
mod tail;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, PublishErrorKind, ServerAddr, Subject,
};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use tokio::time::timeout;

use crate::{Bus, BusError, Sealing};
use patience::Patience;
use security::Security;

/// How to reach a NATS server and what to call things there.
#[derive(Clone)]
pub struct NatsConfig {
    /// `nats://host:port`, several separated by commas; `nats://user:password@host` or
    /// `nats://token@host` with credentials (percent-encoded where needed). `tls://` insists on TLS;
    /// with `nats://` it is used when the server demands it, or when `ca` or `cert` is given.
    pub url: String,
    /// Certificates (PEM) of the authorities that are trusted, instead of the system's.
    pub ca: Option<PathBuf>,
    /// This client's certificate (PEM), where the server wants one. Needs `key`.
    pub cert: Option<PathBuf>,
    /// The private key (PEM) of `cert`.
    pub key: Option<PathBuf>,
    /// A `.creds` file: a user's JWT and the seed of its key. Instead of credentials in the URL.
    pub credentials: Option<PathBuf>,
    /// What the names of everything on the server begin with: the log's stream is `<prefix>_LOG`, its only subject
    /// `<prefix in lower case>.v1.log`, and events are on subjects under `<prefix in lower case>.`. Two clusters on one
    /// server differ in it, and then see nothing of each other.
    pub prefix: String,
    /// Copies of each record in a NATS cluster, 1 to 5. Used when the stream is made.
    pub replicas: usize,
    /// How long [`Bus::nats`] tries to connect and to find JetStream before it gives up. It tries once at least.
    pub connect_timeout: Duration,
    /// How long an append, a read or any other call waits for the server's answer.
    pub request_timeout: Duration,
    /// The cluster's key, and what is sealed with it. Without one, whoever the server lets in can write what counts.
    pub sealing: Option<Sealing>,
}

impl NatsConfig {
    /// The defaults: prefix `CATCHMENT`, one replica, five seconds for either timeout.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            ca: None,
            cert: None,
            key: None,
            credentials: None,
            prefix: "CATCHMENT".to_owned(),
            replicas: 1,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            sealing: None,
        }
    }
}

impl std::fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsConfig")
            .field("url", &parse(&self.url).map_or_else(|_| "(not a URL)".to_owned(), |target| target.shown))
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("credentials", &self.credentials)
            .field("prefix", &self.prefix)
            .field("replicas", &self.replicas)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("sealing", &self.sealing)
            .finish()
    }
}

/// A dead peer is noticed after two of these without an answer.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Between two attempts to restore a connection.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// How long one attempt may take with one server.
const ATTEMPT_TIME: Duration = Duration::from_secs(2);

/// A full outgoing queue holds a publisher up for this long at most.
const PUBLISH_WAIT: Duration = Duration::from_millis(250);

/// Messages between the client and a subscription's own queue, which takes them at once.
const SUBSCRIPTION_CAPACITY: usize = 1024;

/// Where to connect. Addresses and `shown` carry no credentials: the client logs addresses.
struct Target {
    addresses: Vec<ServerAddr>,
    user: Option<String>,
    password: Option<String>,
    shown: String,
}

fn parse(urls: &str) -> Result<Target, BusError> {
    let mut target = Target { addresses: vec![], user: None, password: None, shown: String::new() };
    for url in urls.split(',').map(str::trim) {
        // The text itself is not repeated in errors: it may hold a password.
        let address: ServerAddr =
            url.parse().map_err(|error| BusError::Config(format!("a NATS URL is not usable: {error}")))?;
        if !["nats", "tls"].contains(&address.scheme()) {
            let scheme = address.scheme();
            return Err(BusError::Config(format!("a NATS URL begins with nats:// or tls://, not {scheme}://")));
        }
        if address.host().is_empty() {
            return Err(BusError::Config("a NATS URL names no host".to_owned()));
        }
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        if address.has_user_pass() && target.user.is_none() {
            target.user = address.username().map(decode);
            target.password = address.password().map(decode);
        }
        let mut url = address.into_inner();
        let cleared = url.set_username("").and_then(|()| url.set_password(None));
        cleared.map_err(|()| BusError::Config("a NATS URL with credentials names no host".to_owned()))?;
        let address = ServerAddr::from_url(url).map_err(|error| BusError::Config(error.to_string()))?;
        if !target.shown.is_empty() {
            target.shown.push(',');
        }
        target.shown.push_str(address.as_url_str());
        target.addresses.push(address);
    }
    Ok(target)
}

fn check(config: &NatsConfig) -> Result<(), BusError> {
    let letter = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    if config.prefix.is_empty() || config.prefix.len() > 32 || !config.prefix.bytes().all(letter) {
        let prefix = &config.prefix;
        return Err(BusError::Config(format!("the prefix {prefix:?} is not 1 to 32 of A-Z, 0-9, - and _")));
    }
    if !(1..=5).contains(&config.replicas) {
        return Err(BusError::Config(format!("{} replicas, but NATS keeps 1 to 5", config.replicas)));
    }
    Ok(())
}

/// Connects, and makes or checks the log's stream.
pub(crate) async fn open(config: NatsConfig) -> Result<Bus, BusError> {
    check(&config)?;
    let target = parse(&config.url)?;
    let security = Security::read(&config, target.user.is_some()).await?;
    let url = target.shown.clone();
    let client = connect(&target, &config, &security).await?;
    let version = client.server_info().version;
    if config.replicas > 1 && !keeps_what_it_confirmed(&version) {
        tracing::warn!(
            version,
            "a cluster of NATS servers before 2.10 may lose acknowledged records when one of them is killed: use newer ones"
        );
    }
    let log = log::NatsLog::open(client.clone(), &config, &url).await?;
    let prefix = format!("{}.", config.prefix.to_ascii_lowercase());
    let events = events::NatsEvents { client, prefix, url, request_timeout: config.request_timeout };
    let bus = Bus { log: Arc::new(log), events: Arc::new(events) };
    Ok(match &config.sealing {
        Some(sealing) => sealing.anew().around(bus),
        None => bus,
    })
}

/// Whether copies of a stream on servers of this version survive the kill of one. Seen to fail in one run of five with
/// 2.9.10, never with 2.15.1: a copy came back with less than it had confirmed, became the leader, and gave acknowledged positions to other records.
fn keeps_what_it_confirmed(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    numbers.next().zip(numbers.next()).is_some_and(|version| version >= (2, 10))
}

fn options(target: &Target, config: &NatsConfig, security: &Security) -> Result<ConnectOptions, String> {
    let url = target.shown.clone();
    let options = ConnectOptions::new()
        .name("catchment")
        .connection_timeout(ATTEMPT_TIME)
        .request_timeout(Some(config.request_timeout))
        .ping_interval(PING_INTERVAL)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .reconnect_delay_callback(|attempts| if attempts <= 1 { Duration::ZERO } else { RETRY_DELAY })
        .event_callback(move |event| {
            match event {
                Event::Connected => tracing::info!(%url, "connected to NATS"),
                // The client was let go of.
                Event::Closed => tracing::debug!(%url, "the connection to NATS is closed"),
                Event::Disconnected => tracing::warn!(%url, "lost the connection to NATS, trying again"),
                event => tracing::warn!(%url, %event, "NATS"),
            }
            std::future::ready(())
        });
    let options = security.apply(options)?;
    Ok(match (&target.user, &target.password) {
        (Some(user), Some(password)) => options.user_and_password(user.clone(), password.clone()),
        (Some(token), None) => options.token(token.clone()),
        _ => options,
    })
}

/// Tries until the timeout: a server may be starting beside this process.
async fn connect(target: &Target, config: &NatsConfig, security: &Security) -> Result<Client, BusError> {
    let failed = |reason: String| BusError::Connect { url: target.shown.clone(), reason };
    let mut patience = Patience::new(config.connect_timeout);
    loop {
        let options = options(target, config, security).map_err(failed)?;
        let time = ATTEMPT_TIME * u32::try_from(target.addresses.len()).unwrap_or(u32::MAX);
        let reason = match timeout(time, options.connect(target.addresses.as_slice())).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) => passing(&error, security).map_err(failed)?,
            Err(_) => "no answer".to_owned(),
        };
        if !patience.pause(&target.shown, &reason).await {
            return Err(failed(format!("{reason}; start one (nats-server -js) or correct the URL")));
        }
    }
}

/// Why an attempt failed that another one may cure; an error for the others.
fn passing(error: &ConnectError, security: &Security) -> Result<String, String> {
    let text = with_sources(error);
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => Err(security.refused()),
        kind => match security::advise(&text) {
            Some(advice) => Err(format!("{text}: {advice}")),
            None if kind == ConnectErrorKind::Tls => Err(text),
            None => Ok(text),
        },
    }
}

/// An error and what is behind it, once each.
fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = error.source();
    }
    text
}

fn is_connected(client: &Client) -> bool {
    client.connection_state() == State::Connected
}

/// Hands a message to the client, which sends it; waits for a full queue only shortly.
pub(crate) async fn publish(client: &Client, subject: Subject, payload: Bytes) -> Result<(), BusError> {
    let bytes = payload.len();
    match tokio::time::timeout(PUBLISH_WAIT, client.publish(subject, payload)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
            Err(BusError::TooLarge { bytes, limit_bytes: client.max_payload() })
        }
        Ok(Err(error)) => Err(BusError::Client(with_sources(&error))),
        Err(_) => Err(BusError::Client("the outgoing queue is full".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_from_the_url_and_are_shown_nowhere() {
        let target = parse("nats://us%40er:p%3Ass@one:4222, nats://two").unwrap();
        assert_eq!(target.user.as_deref(), Some("us@er"));
        assert_eq!(target.password.as_deref(), Some("p:ss"));
        assert_eq!(target.shown, "nats://one:4222,nats://two");
        assert_eq!(target.addresses.len(), 2);
        let config = NatsConfig::new("nats://ann:secret@host");
        assert!(!format!("{config:?}").contains("secret"));
        let target = parse("nats://t0ken@host").unwrap();
        assert_eq!((target.user.as_deref(), target.password), (Some("t0ken"), None));
        assert_eq!(parse("localhost:4222").unwrap().shown, "nats://localhost:4222");
    }

    #[test]
    fn old_clusters_are_known_by_their_version() {
        for (version, keeps) in
            [("2.9.10", false), ("2.10.0", true), ("2.15.1-beta", true), ("3.0.0", true), ("1.4", false), ("", false)]
        {
            assert_eq!(keeps_what_it_confirmed(version), keeps, "{version}");
        }
    }

    #[test]
    fn a_wrong_configuration_is_named() {
        for url in ["", "ws://host", "http://host", "nats://", "nats://user:pw@", "nats://h:99999"] {
            let error = parse(url).err().map(|error| error.to_string());
            assert!(error.is_some_and(|error| !error.contains("pw")), "{url}");
        }
        for prefix in ["", "lower", "A.B", "A B", "A*", &"A".repeat(33)] {
            let config = NatsConfig { prefix: prefix.to_owned(), ..NatsConfig::new("nats://h") };
            assert!(check(&config).is_err(), "{prefix}");
        }
        assert!(check(&NatsConfig { replicas: 0, ..NatsConfig::new("nats://h") }).is_err());
        assert!(check(&NatsConfig { replicas: 6, ..NatsConfig::new("nats://h") }).is_err());
        assert!(check(&NatsConfig::new("nats://h")).is_ok());
    }
}
