//! Our own identity: whether the provider gives one, and what peers will make of it.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::vault::LoginMethod;
use ah_identity_provider::{
    Clock, Code, Explained, Identity, ProviderKind, Published, SystemClock, Vet, files, vault,
};
use ah_tls::{Examined, IdentityVet, Role};

use super::clock::{moment, when_valid};
use super::report::{Check, Report};
use crate::commands::enroll::bearer;
use crate::commands::identity::Source;
use crate::render::brief;
use crate::settings::{EnrollSettings, SourceSettings};

/// Takes every identity: what is wrong with it is for the checks to say, one by one.
struct Anything;

impl Vet for Anything {
    fn vet(&self, _: &Identity, _: SystemTime) -> Result<(), Explained> {
        Ok(())
    }
}

/// One step on the way to an identity: its check, and the failures that belong to it.
type Step = (&'static str, &'static [Code]);

/// The steps by which each provider gives an identity. A failure that belongs to none is of the step without codes.
fn steps(kind: ProviderKind) -> &'static [Step] {
    match kind {
        ProviderKind::Files => &[
            ("files", &[Code::NoSuchFile, Code::PermissionDenied]),
            ("pem", &[]),
            ("key", &[Code::KeyMismatch]),
        ],
        ProviderKind::Spiffe => &[("workload-api", &[Code::WorkloadApi]), ("svid", &[])],
        ProviderKind::Vault => &[
            ("vault", &[Code::VaultUnreachable, Code::Unavailable]),
            ("vault-seal", &[Code::VaultSealed]),
            (
                "vault-login",
                &[
                    Code::VaultAuthFailed,
                    Code::VaultTokenExpired,
                    Code::NoSuchFile,
                    Code::PermissionDenied,
                ],
            ),
            ("vault-policy", &[Code::VaultPathDenied]),
            ("vault-role", &[]),
            ("key", &[Code::KeyMismatch]),
            ("own-dates", &[Code::ExpiredOrNotYetValid]),
        ],
        ProviderKind::Exec => &[
            ("command", &[]),
            ("key", &[Code::KeyMismatch]),
            ("own-dates", &[Code::ExpiredOrNotYetValid]),
        ],
        ProviderKind::Dev => &[("identity", &[])],
    }
}

/// Asks the provider once. What fails is in the report.
pub(super) async fn obtain(
    settings: &EnrollSettings,
    report: &mut Report,
) -> Option<Arc<Published>> {
    let steps = steps(settings.identity.kind());
    let asked = ask(settings).await;
    match &asked {
        Ok(published) => {
            // What the source is known by is told once.
            let mut told = Some(evidence(settings, &published.identity));
            for (name, _) in steps.iter().filter(|(name, _)| *name != "own-dates") {
                let told = told.take();
                report.add(Check::pass(
                    name,
                    told.as_deref().unwrap_or("no fault found"),
                ));
            }
        }
        Err(Stopped { failure, stop }) => {
            let of_it = |(name, codes): &Step| match stop {
                Stop::Failed => codes.contains(&failure.code),
                Stop::FailedAt(step) | Stop::LeftOut(step) => name == step,
            };
            let others = || steps.iter().position(|(_, codes)| codes.is_empty());
            let failed = steps
                .iter()
                .position(of_it)
                .or_else(others)
                .unwrap_or_default();
            for (place, (name, _)) in steps.iter().enumerate() {
                report.add(match place.cmp(&failed) {
                    Ordering::Less => Check::pass(name, "no fault found"),
                    Ordering::Equal if matches!(stop, Stop::LeftOut(_)) => {
                        Check::skip(name, failure.text.as_str())
                    }
                    Ordering::Equal => Check::fail(name, failure),
                    Ordering::Greater => Check::skip(name, "there is no identity"),
                });
            }
        }
    }
    key_permissions(settings, report);
    asked.ok()
}

/// Why there is no identity.
struct Stopped {
    failure: Explained,
    stop: Stop,
}

