//! What the fake answers.

use std::time::SystemTime;

use ah_spire_wire::changes::changes_server::Changes;
use ah_spire_wire::changes::{Changed, ReportRequest, ReportResponse, WatchRequest};
use ah_spire_wire::server::agent::agent_server::Agent;
use ah_spire_wire::server::agent::*;
use ah_spire_wire::server::bundle::bundle_server::Bundle;
use ah_spire_wire::server::bundle::*;
use ah_spire_wire::server::entry::entry_server::Entry;
use ah_spire_wire::server::entry::*;
use ah_spire_wire::server::svid::svid_server::Svid;
use ah_spire_wire::server::svid::*;
use ah_spire_wire::types;
use rcgen::{CertificateSigningRequestParams, PublicKeyData};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{DOMAIN, Fake, denying};

type Answers<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Changes for Fake {
    type WatchStream = Answers<Changed>;

    async fn watch(
        &self,
        _request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut news = self.news.subscribe();
        self.note("Watch").await;
        if !self.state().tells {
            return Err(Status::unimplemented("unknown service"));
        }
        self.authorize()?;
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let told = tokio::select! {
                    told = news.recv() => told.unwrap(),
                    () = sender.closed() => return,
                };
                match told {
                    Ok(()) => {
                        let _ = sender.send(Ok(Changed {})).await;
                    }
                    Err(Some(reason)) => {
                        let _ = sender.send(Err(denying(reason))).await;
                        return;
                    }
                    Err(None) => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportResponse>, Status> {
        self.authorize()?;
        let report = request.into_inner();
        let holds = (report.bundle_sequence, report.tainted_svids);
        self.state().reports.push(holds);
        self.note("Report").await;
        Ok(Response::new(ReportResponse {}))
    }
}

#[tonic::async_trait]
impl Agent for Fake {
    type AttestAgentStream = Answers<AttestAgentResponse>;

    async fn attest_agent(
        &self,
        request: Request<Streaming<AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap();
        let Some(attest_agent_request::Step::Params(params)) = first.step else {
            return Err(Status::invalid_argument("params first"));
        };
        self.note("AttestAgent").await;
        let data = params.data.unwrap();
        let csr = params.params.unwrap().csr;
        self.state().attestors.push(data.r#type.clone());
        if data.r#type == "x509pop" {
            return Ok(self.attest_node(data.payload.to_vec(), csr, requests));
        }
        let token = String::from_utf8(data.payload.to_vec()).unwrap();
        let read = CertificateSigningRequestParams::from_der(&csr.clone().into()).unwrap();
        let key = read.public_key.subject_public_key_info();
        let (id, life, reattestable) = {
            let mut state = self.state();
            if let Some(reason @ types::permission_denied_details::Reason::AgentBanned) =
                state.denied
            {
                return Err(denying(reason));
            }
            let taker = state.takers.as_ref().and_then(|takers| takers.get(&token));
            let known = state.tokens.contains(&token) || taker == Some(&key);
            if !known {
                return Err(Status::invalid_argument(
                    "failed to attest: join token does not exist or has already been used",
                ));
            }
            if !state.reattestable {
                state.tokens.remove(&token);
                if let Some(takers) = &mut state.takers {
                    takers.insert(token, key);
                }
            }
            (state.agent_id.clone(), state.agent_life, state.reattestable)
        };
        self.note("AttestAnswer").await;
        let svid = self.issue(&csr, &id, life);
        let result = attest_agent_response::Result {
            svid: Some(svid),
            reattestable,
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        sender
            .send(Ok(AttestAgentResponse {
                step: Some(attest_agent_response::Step::Result(result)),
            }))
            .await
            .unwrap();
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn renew_agent(
        &self,
        request: Request<RenewAgentRequest>,
    ) -> Result<Response<RenewAgentResponse>, Status> {
        self.note("RenewAgent").await;
        self.authorize()?;
        let (id, life) = {
            let state = self.state();
            (state.agent_id.clone(), state.agent_life)
        };
        let csr = request.into_inner().params.unwrap().csr;
        Ok(Response::new(RenewAgentResponse {
            svid: Some(self.issue(&csr, &id, life)),
        }))
    }

    async fn post_status(
        &self,
        _request: Request<PostStatusRequest>,
    ) -> Result<Response<PostStatusResponse>, Status> {
        self.note("PostStatus").await;
        if self.state().denies_status {
            return Err(Status::permission_denied(
                "authorization denied for method /spire.api.server.agent.v1.Agent/PostStatus",
            ));
        }
        Ok(Response::new(PostStatusResponse {}))
    }

    async fn count_agents(
        &self,
        _: Request<CountAgentsRequest>,
    ) -> Result<Response<CountAgentsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_agents(
        &self,
        _: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_agent(
        &self,
        _: Request<GetAgentRequest>,
    ) -> Result<Response<types::Agent>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn delete_agent(&self, _: Request<DeleteAgentRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn ban_agent(&self, _: Request<BanAgentRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn create_join_token(
        &self,
        _: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl Bundle for Fake {
    async fn get_bundle(
        &self,
        _request: Request<GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        self.note("GetBundle").await;
        let state = self.state();
        let mut authorities = state.more_authorities.clone();
        if !state.hide_bundle {
            authorities.push(types::X509Certificate {
                asn1: state.ca.der.to_vec().into(),
                tainted: state.taint,
            });
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let key = types::JwtKey {
            public_key: rcgen::PublicKeyData::subject_public_key_info(&key).into(),
            key_id: "tainted".into(),
            tainted: true,
            ..types::JwtKey::default()
        };
        Ok(Response::new(types::Bundle {
            trust_domain: DOMAIN.into(),
            x509_authorities: authorities,
            jwt_authorities: state.taint.then_some(key).into_iter().collect(),
            sequence_number: state.sequence,
            ..types::Bundle::default()
        }))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let domain = request.into_inner().trust_domain;
        let found = self.state().federated.get(&domain).cloned();
        found
            .map(Response::new)
            .ok_or_else(|| Status::not_found("bundle not found"))
    }

    async fn count_bundles(
        &self,
        _: Request<CountBundlesRequest>,
    ) -> Result<Response<CountBundlesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn append_bundle(
        &self,
        _: Request<AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn publish_jwt_authority(
        &self,
        _: Request<PublishJwtAuthorityRequest>,
    ) -> Result<Response<PublishJwtAuthorityResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn publish_wit_authority(
        &self,
        _: Request<PublishWitAuthorityRequest>,
    ) -> Result<Response<PublishWitAuthorityResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_federated_bundles(
        &self,
        _: Request<ListFederatedBundlesRequest>,
    ) -> Result<Response<ListFederatedBundlesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_create_federated_bundle(
        &self,
        _: Request<BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<BatchCreateFederatedBundleResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_update_federated_bundle(
        &self,
        _: Request<BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<BatchUpdateFederatedBundleResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_set_federated_bundle(
        &self,
        _: Request<BatchSetFederatedBundleRequest>,
    ) -> Result<Response<BatchSetFederatedBundleResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_delete_federated_bundle(
        &self,
        _: Request<BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<BatchDeleteFederatedBundleResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Revisions on a page of the fake.
const PAGE: usize = 2;

#[tonic::async_trait]
impl Entry for Fake {
    type SyncAuthorizedEntriesStream = Answers<SyncAuthorizedEntriesResponse>;

    async fn get_authorized_entries(
        &self,
        _request: Request<GetAuthorizedEntriesRequest>,
    ) -> Result<Response<GetAuthorizedEntriesResponse>, Status> {
        self.note("GetAuthorizedEntries").await;
        self.authorize()?;
        let entries = self.state().entries.values().cloned().collect();
        Ok(Response::new(GetAuthorizedEntriesResponse { entries }))
    }

    /// As upstream: few entries come whole, more as pages of revisions.
    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        self.note("SyncAuthorizedEntries").await;
        self.authorize()?;
        let mut requests = request.into_inner();
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let fake = self.clone();
        let entries = self.state().entries.clone();
        tokio::spawn(async move {
            let _ = requests.message().await;
            if entries.len() <= PAGE {
                let entries: Vec<_> = entries.into_values().collect();
                fake.state().sent += entries.len();
                let whole = SyncAuthorizedEntriesResponse {
                    entries,
                    ..SyncAuthorizedEntriesResponse::default()
                };
                let _ = sender.send(Ok(whole)).await;
                return;
            }
            let revisions: Vec<_> = entries
                .values()
                .map(|entry| EntryRevision {
                    id: entry.id.clone(),
                    revision_number: entry.revision_number,
                    created_at: entry.created_at,
                })
                .collect();
            let pages = revisions.chunks(PAGE).count();
            for (n, page) in revisions.chunks(PAGE).enumerate() {
                let page = SyncAuthorizedEntriesResponse {
                    entry_revisions: page.to_vec(),
                    more: n + 1 < pages,
                    ..SyncAuthorizedEntriesResponse::default()
                };
                let _ = sender.send(Ok(page)).await;
            }
            while let Ok(Some(request)) = requests.message().await {
                let found: Vec<_> = request
                    .ids
                    .iter()
                    .filter_map(|id| entries.get(id).cloned())
                    .collect();
                fake.state().sent += found.len();
                let page = SyncAuthorizedEntriesResponse {
                    entries: found,
                    ..SyncAuthorizedEntriesResponse::default()
                };
                let _ = sender.send(Ok(page)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn count_entries(
        &self,
        _: Request<CountEntriesRequest>,
    ) -> Result<Response<CountEntriesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_entries(
        &self,
        _: Request<ListEntriesRequest>,
    ) -> Result<Response<ListEntriesResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_entry(
        &self,
        _: Request<GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_create_entry(
        &self,
        _: Request<BatchCreateEntryRequest>,
    ) -> Result<Response<BatchCreateEntryResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_update_entry(
        &self,
        _: Request<BatchUpdateEntryRequest>,
    ) -> Result<Response<BatchUpdateEntryResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_delete_entry(
        &self,
        _: Request<BatchDeleteEntryRequest>,
    ) -> Result<Response<BatchDeleteEntryResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl Svid for Fake {
    async fn batch_new_x509svid(
        &self,
        request: Request<BatchNewX509svidRequest>,
    ) -> Result<Response<BatchNewX509svidResponse>, Status> {
        self.note("BatchNewX509SVID").await;
        self.authorize()?;
        let mut results = Vec::new();
        for params in request.into_inner().params {
            let (entry, life) = {
                let state = self.state();
                (
                    state.entries.get(&params.entry_id).cloned(),
                    state.svid_life,
                )
            };
            results.push(match entry {
                Some(entry) => {
                    let id = entry.spiffe_id.unwrap();
                    let id = format!("spiffe://{}{}", id.trust_domain, id.path);
                    batch_new_x509svid_response::Result {
                        status: Some(types::Status::default()),
                        svid: Some(self.issue(&params.csr, &id, life)),
                    }
                }
                None => batch_new_x509svid_response::Result {
                    status: Some(types::Status {
                        code: 5,
                        message: "entry not found or not authorized".into(),
                    }),
                    svid: None,
                },
            });
        }
        Ok(Response::new(BatchNewX509svidResponse { results }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<NewJwtsvidRequest>,
    ) -> Result<Response<NewJwtsvidResponse>, Status> {
        self.note("NewJWTSVID").await;
        let request = request.into_inner();
        let state = self.state();
        if state.jwt_down {
            return Err(Status::unavailable("no"));
        }
        let entry = &state.entries[&request.entry_id];
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let issued_at = i64::try_from(now.as_secs()).unwrap();
        let life = i64::try_from(state.jwt_life.as_secs()).unwrap();
        Ok(Response::new(NewJwtsvidResponse {
            svid: Some(types::Jwtsvid {
                token: format!("e30.{}.c2ln", state.calls["NewJWTSVID"]),
                id: entry.spiffe_id.clone(),
                issued_at,
                expires_at: issued_at + life,
                hint: String::new(),
            }),
        }))
    }

    async fn mint_x509svid(
        &self,
        _: Request<MintX509svidRequest>,
    ) -> Result<Response<MintX509svidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn mint_jwtsvid(
        &self,
        _: Request<MintJwtsvidRequest>,
    ) -> Result<Response<MintJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn mint_witsvid(
        &self,
        _: Request<MintWitsvidRequest>,
    ) -> Result<Response<MintWitsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn batch_new_witsvid(
        &self,
        _: Request<BatchNewWitsvidRequest>,
    ) -> Result<Response<BatchNewWitsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn new_downstream_x509ca(
        &self,
        _: Request<NewDownstreamX509caRequest>,
    ) -> Result<Response<NewDownstreamX509caResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
