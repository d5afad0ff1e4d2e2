//! What a server shows in its handshakes.

use std::fmt;
use std::sync::Arc;

use ah_tls::key_exchanges;
use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The certificate of the moment; a handshake fails while there is none.
#[derive(Default)]
pub struct Shown(ArcSwapOption<CertifiedKey>);

impl Shown {
    /// Shows this one from now on.
    pub fn show(&self, certified: Arc<CertifiedKey>) {
        self.0.store(Some(certified));
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

/// TLS 1.2 and 1.3, as upstream's servers, for clients of all kinds that speak HTTP/1.1. With `post_quantum_only` the
/// key exchange is X25519MLKEM768 or there is none.
///
/// # Errors
/// rustls refuses it.
pub fn server_config(
    certificates: Arc<dyn ResolvesServerCert>,
    post_quantum_only: bool,
) -> Result<ServerConfig, rustls::Error> {
    let provider = key_exchanges(aws_lc_rs::default_provider(), post_quantum_only);
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}
