//! What becomes of a certificate that Vault issued: whom it trusts, whether its dates hold, when the next is due.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use super::VaultProvider;
use super::pki::Issued;
use crate::clock::rfc3339;
use crate::{Code, Explained, Identity, ProviderError, TrustBundles};

/// How often the mount's authority is looked at between certificates, up to a fifth later.
const AUTHORITY_EVERY: Duration = Duration::from_secs(3600);

/// The least time between two certificates, however short they live.
const LEAST_LIFE: Duration = Duration::from_secs(1);

/// How long a certificate that is not valid yet is kept before another is asked for.
pub(super) const EARLY_FOR: Duration = Duration::from_secs(300);

/// The certificate that was given last.
pub(super) struct Current {
    pub(super) identity: Identity,
    pub(super) issued_at: SystemTime,
    pub(super) renew_at: SystemTime,
    /// Whether another was asked for by a person.
    pub(super) refresh: bool,
    trust: Vec<Trusted>,
    pub(super) authority_at: Instant,
}

/// An authority, and until when it is trusted: as long as certificates of its time live, so that a change of the
/// issuer leaves no two sides that cannot verify each other.
#[derive(Clone)]
struct Trusted {
    authority: CertificateDer<'static>,
    until: SystemTime,
}

impl VaultProvider {
    /// What to do with a certificate that was issued, by its dates and our clock.
    pub(super) fn consider(&mut self, issued: Issued) -> Result<Identity, ProviderError> {
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
    pub(super) fn reconsider(
        &mut self,
        authorities: &[CertificateDer<'static>],
    ) -> Option<Identity> {
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
    pub(super) fn ripe(&mut self) -> Option<Result<Identity, ProviderError>> {
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
