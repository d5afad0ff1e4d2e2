//! What the agent counts (inventory section 10.2), under upstream's names.

use std::time::Instant;

use ah_spire_telemetry::{CallCounter, Counter, Gauge, Metrics, Running, Summary};
use tonic::Code;

use crate::attest::AttestFault;
use crate::data::{BootstrapState, REBOOTSTRAP};
use crate::identities::WorkloadUpdate;
use crate::server_client::ServerFault;

/// Calls of one API: how many there were, and how many are open.
#[derive(Clone, Debug)]
pub(crate) struct OpenCalls {
    began: Counter,
    open: Gauge,
}

/// A call under way.
pub(crate) struct OpenCall(Gauge);

impl OpenCalls {
    /// `<api>.connection` and `<api>.connections`
    pub(crate) fn new(metrics: &Metrics, api: &str) -> Self {
        Self {
            began: metrics.counter(&[api, "connection"], &[]),
            open: metrics.gauge(&[api, "connections"], &[]),
        }
    }

    /// Counts a call until what this gives is dropped.
    pub(crate) fn begin(&self) -> OpenCall {
        self.began.increment();
        self.open.add(1.0);
        OpenCall(self.open.clone())
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.add(-1.0);
    }
}

/// How long a call waits for its first SVID.
pub(crate) struct FirstUpdate {
    began: Instant,
    /// Until it came.
    elapsed: Option<Summary>,
}

impl FirstUpdate {
    /// Milliseconds. Upstream counts calls of brokers under this name, too.
    pub(crate) fn summary(metrics: &Metrics) -> Summary {
        let key = [
            "delegated_identity_api",
            "subscribe_x509_svids",
            "first_update",
            "elapsed_time",
        ];
        metrics.summary(&key, &[])
    }

    /// Of a call that begins now.
    pub(crate) fn awaited(elapsed: &Summary) -> Self {
        Self {
            began: Instant::now(),
            elapsed: Some(elapsed.clone()),
        }
    }

    /// The call was told this.
    pub(crate) fn came(&mut self, update: &WorkloadUpdate) {
        if !update.identities.is_empty()
            && let Some(elapsed) = self.elapsed.take()
        {
            elapsed.observe(self.began.elapsed().as_secs_f64() * 1000.0);
        }
    }
}

/// Of the task that talks to the server.
#[derive(Debug)]
pub(crate) struct AgentMetrics {
    /// The first attestation, and later ones of a node that has no SVID any more.
    pub(crate) new_svid: CallCounter,
    /// An attestation instead of a renewal.
    pub(crate) reattest: CallCounter,
    pub(crate) rotate: CallCounter,
    pub(crate) fetch_entries: CallCounter,
    pub(crate) fetch_svids: CallCounter,
    /// SVIDs of SVIDStores that are looked through for a tainted authority.
    pub(crate) taint_stored: CallCounter,
    bundles: Gauge,
    entries: [Gauge; 4],
    bootstrap: Bootstrap,
}

#[derive(Debug)]
struct Bootstrap {
    done: Gauge,
    /// Seconds and attempts, of a first and of a later bootstrap.
    first: [Gauge; 2],
    again: [Gauge; 2],
}

/// What a synchronization brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SyncStats {
    pub(crate) total: usize,
    /// Not known before.
    pub(crate) missing: usize,
    /// Known in another revision.
    pub(crate) stale: usize,
    /// Known, and gone.
    pub(crate) dropped: usize,
}

impl AgentMetrics {
    /// `attestor` is the name of the node attestor.
    pub(crate) fn new(metrics: &Metrics, attestor: &str) -> Self {
        let gauge = |name| metrics.gauge(&[name], &[]);
        let mode = |mode| {
            ["bootstrap_seconds", "bootstrap_attempts"]
                .map(|name| metrics.gauge(&[name], &[("mode", mode)]))
        };
        let attestor = [("attestor", attestor)];
        Self {
            new_svid: metrics.calls(&["node", "attestor", "new_svid"], &attestor),
            reattest: metrics.calls(&["node", "attest"], &[]),
            rotate: metrics.calls(&["agent_svid", "rotate"], &[]),
            fetch_entries: metrics.calls(&["manager", "sync", "fetch_entries_updates"], &[]),
            fetch_svids: metrics.calls(&["manager", "sync", "fetch_svids_updates"], &[]),
            taint_stored: metrics.calls(
                &["cache_manager", "svid_store", "process_tainted_x509_svids"],
                &[],
            ),
            bundles: gauge("sync_bundles_total"),
            entries: [
                gauge("sync_entries_total"),
                gauge("sync_entries_missing"),
                gauge("sync_entries_stale"),
                gauge("sync_entries_dropped"),
            ],
            bootstrap: Bootstrap {
                done: gauge("bootstrapped"),
                first: mode("bootstrap"),
                again: mode("rebootstrap"),
            },
        }
    }

