//! `ah.spire.v1.Rotation`: what operators ask before they change an X.509 authority. Beside upstream's services.

use std::collections::BTreeSet;
use std::sync::Arc;

use ah_spire_wire::rotation::rotation_server::Rotation;
use ah_spire_wire::rotation::{
    AgentHoldings, GetAcknowledgementsRequest, GetAcknowledgementsResponse,
    RehearseX509AuthorityRequest, RehearseX509AuthorityResponse,
};
use spiffe::SpiffeId;
use tonic::{Request, Response, Status};

use super::audit::{Audit, Fields};
use super::local_authority::refused;
use super::{Core, internal, unix};
use crate::store::{Agent, AgentFilter, Page, Store};

pub(super) struct Rotations<S>(pub(super) Arc<Core<S>>);

#[tonic::async_trait]
impl<S: Store> Rotation for Rotations<S> {
    async fn get_acknowledgements(
        &self,
        _request: Request<GetAcknowledgementsRequest>,
    ) -> Result<Response<GetAcknowledgementsResponse>, Status> {
        let core = &self.0;
        // The bundle first: an agent that attests after that has got it, or a newer one.
        let bundle = core.store.bundle(&core.trust_domain).await;
        let bundle = bundle.map_err(|error| internal("failed to fetch bundle", error))?;
        let bundle = bundle.ok_or_else(|| Status::not_found("bundle not found"))?;
        let filter = AgentFilter {
            banned: Some(false),
            ..AgentFilter::default()
        };
        let found = core.store.agents(&filter, &Page::default()).await;
        let found = found.map_err(|error| internal("failed to list agents", error))?;
        let now = unix(core.clock.now());
        let lives = |agent: &Agent| agent.expires_at.max(agent.new_expires_at) > now;
        let agents: BTreeSet<SpiffeId> = found
            .rows
            .into_iter()
            .filter(lives)
            .map(|agent| agent.id)
            .collect();
        let behind = core.holdings.behind(&agents, bundle.sequence).await;
        let behind = behind.map_err(|error| internal("failed to read acknowledgements", error))?;
        let behind = behind.into_iter().map(|(id, held)| {
            let reported = held.is_some();
            let held = held.unwrap_or_default();
            AgentHoldings {
                spiffe_id: id.to_string(),
                reported,
                bundle_sequence: held.bundle_sequence,
                tainted_svids: held.tainted_svids,
            }
        });
        Ok(Response::new(GetAcknowledgementsResponse {
            bundle_sequence: bundle.sequence,
            agents: u32::try_from(agents.len()).unwrap_or(u32::MAX),
            behind: behind.collect(),
        }))
    }

    async fn rehearse_x509_authority(
        &self,
        request: Request<RehearseX509AuthorityRequest>,
    ) -> Result<Response<RehearseX509AuthorityResponse>, Status> {
        let audit = Audit::of(&request);
        let id = request.into_inner().authority_id;
        audit.about(|| Fields::default().with("local_authority_id", id.clone()));
        let rehearsed = self.0.local_authorities.rehearse_x509(&id).await;
        rehearsed.map_err(|error| refused("the rehearsal failed", error))?;
        tracing::info!(local_authority_id = %id, "A handshake with the prepared X.509 authority succeeded");
        Ok(Response::new(RehearseX509AuthorityResponse {}))
    }
}
