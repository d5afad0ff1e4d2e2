//! The life of the authorities: prepared, in the bundle, active, old.
//!
//! Every change goes in an order in which a process may be killed between any two steps. A key is made; its
//! authority goes into the bundle (SV-53), then into the journal as prepared, and one write of the journal makes it
//! active and its predecessor old. What was not journalled is made anew at the next start, and a key or a bundle
//! entry that nobody uses does no harm.

mod bundle;
mod follow;
mod load;
mod operate;
mod rotate;
mod serve;
mod token;

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::SignError;
use super::authority::{Token, TokenAuthority, X509Authority, from_unix, to_unix};
use super::journal::Journal;
use super::metrics::{Rotation, done};
use super::prepare;
use super::sign::Authorities;
use super::slots::{Authority, Slot, SlotName, Slots, Status};
use super::upstream::{UpstreamAuthority, UpstreamError};
use crate::keys::{KeyError, KeyManager, KeyType};
use crate::store::{Bundles, Journals, StoreError};

pub use operate::{AuthorityStates, LocalAuthorities};

/// How often it is looked whether an authority is due.
pub const ROTATE_INTERVAL: Duration = Duration::from_secs(10);
/// How often expired keys are taken out of the bundle.
pub const PRUNE_BUNDLE_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// How often journals that are of no use are deleted.
pub const PRUNE_JOURNALS_INTERVAL: Duration = Duration::from_secs(8 * 3600);

