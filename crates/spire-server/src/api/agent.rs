//! `spire.api.server.agent.v1.Agent`

use std::sync::Arc;
use std::time::Duration;

use ah_spire_wire::model::{Entry, Selector};
use ah_spire_wire::server::agent::agent_server::Agent as Service;
use ah_spire_wire::server::agent::{
    AttestAgentRequest, AttestAgentResponse, BanAgentRequest, CountAgentsRequest,
    CountAgentsResponse, CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest,
    ListAgentsRequest, ListAgentsResponse, PostStatusRequest, PostStatusResponse,
    RenewAgentRequest, RenewAgentResponse, count_agents_request, list_agents_request,
};
use ah_spire_wire::types::{self, JoinToken, permission_denied_details::Reason};
use spiffe::SpiffeId;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::audit::{self, Audit, Fields};
use super::csr::Csr;
use super::{
    Core, attest, authorize, caller, caller_id, convert, count, internal, invalid, mask, page, unix,
};
use crate::ids::{self, Kind};
use crate::moment;
use crate::store::{self, AgentFilter, Store, StoreError};

/// What an agent may call its version, in bytes.
const LONGEST_VERSION: usize = 255;

pub(super) struct Agents<S>(pub(super) Arc<Core<S>>);

#[tonic::async_trait]
impl<S: Store> Service for Agents<S> {
    async fn count_agents(
        &self,
        request: Request<CountAgentsRequest>,
    ) -> Result<Response<CountAgentsResponse>, Status> {
        let audit = Audit::of(&request);
        let filter = request.into_inner().filter.map(Filter::from);
        let filter = filter.unwrap_or_default();
        audit.about(|| filter.audited());
        let filter = filter.into_store()?;
        let rows = self.0.store.count_agents(&filter).await;
        let rows = rows.map_err(|error| internal("failed to count agents", error))?;
        Ok(Response::new(CountAgentsResponse { count: count(rows) }))
    }

    async fn list_agents(
        &self,
        request: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        let filter = request.filter.map(Filter::from).unwrap_or_default();
        audit.about(|| filter.audited());
        let filter = filter.into_store()?;
        let page = page(request.page_size, request.page_token);
        let found = self.0.store.agents(&filter, &page).await;
        let found = found.map_err(|error| internal("failed to list agents", error))?;
        let agents = found.rows.iter().map(convert::agent);
        Ok(Response::new(ListAgentsResponse {
            agents: agents
                .map(|agent| mask::agent(agent, request.output_mask.as_ref()))
                .collect(),
            next_page_token: found.next,
        }))
    }

