//! A server with an X509-SVID of its own, whose clients are judged by whoever serves them.

use std::sync::Arc;

use rustls::server::NoServerSessionStorage;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{Error, ServerConfig};
use rustls_pki_types::CertificateDer;

use crate::configs::{ALPN, provider};
use crate::spiffe_client::certified;
use crate::{OwnKey, key_exchanges};

/// TLS 1.3 alone, and HTTP/2; no tickets and no resumption, for a resumed session would skip the look at the certificate.
/// The server shows `chain`, leaf first. With `post_quantum_only` the key exchange is X25519MLKEM768 or there is none.
///
/// # Errors
/// A key that TLS cannot use, or that is another certificate's.
pub fn spiffe_server(
    chain: Vec<CertificateDer<'static>>,
    key: &OwnKey,
    clients: Arc<dyn ClientCertVerifier>,
    post_quantum_only: bool,
) -> Result<ServerConfig, Error> {
    let provider = key_exchanges((*provider()).clone(), post_quantum_only);
    let key = certified(chain, key, &provider)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}
