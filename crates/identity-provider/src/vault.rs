//! The `vault` provider: certificates from the PKI engine of HashiCorp Vault or OpenBao (VA-1 to VA-16).
//!
//! The provider decides when there is to be another certificate; `keeper` is the one task that talks to Vault and
//! keeps the token alive; `client` is the HTTP below it, `login`, `token` and `cache` are what a token takes,
//! `pki` is what a certificate takes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::clock::rfc3339;
use crate::{
    Clock, Code, Explained, Identity, Provider, ProviderError, ProviderKind, TrustBundles,
};

use client::Client;
use keeper::{Keeper, Order, Standing};
use pki::Issued;

mod cache;
mod client;
mod config;
mod dial;
mod fault;
mod keeper;
mod login;
mod pki;
mod read;
mod secret;
mod token;

pub use config::{
    BadValue, CertificateRequest, LoginMethod, Material, PkiPath, Retry, Share, VaultAddress,
    VaultConfig, VaultLogin, VaultTls, api_path,
};
pub use dial::{Connection, Dial, DialError};
pub use secret::Secret;

/// The longest sleep between two looks at the wall clock, which may have been moved.
const TICK: Duration = Duration::from_secs(5);

/// How often the mount's authority is looked at between certificates, up to a fifth later.
const AUTHORITY_EVERY: Duration = Duration::from_secs(3600);

/// The least time between two certificates, however short they live.
const LEAST_LIFE: Duration = Duration::from_secs(1);

/// How long a certificate that is not valid yet is kept before another is asked for.
const EARLY_FOR: Duration = Duration::from_secs(300);

/// How often files are looked at for something new to log in with, after a failure.
const LOOK: Duration = Duration::from_secs(2);

/// Identities from Vault's PKI engine.
pub struct VaultProvider {
    config: VaultConfig,
    clock: Arc<dyn Clock>,
    dial: Arc<dyn Dial>,
    keeper: Option<Handle>,
    /// What was ordered and not answered yet: it outlives a dropped `next`.
    ordered: Option<Ordered>,
    current: Option<Current>,
    /// A certificate that is not valid yet, since when it is here, and what is told of it.
    early: Option<(Issued, Instant, Explained)>,
    /// Fingerprint of what was logged in with, as it was at the last order.
    credential: Option<String>,
    /// Not to ask before that: the least wait after a failure, however near the certificate's end is.
    rest_until: Option<Instant>,
    last_call_told: bool,
}

struct Handle {
    orders: mpsc::Sender<Order>,
    standing: watch::Receiver<Standing>,
}

enum Ordered {
    Certificate(oneshot::Receiver<Result<Issued, ProviderError>>),
    Authorities(oneshot::Receiver<Vec<CertificateDer<'static>>>),
}

/// The certificate that was given last.
struct Current {
    identity: Identity,
    issued_at: SystemTime,
    renew_at: SystemTime,
    /// Whether another was asked for by a person.
    refresh: bool,
    trust: Vec<Trusted>,
    authority_at: Instant,
}

/// An authority, and until when it is trusted: as long as certificates of its time live, so that a change of the
/// issuer leaves no two sides that cannot verify each other.
#[derive(Clone)]
struct Trusted {
    authority: CertificateDer<'static>,
    until: SystemTime,
}

impl VaultProvider {
    /// A provider of certificates from Vault over the network. Sends nothing yet.
    pub fn new(config: VaultConfig, clock: Arc<dyn Clock>) -> Self {
        let dial = Arc::new(dial::Network {
            tls: config.tls.clone(),
        });
        Self::over(config, clock, dial)
    }

    /// The same over connections of `dial`.
    pub fn over(config: VaultConfig, clock: Arc<dyn Clock>, dial: Arc<dyn Dial>) -> Self {
        for address in config.addresses.iter().filter(|address| address.in_clear()) {
            tracing::warn!(%address, "vault is reached without TLS: whoever is between reads token and private key; use https://");
        }
        Self {
            config,
            clock,
            dial,
            keeper: None,
            ordered: None,
            current: None,
            early: None,
            credential: None,
            rest_until: None,
            last_call_told: false,
        }
    }

