//! The one task that talks to Vault: it keeps the token alive and issues when asked (VA-15).
//!
//! One task, so that there is never more than one request at a time, that no request dies with a future that was
//! dropped (a login may spend a one-time secret id), and that the token lives on while nobody needs a certificate.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::Secret;
use super::cache::Cache;
use super::client::{Ask, Client, Reply};
use super::config::VaultConfig;
use super::fault::{Failure, Refusal, not_issued, path_denied};
use super::pki::{self, Issued};
use super::token::Token;
use crate::{Clock, Code, Explained, ProviderError};

use entry::Refused;

mod entry;
mod tend;

/// How often files are looked at for something new to log in with, once what they hold was refused.
const LOOK: Duration = Duration::from_secs(5);

/// How soon what was refused may be sent once more, at the earliest and at the latest: servers lock out a role after a
/// few refusals, and somebody may have mended the role.
const REFUSED_FOR: (f64, f64) = (300.0, 600.0);

/// What the provider asks of the keeper.
pub(super) enum Order {
    /// A certificate. The one in use ends at `until`.
    Issue {
        until: Option<SystemTime>,
        reply: oneshot::Sender<Result<Issued, ProviderError>>,
    },
    /// The mount's own authorities.
    Authorities(oneshot::Sender<Vec<CertificateDer<'static>>>),
    /// A token, for the requests of somebody who is no provider.
    Token {
        /// What became of the last one.
        denied: Option<Denied>,
        reply: oneshot::Sender<Result<Secret, ProviderError>>,
    },
}

/// A request that was forbidden.
pub(super) struct Denied {
    pub(super) token: Secret,
    pub(super) path: String,
    pub(super) refusal: Refusal,
}

/// How the token stands, for whoever plans by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// The token cannot be replaced.
    pub(super) ending: Option<Ending>,
}

/// The end of a token that cannot be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ending {
    /// When it ends.
    pub(super) at: SystemTime,
    /// When to ask for the last certificate, at the latest.
    pub(super) last_call: SystemTime,
    /// Why it cannot be replaced, and what to do.
    pub(super) why: Explained,
}

/// Why there is no token.
enum NoToken {
    /// Asked again, it may work.
    Passing(Failure),
    /// The credential was refused.
    Refused(Explained),
    /// A person has to mend something here.
    Setup(Explained),
}

pub(super) struct Keeper {
    config: VaultConfig,
    client: Client,
    clock: Arc<dyn Clock>,
    cache: Option<Cache>,
    token: Option<Token>,
    /// When the token is to be renewed or replaced.
    tend_at: Option<Instant>,
    /// Failures to tend since the last success.
    failures: u32,
    refused: Option<Refused>,
    /// A secret id that was unwrapped, by the credential that wrapped it.
    unwrapped: Option<(String, Secret)>,
    /// Whether a login got no answer since the last that got one.
    lost: bool,
    cache_told: bool,
    standing: watch::Sender<Standing>,
}

impl Keeper {
    pub(super) fn new(
        config: VaultConfig,
        client: Client,
        clock: Arc<dyn Clock>,
        standing: watch::Sender<Standing>,
    ) -> Self {
        let cache = cache(&config);
        Self {
            config,
            client,
            clock,
            cache,
            token: None,
            tend_at: None,
            failures: 0,
            refused: None,
            unwrapped: None,
            lost: false,
            cache_told: false,
            standing,
        }
    }

