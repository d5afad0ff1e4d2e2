//! `experimental.ratelimit`: calls a second for each set of selectors.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ah_spire_plugin::agent::WorkloadApiRateLimit;
use ah_spire_wire::model::Selector;
use tonic::Status;

use super::service::Method;

/// A bucket that was not used for so long is full again, and need not be kept.
const KEEP: Duration = Duration::from_secs(2);

/// As many buckets are kept before full ones are looked for.
const SWEEP_AT: usize = 4096;

/// Token buckets that hold one second's worth.
pub(super) struct Rates {
    limits: WorkloadApiRateLimit,
    buckets: Mutex<HashMap<(Method, Vec<Selector>), Bucket>>,
}

struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rates {
    pub(super) fn new(limits: WorkloadApiRateLimit) -> Self {
        Self {
            limits,
            buckets: Mutex::default(),
        }
    }

    /// # Errors
    /// `Unavailable`, in upstream's words.
    pub(super) fn take(
        &self,
        method: Method,
        selectors: &[Selector],
        now: Instant,
    ) -> Result<(), Status> {
        let limit = match method {
            Method::FetchX509Svid => self.limits.fetch_x509_svid,
            Method::FetchX509Bundles => self.limits.fetch_x509_bundles,
            Method::FetchJwtSvid => self.limits.fetch_jwt_svid,
            Method::FetchJwtBundles => self.limits.fetch_jwt_bundles,
            Method::StreamSecrets => self.limits.stream_secrets,
            Method::FetchSecrets => self.limits.fetch_secrets,
            Method::ValidateJwtSvid => 0,
        };
        if limit == 0 {
            return Ok(());
        }
        let limit = f64::from(limit);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= SWEEP_AT {
            buckets.retain(|_, bucket| now.duration_since(bucket.at) < KEEP);
        }
        let bucket = buckets
            .entry((method, selectors.to_vec()))
            .or_insert(Bucket {
                tokens: limit,
                at: now,
            });
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + since * limit).min(limit);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return Err(Status::unavailable(format!(
                "rate limit exceeded for {}",
                method.path()
            )));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_of_selectors_has_its_own_second() {
        let rates = Rates::new(WorkloadApiRateLimit {
            fetch_x509_svid: 2,
            ..WorkloadApiRateLimit::default()
        });
        let start = Instant::now();
        let one = [Selector::new("unix", "uid:1")];
        let other = [Selector::new("unix", "uid:2")];
        let x509 = Method::FetchX509Svid;
        assert!(rates.take(x509, &one, start).is_ok());
        assert!(rates.take(x509, &one, start).is_ok());
        let refused = rates.take(x509, &one, start).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable);
        assert_eq!(
            refused.message(),
            "rate limit exceeded for /SpiffeWorkloadAPI/FetchX509SVID"
        );
        assert!(rates.take(x509, &other, start).is_ok());
        assert!(rates.take(Method::FetchJwtSvid, &one, start).is_ok());
        let later = start + Duration::from_millis(500);
        assert!(rates.take(x509, &one, later).is_ok());
        assert!(rates.take(x509, &one, later).is_err());
    }

    // Inventory 1.4: stream_secrets, fetch_secrets.
    #[test]
    fn envoys_calls_have_limits_of_their_own() {
        let start = Instant::now();
        let one = [Selector::new("unix", "uid:1")];
        let limits = WorkloadApiRateLimit {
            stream_secrets: 1,
            ..WorkloadApiRateLimit::default()
        };
        let rates = Rates::new(limits);
        assert!(rates.take(Method::StreamSecrets, &one, start).is_ok());
        let refused = rates.take(Method::StreamSecrets, &one, start).unwrap_err();
        assert_eq!(
            refused.message(),
            "rate limit exceeded for /envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
        );
        assert!(rates.take(Method::FetchSecrets, &one, start).is_ok());
        assert!(rates.take(Method::FetchSecrets, &one, start).is_ok());
        let rates = Rates::new(WorkloadApiRateLimit {
            fetch_secrets: 1,
            ..WorkloadApiRateLimit::default()
        });
        assert!(rates.take(Method::FetchSecrets, &one, start).is_ok());
        assert!(rates.take(Method::FetchSecrets, &one, start).is_err());
    }
}
