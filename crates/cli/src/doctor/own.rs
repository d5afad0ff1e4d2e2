//! Our own identity: whether the provider gives one, and what peers will make of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::{
    Clock, Code, Explained, Identity, ProviderKind, Published, SystemClock, Vet, files,
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

/// The steps by which each provider gives an identity, and the failures that belong to each. What belongs to
/// none is the last step's.
fn steps(kind: ProviderKind) -> &'static [(&'static str, &'static [Code])] {
    match kind {
        ProviderKind::Dev => &[("dev-ca", &[])],
        ProviderKind::Files => &[
            ("files", &[Code::NoSuchFile, Code::PermissionDenied]),
            ("key", &[Code::KeyMismatch]),
            ("pem", &[]),
        ],
        _ => &[("identity", &[])],
    }
}

/// Asks the provider once. What fails is in the report.
pub(super) async fn obtain(
    settings: &EnrollSettings,
    report: &mut Report,
) -> Option<Arc<Published>> {
    let kind = settings.identity.kind();
    let steps = steps(kind);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let source = Source::vetted_by(
        &settings.identity,
        bearer(settings),
        Arc::new(Anything),
        &clock,
    );
    let asked = tokio::time::timeout(PATIENCE, source.first_or_failure()).await;
    let failure = match asked {
        Ok(Ok(running)) => {
            let published = running.identity.current();
            for (name, _) in steps {
                report.add(Check::pass(name, evidence(settings, &published.identity)));
            }
            key_permissions(settings, report);
            return Some(published);
        }
        Ok(Err(explained)) => explained,
        Err(_) => Explained::new(
            Code::Unavailable,
            format!("the {kind} identity gave nothing within {PATIENCE:?}"),
        )
        .hint("ah agent enroll --log-level debug … tells what it waits for"),
    };
    let failed = steps
        .iter()
        .position(|(_, codes)| codes.contains(&failure.code))
        .unwrap_or(steps.len().saturating_sub(1));
    for (place, (name, _)) in steps.iter().enumerate() {
        report.add(match place.cmp(&failed) {
            std::cmp::Ordering::Less => Check::pass(name, "no fault found"),
            std::cmp::Ordering::Equal => Check::fail(name, &failure),
            std::cmp::Ordering::Greater => Check::skip(name, "there is no identity"),
        });
    }
    key_permissions(settings, report);
    None
}

/// How long a provider may take to give its first identity.
const PATIENCE: Duration = Duration::from_secs(30);

fn evidence(settings: &EnrollSettings, identity: &Identity) -> String {
    let leaf = identity.leaf();
    let from = match &settings.identity.source {
        SourceSettings::Dev(dev) => format!("{}: ", dev.state.join("dev").display()),
        SourceSettings::Files(files) => format!("{}: ", files.cert.display()),
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