    pub(crate) fn synced(&self, stats: SyncStats, bundles: usize) {
        self.bundles.set_count(bundles);
        let [total, missing, stale, dropped] = &self.entries;
        total.set_count(stats.total);
        missing.set_count(stats.missing);
        stale.set_count(stats.stale);
        dropped.set_count(stats.dropped);
    }

    /// How far the bootstrap is. Seconds are those of the moment when it began, as upstream has it, or 0.
    pub(crate) fn bootstrap(&self, state: BootstrapState) {
        let done = state.since.is_none();
        self.bootstrap.done.set_count(usize::from(done));
        let [seconds, attempts] = match state.use_ {
            REBOOTSTRAP => &self.bootstrap.again,
            _ => &self.bootstrap.first,
        };
        let since = state.since.map_or(0, |since| since.unix_timestamp());
        seconds.set_count(usize::try_from(since).unwrap_or_default());
        attempts.set_count(usize::try_from(state.attempts).unwrap_or_default());
    }
}

/// Of the cache.
#[derive(Debug)]
pub(crate) struct CacheMetrics {
    pub(crate) added: Counter,
    pub(crate) updated: Counter,
    pub(crate) removed: Counter,
    pub(crate) entries: Gauge,
    pub(crate) x509_svids: Gauge,
    pub(crate) jwt_svids: Gauge,
    pub(crate) expiring: Summary,
    pub(crate) outdated: Summary,
    pub(crate) taint_x509: CallCounter,
    pub(crate) tainted_x509: Summary,
    pub(crate) taint_jwt: CallCounter,
    pub(crate) tainted_jwt: Summary,
}

impl CacheMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let of_workloads = |name| metrics.calls(&["cache_manager", "workload", name], &[]);
        let tainted = |name| metrics.summary(&["cache_manager", name, "workload"], &[]);
        let x509 = [("svid_type", "X509")];
        Self {
            added: metrics.counter(&["lru_cache_entry_add"], &[]),
            updated: metrics.counter(&["lru_cache_entry_update"], &[]),
            removed: metrics.counter(&["lru_cache_entry_remove"], &[]),
            entries: metrics.gauge(&["lru_cache_record_map_size"], &x509),
            x509_svids: metrics.gauge(&["lru_cache_svid_map_size"], &x509),
            jwt_svids: metrics.gauge(&["jwt_svid_cache_size"], &[]),
            expiring: metrics.summary(&["cache_manager", "expiring_svids"], &[]),
            outdated: metrics.summary(&["cache_manager", "outdated_svids"], &[]),
            taint_x509: of_workloads("process_tainted_x509_svids"),
            tainted_x509: tainted("tainted_x509_svids"),
            taint_jwt: of_workloads("process_tainted_jwt_svids"),
            tainted_jwt: tainted("tainted_jwt_svids"),
        }
    }
}

/// The status that a call is counted under.
pub(crate) trait Outcome {
    fn code(&self) -> Code;
}

impl Outcome for ServerFault {
    fn code(&self) -> Code {
        match self {
            Self::Unreachable(_) | Self::UnknownAuthority(_) => Code::Unavailable,
            Self::Denied(..) => Code::PermissionDenied,
            Self::NotFound(_) => Code::NotFound,
            Self::Exhausted(_) => Code::ResourceExhausted,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Refused(_) => Code::Unknown,
            Self::Malformed(_) => Code::Internal,
        }
    }
}

impl Outcome for AttestFault {
    fn code(&self) -> Code {
        match self {
            Self::Server(fault) => fault.code(),
            Self::Node(_) => Code::Unknown,
        }
    }
}

/// Counts what came of a call, and passes it on.
pub(crate) fn counted<T, E: Outcome>(call: Running, outcome: Result<T, E>) -> Result<T, E> {
    call.done(outcome.as_ref().map_or_else(Outcome::code, |_| Code::Ok));
    outcome
}