    /// Works until nobody can order any more.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            let tend_at = self.tend_at;
            let due = async move {
                match tend_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    None => return,
                    Some(Order::Issue { until, reply }) => {
                        let outcome = self.issue(until).await;
                        let _ = reply.send(outcome);
                    }
                    Some(Order::Authorities(reply)) => {
                        let _ = reply.send(self.authorities().await);
                    }
                    Some(Order::Token { denied, reply }) => {
                        let _ = reply.send(self.token(denied).await);
                    }
                },
                () = due => self.tend().await,
            }
        }
    }

    // Certificates

    async fn issue(&mut self, until: Option<SystemTime>) -> Result<Issued, ProviderError> {
        self.have_token(until).await?;
        let refusal = match self.request(until).await {
            Ok(issued) => return Ok(issued),
            Err(Ended::With(error)) => return Err(error),
            Err(Ended::Forbidden(refusal)) => refusal,
        };
        let path = self.config.pki.to_string();
        self.another_token(until, &path, &refusal).await?;
        match self.request(until).await {
            Ok(issued) => Ok(issued),
            Err(Ended::With(error)) => Err(error),
            Err(Ended::Forbidden(refusal)) => Err(self.denied(&path, &refusal)),
        }
    }

    async fn have_token(&mut self, until: Option<SystemTime>) -> Result<(), ProviderError> {
        if self.token.as_ref().is_some_and(|token| !token.expired()) {
            return Ok(());
        }
        let had = self.token.is_some();
        let logged_in = self.log_in(until).await;
        logged_in.map_err(|error| no_token(error, had))
    }

    /// After `refusal` of `path`. Vault says the same of a token that is over and of one that may not do this; what the
    /// token says of itself tells them apart.
    async fn another_token(
        &mut self,
        until: Option<SystemTime>,
        path: &str,
        refusal: &Refusal,
    ) -> Result<(), ProviderError> {
        if self.token_lives(until).await? {
            return Err(self.denied(path, refusal));
        }
        let had = self.token.as_ref().is_some_and(|token| token.proven);
        let logged_in = self.log_in(until).await;
        logged_in.map_err(|error| no_token(error, had))
    }

    /// The token in use; another one where that was `denied`. Of several who were denied the first has it replaced.
    async fn token(&mut self, denied: Option<Denied>) -> Result<Secret, ProviderError> {
        let in_use = self.token.as_ref().map(|token| &token.secret);
        match denied {
            Some(denied) if in_use == Some(&denied.token) => {
                self.another_token(None, &denied.path, &denied.refusal)
                    .await?;
            }
            _ => self.have_token(None).await?,
        }
        let token = self.token.as_ref().map(|token| token.secret.clone());
        token.ok_or_else(super::gone)
    }

    async fn request(&mut self, until: Option<SystemTime>) -> Result<Issued, Ended> {
        let (ask, own) = pki::ask(&self.config.pki, &self.config.request)
            .map_err(|explained| Ended::With(ProviderError::Operator(explained)))?;
        let ask = self.with_token(ask);
        let reply = match self.send(&ask, until).await {
            Ok(reply) => reply,
            Err(failure) => return Err(self.judge(failure)),
        };
        if let Some(token) = &mut self.token {
            token.proven = true;
        }
        let mut issued = pki::read(&reply, own)
            .map_err(|explained| Ended::With(ProviderError::Operator(explained)))?;
        for authority in self.authorities().await {
            if !issued.authorities.contains(&authority) {
                issued.authorities.push(authority);
            }
        }
        Ok(issued)
    }

    fn judge(&self, failure: Failure) -> Ended {
        match failure.refusal() {
            Some(refusal) if refusal.forbidden() => Ended::Forbidden(refusal.clone()),
            Some(refusal) => {
                let names = pki::names(&self.config.request);
                let explained = not_issued(refusal, self.config.pki.role(), &names);
                Ended::With(ProviderError::Operator(explained))
            }
            None => Ended::With(failure.into_error()),
        }
    }

    /// ER-16
    fn denied(&self, path: &str, refusal: &Refusal) -> ProviderError {
        tracing::debug!(said = refusal.words(), "vault forbids the path");
        ProviderError::Operator(path_denied(path, self.config.namespace.as_deref()))
    }

    /// Whether Vault knows the token still. One that never worked and may not look itself up counts as unknown.
    async fn token_lives(&mut self, until: Option<SystemTime>) -> Result<bool, ProviderError> {
        let ask = self.with_token(Ask::get("auth/token/lookup-self"));
        match self.send(&ask, until).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.refusal().is_some() => Ok(false),
            Err(failure) => Err(failure.into_error()),
        }
    }

    /// The mount's own authorities, where they may be read. No retries: they come with each certificate again.
    async fn authorities(&mut self) -> Vec<CertificateDer<'static>> {
        let ask = self.with_token(pki::ask_authority(&self.config.pki));
        match self.client.once(&ask).await {
            Ok(reply) => pki::read_authority(&reply),
            Err(failure) => {
                tracing::debug!(error = %failure.explained(), "the mount's authority cannot be read");
                Vec::new()
            }
        }
    }

    // Requests

    fn with_token(&self, ask: Ask) -> Ask {
        match &self.token {
            Some(token) => ask.with(&token.secret),
            None => ask,
        }
    }

    async fn send(&mut self, ask: &Ask, until: Option<SystemTime>) -> Result<Reply, Failure> {
        let clock = Arc::clone(&self.clock);
        let left = move || until.map(|until| until.duration_since(clock.now()).unwrap_or_default());
        self.client.send(ask, left).await
    }
}

/// How a request for a certificate ended without one.
enum Ended {
    Forbidden(Refusal),
    With(ProviderError),
}

/// The cache of this configuration's logins. Only a secret id can be spent: the other methods log in again at will,
/// and a token that is not on disk cannot be read there.
fn cache(config: &VaultConfig) -> Option<Cache> {
    if config.login.method.as_str() != "approle" {
        return None;
    }
    let directory = config.token_cache.clone()?;
    let servers: Vec<String> = config.addresses.iter().map(ToString::to_string).collect();
    let parts = servers.iter().map(String::as_str).chain([
        config.namespace.as_deref().unwrap_or_default(),
        config.login.mount.as_str(),
        config.pki.mount(),
        config.pki.role(),
    ]);
    Some(Cache::new(directory, parts))
}

/// ER-19 where a token was in use before, ER-13 where there was none.
fn no_token(error: NoToken, had: bool) -> ProviderError {
    match error {
        NoToken::Passing(failure) => failure.into_error(),
        NoToken::Setup(explained) => ProviderError::Operator(explained),
        NoToken::Refused(explained) if had => {
            let mut told = Explained::new(Code::VaultTokenExpired, "vault token expired")
                .cause(format!("logging in again: {}", explained.text));
            told.causes.extend(explained.causes);
            told.hint = explained.hint;
            ProviderError::Operator(told)
        }
        NoToken::Refused(explained) => ProviderError::Operator(explained),
    }
}
