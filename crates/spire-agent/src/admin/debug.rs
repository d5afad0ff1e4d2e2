//! `spire.agent.debug.v1.Debug`

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use ah_spire_wire::agent::debug::debug_server::Debug as Service;
use ah_spire_wire::agent::debug::get_info_response::Cert;
use ah_spire_wire::agent::debug::{GetInfoRequest, GetInfoResponse};
use ah_spire_wire::{Certificate, described_chain, spiffe_id_to_wire};
use tonic::{Request, Response, Status};

use crate::cache::Cache;
use crate::health::Health;
use crate::metrics::OpenCalls;
use crate::svid_store::StoreCache;

/// Where debug information is found.
pub(crate) struct Insight {
    pub(crate) health: Health,
    pub(crate) cache: Arc<Cache>,
    /// What is kept in SVIDStores, where there are some.
    pub(crate) stored: Option<Arc<StoreCache>>,
    /// When the process began.
    pub(crate) started: Instant,
}

pub(super) struct Debugger {
    insight: Insight,
    calls: OpenCalls,
}

impl Debugger {
    pub(super) fn new(insight: Insight, calls: OpenCalls) -> Self {
        Self { insight, calls }
    }
}

#[tonic::async_trait]
impl Service for Debugger {
    async fn get_info(
        &self,
        _request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let _open = self.calls.begin();
        let Insight {
            health,
            cache,
            stored,
            started,
        } = &self.insight;
        let state = health.state();
        let roots = cache.roots();
        let chain = described_chain(
            state.svid.iter().map(AsRef::as_ref),
            roots.iter().map(AsRef::as_ref),
        );
        let chain =
            chain.map_err(|why| Status::internal(format!("failed to verify agent SVID: {why}")))?;
        let svids = count(cache.x509_svids());
        Ok(Response::new(GetInfoResponse {
            svid_chain: chain.into_iter().map(cert).collect(),
            uptime: i32::try_from(started.elapsed().as_secs()).unwrap_or(i32::MAX),
            svids_count: svids,
            last_sync_success: state.last_sync.map_or(0, unix),
            cached_x509_svids_count: svids,
            cached_jwt_svids_count: count(cache.jwt_svids_held()),
            cached_svidstore_x509_svids_count: stored.as_ref().map_or(0, |it| count(it.len())),
        }))
    }
}

fn cert(told: Certificate) -> Cert {
    Cert {
        id: told.id.as_ref().map(spiffe_id_to_wire),
        expires_at: told.expires_at,
        subject: told.subject,
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn unix(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}
