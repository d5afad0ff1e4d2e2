//! What is counted of calls and attestations (inventory section 10.2).

use ah_spire_telemetry::{CallCounter, Counter, Metrics, RpcMetrics, Summary};

pub(super) struct WorkloadMetrics {
    pub(super) rpc: RpcMetrics,
    /// Calls of the Workload API, whatever upstream's name of it says.
    pub(super) connection: Counter,
    pub(super) attestation: CallCounter,
    pub(super) selectors: Summary,
}

impl WorkloadMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            rpc: RpcMetrics::new(metrics),
            connection: metrics.counter(&["workload_api", "connection"], &[]),
            attestation: metrics.calls(&["workload_api", "workload_attestation"], &[]),
            selectors: metrics.summary(&["workload_api", "discovered_selectors"], &[]),
        }
    }
}