    async fn get_agent(
        &self,
        request: Request<GetAgentRequest>,
    ) -> Result<Response<types::Agent>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        let id = self.agent_id(request.id.as_ref(), &audit)?;
        let found = self.0.store.agent(&id).await;
        let found = found.map_err(|error| internal("failed to fetch agent", error))?;
        let found = found.ok_or_else(|| Status::not_found("agent not found"))?;
        let agent = mask::agent(convert::agent(&found), request.output_mask.as_ref());
        Ok(Response::new(agent))
    }

    async fn delete_agent(
        &self,
        request: Request<DeleteAgentRequest>,
    ) -> Result<Response<()>, Status> {
        let audit = Audit::of(&request);
        let id = self.agent_id(request.into_inner().id.as_ref(), &audit)?;
        let deleted = self.0.store.delete_agent(&id).await;
        deleted.map_err(|error| not_found_or(error, "failed to remove agent"))?;
        tracing::info!(spiffe_id = %id, "Agent deleted");
        Ok(Response::new(()))
    }

    async fn ban_agent(&self, request: Request<BanAgentRequest>) -> Result<Response<()>, Status> {
        let audit = Audit::of(&request);
        let id = self.agent_id(request.into_inner().id.as_ref(), &audit)?;
        let ban = |agent: &mut store::Agent| {
            agent.serial_number.clear();
            agent.new_serial_number.clear();
        };
        let banned = self.0.store.update_agent(&id, ban).await;
        banned.map_err(|error| not_found_or(error, "failed to ban agent"))?;
        tracing::info!(spiffe_id = %id, "Agent banned");
        Ok(Response::new(()))
    }

    type AttestAgentStream = ReceiverStream<Result<AttestAgentResponse, Status>>;

    async fn attest_agent(
        &self,
        request: Request<Streaming<AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let (caller, audit) = (caller(&request)?, Audit::of(&request));
        let answers = attest::start(self.0.clone(), caller, audit, request.into_inner());
        Ok(Response::new(answers))
    }

    async fn renew_agent(
        &self,
        request: Request<RenewAgentRequest>,
    ) -> Result<Response<RenewAgentResponse>, Status> {
        let (caller, audit) = (caller(&request)?, Audit::of(&request));
        if let Some(params) = &request.get_ref().params {
            audit.about(|| Fields::default().with("csr", audit::sha256(&params.csr)));
        }
        let address = caller.address().map(|address| address.ip());
        self.0.limits.renew.wait(address, 1).await?;
        let id = caller_id(&caller)?;
        let agent = self.0.store.agent(id).await;
        let agent = agent.map_err(|error| internal("failed to fetch agent", error))?;
        let agent = agent.ok_or_else(|| Status::not_found("agent not found"))?;
        if agent.can_reattest {
            return Err(authorize::denied(
                "agent must reattest instead of renew",
                Some(Reason::AgentMustReattest),
            ));
        }
        let params = request.into_inner().params;
        let params = params.ok_or_else(|| Status::invalid_argument("params cannot be nil"))?;
        if params.csr.is_empty() {
            return Err(Status::invalid_argument("missing CSR"));
        }
        let csr = Csr::read(&params.csr).map_err(|why| invalid("failed to parse CSR", why))?;
        let svid = attest::sign(&self.0, id, csr)?;
        let prepare = |agent: &mut store::Agent| {
            // A ban since the call was allowed stays one.
            if !agent.is_banned() {
                agent.new_serial_number.clone_from(&svid.serial_number);
                agent.new_expires_at = unix(svid.not_after);
            }
        };
        let updated = self.0.store.update_agent(id, prepare).await;
        let updated = updated.map_err(|error| not_found_or(error, "failed to update agent"))?;
        if updated.is_banned() {
            return Err(authorize::denied(
                format!("agent \"{id}\" is banned"),
                Some(Reason::AgentBanned),
            ));
        }
        Ok(Response::new(RenewAgentResponse {
            svid: Some(attest::x509svid(id, &svid)),
        }))
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<JoinToken>, Status> {
        let audit = Audit::of(&request);
        let request = request.into_inner();
        audit.about(|| {
            Fields::default()
                .with("ttl", request.ttl)
                .maybe("spiffe_id", audit::id(request.agent_id.as_ref()))
        });
        let ttl = u64::try_from(request.ttl).ok().filter(|ttl| *ttl > 0);
        let ttl =
            ttl.ok_or_else(|| Status::invalid_argument("ttl is required, you must provide one"))?;
        let ours = &self.0.trust_domain;
        let agent_id = request
            .agent_id
            .map(|id| ids::of_domain(Some(&id), ours, Kind::Workload))
            .transpose()
            .map_err(|why| invalid("invalid agent ID", why))?;
        let token = match request.token {
            token if token.is_empty() => uuid::Uuid::new_v4().to_string(),
            token => token,
        };
        // A token that is no path segment could never be used.
        let parent = attest::join_token_id(ours, &token)
            .map_err(|why| invalid("failed to create join token ID", why))?;
        let expires_at = unix(self.0.clock.now() + Duration::from_secs(ttl));
        let created = store::JoinToken {
            token: token.clone(),
            expires_at,
        };
        let created = self.0.store.create_join_token(&created).await;
        created.map_err(|error| internal("failed to create token", error))?;
        if let Some(agent_id) = agent_id {
            let created = self.0.store.create_entry(alias(agent_id, parent)).await;
            created.map_err(|error| {
                internal("failed to create join token registration entry", error)
            })?;
        }
        Ok(Response::new(JoinToken {
            value: token,
            expires_at,
        }))
    }

    async fn post_status(
        &self,
        request: Request<PostStatusRequest>,
    ) -> Result<Response<PostStatusResponse>, Status> {
        let (caller, audit) = (caller(&request)?, Audit::of(&request));
        let address = caller.address().map(|address| address.ip());
        self.0.limits.post_status.wait(address, 1).await?;
        let version = request.into_inner().agent_version;
        audit.about(|| {
            let version = Some(version.as_str()).filter(|version| !version.is_empty());
            Fields::default()
                .maybe("spiffe_id", caller.id().map(SpiffeId::to_string))
                .maybe("agent_version", version)
        });
        if version.len() > LONGEST_VERSION {
            return Err(Status::invalid_argument(
                "agent version is too long (max 255 characters)",
            ));
        }
        if !version.is_empty() {
            let set = |agent: &mut store::Agent| agent.version = version;
            let updated = self.0.store.update_agent(caller_id(&caller)?, set).await;
            updated.map_err(|error| not_found_or(error, "failed to update agent"))?;
        }
        Ok(Response::new(PostStatusResponse {}))
    }
}

