//! `spire.api.server.debug.v1.Debug`

use std::sync::Arc;

use ah_spire_wire::server::debug::debug_server::Debug as Service;
use ah_spire_wire::server::debug::get_info_response::Cert;
use ah_spire_wire::server::debug::{GetInfoRequest, GetInfoResponse};
use ah_spire_wire::{Certificate, described_chain, spiffe_id_to_wire};
use tonic::{Request, Response, Status};

use super::{Core, count, internal};
use crate::store::{AgentFilter, EntryFilter, Store};

pub(super) struct Debugger<S>(pub(super) Arc<Core<S>>);

#[tonic::async_trait]
impl<S: Store> Service for Debugger<S> {
    async fn get_info(
        &self,
        _request: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let store = &self.0.store;
        let agents = store.count_agents(&AgentFilter::default()).await;
        let agents = agents.map_err(|error| internal("failed to count agents", error))?;
        let entries = store.count_entries(&EntryFilter::default()).await;
        let entries = entries.map_err(|error| internal("failed to count entries", error))?;
        let bundles = store.count_bundles().await;
        let bundles = bundles.map_err(|error| internal("failed to count bundles", error))?;
        let own = store.bundle(&self.0.trust_domain).await;
        let own = own.map_err(|error| internal("failed to fetch trust domain bundle", error))?;
        let own = own.ok_or_else(|| Status::not_found("trust domain bundle not found"))?;
        let chain = self.0.own_chain.borrow().clone();
        let roots = own.x509.iter().map(|ca| ca.der.as_slice());
        let told = described_chain(chain.iter().map(Vec::as_slice), roots)
            .map_err(|why| internal("failed verification against bundle", why))?;
        let uptime = self.0.clock.now().duration_since(self.0.started);
        Ok(Response::new(GetInfoResponse {
            svid_chain: told.into_iter().map(cert).collect(),
            uptime: count(uptime.map_or(0, |uptime| uptime.as_secs())),
            agents_count: count(agents),
            federated_bundles_count: count(bundles),
            entries_count: count(entries),
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
