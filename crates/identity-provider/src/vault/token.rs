//! A token and how long it is good for (VA-15).

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::Secret;

/// What a login or a renewal grants.
#[derive(Deserialize)]
pub(super) struct Granted {
    pub(super) auth: Option<Auth>,
}

/// The part of a reply that holds a token.
#[derive(Deserialize)]
pub(super) struct Auth {
    pub(super) client_token: Secret,
    /// Seconds; 0 never ends.
    #[serde(default)]
    pub(super) lease_duration: u64,
    #[serde(default)]
    pub(super) renewable: bool,
}

/// What `lookup-self` says.
#[derive(Deserialize)]
pub(super) struct LookedUp {
    pub(super) data: Facts,
}

/// The facts of a token.
#[derive(Deserialize)]
pub(super) struct Facts {
    /// Seconds left; 0 with `creation_ttl` 0 never ends.
    #[serde(default)]
    pub(super) ttl: u64,
    #[serde(default)]
    pub(super) creation_ttl: u64,
    #[serde(default)]
    pub(super) renewable: bool,
}

/// A token in use. Its life runs on this machine's monotonic clock: Vault says how long, not until when.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) secret: Secret,
    /// What it was granted at first; a renewal that grants less has met the max TTL. `None` never ends.
    pub(super) full: Option<Duration>,
    /// When it was last granted or renewed.
    since: Instant,
    /// How much was granted then.
    granted: Option<Duration>,
    /// Whether a renewal can help: the token can be renewed, and its max TTL is not met.
    pub(super) extends: bool,
    /// Whether Vault ever took it.
    pub(super) proven: bool,
}

impl Token {
    /// A token from a login that was begun at `since`.
    pub(super) fn granted(auth: Auth, since: Instant) -> Self {
        let life = seconds(auth.lease_duration);
        Self {
            secret: auth.client_token,
            full: life,
            since,
            granted: life,
            extends: auth.renewable && life.is_some(),
            proven: true,
        }
    }

    /// A token that was looked up at `since`.
    pub(super) fn looked_up(secret: Secret, facts: &Facts, since: Instant) -> Self {
        let full = seconds(facts.creation_ttl.max(facts.ttl));
        Self {
            secret,
            full,
            since,
            granted: full.map(|_| Duration::from_secs(facts.ttl)),
            extends: facts.renewable && full.is_some(),
            proven: true,
        }
    }

    /// A token that may not look itself up: whether it is good shows when it is used. `left` is what is remembered.
    pub(super) fn unknown(secret: Secret, left: Option<Duration>, since: Instant) -> Self {
        Self {
            secret,
            full: left,
            since,
            granted: left,
            extends: false,
            proven: false,
        }
    }

    /// Takes a renewal that was begun at `since`.
    pub(super) fn renewed(&mut self, auth: &Auth, since: Instant) {
        let granted = seconds(auth.lease_duration);
        self.since = since;
        self.granted = granted;
        // Vault counts in whole seconds and rounds; a tenth less is a cap and no rounding.
        let capped = match (granted, self.full) {
            (Some(granted), Some(full)) => granted < full.mul_f64(0.9),
            _ => false,
        };
        self.extends = auth.renewable && !capped;
    }

    /// When it ends, unless renewed. `None`: never.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.granted.map(|granted| self.since + granted)
    }

    /// What is left of it. `None`: no end.
    pub(super) fn left(&self) -> Option<Duration> {
        let expires = self.expires()?;
        Some(expires.saturating_duration_since(Instant::now()))
    }

    pub(super) fn expired(&self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    /// When to renew or replace it: at two thirds of what was granted, up to a twentieth of it earlier, so that
    /// processes started together do not stay so.
    pub(super) fn due(&self) -> Option<Instant> {
        let granted = self.granted?;
        let share = 2.0 / 3.0 - rand::random_range(0.0..0.05);
        Some(self.since + granted.mul_f64(share))
    }
}

fn seconds(count: u64) -> Option<Duration> {
    (count > 0).then(|| Duration::from_secs(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(lease: u64) -> Auth {
        Auth {
            client_token: Secret::new("s.x".to_owned()),
            lease_duration: lease,
            renewable: true,
        }
    }

    // VA-15: renewed at two thirds; a renewal that grants less has met the max TTL.
    #[tokio::test(start_paused = true)]
    async fn va_15_a_capped_renewal_is_the_last() {
        let start = Instant::now();
        let mut token = Token::granted(auth(3600), start);
        let due = token.due().unwrap() - start;
        assert!(
            due <= Duration::from_secs(2400) && due > Duration::from_secs(2200),
            "{due:?}"
        );
        token.renewed(&auth(3600), start + due);
        assert!(token.extends);
        token.renewed(&auth(2400), start + due * 2);
        assert!(!token.extends);
        assert_eq!(
            token.expires(),
            Some(start + due * 2 + Duration::from_secs(2400))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_root_token_never_ends() {
        let token = Token::granted(auth(0), Instant::now());
        assert_eq!(
            (token.expires(), token.due(), token.extends),
            (None, None, false)
        );
    }
}
