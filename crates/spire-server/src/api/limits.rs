//! How often one address may call: a token bucket for each, whose holder waits for its turn.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ah_spire_telemetry::{CallCounter, Metrics, rate_limits};
use tokio::time::Instant;
use tonic::{Code, Status};

/// Addresses that are remembered at a time. Those with a full bucket are forgotten to make room.
const MOST_ADDRESSES: usize = 64 * 1024;

/// A call that would wait longer is refused: its caller has given up by then.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

const AGENT: &str = "spire.api.server.agent.v1.Agent";
const BUNDLE: &str = "spire.api.server.bundle.v1.Bundle";
const SVID: &str = "spire.api.server.svid.v1.SVID";

/// The limits of all methods (inventory section 8). Those that sign X.509 share one.
#[derive(Debug)]
pub struct RateLimits {
    pub(super) attest: Limited,
    pub(super) renew: Limited,
    pub(super) post_status: Limited,
    pub(super) publish_jwt: Limited,
    pub(super) x509: Limited,
    pub(super) downstream: Limited,
    pub(super) jwt: Limited,
    pub(super) wit: Limited,
}

impl RateLimits {
    /// `attestation` and `signing` are the switches of `server.ratelimit`. Waits are counted in `metrics`.
    pub fn new(attestation: bool, signing: bool, metrics: &Metrics) -> Self {
        let when = |on: bool, per_second| {
            Arc::new(if on {
                Limit::new(per_second)
            } else {
                Limit::off()
            })
        };
        let of = |limit: &Arc<Limit>, service, method| Limited {
            limit: limit.clone(),
            calls: rate_limits(metrics, service, method),
        };
        let x509 = when(signing, 500);
        Self {
            attest: of(&when(attestation, 1), AGENT, "AttestAgent"),
            renew: of(&x509, AGENT, "RenewAgent"),
            post_status: of(&when(true, 10), AGENT, "PostStatus"),
            publish_jwt: of(&when(true, 500), BUNDLE, "PublishJWTAuthority"),
            x509: of(&x509, SVID, "BatchNewX509SVID"),
            downstream: of(&x509, SVID, "NewDownstreamX509CA"),
            jwt: of(&when(signing, 500), SVID, "NewJWTSVID"),
            wit: of(&when(signing, 500), SVID, "BatchNewWITSVID"),
        }
    }
}

/// A method with its limit.
#[derive(Debug)]
pub(super) struct Limited {
    limit: Arc<Limit>,
    calls: CallCounter,
}

impl Limited {
    /// [`Limit::wait`], which is counted unless it is off.
    pub(super) async fn wait(&self, address: Option<IpAddr>, count: usize) -> Result<(), Status> {
        if self.limit.per_second == 0 {
            return Ok(());
        }
        let call = self.calls.start();
        let waited = self.limit.wait(address, count).await;
        call.done(waited.as_ref().map_or_else(Status::code, |()| Code::Ok));
        waited
    }
}

/// One bucket an address: so many a second, and as many at once.
#[derive(Debug)]
struct Limit {
    /// 0: no limit.
    per_second: u32,
    /// When each address's bucket will be full again.
    full_at: Mutex<HashMap<IpAddr, Instant>>,
}

impl Limit {
    fn new(per_second: u32) -> Self {
        Self {
            per_second,
            full_at: Mutex::default(),
        }
    }

    fn off() -> Self {
        Self::new(0)
    }

    /// Waits until `address` may make `count` calls. The local socket (`None`) is not limited.
    async fn wait(&self, address: Option<IpAddr>, count: usize) -> Result<(), Status> {
        let Some(address) = address.filter(|_| self.per_second > 0) else {
            return Ok(());
        };
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if count > self.per_second {
            return Err(Status::resource_exhausted(format!(
                "rate ({count}) exceeds burst size ({})",
                self.per_second
            )));
        }
        let wait = self.reserve(address, count)?;
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn reserve(&self, address: IpAddr, count: u32) -> Result<Duration, Status> {
        let now = Instant::now();
        let cost = Duration::from_secs(1) * count / self.per_second;
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MOST_ADDRESSES && !buckets.contains_key(&address) {
            buckets.retain(|_, full_at| *full_at > now);
            if buckets.len() >= MOST_ADDRESSES {
                return Err(Status::resource_exhausted(
                    "too many addresses call at once",
                ));
            }
        }
        let full_at = buckets.entry(address).or_insert(now);
        let next = (*full_at).max(now) + cost;
        // An empty bucket takes a second to fill.
        let wait = next.saturating_duration_since(now + Duration::from_secs(1));
        if wait > LONGEST_WAIT {
            return Err(Status::resource_exhausted(format!(
                "rate limit of {} a second is exceeded: the next turn is in {} s",
                self.per_second,
                wait.as_secs()
            )));
        }
        *full_at = next;
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));
    const TWO: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)));

    // Inventory section 8: AttestAgent 1/s per IP.
    #[tokio::test(start_paused = true)]
    async fn the_second_call_of_an_address_waits_for_its_turn_and_others_do_not() {
        let limit = Limit::new(1);
        let begun = Instant::now();
        limit.wait(ONE, 1).await.unwrap();
        limit.wait(TWO, 1).await.unwrap();
        limit.wait(None, 1).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO);
        limit.wait(ONE, 1).await.unwrap();
        let waited = begun.elapsed();
        assert!((999..=1002).contains(&waited.as_millis()), "{waited:?}");
    }

    // Inventory section 8: signing 500/s per IP, counted by certificate.
    #[tokio::test(start_paused = true)]
    async fn a_batch_counts_with_its_length_and_may_not_exceed_the_burst() {
        let limit = Limit::new(500);
        let begun = Instant::now();
        limit.wait(ONE, 500).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO);
        limit.wait(ONE, 250).await.unwrap();
        let waited = begun.elapsed();
        assert!((499..=502).contains(&waited.as_millis()), "{waited:?}");
        let error = limit.wait(ONE, 501).await.unwrap_err();
        assert_eq!(error.code(), Code::ResourceExhausted);
        assert_eq!(error.message(), "rate (501) exceeds burst size (500)");
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_too_long_is_refused() {
        let limit = std::sync::Arc::new(Limit::new(1));
        let waiting: Vec<_> = (0..40)
            .map(|_| {
                let limit = limit.clone();
                tokio::spawn(async move { limit.wait(ONE, 1).await })
            })
            .collect();
        let mut refused = 0;
        for one in waiting {
            refused += usize::from(one.await.unwrap().is_err());
        }
        assert_eq!(refused, 9);
        let off = Limit::off();
        for _ in 0..1000 {
            off.wait(ONE, 1).await.unwrap();
        }
    }
}
