//! What is counted of calls and attestations (inventory section 10.2).

use std::collections::HashMap;
use std::time::Duration;

use ah_spire_attest::AttestError;
use ah_spire_attest::peer::PeerInfo;
use ah_spire_attest::workload::{Reference, WorkloadAttestor};
use ah_spire_telemetry::{CallCounter, Counter, Metrics, RpcMetrics};
use ah_spire_wire::model::Selector;
use tonic::Code;

use super::service::Method;
use crate::metrics::OpenCalls;

pub(super) struct WorkloadMetrics {
    pub(super) rpc: RpcMetrics,
    /// Calls of the Workload API, whatever upstream's name of it says.
    pub(super) calls: OpenCalls,
    /// Calls of Envoys.
    pub(super) sds_calls: OpenCalls,
    /// Messages of `FetchJWTBundles`. Upstream documents it and never counts it.
    pub(super) jwt_bundles: Counter,
    rate_limited: HashMap<Method, Counter>,
}

impl WorkloadMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let rate_limited = Method::ALL.map(|method| {
            let path = method.path();
            let key = ["workload_api", "rate_limit_exceeded"];
            (method, metrics.counter(&key, &[("method", &path)]))
        });
        Self {
            rpc: RpcMetrics::new(metrics),
            calls: OpenCalls::new(metrics, "workload_api"),
            sds_calls: OpenCalls::new(metrics, "sds_api"),
            jwt_bundles: metrics.counter(&["workload_api", "bundles_update", "jwt"], &[]),
            rate_limited: rate_limited.into(),
        }
    }

    /// A call of `method` was over `experimental.ratelimit`.
    pub(super) fn rate_limited(&self, method: Method) {
        if let Some(counter) = self.rate_limited.get(&method) {
            counter.increment();
        }
    }
}

/// An attestor whose work is counted.
#[derive(Debug)]
pub struct MeteredAttestor<A> {
    attestor: A,
    calls: CallCounter,
}

impl<A: WorkloadAttestor> MeteredAttestor<A> {
    /// Counts what `attestor` does.
    pub fn new(attestor: A, metrics: &Metrics) -> Self {
        let label = [("attestor", attestor.name())];
        Self {
            calls: metrics.calls(&["workload_api", "workload_attestor"], &label),
            attestor,
        }
    }
}

impl<A: WorkloadAttestor> WorkloadAttestor for MeteredAttestor<A> {
    fn name(&self) -> &str {
        self.attestor.name()
    }

    fn deadline(&self) -> Duration {
        self.attestor.deadline()
    }

    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        let call = self.calls.start();
        let found = self.attestor.attest(peer).await;
        call.done(found.as_ref().map_or(Code::Unknown, |_| Code::Ok));
        found
    }

    async fn attest_reference(
        &self,
        reference: &Reference<'_>,
    ) -> Result<Option<Vec<Selector>>, AttestError> {
        let call = self.calls.start();
        let found = self.attestor.attest_reference(reference).await;
        call.done(found.as_ref().map_or(Code::Unknown, |_| Code::Ok));
        found
    }
}
