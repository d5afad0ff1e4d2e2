//! Certificates from an ACME server (RFC 8555), proven by TLS-ALPN-01 (RFC 8737) on the port that they are for.
//!
//! Each name has a certificate, a task and a wait of its own: what keeps one from being renewed does not touch the
//! others. What was had is kept in a folder, so that a restart orders nothing.

mod cache;
mod challenge;
mod http;
mod order;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::Backoff;
use ah_spire_wire::http_client::Roots;
use arc_swap::ArcSwap;
use instant_acme::Account;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use self::cache::{Cache, Kept};
use self::challenge::Challenges;
use self::http::Web;

pub use self::challenge::PROTOCOL;

/// Where the certificates come from when nobody says something else.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// A certificate is renewed this long before its end, or in the last third of its life where that is shorter.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Between attempts. ACME servers count failures: Let's Encrypt takes five an hour for a name.
const FIRST_WAIT: Duration = Duration::from_secs(60);
const LAST_WAIT: Duration = Duration::from_secs(60 * 60);

/// What an operator says of the ACME server.
#[derive(Clone, Debug)]
pub struct AcmeSettings {
    /// The directory; `None` for that of Let's Encrypt.
    pub directory_url: Option<String>,
    /// Whom the ACME server writes to.
    pub email: String,
    /// The names, a certificate each.
    pub domains: Vec<String>,
    /// Where account and certificates are kept; `None` keeps nothing.
    pub cache_dir: Option<PathBuf>,
}

/// How a name is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    /// The end of the certificate that is shown.
    not_after: Option<SystemTime>,
    /// What the last attempt failed at.
    fault: Option<String>,
}

/// How the names are.
#[derive(Clone, Debug)]
pub struct AcmeHealth(watch::Receiver<BTreeMap<String, State>>);

impl AcmeHealth {
    /// Names that have a certificate, and what keeps others, or their renewal, from one.
    ///
    /// # Errors
    /// No name has a certificate that is valid now, and why.
    pub fn look(&self) -> Result<Option<String>, String> {
        let states = self.0.borrow();
        let now = SystemTime::now();
        let faults = states.iter().filter_map(|(name, state)| {
            let fault = state.fault.as_deref()?;
            Some(format!("{name}: {fault}"))
        });
        let faults: Vec<_> = faults.collect();
        let faults = (!faults.is_empty()).then(|| faults.join("; "));
        let serves = states
            .values()
            .any(|state| state.not_after.is_some_and(|end| now < end));
        match (serves, faults) {
            (true, faults) => Ok(faults),
            (false, Some(faults)) => Err(format!("no certificate: {faults}")),
            (false, None) => Err("no certificate: it is being ordered".to_owned()),
        }
    }
}

/// Keeps certificates, and renews them.
pub struct Acme {
    settings: AcmeSettings,
    cache: Cache,
    web: Web,
    account: Mutex<Option<Account>>,
    shown: Arc<AcmeCertificates>,
    states: watch::Sender<BTreeMap<String, State>>,
    pace: Pace,
}

/// When what is tried.
#[derive(Clone, Copy)]
struct Pace {
    /// The first wait after a failure, and the longest.
    waits: (Duration, Duration),
    /// How long before its end a certificate of such a life is replaced.
    before_end: fn(Duration) -> Duration,
}

/// What handshakes show: by the name that the client asks for, and to an ACME server that looks the proof.
#[derive(Default)]
pub struct AcmeCertificates {
    by_name: ArcSwap<BTreeMap<String, Arc<CertifiedKey>>>,
    challenges: Challenges,
}

impl fmt::Debug for AcmeCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcmeCertificates").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for AcmeCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello
            .server_name()?
            .trim_end_matches('.')
            .to_ascii_lowercase();
        // RFC 8737 §3: the ACME server offers this protocol alone.
        let looks = hello.alpn().is_some_and(|mut offered| {
            offered.next() == Some(PROTOCOL) && offered.next().is_none()
        });
        match looks {
            true => self.challenges.of(&name),
            false => self.by_name.load().get(&name).cloned(),
        }
    }
}

impl AcmeCertificates {
    fn show(&self, name: &str, certified: &Arc<CertifiedKey>) {
        self.by_name.rcu(|shown| {
            let mut shown = BTreeMap::clone(shown);
            shown.insert(name.to_owned(), certified.clone());
            shown
        });
    }
}

impl Acme {
    /// Shows what is kept and valid. Nothing is asked for before [`Self::run`].
    ///
    /// # Errors
    /// The folder cannot be used, or this machine has no roots to know the ACME server by.
    pub fn new(settings: AcmeSettings) -> Result<Self, String> {
        let pace = Pace {
            waits: (FIRST_WAIT, LAST_WAIT),
            before_end,
        };
        Self::with(settings, Roots::Machine, pace)
    }