impl<S: Store> Agents<S> {
    fn agent_id(&self, id: Option<&types::Spiffeid>, audit: &Audit) -> Result<SpiffeId, Status> {
        audit.about(|| Fields::default().maybe("spiffe_id", audit::id(id)));
        ids::of_domain(id, &self.0.trust_domain, Kind::Agent)
            .map_err(|why| invalid("invalid agent ID", why))
    }
}

fn not_found_or(error: StoreError, what: &str) -> Status {
    match error {
        StoreError::NotFound(_) => Status::not_found("agent not found"),
        error => internal(what, error),
    }
}

/// The entry that gives a token's agent a second name. In this shape it goes with its agent.
fn alias(id: SpiffeId, parent: SpiffeId) -> Entry {
    let selectors = vec![Selector::new("spiffe_id", parent.to_string())];
    Entry::new(id, parent, selectors)
}

/// The filter of counting and listing, which the wire has twice.
#[derive(Default)]
struct Filter {
    attestation_type: String,
    selectors: Option<types::SelectorMatch>,
    banned: Option<bool>,
    can_reattest: Option<bool>,
    expires_before: String,
}

macro_rules! from_wire {
    ($wire:ty) => {
        impl From<$wire> for Filter {
            fn from(wire: $wire) -> Self {
                Self {
                    attestation_type: wire.by_attestation_type,
                    selectors: wire.by_selector_match,
                    banned: wire.by_banned,
                    can_reattest: wire.by_can_reattest,
                    expires_before: wire.by_expires_before,
                }
            }
        }
    };
}

from_wire!(count_agents_request::Filter);
from_wire!(list_agents_request::Filter);

impl Filter {
    fn audited(&self) -> Fields {
        let kind = Some(self.attestation_type.as_str()).filter(|kind| !kind.is_empty());
        Fields::default()
            .maybe("node_attestor_type", kind)
            .maybe("by_banned", self.banned)
            .maybe("by_can_reattest", self.can_reattest)
            .and(audit::selector_match(self.selectors.as_ref()))
    }

    fn into_store(self) -> Result<AgentFilter, Status> {
        let selectors = self.selectors.map(|wire| convert::selector_match(&wire));
        let selectors = selectors
            .transpose()
            .map_err(|why| invalid("failed to parse selectors", why))?;
        let expires_before = Some(self.expires_before)
            .filter(|text| !text.is_empty())
            .map(|text| moment::parse(&text))
            .transpose()
            .map_err(|why| invalid("failed to parse the expiration filter", why))?;
        Ok(AgentFilter {
            attestation_type: Some(self.attestation_type).filter(|kind| !kind.is_empty()),
            selectors,
            banned: self.banned,
            can_reattest: self.can_reattest,
            expires_before,
        })
    }
}
