//! Keeps the token alive while nobody needs a certificate, and says when that cannot go on (VA-15).

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::super::client::Ask;
use super::super::login;
use super::super::token::{Granted, Token};
use super::{Ending, Keeper, LOOK, NoToken};
use crate::Explained;
use crate::backoff::{Jitter, window};
use crate::clock::rfc3339;

/// The longest wait between two attempts to renew or replace a token.
const TEND_MAX: Duration = Duration::from_secs(60);

/// The earliest moment before the end of a token for the last certificate, and how much earlier it may be.
const LAST_CALL: Duration = Duration::from_secs(60);

impl Keeper {
    /// Renews the token, or replaces it where a renewal cannot help.
    pub(super) async fn tend(&mut self) {
        if self
            .token
            .as_ref()
            .is_some_and(|token| token.extends && !token.expired())
        {
            let since = Instant::now();
            let ask = self.with_token(Ask::post("auth/token/renew-self", &[].into()));
            let outcome = self.client.once(&ask).await;
            match outcome.and_then(|reply| reply.read::<Granted>()) {
                Ok(Granted { auth: Some(auth) }) => {
                    self.failures = 0;
                    if let Some(token) = &mut self.token {
                        token.renewed(&auth, since);
                        self.tend_at = token.due();
                        tracing::debug!(
                            ttl = auth.lease_duration,
                            extends = token.extends,
                            "vault token renewed"
                        );
                    }
                    return;
                }
                Err(failure) if failure.passes() => return self.tend_later(&failure.explained()),
                // Refused: at its max TTL, revoked, or not allowed. A new one is needed.
                Ok(_) | Err(_) => {}
            }
        }
        // Not for the sake of a certificate: the token's own end bounds the waits.
        let until = self.token_end();
        match self.log_in(until).await {
            Ok(()) => {}
            Err(NoToken::Passing(failure)) => self.tend_later(&failure.explained()),
            Err(NoToken::Refused(explained) | NoToken::Setup(explained)) => self.end(explained),
        }
    }

    /// After a failure that may pass: again with a growing, jittered wait, and while the token lives at the latest when
    /// half of what is left of it is over.
    fn tend_later(&mut self, error: &Explained) {
        let mut most = window(Duration::from_secs(1), TEND_MAX, self.failures);
        if let Some(left) = self
            .token
            .as_ref()
            .and_then(Token::left)
            .filter(|left| !left.is_zero())
        {
            most = most.min(left / 2);
        }
        // However near the end is, a server in trouble is not asked more often than that.
        let least = Jitter::UpperHalf.wait(self.config.retry.delay);
        let wait = Jitter::UpperHalf.wait(most).max(least);
        if self.failures == 0 {
            tracing::warn!(%error, retry_in = tracing::field::debug(wait), "vault token cannot be renewed, trying again");
        }
        self.failures = self.failures.saturating_add(1);
        self.tend_at = Some(Instant::now() + wait);
    }

    /// The token cannot be replaced. That is told once for each reason.
    fn end(&mut self, why: Explained) {
        self.failures = 0;
        let again = match &self.refused {
            Some(refused) if !login::in_files(&self.config.login.method) => refused.until,
            _ => Instant::now() + LOOK,
        };
        self.tend_at = Some(again);
        let Some(left) = self.token.as_ref().and_then(Token::left) else {
            return;
        };
        let now = self.clock.now();
        let ending = Ending {
            at: now + left,
            last_call: now + left.saturating_sub(margin(left)),
            why,
        };
        let changed = self
            .standing
            .send_if_modified(|standing| match &standing.ending {
                // The end of one token is one moment; to look at the clock again must not move it.
                Some(before) if before.why == ending.why => false,
                _ => {
                    standing.ending = Some(ending.clone());
                    true
                }
            });
        if changed {
            tracing::warn!(
                token_expires = %rfc3339(ending.at),
                error = %ending.why,
                causes = ending.why.causes.join("; "),
                hint = ending.why.hint.as_deref(),
                "the vault token cannot be replaced; the certificate is renewed once more before the token expires"
            );
        }
    }

    fn token_end(&self) -> Option<SystemTime> {
        let left = self.token.as_ref().and_then(Token::left)?;
        Some(self.clock.now() + left)
    }

    pub(super) fn adopt(&mut self, token: Token) {
        self.tend_at = token.due();
        self.token = Some(token);
        self.failures = 0;
        self.refused = None;
        let ended = self
            .standing
            .send_if_modified(|standing| standing.ending.take().is_some());
        if ended {
            tracing::info!("logged in to vault again; the certificate is renewed as before");
        }
    }
}

/// How long before the end of a token the last certificate is asked for: time for retries, spread over a fleet.
fn margin(left: Duration) -> Duration {
    let wanted = LAST_CALL.mul_f64(1.0 + rand::random_range(0.0..1.0));
    wanted.min(left / 4).max(Duration::from_secs(1))
}
