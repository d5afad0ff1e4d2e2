//! Connections to Vault: TCP, and TLS with the roots and the client certificate of the settings (VA-8).

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use rustls::crypto::aws_lc_rs;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::config::{VaultAddress, VaultTls};
use super::read::{self, Reading};
use crate::{Explained, pem};

/// A connection's bytes both ways.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Opens connections to Vault. The network, or in tests a Vault of their own.
pub trait Dial: fmt::Debug + Send + Sync + 'static {
    /// A new connection to `address`.
    fn dial<'a>(
        &'a self,
        address: &'a VaultAddress,
    ) -> BoxFuture<'a, Result<Box<dyn Connection>, DialError>>;
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialError {
    /// Network or TLS, in words.
    Failed(String),
    /// A file of the settings cannot be used.
    Setup(Explained),
}

/// TCP and TLS. Files are read for each connection: there are few, and a renewed certificate is used at once.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub(super) tls: VaultTls,
}

impl Dial for Network {
    fn dial<'a>(
        &'a self,
        address: &'a VaultAddress,
    ) -> BoxFuture<'a, Result<Box<dyn Connection>, DialError>> {
        Box::pin(async move {
            let tls = if address.tls() {
                let settings = self.tls.clone();
                let config = tokio::task::spawn_blocking(move || client_config(&settings)).await;
                let config = config
                    .map_err(|_| DialError::Failed("interrupted".to_owned()))?
                    .map_err(DialError::Setup)?;
                Some(TlsConnector::from(Arc::new(config)))
            } else {
                None
            };
            let tcp = TcpStream::connect((address.host(), address.port()))
                .await
                .map_err(|error| DialError::Failed(io_words(&error)))?;
            let Some(tls) = tls else {
                let connection: Box<dyn Connection> = Box::new(tcp);
                return Ok(connection);
            };
            let name = ServerName::try_from(address.host().to_owned()).map_err(|_| {
                DialError::Failed(format!("{} is no name that TLS can check", address.host()))
            })?;
            let stream = tls
                .connect(name, tcp)
                .await
                .map_err(|error| DialError::Failed(io_words(&error)))?;
            let connection: Box<dyn Connection> = Box::new(stream);
            Ok(connection)
        })
    }
}

/// A failure of network or TLS in the words of the contract's error table.
pub(super) fn io_words(error: &io::Error) -> String {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(fault)) => certificate_words(fault),
        Some(rustls::Error::InvalidMessage(_)) => {
            "it does not speak TLS; an http:// address may be meant".to_owned()
        }
        Some(rustls::Error::AlertReceived(alert)) => alert_words(*alert),
        Some(other) => format!("TLS: {other}"),
        None => match error.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                "connection reset".to_owned()
            }
            io::ErrorKind::UnexpectedEof => "the reply broke off".to_owned(),
            io::ErrorKind::TimedOut => "connection timed out".to_owned(),
            _ => error.to_string(),
        },
    }
}

/// Why the server ended a handshake, as far as TLS tells.
fn alert_words(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "it asks for a client certificate (VAULT_CLIENT_CERT, VAULT_CLIENT_KEY)".to_owned()
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA => {
            format!("it refuses our client certificate (VAULT_CLIENT_CERT): {alert:?}")
        }
        AlertDescription::ProtocolVersion => "it speaks neither TLS 1.3 nor TLS 1.2".to_owned(),
        other => format!("TLS: received alert {other:?}"),
    }
}

fn certificate_words(fault: &CertificateError) -> String {
    match fault {
        CertificateError::UnknownIssuer => "certificate signed by unknown authority".to_owned(),
        // A CA that was made anew under its old name.
        CertificateError::BadSignature => {
            "certificate signed by unknown authority (one of the same name has another key)".to_owned()
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            format!("certificate has expired or is not yet valid ({fault})")
        }
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "certificate verify failed: it is a CA's own certificate; give Vault one that this CA issued, or a self-signed one with CA:FALSE".to_owned()
        }
        other => format!("certificate verify failed: {other}"),
    }
}

fn client_config(settings: &VaultTls) -> Result<ClientConfig, Explained> {
    let mut roots = RootCertStore::empty();
    match &settings.ca {
        Some(path) => {
            let bytes = read::file(path, "--vault-ca").map_err(Reading::explained)?;
            let certificates = pem::certificates(&bytes)
                .map_err(|error| read::unusable(path, "--vault-ca", &error))?;
            for certificate in certificates {
                roots
                    .add(certificate)
                    .map_err(|error| read::unusable(path, "--vault-ca", &error))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            // One bad file among the system's is no reason to trust none of the others.
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
                return Err(read::no_system_roots(&why.join("; ")));
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        // 1.2 for the load balancers before Vault that know no more.
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| {
            Explained::new(crate::Code::Other, format!("TLS cannot be set up: {error}"))
        })?
        .with_root_certificates(roots);
    match &settings.client {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => with_client(builder, cert, key),
    }
}

fn with_client(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    cert: &Path,
    key: &Path,
) -> Result<ClientConfig, Explained> {
    const CERT: &str = "--vault-client-cert";
    const KEY: &str = "--vault-client-key";
    let chain = read::file(cert, CERT).map_err(Reading::explained)?;
    let chain = pem::certificates(&chain).map_err(|error| read::unusable(cert, CERT, &error))?;
    let secret = read::file(key, KEY).map_err(Reading::explained)?;
    let secret =
        pem::private_key(&secret, None).map_err(|error| read::unusable(key, KEY, &error))?;
    builder
        .with_client_auth_cert(chain, secret.der().clone_key())
        .map_err(|error| read::unusable(key, KEY, &error))
}