    fn with(mut settings: AcmeSettings, roots: Roots, pace: Pace) -> Result<Self, String> {
        for domain in &mut settings.domains {
            let named = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
            // It names a file, too.
            if !domain.chars().all(named) || domain.starts_with('.') || domain.is_empty() {
                return Err(format!(
                    "{domain:?} is no domain name that ACME gives certificates for"
                ));
            }
            domain.make_ascii_lowercase();
        }
        let acme = Self {
            cache: Cache::open(settings.cache_dir.clone())?,
            web: Web::new(roots)?,
            account: Mutex::default(),
            shown: Arc::default(),
            states: watch::Sender::new(
                { settings.domains.iter() }
                    .map(|domain| (domain.clone(), State::default()))
                    .collect(),
            ),
            settings,
            pace,
        };
        for domain in &acme.settings.domains {
            match acme.cache.certificate(domain) {
                Ok(Some(kept)) if kept.not_after > SystemTime::now() => acme.take(domain, &kept),
                Ok(_) => {}
                Err(error) => tracing::warn!(
                    domain,
                    error,
                    "A kept certificate cannot be used; a new one is ordered"
                ),
            }
        }
        Ok(acme)
    }

    /// For the TLS configuration, whose protocols have to have [`PROTOCOL`] among them.
    #[must_use]
    pub fn certificates(&self) -> Arc<AcmeCertificates> {
        self.shown.clone()
    }

    /// How the names are, also while it runs.
    #[must_use]
    pub fn health(&self) -> AcmeHealth {
        AcmeHealth(self.states.subscribe())
    }

    /// Orders and renews for ever. The port has to be answered meanwhile.
    pub async fn run(self) {
        let acme = Arc::new(self);
        let mut tasks = JoinSet::new();
        for domain in acme.settings.domains.clone() {
            let acme = acme.clone();
            tasks.spawn(async move { Box::pin(acme.keep(&domain)).await });
        }
        // None of them ends.
        while tasks.join_next().await.is_some() {}
    }

    /// Keeps the certificate of one name.
    async fn keep(&self, domain: &str) {
        let mut backoff = Backoff::new(self.pace.waits.0, self.pace.waits.1);
        let mut due = self.cache.certificate(domain).ok().flatten();
        loop {
            if let Some(kept) = due.take() {
                wait_until(kept.before_end(self.pace.before_end)).await;
            }
            match self.obtain(domain).await {
                Ok(kept) => {
                    backoff.reset();
                    self.take(domain, &kept);
                    tracing::info!(domain, "The ACME server has issued a certificate");
                    due = Some(kept);
                }
                Err(error) => {
                    let wait = backoff.next_wait();
                    tracing::error!(
                        domain,
                        directory_url = self.directory(),
                        error,
                        retry_in = ?wait,
                        "The ACME server has issued no certificate; the last one, if there is one, serves on"
                    );
                    self.tell(domain, |state| state.fault = Some(error));
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    async fn obtain(&self, domain: &str) -> Result<Kept, String> {
        let account = self.account().await?;
        let issued = order::order(&account, domain, &self.shown.challenges).await;
        self.shown.challenges.forget(domain);
        if issued.as_ref().is_err_and(|fault| fault.no_account) {
            self.cache.forget_account();
            *self.account.lock().await = None;
        }
        let kept = Kept::read(domain, &issued.map_err(|fault| fault.text)?)?;
        if let Err(error) = self.cache.put_certificate(domain, &kept) {
            tracing::error!(
                domain,
                error,
                "The certificate cannot be kept: the next start will order another one"
            );
        }
        Ok(kept)
    }

    /// The account of the folder, or a new one that is kept there.
    async fn account(&self) -> Result<Account, String> {
        let mut account = self.account.lock().await;
        if let Some(account) = &*account {
            return Ok(account.clone());
        }
        let directory = self.directory();
        let (found, made) = order::account(
            &self.web,
            directory,
            &self.settings.email,
            self.cache.account(directory),
        )
        .await?;
        if let Some(made) = made {
            tracing::info!(
                directory_url = directory,
                email = self.settings.email,
                "ACME Terms of Service accepted; an account was made"
            );
            if let Err(error) = self.cache.put_account(&made) {
                tracing::error!(
                    error,
                    "The ACME account cannot be kept: the next start will make another one"
                );
            }
        }
        Ok(account.insert(found).clone())
    }

    fn directory(&self) -> &str {
        self.settings
            .directory_url
            .as_deref()
            .unwrap_or(LETS_ENCRYPT)
    }

    fn take(&self, domain: &str, kept: &Kept) {
        self.shown.show(domain, &kept.certified);
        self.tell(domain, |state| {
            *state = State {
                not_after: Some(kept.not_after),
                fault: None,
            };
        });
    }

    fn tell(&self, domain: &str, change: impl FnOnce(&mut State)) {
        self.states.send_modify(|states| {
            change(states.entry(domain.to_owned()).or_default());
        });
    }
}

/// By the wall clock, which goes on while the machine sleeps.
async fn wait_until(moment: SystemTime) {
    while let Ok(wait) = moment.duration_since(SystemTime::now()) {
        tokio::time::sleep(wait.min(LAST_WAIT)).await;
    }
}

fn before_end(life: Duration) -> Duration {
    RENEW_BEFORE.min(life / 3)
}

#[cfg(test)]
mod tests;
