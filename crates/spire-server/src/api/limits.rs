//! How often one address may call: a token bucket for each, whose holder waits for its turn.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

/// Addresses that are remembered at a time. Those with a full bucket are forgotten to make room.
const MOST_ADDRESSES: usize = 64 * 1024;

/// A call that would wait longer is refused: its caller has given up by then.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The limits of all methods (inventory section 8).
#[derive(Debug)]
pub struct RateLimits {
    pub(super) attest: Limit,
    /// X509-SVIDs and CAs.
    pub(super) x509: Limit,
    pub(super) jwt: Limit,
    pub(super) wit: Limit,
    pub(super) push_key: Limit,
    pub(super) post_status: Limit,
}

impl RateLimits {
    /// `attestation` and `signing` are the switches of `server.ratelimit`.
    pub fn new(attestation: bool, signing: bool) -> Self {
        let when = |on: bool, per_second| {
            if on {
                Limit::new(per_second)
            } else {
                Limit::off()
            }
        };
        Self {
            attest: when(attestation, 1),
            x509: when(signing, 500),
            jwt: when(signing, 500),
            wit: when(signing, 500),
            push_key: Limit::new(500),
            post_status: Limit::new(10),
        }
    }
}

/// One bucket an address: so many a second, and as many at once.
#[derive(Debug)]
pub(super) struct Limit {
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
    pub(super) async fn wait(&self, address: Option<IpAddr>, count: usize) -> Result<(), Status> {
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
    use tonic::Code;

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