/// Why an authority was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// The key manager failed.
    #[error("key manager: {0}")]
    Keys(#[from] KeyError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate could not be made.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The upstream authority failed.
    #[error("upstream authority: {0}")]
    Upstream(#[from] UpstreamError),
    /// The journal is damaged: whoever wrote it, or removing it, mends that.
    #[error("{0}")]
    Journal(String),
    /// The bundle would have no key left, is missing, or lacks what is to be changed in it.
    #[error("{0}")]
    Bundle(&'static str),
    /// No authority is active yet.
    #[error("server is initializing")]
    Initializing,
    /// The request is about an authority that cannot be treated so.
    #[error("{0}")]
    Refused(&'static str),
    /// The request is about an authority that is not where it would have to be in its life.
    #[error("{0}")]
    Status(&'static str, Option<Status>),
    /// No handshake with a prepared authority.
    #[error("{0}")]
    Rehearsal(String),
    /// The configuration stands in the way.
    #[error("{0}")]
    Precondition(&'static str),
}

/// What the server's configuration says of its authorities; [`super::Profile`] says what they sign.
#[derive(Clone)]
pub struct Settings {
    /// `ca_key_type`
    pub ca_key_type: KeyType,
    /// `jwt_key_type`
    pub jwt_key_type: KeyType,
    /// `disable_jwt_svids`
    pub disable_jwt: bool,
    /// `wit_key_type`; `None` without the feature flag `wit-svid`.
    pub wit_key_type: Option<KeyType>,
    /// The upstream authority; `None` where the server's CA signs itself.
    pub upstream: Option<Arc<dyn UpstreamAuthority>>,
}

impl Settings {
    /// The tokens that are signed, and the types of their keys.
    fn tokens(&self) -> impl Iterator<Item = (Token, KeyType)> {
        let jwt = (!self.disable_jwt).then_some((Token::Jwt, self.jwt_key_type));
        let wit = self.wit_key_type.map(|kind| (Token::Wit, kind));
        jwt.into_iter().chain(wit)
    }
}

/// Keeps one X.509 authority active, and one of each kind of token that is configured.
pub struct Manager<S, K> {
    authorities: Arc<Authorities>,
    store: Arc<S>,
    keys: K,
    settings: Settings,
    state: Mutex<State>,
    tainted: watch::Sender<u64>,
    counts: Rotation,
}

struct State {
    x509: Slots<X509Authority>,
    jwt: Slots<TokenAuthority>,
    wit: Slots<TokenAuthority>,
    journal: Journal,
    /// When it was last tried to leave a tainted upstream authority.
    left: Option<Instant>,
}

impl Authority for X509Authority {
    fn id(&self) -> String {
        Self::id(self)
    }

    fn upstream_id(&self) -> String {
        Self::upstream_id(self)
    }

    fn not_after(&self) -> SystemTime {
        Self::not_after(self)
    }
}

impl Authority for TokenAuthority {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn upstream_id(&self) -> String {
        String::new()
    }

    fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl<S: Bundles + Journals + 'static, K: KeyManager> Manager<S, K> {
    /// Finds the authorities of an earlier process again, or makes the first ones. When this is done, `authorities`
    /// can sign.
    pub async fn start(
        authorities: Arc<Authorities>,
        store: Arc<S>,
        keys: K,
        settings: Settings,
    ) -> Result<Self, CaError> {
        let journal = Journal::load(store.as_ref(), &keys).await?;
        let of = &authorities.profile().trust_domain;
        let mut manager = Self {
            counts: Rotation::new(authorities.metrics(), of),
            authorities,
            store,
            keys,
            settings,
            state: Mutex::new(State {
                x509: Slots::choose(std::iter::empty()),
                jwt: Slots::choose(std::iter::empty()),
                wit: Slots::choose(std::iter::empty()),
                journal,
                left: None,
            }),
            tainted: watch::Sender::new(0),
        };
        manager.load().await?;
        match manager.rotate().await {
            // What was found again serves until what comes next can be made.
            Err(error) if !manager.can_sign() => Err(error),
            _ => Ok(manager),
        }
    }

    fn can_sign(&self) -> bool {
        let now = self.now();
        let mut tokens = self.settings.tokens();
        tokens.all(|(of, _)| self.authorities.active_token(of, now).is_ok())
            && self.authorities.active_x509(now).is_ok()
    }

    /// What signs.
    pub fn authorities(&self) -> &Arc<Authorities> {
        &self.authorities
    }

    /// Counts how often an X.509 authority was tainted: whoever has an SVID of it has to have a new one.
    pub fn tainted(&self) -> watch::Receiver<u64> {
        self.tainted.subscribe()
    }

    fn now(&self) -> SystemTime {
        self.authorities.clock().now()
    }

    /// In the current slot when that is empty, else in the next.
    async fn prepare_x509_ca(&self, state: &mut State) -> Result<(), CaError> {
        let call = self.counts.prepare_x509.start();
        let prepared = self.new_x509_ca(state).await;
        done(call, &prepared);
        prepared
    }

    async fn new_x509_ca(&self, state: &mut State) -> Result<(), CaError> {
        // While the journal lags behind, a new key could take the place of the one that it is found by.
        state.journal.save(self.store.as_ref()).await?;
        let slot = free_slot(&mut state.x509);
        let now = self.now();
        let key = self
            .keys
            .generate_key(&x509_key_id(slot.name), self.settings.ca_key_type)
            .await?;
        // From here on the key of whatever the slot held is gone.
        slot.set_status(Status::Old);
        let authority = match &self.settings.upstream {
            None => {
                let authority = prepare::self_signed(self.authorities.profile(), key, now)?;
                let der = authority.der().to_vec();
                self.append(&[der], None).await?;
                authority
            }
            Some(upstream) => {
                let profile = self.authorities.profile();
                let csr = prepare::request(profile, key.as_ref())?;
                let minted = upstream.mint_x509_ca(&csr, profile.ca_ttl).await?;
                let authority = prepare::minted(profile, key, &minted, now)?;
                self.append(&minted.roots, None).await?;
                authority
            }
        };
        let authority = Arc::new(authority);
        state
            .journal
            .append_x509(slot.name, &authority, to_unix(now));
        *slot = Slot::holding(
            slot.name,
            authority,
            from_unix(to_unix(now)),
            Status::Prepared,
        );
        tracing::info!(
            slot = %slot.name,
            local_authority_id = slot.id(),
            self_signed = self.settings.upstream.is_none(),
            "X.509 CA prepared"
        );
        self.save(state).await;
        Ok(())
    }

    async fn activate_x509_ca(&self, state: &mut State) {
        let slot = &mut state.x509.current;
        slot.set_status(Status::Active);
        state.journal.activate_x509(slot.id());
        self.authorities.set_x509(slot.authority.clone());
        if let Some(authority) = &slot.authority {
            self.counts
                .activated_x509(authority.not_after(), self.now());
        }
        tracing::info!(slot = %slot.name, local_authority_id = slot.id(), "X.509 CA activated");
        self.save(state).await;
    }

    /// An authority in the bundle may sign even if the journal does not know yet: after a crash it would be made
    /// active again, or replaced. What could not be saved is saved with the next rotation.
    async fn save(&self, state: &mut State) {
        let saved = state.journal.save(self.store.as_ref()).await;
        log_failure(saved, "CA journal not saved, which is tried again");
    }
}

fn free_slot<A: Authority>(slots: &mut Slots<A>) -> &mut Slot<A> {
    if slots.current.is_empty() {
        &mut slots.current
    } else {
        &mut slots.next
    }
}

// The names of keys are upstream's, so that its key files fit.
fn x509_key_id(slot: SlotName) -> String {
    format!("x509-CA-{slot}")
}

fn token_key_id(of: Token, slot: SlotName) -> String {
    match of {
        Token::Jwt => format!("JWT-Signer-{slot}"),
        Token::Wit => format!("WIT-Signer-{slot}"),
    }
}

fn log_failure(done: Result<(), impl Display>, what: &str) {
    if let Err(error) = done {
        tracing::error!(%error, "{what}");
    }
}
