//! A NATS server that demands TLS, certificates or credentials, and what is said of each that is missing or wrong.
#![forbid(unsafe_code)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use catchment_bus::{Bus, BusError, NatsConfig};
use common::nats_server::NatsServer;
use common::{record, until};
use nkeys::KeyPair;

/// Two authorities, a server's certificate and a client's by the first, and one of a client by the second.
fn certificates(dir: &Path) {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output();
        let output = output.expect("these tests make certificates with openssl: apt-get install openssl");
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc";
    for ca in ["ca", "other-ca"] {
        openssl(&format!("req -x509 {new_key} -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.pem"));
    }
    for (name, ca, extension) in [
        ("server", "ca", "subjectAltName=IP:127.0.0.1"),
        ("elsewhere", "ca", "subjectAltName=DNS:elsewhere.example"),
        ("client", "ca", "extendedKeyUsage=clientAuth"),
        ("stranger", "other-ca", "extendedKeyUsage=clientAuth"),
    ] {
        std::fs::write(dir.join("extensions"), extension).unwrap();
        openssl(&format!("req {new_key} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA {ca}.pem -CAkey {ca}.key -CAcreateserial -days 2 -extfile extensions -out {name}.pem"
        ));
    }
}

fn server(certificate: &str, verify: bool) -> NatsServer {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let verify = if verify { "ca_file: $DIR/ca.pem, verify: true" } else { "" };
    let tls = format!("tls {{ cert_file: $DIR/{certificate}.pem, key_file: $DIR/{certificate}.key, {verify} }}");
    NatsServer::start_configured(dir, &format!("jetstream {{ store_dir: $DIR/js }}\n{tls}"))
}

fn config(server: &NatsServer, scheme: &str) -> NatsConfig {
    NatsConfig::new(format!("{scheme}://127.0.0.1:{}", server.port()))
}

fn file(server: &NatsServer, name: &str) -> Option<PathBuf> {
    Some(server.dir().join(name))
}

async fn works(config: NatsConfig) {
    let bus = Bus::nats(config).await.unwrap();
    let last = bus.log.last().await.unwrap();
    assert_eq!(bus.log.append(record(last), last).await, Ok(last + 1));
}