    /// The keeper, started at the first need. It ends when the provider is dropped, after what it is doing.
    fn keeper(&mut self) -> Result<&mut Handle, ProviderError> {
        if self.keeper.is_none() {
            let namespace = self.config.namespace.as_deref().map(HeaderValue::from_str);
            let namespace = namespace.transpose().map_err(|_| {
                ProviderError::Fatal(
                    Explained::new(Code::Usage, "the vault namespace cannot be sent")
                        .hint("check --vault-namespace for control characters"),
                )
            })?;
            let client = Client::new(
                self.config.addresses.clone(),
                namespace,
                self.config.retry,
                Arc::clone(&self.dial),
                Arc::clone(&self.clock),
            );
            let (orders, receiver) = mpsc::channel(1);
            let (sender, standing) = watch::channel(Standing::default());
            let keeper = Keeper::new(self.config.clone(), client, Arc::clone(&self.clock), sender);
            tokio::spawn(keeper.run(receiver));
            self.keeper = Some(Handle { orders, standing });
        }
        self.keeper.as_mut().ok_or_else(gone)
    }

    fn standing(&self) -> Standing {
        self.keeper
            .as_ref()
            .map(|keeper| keeper.standing.borrow().clone())
            .unwrap_or_default()
    }

    /// When to ask for the next certificate. `None`: now.
    fn due_at(&self) -> Option<SystemTime> {
        let current = self.current.as_ref().filter(|current| !current.refresh)?;
        // A clock that was put back makes a certificate from the future: its life is not known any more.
        if self.clock.now() < current.issued_at {
            return None;
        }
        let last_call = self.standing().ending.map(|ending| ending.last_call);
        match last_call.filter(|at| current.issued_at < *at) {
            Some(at) => Some(current.renew_at.min(at)),
            None => Some(current.renew_at),
        }
    }

    /// Waits until something is to be ordered, and orders it.
    async fn order(&mut self) -> Result<(), ProviderError> {
        let authorities = loop {
            let now = self.clock.now();
            let Some(at) = self.due_at().filter(|at| *at > now) else {
                break false;
            };
            if self
                .current
                .as_ref()
                .is_some_and(|current| Instant::now() >= current.authority_at)
            {
                break true;
            }
            let wait = at.duration_since(now).unwrap_or_default().min(TICK);
            match &mut self.keeper {
                Some(keeper) => tokio::select! {
                    () = sleep(wait) => {}
                    Ok(()) = keeper.standing.changed() => {}
                },
                None => sleep(wait).await,
            }
        };
        if let Some(until) = self.rest_until {
            sleep_until(until).await;
        }
        let until = self
            .current
            .as_ref()
            .map(|current| current.identity.leaf().not_after);
        if !authorities {
            self.credential = self.fingerprint().await;
        }
        let permit = self.keeper()?.orders.reserve().await.map_err(|_| gone())?;
        if authorities {
            let (sender, receiver) = oneshot::channel();
            permit.send(Order::Authorities(sender));
            self.ordered = Some(Ordered::Authorities(receiver));
        } else {
            let (reply, receiver) = oneshot::channel();
            permit.send(Order::Issue { until, reply });
            self.ordered = Some(Ordered::Certificate(receiver));
        }
        Ok(())
    }

    /// What would be logged in with now; `None` when it cannot be read.
    async fn fingerprint(&self) -> Option<String> {
        let config = self.config.clone();
        let read = tokio::task::spawn_blocking(move || login::credential(&config)).await;
        Some(read.ok()?.ok()?.fingerprint)
    }

    /// What to do with a certificate that was issued, by its dates and our clock.
    fn consider(&mut self, issued: Issued) -> Result<Identity, ProviderError> {
        let now = self.clock.now();
        let identity = Identity::new(
            issued.chain.clone(),
            issued.key.clone(),
            TrustBundles::default(),
        )
        .map_err(|error| {
            ProviderError::Operator(Explained::new(
                Code::Other,
                format!("vault issued a certificate that cannot be read: {error}"),
            ))
        })?;
        let leaf = identity.leaf();
        if leaf.not_before > now {
            let explained = apart(&identity, issued.clock_ahead, now);
            self.early = Some((issued, Instant::now(), explained.clone()));
            return Err(ProviderError::Retry(explained));
        }
        if leaf.not_after <= now {
            return Err(ProviderError::Retry(apart(
                &identity,
                issued.clock_ahead,
                now,
            )));
        }
        let not_after = leaf.not_after;
        let earlier = self
            .current
            .as_ref()
            .map(|current| current.trust.as_slice());
        let trust = trusted(
            &issued.authorities,
            earlier.unwrap_or_default(),
            not_after,
            now,
        );
        let identity = self.trusting(identity, &trust);
        self.current = Some(Current {
            identity: identity.clone(),
            issued_at: now,
            renew_at: renew_at(now, not_after, self.config.renewal_threshold.get()),
            refresh: false,
            trust,
            authority_at: Instant::now()
                + AUTHORITY_EVERY.mul_f64(1.0 + rand::random_range(0.0..0.2)),
        });
        self.tell_last_call(now, not_after);
        Ok(identity)
    }

