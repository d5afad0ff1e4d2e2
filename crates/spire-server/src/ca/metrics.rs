//! What the authorities count, under upstream's names (inventory section 10.1).

use std::time::SystemTime;

use ah_spire_telemetry::{CallCounter, Counter, Gauge, Metrics, Running};
use spiffe::TrustDomain;
use tonic::Code;

use super::authority::{Token, to_unix};

/// What was signed. A CA that a downstream server gets is no SVID of a workload.
#[derive(Clone, Debug)]
pub(super) struct Signed {
    pub(super) x509_svid: Counter,
    pub(super) x509_ca_svid: Counter,
    pub(super) jwt_svid: Counter,
}

impl Signed {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let signed = |what| metrics.counter(&["server_ca", "sign", what], &[]);
        Self {
            x509_svid: signed("x509_svid"),
            x509_ca_svid: signed("x509_ca_svid"),
            jwt_svid: signed("jwt_svid"),
        }
    }
}

/// What became of authorities.
#[derive(Clone, Debug)]
pub(super) struct Rotation {
    pub(super) prepare_x509: CallCounter,
    prepare_jwt: CallCounter,
    prepare_wit: CallCounter,
    pub(super) prune_bundle: CallCounter,
    pub(super) pruned_bundle: Counter,
    activated_jwt: Counter,
    activated_wit: Counter,
    activated_x509: Counter,
    expiration: Gauge,
    ttl: Gauge,
}

impl Rotation {
    pub(super) fn new(metrics: &Metrics, of: &TrustDomain) -> Self {
        let labels = [("trust_domain_id", of.as_str())];
        let x509 = |what| metrics.gauge(&["manager", "x509_ca", "rotate", what], &labels);
        let calls = |what, step| metrics.calls(&["ca", "manager", what, step], &[]);
        Self {
            prepare_x509: calls("x509_ca", "prepare"),
            prepare_jwt: calls("jwt_key", "prepare"),
            prepare_wit: calls("wit_key", "prepare"),
            prune_bundle: calls("bundle", "prune"),
            pruned_bundle: metrics.counter(&["ca", "manager", "bundle", "pruned"], &[]),
            // The counters begin differently upstream, too.
            activated_jwt: metrics.counter(&["manager", "jwt_key", "activate"], &[]),
            activated_wit: metrics.counter(&["manager", "wit_key", "activate"], &[]),
            activated_x509: metrics.counter(&["ca", "manager", "x509_ca", "activate"], &[]),
            expiration: x509("expiration"),
            ttl: x509("ttl"),
        }
    }

    /// How often a key for tokens was prepared.
    pub(super) fn prepare_token(&self, of: Token) -> &CallCounter {
        match of {
            Token::Jwt => &self.prepare_jwt,
            Token::Wit => &self.prepare_wit,
        }
    }

    /// A key for tokens became the active one.
    pub(super) fn activated_token(&self, of: Token) {
        match of {
            Token::Jwt => self.activated_jwt.increment(),
            Token::Wit => self.activated_wit.increment(),
        }
    }

    /// An X.509 authority became the active one.
    pub(super) fn activated_x509(&self, ends: SystemTime, now: SystemTime) {
        self.activated_x509.increment();
        self.expiration.set(to_unix(ends) as f64);
        let left = ends.duration_since(now).unwrap_or_default();
        self.ttl.set(left.as_secs_f64());
    }
}

/// Ends a call: what goes wrong in here has no code of gRPC.
pub(super) fn done<T, E>(call: Running, outcome: &Result<T, E>) {
    call.done(match outcome {
        Ok(_) => Code::Ok,
        Err(_) => Code::Unknown,
    });
}