/// The connection is refused soon, with a text that contains all of `words`.
async fn refused(config: NatsConfig, words: &[&str]) {
    let begin = Instant::now();
    let error = Bus::nats(config).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BusError::Connect { .. } | BusError::Config(_)), "{text}");
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    assert!(begin.elapsed() < Duration::from_secs(3), "after {:?}: {text}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_tls() {
    let mut server = server("server", false);
    for scheme in ["tls", "nats"] {
        works(NatsConfig { ca: file(&server, "ca.pem"), ..config(&server, scheme) }).await;
        // The system does not know that authority.
        refused(config(&server, scheme), &["UnknownIssuer", "CA"]).await;
        let other = NatsConfig { ca: file(&server, "other-ca.pem"), ..config(&server, scheme) };
        refused(other, &["certificate", "127.0.0.1"]).await;
    }
    // It is still TLS when the connection was lost.
    let bus = Bus::nats(NatsConfig { ca: file(&server, "ca.pem"), ..config(&server, "tls") }).await.unwrap();
    server.kill();
    until("the loss is noticed", async || bus.log.last().await.is_err()).await;
    server.start_again();
    until("the log answers again", async || bus.log.last().await == Ok(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_another_name_or_without_tls() {
    let elsewhere = server("elsewhere", false);
    let other_name = NatsConfig { ca: file(&elsewhere, "ca.pem"), ..config(&elsewhere, "tls") };
    refused(other_name, &["another host"]).await;
    let plain = NatsServer::start();
    refused(config(&plain, "tls"), &["does not speak TLS"]).await;
    let with_ca = NatsConfig { ca: file(&elsewhere, "ca.pem"), ..config(&plain, "nats") };
    refused(with_ca, &["does not speak TLS"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_wants_certificates() {
    let server = server("server", true);
    let with = |cert: &str, key: &str| NatsConfig {
        ca: file(&server, "ca.pem"),
        cert: (!cert.is_empty()).then(|| server.dir().join(cert)),
        key: (!key.is_empty()).then(|| server.dir().join(key)),
        ..config(&server, "tls")
    };
    works(with("client.pem", "client.key")).await;
    refused(with("", ""), &["certificate"]).await;
    refused(with("stranger.pem", "stranger.key"), &["certificate"]).await;
    refused(with("client.pem", ""), &["key"]).await;
    refused(with("", "client.key"), &["certificate"]).await;
    refused(with("missing.pem", "client.key"), &["missing.pem", "No such file"]).await;
    refused(with("client.key", "client.key"), &["client.key", "CERTIFICATE"]).await;
    refused(with("client.pem", "client.pem"), &["client.pem", "PRIVATE KEY"]).await;
    let no_ca = NatsConfig { ca: file(&server, "client.csr"), ..config(&server, "tls") };
    refused(no_ca, &["client.csr"]).await;
}

/// Unpadded, for URLs.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        let letter = |place: usize| LETTERS[(bits >> (18 - 6 * place) & 63) as usize] as char;
        text.extend((0..=group.len()).map(letter));
    }
    text
}

fn jwt(subject: &KeyPair, name: &str, issuer: &KeyPair, nats: &str) -> String {
    let claims = format!(
        r#"{{"jti":"{name}","iat":1700000000,"iss":"{}","name":"{name}","sub":"{}","nats":{nats}}}"#,
        issuer.public_key(),
        subject.public_key()
    );
    let signed = format!("{}.{}", base64(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#), base64(claims.as_bytes()));
    let signature = base64(&issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

fn creds(jwt: &str, user: &KeyPair) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user.seed().unwrap()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_accounts() {
    let (operator, system, account) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    let limits = r#"{"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,"wildcards":true,"conn":-1,"leaf":-1,
        "mem_storage":-1,"disk_storage":-1,"streams":-1,"consumer":-1}"#;
    let account_claims = format!(r#"{{"type":"account","version":2,"limits":{limits}}}"#);
    let system_claims = r#"{"type":"account","version":2,"limits":{"subs":-1,"data":-1,"payload":-1,"imports":-1,
        "exports":-1,"wildcards":true,"conn":-1,"leaf":-1}}"#;
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start_configured(
        dir,
        &format!(
            "jetstream {{ store_dir: $DIR/js }}\noperator: {}\nsystem_account: {}\nresolver: MEMORY\n\
             resolver_preload: {{ {}: {}\n {}: {} }}",
            jwt(&operator, "operator", &operator, r#"{"type":"operator","version":2}"#),
            system.public_key(),
            system.public_key(),
            jwt(&system, "SYS", &operator, system_claims),
            account.public_key(),
            jwt(&account, "lab", &operator, &account_claims),
        ),
    );
    let user_claims = r#"{"type":"user","version":2,"subs":-1,"data":-1,"payload":-1,"pub":{},"sub":{}}"#;
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_account());
    let good = creds(&jwt(&user, "node", &account, user_claims), &user);
    for (name, text) in [
        ("good.creds", good.clone()),
        ("foreign.creds", creds(&jwt(&user, "node", &stranger, user_claims), &user)),
        ("other-key.creds", creds(&jwt(&user, "node", &account, user_claims), &KeyPair::new_user())),
        ("torn.creds", good[..good.len() / 2].to_owned()),
    ] {
        std::fs::write(server.dir().join(name), text).unwrap();
    }
    let with = |name: &str| NatsConfig { credentials: file(&server, name), ..config(&server, "nats") };
    works(with("good.creds")).await;
    refused(with("foreign.creds"), &["refuses", "foreign.creds"]).await;
    refused(with("other-key.creds"), &["refuses", "other-key.creds"]).await;
    refused(with("torn.creds"), &["torn.creds"]).await;
    refused(with("missing.creds"), &["missing.creds", "No such file"]).await;
    refused(config(&server, "nats"), &["wants credentials"]).await;
    let both = NatsConfig { url: "nats://ann:secret@127.0.0.1".to_owned(), ..with("good.creds") };
    refused(both, &["not from both"]).await;
}
