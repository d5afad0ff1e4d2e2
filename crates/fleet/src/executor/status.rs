//! How an executor is doing, and the socket that tells it (ST-1, ST-2, EN-11).
//!
//! Whoever connects to the socket is sent one JSON document ([`Status`]) and the connection is closed, so
//! that `nc -U` reads it too.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::{CertificateFacts, Explained, Health, ProviderKind, Published};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::Remote;
use super::link::Link;
use crate::socket::PrivateSocket;

/// A client of the status socket has this long to take the document.
const WRITE_WITHIN: Duration = Duration::from_secs(5);
/// Most bytes of a status document.
const MAX_STATUS_BYTES: u64 = 4 * 1024 * 1024;

/// How an executor is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Label for people.
    pub name: String,
    /// Whether a session is up.
    pub enrolled: bool,
    /// Why not, when it is not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why_not: Option<String>,
    /// Who the access point takes us for; kept from the last session.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub executor_id: Option<String>,
    /// Address of the access point as it was given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub access_point: Option<String>,
    /// Where that led.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub access_point_address: Option<String>,
    /// Who the access point proved to be.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub access_point_id: Option<String>,
    /// Identifies the session in logs of both sides.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub session_id: Option<String>,
    /// Where the identity comes from.
    pub provider: ProviderKind,
    /// Since when we are enrolled without a break; a rotation is none.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub since: Option<OffsetDateTime>,
    /// Heartbeats of the session.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub heartbeats: Option<Heartbeats>,
    /// The access point's clock less ours at the last welcome, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clock_skew_ms: Option<i64>,
    /// The certificate in use.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub certificate: Option<CertificateStatus>,
    /// When the provider expects the next identity, where it knows.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub next_renewal: Option<OffsetDateTime>,
    /// How often a new identity replaced an old one.
    pub rotations: u64,
    /// The last failure of connection or session.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_error: Option<Problem>,
    /// What keeps the identity from being renewed, until it is mended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub identity_error: Option<Problem>,
    /// What will end the renewals of the identity unless somebody acts in time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub identity_warning: Option<Explained>,
    /// When the next attempt to connect is made.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub next_attempt: Option<OffsetDateTime>,
    /// Process id.
    pub pid: u32,
    /// Version of this software.
    pub version: String,
}

/// Heartbeats of a session.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Heartbeats {
    /// When the access point was last heard.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub last: Option<OffsetDateTime>,
    /// Last round trip in microseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub round_trip_us: Option<u64>,
    /// Milliseconds between two.
    pub interval_ms: u64,
    /// How many were sent.
    pub sent: u64,
}

/// The certificate in use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The leaf.
    pub leaf: CertificateFacts,
    /// What is presented above the leaf.
    pub intermediates: Vec<CertificateFacts>,
    /// What is trusted, with the trust domain that each root speaks for, if it is bound to one.
    pub trust_roots: Vec<(Option<String>, CertificateFacts)>,
    /// The chain as PEM, leaf first. No private key.
    pub pem: String,
    /// Generation of the identity.
    pub generation: u64,
}

/// A failure and when it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What and why.
    pub error: Explained,
}

