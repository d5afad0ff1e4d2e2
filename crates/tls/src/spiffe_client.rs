//! A client of one SPIFFE server: judged by trust domain and SPIFFE ID, whatever name was dialled.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::SystemTime;

use ah_identity_provider::{Clock, Explained, PrivateKey};
use rustls::Error;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use spiffe::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::configs::{ALPN, Time, provider, unusable};
use crate::handshake::{PresentAlways, chain, record, tls13_signatures, with_verdict};
use crate::verify::{verify_first_use, verify_spiffe_server};
use crate::{PeerIdentity, Trust, VerifyError, key_exchanges};

/// By what the server is judged.
#[derive(Clone)]
pub enum ServerTrust {
    /// Its chain ends in a root of its trust domain.
    Roots(Arc<Trust>),
    /// Trust on first use: it says the right SPIFFE ID and holds the key of its certificate. No more is known of it.
    FirstUse,
}

/// The key of a client's certificate.
#[derive(Clone)]
pub enum OwnKey {
    /// In this process.
    Here(PrivateKey),
    /// Somewhere that signs for us. It has to belong to the certificate: nobody but the server checks that.
    Elsewhere(Arc<dyn SigningKey>),
}

impl From<PrivateKey> for OwnKey {
    fn from(key: PrivateKey) -> Self {
        Self::Here(key)
    }
}

/// The client's side of TLS 1.3 towards one server.
#[derive(Clone)]
pub struct SpiffeClient {
    config: Arc<rustls::ClientConfig>,
    /// Sent in the clear only where a host was named; the verifier looks at the SPIFFE ID.
    name: ServerName<'static>,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum HandshakeFault {
    /// We refused the server's certificate.
    Refused(Box<VerifyError>),
    /// The connection ended, or the server refused.
    Ended(io::Error),
}

impl SpiffeClient {
    /// Towards the server `expected`, presenting `identity` (chain, leaf first, and key) where there is one.
    /// With `post_quantum_only` the key exchange is X25519MLKEM768 or there is none.
    ///
    /// # Errors
    /// A key that TLS cannot use, or that is another certificate's.
    pub fn new(
        expected: SpiffeId,
        trust: ServerTrust,
        identity: Option<(Vec<CertificateDer<'static>>, &OwnKey)>,
        post_quantum_only: bool,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Explained> {
        let provider = key_exchanges(CryptoProvider::clone(&provider()), post_quantum_only);
        let own = match identity {
            Some((chain, key)) => {
                let key = certified(chain, key, &provider).map_err(|error| unusable(&error))?;
                Some(Arc::new(PresentAlways::new(Arc::new(key))))
            }
            None => None,
        };
        let verifier = Verifier {
            expected,
            trust,
            clock: clock.clone(),
        };
        let builder =
            rustls::ClientConfig::builder_with_details(Arc::new(provider), Arc::new(Time(clock)))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(|error| unusable(&error))?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match own {
            Some(own) => builder.with_client_cert_resolver(own as Arc<dyn ResolvesClientCert>),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.cert_compressors.clear();
        config.cert_decompressors.clear();
        Ok(Self {
            config: Arc::new(config),
            name: ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into()),
        })
    }

    /// As an HTTP/1.1 client of `host`, which is named in the ClientHello for those who sort connections by it. Who the
    /// server is still is its SPIFFE ID's matter alone.
    ///
    /// # Errors
    /// `host` is neither a DNS name nor an address.
    pub fn of_host(mut self, host: &str) -> Result<Self, String> {
        self.name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let config = Arc::make_mut(&mut self.config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.enable_sni = true;
        Ok(self)
    }

    /// Shakes hands over `transport`; the server is proved when this succeeds.
    pub async fn handshake<T>(
        &self,
        transport: T,
    ) -> Result<(TlsStream<T>, PeerIdentity), HandshakeFault>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = TlsConnector::from(self.config.clone());
        let connect = connector.connect(self.name.clone(), transport);
        let (outcome, verdict) = with_verdict(Box::pin(connect)).await;
        match (outcome, verdict) {
            (Ok(stream), Some(Ok(server))) => Ok((stream, server)),
            (Ok(_), None) => Err(HandshakeFault::Ended(io::Error::other(
                "the server's certificate was not judged",
            ))),
            (_, Some(Err(refused))) => Err(HandshakeFault::Refused(Box::new(refused))),
            (Err(error), _) => Err(HandshakeFault::Ended(error)),
        }
    }
}

/// A chain, leaf first, with its key, as TLS shows it.
///
/// # Errors
/// A key that TLS cannot use, or that is another certificate's.
pub fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &OwnKey,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Error> {
    match key {
        OwnKey::Here(key) => CertifiedKey::from_der(chain, key.der().clone_key(), provider),
        OwnKey::Elsewhere(key) => Ok(CertifiedKey::new(chain, key.clone())),
    }
}

impl fmt::Debug for SpiffeClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpiffeClient").finish_non_exhaustive()
    }
}

struct Verifier {
    expected: SpiffeId,
    trust: ServerTrust,
    clock: Arc<dyn Clock>,
}

impl Verifier {
    fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<PeerIdentity, VerifyError> {
        match &self.trust {
            ServerTrust::Roots(trust) => verify_spiffe_server(chain, trust, &self.expected, now),
            ServerTrust::FirstUse => verify_first_use(chain, &self.expected),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = chain(end_entity, intermediates);
        record(self.judge(&chain, self.clock.now())).map(|()| ServerCertVerified::assertion())
    }

    tls13_signatures!();
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}