    /// `identity` with `trust` as its bundle, good for any name.
    fn trusting(&self, identity: Identity, trust: &[Trusted]) -> Identity {
        identity.trusting_also(trust.iter().map(|trusted| trusted.authority.clone()))
    }

    /// The same certificate with the authorities that the mount has now; `None` when they are the same.
    fn reconsider(&mut self, authorities: &[CertificateDer<'static>]) -> Option<Identity> {
        let now = self.clock.now();
        let current = self.current.as_mut()?;
        current.authority_at =
            Instant::now() + AUTHORITY_EVERY.mul_f64(1.0 + rand::random_range(0.0..0.2));
        let not_after = current.identity.leaf().not_after;
        let mut trust = current.trust.clone();
        for authority in authorities {
            if !trust.iter().any(|known| known.authority == *authority) {
                trust.push(Trusted {
                    authority: authority.clone(),
                    until: not_after,
                });
            }
        }
        trust.retain(|trusted| trusted.until > now);
        if trust.len() == current.trust.len() {
            return None;
        }
        let (chain, key) = (
            current.identity.chain().to_vec(),
            current.identity.key().clone(),
        );
        let bare = Identity::new(chain, key, TrustBundles::default()).ok()?;
        current.trust.clone_from(&trust);
        let identity = bare.trusting_also(trust.into_iter().map(|trusted| trusted.authority));
        current.identity = identity.clone();
        Some(identity)
    }

    /// VA-15: says once what expires when, when the last certificate that the token can get is here.
    fn tell_last_call(&mut self, now: SystemTime, not_after: SystemTime) {
        let Some(ending) = self.standing().ending else {
            self.last_call_told = false;
            return;
        };
        if now < ending.last_call || std::mem::replace(&mut self.last_call_told, true) {
            return;
        }
        tracing::warn!(
            certificate_expires = %rfc3339(not_after),
            token_expires = %rfc3339(ending.at),
            hint = ending.why.hint.as_deref(),
            "this is the last certificate that the vault token can get"
        );
    }

    /// Takes a certificate that was not valid yet, once it is. `None`: there is none to be had without asking.
    fn ripe(&mut self) -> Option<Result<Identity, ProviderError>> {
        let (issued, since, explained) = self.early.take()?;
        if since.elapsed() >= EARLY_FOR {
            return None;
        }
        let begins = crate::CertificateFacts::from_der(issued.chain.first()?)
            .ok()?
            .not_before;
        if begins <= self.clock.now() {
            return Some(self.consider(issued));
        }
        self.early = Some((issued, since, explained.clone()));
        Some(Err(ProviderError::Retry(explained)))
    }
}

impl Provider for VaultProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Vault
    }

    async fn next(&mut self) -> Result<Identity, ProviderError> {
        loop {
            if let Some(outcome) = self.ripe() {
                return outcome;
            }
            match &mut self.ordered {
                None => self.order().await?,
                Some(Ordered::Certificate(receiver)) => {
                    let outcome = receiver.await;
                    self.ordered = None;
                    self.rest_until = match &outcome {
                        Ok(Ok(_)) => None,
                        _ => Some(Instant::now() + self.config.retry.delay),
                    };
                    return match outcome {
                        Ok(Ok(issued)) => self.consider(issued),
                        Ok(Err(error)) => Err(error),
                        Err(_) => {
                            self.keeper = None;
                            Err(gone())
                        }
                    };
                }
                Some(Ordered::Authorities(receiver)) => {
                    let authorities = receiver.await.unwrap_or_default();
                    self.ordered = None;
                    if let Some(identity) = self.reconsider(&authorities) {
                        return Ok(identity);
                    }
                }
            }
        }
    }

    /// The next call asks for another certificate.
    fn refresh(&mut self) {
        self.early = None;
        self.rest_until = None;
        if let Some(current) = &mut self.current {
            current.refresh = true;
        }
    }

