//! TLS of the listener that Prometheus asks: with files, or with what the program itself has of SPIFFE.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use ah_identity_provider::{Code, Explained, TrustBundles, pem};
use ah_spire_plugin::telemetry::PrometheusTls;
use ah_tls::{
    OwnKey, PeerName, Policy, Trust, certified, key_exchanges, required_clients, verify_executor,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use spiffe::SpiffeId;

/// What the program that is asked for its metrics has of SPIFFE, at the time of a handshake.
pub trait Known: Send + Sync + 'static {
    /// Its own X509-SVID, leaf first, with its key; `None` before there is one.
    fn svid(&self) -> Option<(Vec<CertificateDer<'static>>, OwnKey)>;

    /// The bundles that those are judged by who ask: at least those of the trust domains of `authorized_spiffe_ids`.
    fn bundles(&self) -> TrustBundles;

    /// By the program's clock.
    fn now(&self) -> SystemTime;
}

/// Judges what goes with what as upstream does, but for `client_ca_file`, which counts beside `use_spire_svid`, too:
/// upstream passes over it there, and lets everybody ask.
pub(super) fn server_config(
    tls: &PrometheusTls,
    known: Arc<dyn Known>,
    post_quantum_only: bool,
) -> Result<Arc<ServerConfig>, Explained> {
    let refused = |what: &str, hint: &str| {
        Explained::new(Code::Usage, format!("telemetry.Prometheus.tls: {what}")).hint(hint)
    };
    let provider = key_exchanges(aws_lc_rs::default_provider(), post_quantum_only);
    let provider = Arc::new(provider);
    let clients = match (&tls.client_ca_file, tls.authorized_spiffe_ids.as_slice()) {
        (None, []) => None,
        (Some(file), []) => Some(below(file)?),
        (None, ids) => Some(authorized(ids, known.clone())),
        (Some(_), _) => {
            return Err(refused(
                "client_ca_file cannot be configured with authorized_spiffe_ids",
                "keep the one of them that says who may ask",
            ));
        }
    };
    let shown: Arc<dyn ResolvesServerCert> = match (
        tls.use_spire_svid,
        &tls.cert_file,
        &tls.key_file,
    ) {
        (true, None, None) => Arc::new(Shown {
            known,
            provider: provider.clone(),
        }),
        (true, ..) => {
            return Err(refused(
                "cert_file and key_file cannot be configured when use_spire_svid is enabled",
                "remove cert_file and key_file, or use_spire_svid",
            ));
        }
        (false, Some(cert), Some(key)) => Arc::new(of_files(cert, key, &provider)?),
        (false, ..) => {
            return Err(refused(
                "cert_file and key_file must both be configured unless use_spire_svid is enabled",
                "set both to PEM files, or use_spire_svid to true, or remove the block tls",
            ));
        }
    };
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Explained::new(Code::Other, "TLS 1.3 cannot be had").cause(error))?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => builder.with_client_cert_verifier(clients),
    };
    let mut config = builder.with_cert_resolver(shown);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session would skip the look at the certificate.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn of_files(
    cert: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<SingleCertAndKey, Explained> {
    let chain = pem::certificates(&read(cert)?).map_err(|error| bad(cert, error))?;
    let own = pem::private_key(&read(key)?, None).map_err(|error| bad(key, error))?;
    let both = certified(chain, &OwnKey::Here(own), provider).map_err(|error| bad(cert, error))?;
    Ok(both.into())
}

/// Clients with a certificate below those in `file`.
fn below(file: &Path) -> Result<Arc<dyn ClientCertVerifier>, Explained> {
    let mut roots = RootCertStore::empty();
    for root in pem::certificates(&read(file)?).map_err(|error| bad(file, error))? {
        roots.add(root).map_err(|error| bad(file, error))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| bad(file, error))
}

/// Clients with an X509-SVID of one of `ids`, that the bundle of its own trust domain vouches for (SV-52).
fn authorized(ids: &[SpiffeId], known: Arc<dyn Known>) -> Arc<dyn ClientCertVerifier> {
    let ids: BTreeSet<SpiffeId> = ids.iter().cloned().collect();
    required_clients(move |chain| {
        let trust = Trust::new(&known.bundles());
        let judged = verify_executor(chain, &trust, &Policy::default(), known.now());
        let judged = judged.map_err(|error| error.to_string());
        let judged = judged.and_then(|peer| match peer.name() {
            PeerName::Spiffe(id) if ids.contains(id) => Ok(()),
            PeerName::Spiffe(id) => Err(format!("{id} is not one of authorized_spiffe_ids")),
            _ => Err("the certificate has no SPIFFE ID".into()),
        });
        if let Err(reason) = &judged {
            tracing::warn!(reason, "who asked for metrics was refused");
        }
        judged.is_ok()
    })
}

/// Shows the SVID of the moment, so that a new one needs nobody to tell of it.
struct Shown {
    known: Arc<dyn Known>,
    provider: Arc<CryptoProvider>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some((chain, key)) = self.known.svid() else {
            tracing::debug!("metrics were asked for before there is an X509-SVID to show");
            return None;
        };
        let unusable = |error: &Error| {
            tracing::error!(%error, "the X509-SVID cannot be shown to who asks for metrics");
        };
        certified(chain, &key, &self.provider)
            .inspect_err(unusable)
            .ok()
            .map(Arc::new)
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Explained> {
    std::fs::read(file).map_err(|error| bad(file, error))
}

fn bad(file: &Path, why: impl std::fmt::Display) -> Explained {
    Explained::new(
        Code::Usage,
        format!(
            "telemetry.Prometheus.tls: {} cannot be used",
            file.display()
        ),
    )
    .cause(why)
    .hint("cert_file, key_file and client_ca_file are PEM files; key_file has the key of the first certificate")
}
