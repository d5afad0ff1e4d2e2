//! The server's side of TLS: its own SVID, and the client certificates that it takes.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Clock, PrivateKey, TrustBundles};
use ah_tls::{OwnKey, Policy, Trust, optional_clients, spiffe_server};
use rustls::{Error, ServerConfig, ServerConnection};
use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};
use tokio::sync::watch;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::api::PeerSvid;
use crate::ids;

/// What the server shows.
#[derive(Clone)]
pub struct ServerSvid {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// Of the leaf.
    pub key: PrivateKey,
}

/// Whose client certificates are taken.
#[derive(Clone, Debug)]
pub struct ClientTrust {
    /// Everybody in it.
    pub trust_domain: TrustDomain,
    /// From other trust domains, these alone.
    pub admin_ids: BTreeSet<SpiffeId>,
}

/// The TLS configuration of the moment, built anew when SVID or bundles change.
pub struct Configs {
    clients: ClientTrust,
    clock: Arc<dyn Clock>,
    post_quantum_only: bool,
    state: Mutex<State>,
}

struct State {
    svid: watch::Receiver<Option<Arc<ServerSvid>>>,
    bundles: watch::Receiver<Arc<TrustBundles>>,
    built: Option<Arc<ServerConfig>>,
}

impl Configs {
    /// Nothing is served before `svid` holds one. `bundles` are those of the own trust domain and of those that
    /// administrators come from. With `post_quantum_only` the key exchange is X25519MLKEM768 or there is none.
    pub fn new(
        svid: watch::Receiver<Option<Arc<ServerSvid>>>,
        bundles: watch::Receiver<Arc<TrustBundles>>,
        clients: ClientTrust,
        clock: Arc<dyn Clock>,
        post_quantum_only: bool,
    ) -> Self {
        Self {
            clients,
            clock,
            post_quantum_only,
            state: Mutex::new(State {
                svid,
                bundles,
                built: None,
            }),
        }
    }

    /// For the next handshake. An SVID that cannot be used is told once, and the last good one serves on.
    pub(crate) fn current(&self) -> Option<Arc<ServerConfig>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // A publisher that has gone leaves its last value.
        let changed = state.svid.has_changed().unwrap_or(false)
            || state.bundles.has_changed().unwrap_or(false);
        if changed || state.built.is_none() {
            let svid = state.svid.borrow_and_update().clone();
            let bundles = state.bundles.borrow_and_update().clone();
            match svid.map(|svid| self.build(&svid, &bundles)) {
                Some(Ok(config)) => state.built = Some(config),
                Some(Err(error)) => {
                    tracing::error!(%error, "The server's X509-SVID cannot be used for TLS");
                }
                None => {}
            }
        }
        state.built.clone()
    }

    fn build(&self, svid: &ServerSvid, bundles: &TrustBundles) -> Result<Arc<ServerConfig>, Error> {
        let chain = svid
            .chain
            .iter()
            .map(|der| CertificateDer::from(der.clone()));
        let verifier = ClientVerifier {
            trust: Trust::new(bundles),
            clients: self.clients.clone(),
            clock: self.clock.clone(),
        };
        let clients = optional_clients(move |chain| verifier.takes(chain));
        let key = OwnKey::Here(svid.key.clone());
        spiffe_server(chain.collect(), &key, clients, self.post_quantum_only).map(Arc::new)
    }
}

/// Judges client certificates: an X509-SVID of the own trust domain, or of an administrator, or none at all, as agents
/// have none yet that attest.
struct ClientVerifier {
    trust: Trust,
    clients: ClientTrust,
    clock: Arc<dyn Clock>,
}

impl ClientVerifier {
    fn takes(&self, chain: &[CertificateDer<'_>]) -> bool {
        let judged = self.judge(chain);
        if let Err(reason) = &judged {
            tracing::warn!(reason, "A client certificate was refused");
        }
        judged.is_ok()
    }

    fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<(), String> {
        let peer =
            ah_tls::verify_executor(chain, &self.trust, &Policy::default(), self.clock.now())
                .map_err(|error| error.to_string())?;
        let ah_tls::PeerName::Spiffe(id) = peer.name() else {
            return Err("the client certificate has no SPIFFE ID".into());
        };
        let known =
            id.trust_domain() == &self.clients.trust_domain || self.clients.admin_ids.contains(id);
        if !known {
            return Err(format!("unexpected trust domain in ID \"{id}\""));
        }
        Ok(())
    }
}

/// The SVID of a client whose handshake succeeded; `None` when it showed none.
pub(super) fn peer_svid(connection: &ServerConnection) -> Result<Option<PeerSvid>, String> {
    let Some(leaf) = connection.peer_certificates().and_then(<[_]>::first) else {
        return Ok(None);
    };
    let (_, cert) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
    let names = cert
        .subject_alternative_name()
        .map_err(|error| error.to_string())?;
    let names = names.map(|names| &names.value.general_names);
    let uri = names.into_iter().flatten().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let id = ids::parse(uri.ok_or("client certificate has no URI SAN")?)?;
    let not_after = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or(0);
    Ok(Some(PeerSvid {
        id,
        serial_number: cert.serial.to_string(),
        not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(not_after),
    }))
}
