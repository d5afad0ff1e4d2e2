//! The `vault` provider: certificates from the PKI engine of HashiCorp Vault or OpenBao (VA-1 to VA-16).
//!
//! The provider decides when there is to be another certificate; `keeper` is the one task that talks to Vault and
//! keeps the token alive; `client` is the HTTP below it, and `wire` the bytes of that; `login`, `token` and `cache` are
//! what a token takes, `pki` is what a certificate takes, `current` what becomes of one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::clock::rfc3339;
use crate::{Clock, Code, Explained, Identity, Provider, ProviderError, ProviderKind};

use client::Client;
use current::{Current, EARLY_FOR};
use keeper::{Keeper, Order, Standing};
use pki::Issued;

mod access;
mod cache;
mod client;
mod config;
mod current;
mod dial;
mod fault;
mod keeper;
mod login;
mod pki;
mod read;
mod secret;
mod token;
mod wire;

pub use access::VaultAccess;
pub use config::{
    BadValue, CertificateRequest, LoginMethod, Material, PkiPath, Retry, Share, VaultAddress,
    VaultConfig, VaultLogin, VaultTls, api_path,
};
pub use dial::{Connection, Dial, DialError};
pub use secret::Secret;

/// The longest sleep between two looks at the wall clock, which may have been moved.
const TICK: Duration = Duration::from_secs(5);

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
            let clock = Arc::clone(&self.clock);
            let (orders, standing) = start_keeper(&self.config, Arc::clone(&self.dial), clock)?;
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

/// What sends requests as `config` says.
fn client(
    config: &VaultConfig,
    dial: Arc<dyn Dial>,
    clock: Arc<dyn Clock>,
) -> Result<Client, ProviderError> {
    let namespace = config.namespace.as_deref().map(HeaderValue::from_str);
    let namespace = namespace.transpose().map_err(|_| {
        ProviderError::Fatal(
            Explained::new(Code::Usage, "the vault namespace cannot be sent")
                .hint("check --vault-namespace for control characters"),
        )
    })?;
    Ok(Client::new(
        config.addresses.clone(),
        namespace,
        config.retry,
        dial,
        clock,
    ))
}

/// The one task that talks to Vault. It ends when nobody can order any more, after what it is doing.
fn start_keeper(
    config: &VaultConfig,
    dial: Arc<dyn Dial>,
    clock: Arc<dyn Clock>,
) -> Result<(mpsc::Sender<Order>, watch::Receiver<Standing>), ProviderError> {
    let client = client(config, dial, Arc::clone(&clock))?;
    let (orders, receiver) = mpsc::channel(1);
    let (sender, standing) = watch::channel(Standing::default());
    let keeper = Keeper::new(config.clone(), client, clock, sender);
    tokio::spawn(keeper.run(receiver));
    Ok((orders, standing))
}

fn gone() -> ProviderError {
    ProviderError::Retry(Explained::new(Code::Other, "asking vault was interrupted"))
}