    /// Something new to log in with is in its file, a certificate became valid, or the token works again.
    async fn changed(&mut self) {
        let begins = self.early.as_ref().map(|(_, since, _)| *since + EARLY_FOR);
        loop {
            let keeper = self.keeper.as_mut().map(|keeper| &mut keeper.standing);
            let recovered = async {
                match keeper {
                    Some(standing) => match standing.changed().await {
                        Ok(()) => standing.borrow().ending.is_none(),
                        Err(_) => std::future::pending().await,
                    },
                    None => std::future::pending().await,
                }
            };
            let too_old = async {
                match begins {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep(LOOK) => {}
                true = recovered => break,
                () = too_old => break,
            }
            if let Some((issued, ..)) = &self.early {
                let now = self.clock.now();
                let first = issued.chain.first().map_or(&[][..], |der| der);
                if crate::CertificateFacts::from_der(first).is_ok_and(|leaf| leaf.not_before <= now)
                {
                    break;
                }
            } else if login::in_files(&self.config.login.method)
                && self
                    .fingerprint()
                    .await
                    .is_some_and(|now| Some(now) != self.credential)
            {
                break;
            }
        }
        self.rest_until = None;
    }

    fn next_renewal(&self) -> Option<SystemTime> {
        self.due_at()
    }

    fn warning(&self) -> Option<Explained> {
        let ending = self.standing().ending?;
        let over = ending.at <= self.clock.now();
        let expires = if over { "expired" } else { "expires" };
        let mut warning = Explained::new(
            Code::VaultTokenExpired,
            format!(
                "the vault token {expires} at {} and cannot be replaced",
                rfc3339(ending.at)
            ),
        );
        if let Some(current) = &self.current {
            let not_after = rfc3339(current.identity.leaf().not_after);
            let which = if current.issued_at < ending.last_call {
                "the certificate is renewed once more before that; the one in use"
            } else {
                "no other certificate can be had; the one in use"
            };
            warning = warning.cause(format!("{which} is valid until {not_after}"));
        }
        warning = warning.cause(&ending.why.text);
        warning.causes.extend(ending.why.causes);
        warning.hint = ending.why.hint;
        Some(warning)
    }
}

/// Whether a server answers and is unsealed. Nothing is logged in to.
///
/// # Errors
/// ER-15, ER-18 or ER-24.
pub async fn reach(config: &VaultConfig, clock: &Arc<dyn Clock>) -> Result<(), Explained> {
    #[derive(serde::Deserialize)]
    struct Seal {
        sealed: bool,
    }
    let dial = Arc::new(dial::Network {
        tls: config.tls.clone(),
    });
    let addresses = config.addresses.clone();
    let mut client = Client::new(addresses, None, config.retry, dial, Arc::clone(clock));
    let ask = client::Ask::get("sys/seal-status");
    let reply = client
        .once(&ask)
        .await
        .map_err(|failure| failure.explained())?;
    match reply
        .read::<Seal>()
        .map_err(|failure| failure.explained())?
    {
        Seal { sealed: false } => Ok(()),
        Seal { sealed: true } => Err(reply.sealed()),
    }
}

/// The share `threshold` of what is left of a certificate now, up to a twentieth of that earlier.
fn renew_at(now: SystemTime, not_after: SystemTime, threshold: f64) -> SystemTime {
    let life = not_after.duration_since(now).unwrap_or_default();
    let share = threshold * (1.0 - rand::random_range(0.0..0.05));
    now + life.mul_f64(share).max(LEAST_LIFE)
}

/// `authorities`, and those of `earlier` whose time is not over.
fn trusted(
    authorities: &[CertificateDer<'static>],
    earlier: &[Trusted],
    not_after: SystemTime,
    now: SystemTime,
) -> Vec<Trusted> {
    let current = authorities.iter().map(|authority| Trusted {
        authority: authority.clone(),
        until: not_after,
    });
    let mut all: Vec<Trusted> = current.collect();
    for old in earlier.iter().filter(|old| old.until > now) {
        if !all.iter().any(|known| known.authority == old.authority) {
            all.push(old.clone());
        }
    }
    all
}

/// ER-4: a fresh certificate whose dates do not hold, because two clocks differ.
fn apart(identity: &Identity, ahead: Option<i64>, now: SystemTime) -> Explained {
    let leaf = identity.leaf();
    let explained = Explained::new(
        Code::ExpiredOrNotYetValid,
        "certificate has expired or is not yet valid",
    )
    .cause(format!(
        "vault issued a certificate valid from {} to {}; the clock here says {}",
        rfc3339(leaf.not_before),
        rfc3339(leaf.not_after),
        rfc3339(now)
    ));
    let explained = match ahead {
        Some(ahead) if ahead > 0 => {
            explained.cause(format!("vault's clock is {ahead}s ahead of ours"))
        }
        Some(ahead) if ahead < 0 => explained.cause(format!(
            "vault's clock is {}s behind ours",
            ahead.unsigned_abs()
        )),
        _ => explained,
    };
    explained.hint("set both clocks right: `timedatectl status` here and on the Vault servers")
}

fn gone() -> ProviderError {
    ProviderError::Retry(Explained::new(Code::Other, "asking vault was interrupted"))
}
