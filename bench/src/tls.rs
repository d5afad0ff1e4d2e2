//! TLS configurations of the bare servers and of the load generator.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, version,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::pki::{Authority, Files, Leaf};

/// One key exchange for every server and client, so that ratios compare servers and not curves.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
}

fn roots(certificate: CertificateDer<'static>) -> io::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate).map_err(io::Error::other)?;
    Ok(Arc::new(roots))
}

/// Mutual TLS 1.3 of a bare server, without resumption, with the library's order of cipher suites.
pub(crate) fn server_config(files: &Files, alpn: &[&[u8]]) -> io::Result<ServerConfig> {
    bare(files, alpn, provider())
}

/// As [`server_config`], with the cipher suites of `other` in its order: what is left between the two is no cipher's.
pub(crate) fn server_config_like(
    other: &ServerConfig,
    files: &Files,
    alpn: &[&[u8]],
) -> io::Result<ServerConfig> {
    let provider = CryptoProvider {
        cipher_suites: other.crypto_provider().cipher_suites.clone(),
        ..CryptoProvider::clone(&provider())
    };
    let mut config = bare(files, alpn, Arc::new(provider))?;
    config.ignore_client_order = other.ignore_client_order;
    Ok(config)
}

fn bare(files: &Files, alpn: &[&[u8]], provider: Arc<CryptoProvider>) -> io::Result<ServerConfig> {
    let certificate = CertificateDer::from_pem_file(files.server()).map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(files.server_key()).map_err(io::Error::other)?;
    let ca = CertificateDer::from_pem_file(files.ca()).map_err(io::Error::other)?;
    let clients = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider.clone())
        .build()
        .map_err(io::Error::other)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .and_then(|builder| {
            builder
                .with_client_cert_verifier(clients)
                .with_single_cert(vec![certificate], key)
        })
        .map_err(io::Error::other)?;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// Makes the client configuration of each simulated executor from one template.
#[derive(Debug)]
pub(crate) struct ClientTemplate {
    base: ClientConfig,
}

impl ClientTemplate {
    pub(crate) fn new(authority: &Authority, alpn: &[&[u8]]) -> io::Result<Self> {
        Self::trusting(authority.certificate().clone(), alpn)
    }

    /// As [`Self::new`], for a server whose certificate leads to `root`.
    pub(crate) fn trusting(root: CertificateDer<'static>, alpn: &[&[u8]]) -> io::Result<Self> {
        let provider = provider();
        let full = WebPkiServerVerifier::builder_with_provider(roots(root)?, provider.clone())
            .build()
            .map_err(io::Error::other)?;
        let mut base = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(KnownServer {
                full,
                seen: Mutex::new(Vec::new()),
            }))
            .with_no_client_auth();
        base.resumption = Resumption::disabled();
        base.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Self { base })
    }

    /// The configuration that presents `leaf`.
    pub(crate) fn present(&self, leaf: Leaf) -> io::Result<Arc<ClientConfig>> {
        let key = self
            .base
            .crypto_provider()
            .key_provider
            .load_private_key(leaf.key)
            .map_err(io::Error::other)?;
        let pair = CertifiedKey::new(vec![leaf.certificate], key);
        let mut config = self.base.clone();
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(pair));
        Ok(Arc::new(config))
    }
}

/// Verifies a server's chain once and then takes the same certificate as good, and does not verify the handshake signature.
///
/// The load generator has one core against the server's one: a client that did all of a client's arithmetic would be
/// the bottleneck of what it measures. The work of the server is the same.
#[derive(Debug)]
struct KnownServer {
    full: Arc<WebPkiServerVerifier>,
    seen: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for KnownServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.iter().rev().any(|known| known == end_entity) {
            self.full.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            )?;
            seen.push(end_entity.clone().into_owned());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.full.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.full.supported_verify_schemes()
    }
}

/// A client of a SPIRE server: it takes any name that one of `roots` vouches for, as the certificate has only a SPIFFE ID.
pub(crate) fn spire_client(
    trusted: Vec<CertificateDer<'static>>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for root in trusted {
        roots.add(root).map_err(io::Error::other)?;
    }
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(io::Error::other)?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyName(chain)));
    let mut config = match identity {
        Some((chain, key)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(io::Error::other)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Verifies the chain and the signature, and leaves the name alone.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        let verified =
            self.0
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            Err(rustls::Error::InvalidCertificate(
                NotValidForName | NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
pub(crate) fn verify_client_for_test(ca: &CertificateDer<'static>, leaf: &CertificateDer<'_>) {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(ca.clone()).unwrap(), provider())
            .build()
            .unwrap();
    verifier
        .verify_client_cert(leaf, &[], UnixTime::now())
        .unwrap();
}