impl Status {
    /// Before anything happened: the executor `name` has an identity of `provider` to wait for, and is to dial
    /// `remote` first.
    pub fn starting(name: &str, remote: Option<&Remote>, provider: ProviderKind) -> Self {
        Self {
            name: name.to_owned(),
            enrolled: false,
            why_not: Some("connecting".to_owned()),
            executor_id: None,
            access_point: remote.map(ToString::to_string),
            access_point_address: None,
            access_point_id: None,
            session_id: None,
            provider,
            since: None,
            heartbeats: None,
            clock_skew_ms: None,
            certificate: None,
            next_renewal: None,
            rotations: 0,
            last_error: None,
            identity_error: None,
            identity_warning: None,
            next_attempt: None,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// There is no identity yet because of `error`; the provider is asked again after `retry_in`.
    pub fn no_identity(&mut self, error: Explained, now: SystemTime, retry_in: Duration) {
        self.why_not = Some(format!("no identity yet: {error}"));
        self.next_attempt = Some((now + retry_in).into());
        self.identity_error = Some(Problem {
            at: now.into(),
            error,
        });
    }

    pub(super) fn enrolled(&mut self, link: &Link, now: SystemTime) {
        self.since = Some(now.into());
        self.moved(link, now);
    }

    /// The session is another; the enrollment goes on.
    pub(super) fn moved(&mut self, link: &Link, now: SystemTime) {
        self.enrolled = true;
        self.why_not = None;
        self.next_attempt = None;
        self.executor_id = Some(link.welcome.executor_id.clone());
        self.access_point = Some(link.target.to_string());
        self.access_point_address = Some(link.remote.to_string());
        self.access_point_id = Some(link.server.name().to_string());
        self.session_id = Some(link.welcome.session_id.clone());
        self.clock_skew_ms = Some(link.clock_skew_ms);
        self.heard(link, now);
    }

    pub(super) fn heard(&mut self, link: &Link, now: SystemTime) {
        let micros = |trip: Duration| u64::try_from(trip.as_micros()).unwrap_or(u64::MAX);
        self.heartbeats = Some(Heartbeats {
            last: Some(now.into()),
            round_trip_us: link.round_trip.map(micros),
            interval_ms: u64::try_from(link.interval.as_millis()).unwrap_or(u64::MAX),
            sent: link.heartbeats,
        });
    }

    pub(super) fn draining(&mut self) {
        self.enrolled = false;
        self.since = None;
        self.why_not = Some("the access point is draining".to_owned());
    }

    /// `retry` is the wait before the next attempt. A failure to move to a new certificate leaves the
    /// session as it is and comes with `None`.
    pub(super) fn failed(&mut self, error: Explained, now: SystemTime, retry: Option<Duration>) {
        if let Some(retry) = retry {
            self.enrolled = false;
            self.since = None;
            self.session_id = None;
            self.heartbeats = None;
            self.why_not = Some(error.text.clone());
            self.next_attempt = Some((now + retry).into());
        }
        self.last_error = Some(Problem {
            at: now.into(),
            error,
        });
    }

    pub(super) fn identity(&mut self, health: &Health, published: &Published) {
        self.rotations = health.rotations;
        self.next_renewal = health.next_renewal.map(Into::into);
        self.identity_warning.clone_from(&health.warning);
        self.identity_error = health.last_error.as_ref().map(|failure| Problem {
            at: failure.at.into(),
            error: failure.explained.clone(),
        });
        let current = self
            .certificate
            .as_ref()
            .map(|certificate| certificate.generation);
        if current != Some(published.generation) {
            self.certificate = Some(CertificateStatus::of(published));
        }
    }
}

impl CertificateStatus {
    /// What `published` presents and trusts.
    pub fn of(published: &Published) -> Self {
        let identity = &published.identity;
        let facts =
            |der: &rustls_pki_types::CertificateDer<'_>| CertificateFacts::from_der(der).ok();
        let bundles = identity.bundles();
        let unscoped = bundles.unscoped.iter().map(|root| (None, root));
        let scoped = bundles
            .domains
            .iter()
            .flat_map(|(domain, roots)| roots.iter().map(move |root| (Some(domain), root)));
        Self {
            leaf: identity.leaf().clone(),
            intermediates: identity.chain().iter().skip(1).filter_map(facts).collect(),
            trust_roots: unscoped
                .chain(scoped)
                .filter_map(|(domain, root)| Some((domain.map(ToString::to_string), facts(root)?)))
                .collect(),
            pem: identity
                .chain()
                .iter()
                .map(|der| ah_identity_provider::pem::certificate_pem(der))
                .collect(),
            generation: published.generation,
        }
    }
}

/// The bound status socket; the file goes when this does.
pub struct StatusSocket(PrivateSocket);

impl StatusSocket {
    /// Takes `path`, over from a process that left it behind too; mode 0600.
    pub fn bind(path: &Path) -> Result<Self, Explained> {
        let who = "an executor of this name";
        PrivateSocket::bind(path, "status socket", "--status-socket", who).map(Self)
    }
}

/// Answers everybody who connects to `socket`, for as long as it is polled.
pub async fn serve_status(
    mut socket: StatusSocket,
    status: watch::Receiver<Status>,
) -> io::Result<()> {
    let listener = socket.0.take_listener()?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let document = Arc::new(status.borrow().clone());
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(WRITE_WITHIN, write(stream, &document)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "status socket cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn write(mut stream: UnixStream, status: &Status) -> io::Result<()> {
    let mut document = serde_json::to_vec(status)?;
    document.push(b'\n');
    stream.write_all(&document).await?;
    stream.shutdown().await
}

/// Asks the executor whose status socket is `path`. `NotFound` and `ConnectionRefused` mean that there is
/// no such process.
pub async fn read_status(path: &Path) -> io::Result<Status> {
    let stream = UnixStream::connect(path).await?;
    let mut document = Vec::new();
    stream
        .take(MAX_STATUS_BYTES)
        .read_to_end(&mut document)
        .await?;
    Ok(serde_json::from_slice(&document)?)
}
