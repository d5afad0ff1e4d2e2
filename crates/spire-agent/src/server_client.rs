//! The agent's way to its server: one connection, made anew whenever it has to be.

mod calls;
mod dial;
mod fault;
mod news;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ah_identity_provider::{Clock, Explained};
use ah_spire_wire::Channel;
use ah_spire_wire::model::Bundle;
use ah_tls::{OwnKey, ServerTrust, SpiffeClient, Trust};
use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};
use tonic::{Response, Status};

pub(crate) use calls::{IssuedJwt, agent_client};
pub use calls::{IssuedSvid, SyncedEntries};
pub use dial::ServerAddress;
pub use fault::{Denied, ServerFault};
pub(crate) use news::{Heard, Holds, News};

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Where the server listens.
    pub address: ServerAddress,
    /// Its trust domain and ours.
    pub trust_domain: TrustDomain,
    /// `require_pq_kem`
    pub post_quantum_only: bool,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
}

/// Whom we trust, and who we are.
#[derive(Clone)]
pub struct Credentials {
    /// `None` on the first use of an insecure bootstrap.
    pub roots: Option<Vec<CertificateDer<'static>>>,
    /// Chain, leaf first, and key; `None` before attestation.
    pub identity: Option<(Vec<CertificateDer<'static>>, OwnKey)>,
}

/// One server behind one connection. Calls may be made from many tasks.
pub struct ServerClient {
    settings: ServerSettings,
    tls: Mutex<SpiffeClient>,
    connection: tokio::sync::Mutex<Option<Connection>>,
    /// The address to begin with, so that a next attempt goes to another one where there are several.
    first: std::sync::atomic::AtomicUsize,
}

/// A connection and what its handshake showed.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    /// The server's chain, leaf first.
    pub(crate) server: Arc<[CertificateDer<'static>]>,
    /// Whether the server was found not to tell of changes.
    pub(crate) silent: Arc<AtomicBool>,
}

impl ServerClient {
    /// Makes no connection yet.
    pub fn new(settings: ServerSettings, credentials: &Credentials) -> Result<Self, Explained> {
        Ok(Self {
            tls: Mutex::new(tls(&settings, credentials)?),
            settings,
            connection: tokio::sync::Mutex::new(None),
            first: std::sync::atomic::AtomicUsize::new(0),
        })
    }

    /// What it was made with.
    pub fn settings(&self) -> &ServerSettings {
        &self.settings
    }

    /// Uses `credentials` from the next connection on, which is the next call.
    pub async fn replace(&self, credentials: &Credentials) -> Result<(), Explained> {
        let next = tls(&self.settings, credentials)?;
        *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = next;
        self.connection.lock().await.take();
        Ok(())
    }

    /// The present connection, or a new one.
    pub(crate) async fn connection(&self) -> Result<Connection, ServerFault> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|held| !held.channel.is_closed()) {
            return Ok(connection.clone());
        }
        let tls = self
            .tls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let connection = dial::connect(&self.settings.address, &tls, &self.first).await?;
        *held = Some(connection.clone());
        Ok(connection)
    }

    /// Runs one call with its deadline. A connection that fails is not used again.
    pub(crate) async fn call<T, F>(
        &self,
        what: &'static str,
        call: impl FnOnce(Channel) -> F,
    ) -> Result<T, ServerFault>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let connection = self.connection().await?;
        let answer = tokio::time::timeout(CALL_TIMEOUT, call(connection.channel)).await;
        match answer {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => {
                let fault = ServerFault::of_status(what, &status, &self.settings.address);
                if matches!(fault, ServerFault::Unreachable(_)) {
                    self.release().await;
                }
                Err(fault)
            }
            Err(_) => {
                self.release().await;
                Err(ServerFault::timed_out(
                    what,
                    CALL_TIMEOUT,
                    &self.settings.address,
                ))
            }
        }
    }

    /// Drops the connection; the next call makes another, to another address where there are several.
    pub(crate) async fn release(&self) {
        if self.connection.lock().await.take().is_some() {
            self.first
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for ServerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerClient")
            .field("address", &self.settings.address)
            .finish_non_exhaustive()
    }
}

/// The roots of a bundle in the type that TLS takes.
pub(crate) fn roots_of(bundle: &Bundle) -> Vec<CertificateDer<'static>> {
    let ders = bundle.x509.iter();
    ders.map(|authority| CertificateDer::from(authority.der.clone()))
        .collect()
}

/// The roots of one trust domain in the form that verification takes.
pub(crate) fn trust_of(domain: &TrustDomain, roots: Vec<CertificateDer<'static>>) -> Trust {
    let mut bundles = ah_identity_provider::TrustBundles::default();
    bundles.domains.insert(domain.clone(), roots);
    Trust::new(&bundles)
}

/// `spiffe://<trust domain>/spire/server`
pub(crate) fn server_id(domain: &TrustDomain) -> Result<SpiffeId, Explained> {
    SpiffeId::from_segments(domain.clone(), &["spire", "server"]).map_err(|error| {
        Explained::new(
            ah_identity_provider::Code::Other,
            "the server's SPIFFE ID cannot be made",
        )
        .cause(error)
    })
}

fn tls(settings: &ServerSettings, credentials: &Credentials) -> Result<SpiffeClient, Explained> {
    let trust = match &credentials.roots {
        Some(roots) => {
            ServerTrust::Roots(Arc::new(trust_of(&settings.trust_domain, roots.clone())))
        }
        None => ServerTrust::FirstUse,
    };
    let identity = credentials
        .identity
        .as_ref()
        .map(|(chain, key)| (chain.clone(), key));
    SpiffeClient::new(
        server_id(&settings.trust_domain)?,
        trust,
        identity,
        settings.post_quantum_only,
        settings.clock.clone(),
    )
}