/// At which step.
enum Stop {
    /// At that of the failure's code.
    Failed,
    /// At this one, whatever its code.
    FailedAt(&'static str),
    /// At this one, on purpose: nothing failed.
    LeftOut(&'static str),
}

impl From<Explained> for Stopped {
    fn from(failure: Explained) -> Self {
        Self {
            failure,
            stop: Stop::Failed,
        }
    }
}

async fn ask(settings: &EnrollSettings) -> Result<Arc<Published>, Stopped> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let mut identity = settings.identity.clone();
    if let SourceSettings::Vault(vault) = &mut identity.source {
        // A person waits: what does not answer twice in a row is away.
        vault.config.retry = vault::Retry {
            max: 1,
            delay: Duration::from_millis(200),
        };
        // Whatever else it is that answers in Vault's place.
        let away = |failure: Explained| Stopped {
            stop: if failure.code == Code::VaultSealed {
                Stop::Failed
            } else {
                Stop::FailedAt("vault")
            },
            failure,
        };
        vault::reach(&vault.config, &clock).await.map_err(away)?;
        let approle = matches!(vault.config.login.method, LoginMethod::AppRole { .. });
        if approle && vault.config.token_cache.is_none() {
            return Err(Stopped {
                failure: Explained::new(
                    Code::Usage,
                    "a login might spend the secret id, and with --no-vault-token-cache the executor could not use what it gives",
                ),
                stop: Stop::LeftOut("vault-login"),
            });
        }
    }
    let kind = identity.kind();
    let patience = match &identity.source {
        // What a command says of its own end tells more.
        SourceSettings::Exec(exec) => exec.timeout.saturating_add(PATIENCE),
        _ => PATIENCE,
    };
    let source = Source::vetted_by(&identity, bearer(settings), Arc::new(Anything), &clock);
    match tokio::time::timeout(patience, source.first_or_failure()).await {
        Ok(running) => Ok(running?.identity.current()),
        Err(_) => Err(Explained::new(
            Code::Unavailable,
            format!("the {kind} identity gave nothing within {patience:?}"),
        )
        .hint("ah agent enroll --log-level debug … tells what it waits for")
        .into()),
    }
}

/// How long a provider may take to give its first identity.
const PATIENCE: Duration = Duration::from_secs(30);

fn evidence(settings: &EnrollSettings, identity: &Identity) -> String {
    let leaf = identity.leaf();
    let from = match &settings.identity.source {
        SourceSettings::Dev(dev) => format!("{}: ", dev.state.join("dev").display()),
        SourceSettings::Files(files) => format!("{}: ", files.cert.display()),
        SourceSettings::Spiffe(spiffe) => format!("{}: ", spiffe.endpoint),
        SourceSettings::Vault(vault) => {
            let pki = &vault.config.pki;
            format!("{pki}: ")
        }
        SourceSettings::Exec(exec) => format!("{}: ", exec.command.program()),
    };
    format!(
        "{from}`{}`, serial {}, {}, {} certificate(s) in the chain, {}",
        leaf.subject,
        leaf.serial,
        leaf.key,
        identity.chain().len(),
        names(&leaf.sans())
    )
}

fn names(sans: &[String]) -> String {
    if sans.is_empty() {
        return "no SAN".to_owned();
    }
    sans.join(", ")
}

/// FI-4
fn key_permissions(settings: &EnrollSettings, report: &mut Report) {
    let SourceSettings::Files(files) = &settings.identity.source else {
        return;
    };
    let name = "key-permissions";
    report.add(match files::key_permissions(&files.key) {
        Ok(None) => Check::pass(
            name,
            format!("only its owner may read {}", files.key.display()),
        ),
        Ok(Some(open)) => {
            Check::warn(name, open).fix(format!("sudo chmod 600 {}", files.key.display()))
        }
        Err(_) => Check::skip(name, "the key cannot be looked at"),
    });
}

/// What peers will make of our certificate.
pub(super) struct Own {
    /// By our clock.
    pub(super) now: Result<Examined, Explained>,
    /// At a moment at which the leaf is valid, where it is not now.
    pub(super) then: Option<Result<Examined, Explained>>,
}

impl Own {
    pub(super) fn examine(identity: &Identity) -> Self {
        let vet = IdentityVet::new(Role::Executor, false);
        let now = SystemTime::now();
        let judged = vet.examine(identity, now);
        let outdated = is_dated(&judged);
        let then = when_valid(now, &[identity.leaf()])
            .filter(|_| outdated)
            .map(|then| vet.examine(identity, then));
        Self { now: judged, then }
    }

