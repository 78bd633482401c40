//! TLS and credentials. Every file is read and looked at before the first connection, because the client says of one
//! that is missing or of the wrong kind neither which it is nor what it should be.

use std::path::{Path, PathBuf};

use async_nats::ConnectOptions;
use async_nats::rustls::crypto::{CryptoProvider, ring};

use super::NatsConfig;
use crate::BusError;

/// What the PEM section of a private key is called.
const KEY: &str = "PRIVATE KEY";

pub(super) struct Security {
    ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    credentials: Option<Credentials>,
    has_user: bool,
}

struct Credentials {
    path: PathBuf,
    text: String,
}

impl Security {
    pub(super) async fn read(config: &NatsConfig, has_user: bool) -> Result<Self, BusError> {
        if let Some(path) = &config.ca {
            pem(path, "the CA file", "CERTIFICATE").await?;
        }
        let identity = match (&config.cert, &config.key) {
            (Some(cert), Some(key)) => {
                pem(cert, "the client's certificate", "CERTIFICATE").await?;
                pem(key, "the client's key", KEY).await?;
                Some((cert.clone(), key.clone()))
            }
            (None, None) => None,
            (Some(_), None) => return wrong("a client's certificate needs its key beside it".to_owned()),
            (None, Some(_)) => return wrong("a client's key needs its certificate beside it".to_owned()),
        };
        let credentials = match &config.credentials {
            Some(_) if has_user => {
                return wrong("credentials come from the URL or from a .creds file, not from both".to_owned());
            }
            Some(path) => {
                let text = text(path, "the credentials file").await?;
                if let Err(error) = ConnectOptions::new().credentials(&text) {
                    return wrong(format!("{} is no .creds file: {error}", path.display()));
                }
                Some(Credentials { path: path.clone(), text })
            }
            None => None,
        };
        // The TLS library asks for one cipher provider of the whole process, and panics when several are built in and
        // nobody has chosen.
        if CryptoProvider::get_default().is_none() {
            let _ = ring::default_provider().install_default();
        }
        Ok(Self { ca: config.ca.clone(), identity, credentials, has_user })
    }

    pub(super) fn apply(&self, mut options: ConnectOptions) -> Result<ConnectOptions, String> {
        if let Some(path) = &self.ca {
            options = options.add_root_certificates(path.clone()).require_tls(true);
        }
        if let Some((cert, key)) = &self.identity {
            options = options.add_client_certificate(cert.clone(), key.clone()).require_tls(true);
        }
        if let Some(Credentials { path, text }) = &self.credentials {
            options = options.credentials(text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(options)
    }

    /// What it means that the server lets this client not in.
    pub(super) fn refused(&self) -> String {
        match &self.credentials {
            Some(Credentials { path, .. }) => format!("it refuses the credentials of {}", path.display()),
            None if self.has_user => "it refuses the credentials in the URL".to_owned(),
            None => "it wants credentials: in the URL, or a .creds file".to_owned(),
        }
    }
}

/// What to do about a failure that trying again does not cure.
pub(super) fn advise(text: &str) -> Option<&'static str> {
    const ADVICE: [(&str, &str); 7] = [
        ("UnknownIssuer", "no trusted authority has signed its certificate; name the file of its CA"),
        ("NotValidForName", "its certificate is for another host; use a name that it lists"),
        ("certificate not valid for name", "its certificate is for another host; use a name that it lists"),
        ("invalid peer certificate", "its certificate does not hold"),
        ("CertificateRequired", "it wants a client's certificate; give one with its key"),
        ("InvalidContentType", "it does not speak TLS; use nats:// without certificates"),
        ("received fatal alert", "it refuses this client's certificate, or has none that suits"),
    ];
    ADVICE.iter().find(|(sign, _)| text.contains(sign)).map(|(_, advice)| *advice)
}

fn wrong<T>(reason: String) -> Result<T, BusError> {
    Err(BusError::Config(reason))
}

async fn text(path: &Path, what: &str) -> Result<String, BusError> {
    let read = tokio::fs::read_to_string(path).await;
    read.or_else(|error| wrong(format!("cannot read {what} {}: {error}", path.display())))
}

/// Checks that there is at least one such PEM section; the content is left to the TLS library.
async fn pem(path: &Path, what: &str, kind: &str) -> Result<(), BusError> {
    let text = text(path, what).await?;
    let mut labels = text.lines().filter_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    // A key's label may name its algorithm first.
    if labels.any(|label| label == kind || (kind == KEY && label.ends_with(KEY))) {
        return Ok(());
    }
    wrong(format!("{what} {} holds no PEM section of kind {kind}", path.display()))
}
