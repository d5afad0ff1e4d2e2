//! A client of the web: judged by host name, with the roots of this machine.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use ah_identity_provider::CertificateFacts;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use spiffe::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{key_exchanges, parse_spiffe_id};

/// TLS 1.2 and 1.3 towards web servers (RFC 6125), ALPN `http/1.1`.
#[derive(Debug)]
pub struct WebClient {
    config: Arc<rustls::ClientConfig>,
    verifier: Arc<Verifier>,
}

/// Why there is no connection.
#[derive(Debug)]
pub struct WebFault {
    /// For people.
    pub text: String,
    /// What the server's refused certificate says to be, where that is a SPIFFE ID: the roots of its trust domain
    /// would have judged it better.
    pub spiffe_id: Option<SpiffeId>,
}

impl fmt::Display for WebFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl WebClient {
    /// Reads the machine's roots, from files: not on a thread that has others to serve. `SSL_CERT_FILE` and
    /// `SSL_CERT_DIR` name others. With `post_quantum_only` the key exchange is X25519MLKEM768 or there is none.
    ///
    /// # Errors
    /// There are none.
    pub fn new(post_quantum_only: bool) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(match found.errors.first() {
                Some(error) => format!("this machine's CA certificates cannot be read: {error}"),
                None => "this machine has no CA certificates (SSL_CERT_FILE names them)".into(),
            });
        }
        // The web's suites: ours are those of TLS 1.3 alone.
        let provider = key_exchanges(aws_lc_rs::default_provider(), post_quantum_only);
        let provider = Arc::new(provider);
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| error.to_string())?;
        let verifier = Arc::new(Verifier {
            inner,
            refused: Mutex::default(),
        });
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            verifier,
        })
    }

    /// Shakes hands over `transport`; the server is proved to be `host` when this succeeds.
    pub async fn connect<T>(self, host: &str, transport: T) -> Result<TlsStream<T>, WebFault>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let fault = |text: String| WebFault {
            text,
            spiffe_id: self.verifier.refused(),
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| WebFault {
            text: error.to_string(),
            spiffe_id: None,
        })?;
        TlsConnector::from(self.config.clone())
            .connect(name, transport)
            .await
            .map_err(|error| fault(error.to_string()))
    }
}

/// The web's verifier, which remembers whom it refused.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    refused: Mutex<Option<SpiffeId>>,
}

impl Verifier {
    fn refused(&self) -> Option<SpiffeId> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.clone()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        if judged.is_err() {
            let facts = CertificateFacts::from_der(end_entity).ok();
            let named = facts.and_then(|facts| parse_spiffe_id(facts.uris.first()?).ok());
            *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = named;
        }
        judged
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