    /// Whether our clock says that it is not valid.
    pub(super) fn is_outdated(&self) -> bool {
        is_dated(&self.now)
    }

    /// Whether it would be valid at `at`.
    pub(super) fn is_valid_at(identity: &Identity, at: SystemTime) -> bool {
        let vet = IdentityVet::new(Role::Executor, false);
        !is_dated(&vet.examine(identity, at))
    }

    /// Dates, chain and form. `wrong_clock`: the dates are judged by a clock that is known to be wrong.
    pub(super) fn report(&self, identity: &Identity, wrong_clock: bool, report: &mut Report) {
        let leaf = identity.leaf();
        let span = format!(
            "valid from {} to {}",
            moment(leaf.not_before),
            moment(leaf.not_after)
        );
        report.add(match &self.now {
            Err(explained) if self.is_outdated() => {
                if wrong_clock {
                    Check::skip("own-dates", "the clock is wrong")
                } else {
                    Check::fail("own-dates", explained)
                }
            }
            _ => dates(leaf.not_before, leaf.not_after, &span),
        });
        // The rest does not depend on the time, as long as it is one at which the leaf is valid.
        match self.then.as_ref().unwrap_or(&self.now) {
            Ok(examined) => {
                report.add(match &examined.unanchored {
                    None => Check::pass("own-chain", "leads to a root that we trust ourselves"),
                    Some(cause) => Check::warn("own-chain", "does not lead to a root that we trust ourselves; the access point must trust another")
                        .cause(cause)
                        .fix("if the issuer is an intermediate: cat executor.pem intermediate-ca.pem > chain.pem, and --cert chain.pem"),
                });
                report.add(form("own-form", &examined.issuer_faults));
            }
            Err(explained) => {
                let name = match explained.code {
                    Code::KeyMismatch => "key",
                    Code::NoLocalIssuer | Code::UnknownAuthority => "own-chain",
                    _ => "own-form",
                };
                report.add(Check::fail(name, explained));
            }
        }
    }
}

fn is_dated(judged: &Result<Examined, Explained>) -> bool {
    matches!(judged, Err(explained) if explained.code == Code::ExpiredOrNotYetValid)
}

fn dates(from: SystemTime, to: SystemTime, span: &str) -> Check {
    let life = to.duration_since(from).unwrap_or_default();
    let left = to.duration_since(SystemTime::now()).unwrap_or_default();
    let told = format!("{span}, {} left", brief(left));
    if left < life / 10 {
        return Check::warn(
            "own-dates",
            format!("{told}: less than a tenth of its life"),
        )
        .fix("renew it now; `ah agent status` shows when the running executor will");
    }
    Check::pass("own-dates", told)
}

/// `I` rows of the SPIFFE standards, which are borne unless `--strict-svid` is set.
pub(super) fn form(name: &'static str, faults: &[ah_tls::SvidFault]) -> Check {
    if faults.is_empty() {
        return Check::pass(name, "follows the rules of X.509 and SPIFFE");
    }
    let first = Check::warn(
        name,
        "its issuer does not follow the SPIFFE standard; --strict-svid refuses it",
    );
    faults
        .iter()
        .fold(first, |check, fault| check.cause(fault.to_string()))
        .fix("let the issuer follow the X509-SVID standard: keyUsage digitalSignature, extendedKeyUsage serverAuth and clientAuth")
}
