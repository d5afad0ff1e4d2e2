//! The agent's side of TLS towards brokers: its own SVID, and theirs, which they have to show.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use ah_identity_provider::Clock;
use ah_tls::{PeerName, Policy, Trust, required_clients, spiffe_server, verify_executor};
use rustls::{Error, ServerConfig};
use rustls_pki_types::CertificateDer;
use spiffe::SpiffeId;
use tokio::sync::watch;

use crate::bundles::Bundles;
use crate::own::OwnIdentity;

/// The TLS configuration of the moment, built anew when SVID or bundles change.
pub(super) struct Configs {
    brokers: Arc<BTreeSet<SpiffeId>>,
    clock: Arc<dyn Clock>,
    post_quantum_only: bool,
    state: Mutex<State>,
}

struct State {
    own: watch::Receiver<Option<Arc<OwnIdentity>>>,
    bundles: watch::Receiver<Bundles>,
    built: Option<Arc<ServerConfig>>,
}

impl Configs {
    pub(super) fn new(
        own: watch::Receiver<Option<Arc<OwnIdentity>>>,
        bundles: watch::Receiver<Bundles>,
        brokers: BTreeSet<SpiffeId>,
        clock: Arc<dyn Clock>,
        post_quantum_only: bool,
    ) -> Self {
        Self {
            brokers: Arc::new(brokers),
            clock,
            post_quantum_only,
            state: Mutex::new(State {
                own,
                bundles,
                built: None,
            }),
        }
    }

    /// For the next handshake; `None` before there is an SVID.
    pub(super) fn current(&self) -> Option<Arc<ServerConfig>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // A publisher that has gone leaves its last value.
        let changed = state.own.has_changed().unwrap_or(false)
            || state.bundles.has_changed().unwrap_or(false);
        if changed || state.built.is_none() {
            let own = state.own.borrow_and_update().clone();
            let bundles = state.bundles.borrow_and_update().clone();
            match own.map(|own| self.build(&own, &bundles)) {
                Some(Ok(config)) => state.built = Some(Arc::new(config)),
                Some(Err(error)) => {
                    tracing::error!(%error, "the agent's SVID cannot be used towards brokers");
                }
                None => {}
            }
        }
        state.built.clone()
    }

    fn build(&self, own: &OwnIdentity, bundles: &Bundles) -> Result<ServerConfig, Error> {
        let trust = Trust::new(&bundles.trust());
        let (brokers, clock) = (self.brokers.clone(), self.clock.clone());
        let clients = required_clients(move |chain| {
            let judged = judge(chain, &trust, &brokers, clock.as_ref());
            if let Err(reason) = &judged {
                tracing::warn!(reason, "a broker's certificate was refused");
            }
            judged.is_ok()
        });
        spiffe_server(
            own.svid.clone(),
            &own.key.for_tls(),
            clients,
            self.post_quantum_only,
        )
    }
}

/// An X509-SVID of one of the brokers, that the bundle of its own trust domain vouches for (SV-52).
fn judge(
    chain: &[CertificateDer<'_>],
    trust: &Trust,
    brokers: &BTreeSet<SpiffeId>,
    clock: &dyn Clock,
) -> Result<(), String> {
    let peer = verify_executor(chain, trust, &Policy::default(), clock.now())
        .map_err(|error| error.to_string())?;
    match peer.name() {
        PeerName::Spiffe(id) if brokers.contains(id) => Ok(()),
        PeerName::Spiffe(id) => Err(format!("{id} is not one of experimental.broker.brokers")),
        _ => Err("the certificate has no SPIFFE ID".into()),
    }
}
