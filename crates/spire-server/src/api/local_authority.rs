//! `spire.api.server.localauthority.v1.LocalAuthority`

use std::sync::Arc;

use ah_spire_wire::server::localauthority::local_authority_server::LocalAuthority as Service;
use ah_spire_wire::server::localauthority::{
    ActivateJwtAuthorityRequest, ActivateJwtAuthorityResponse, ActivateWitAuthorityRequest,
    ActivateWitAuthorityResponse, ActivateX509AuthorityRequest, ActivateX509AuthorityResponse,
    AuthorityState, GetJwtAuthorityStateRequest, GetJwtAuthorityStateResponse,
    GetWitAuthorityStateRequest, GetWitAuthorityStateResponse, GetX509AuthorityStateRequest,
    GetX509AuthorityStateResponse, PrepareJwtAuthorityRequest, PrepareJwtAuthorityResponse,
    PrepareWitAuthorityRequest, PrepareWitAuthorityResponse, PrepareX509AuthorityRequest,
    PrepareX509AuthorityResponse, RevokeJwtAuthorityRequest, RevokeJwtAuthorityResponse,
    RevokeWitAuthorityRequest, RevokeWitAuthorityResponse, RevokeX509AuthorityRequest,
    RevokeX509AuthorityResponse, RevokeX509UpstreamAuthorityRequest,
    RevokeX509UpstreamAuthorityResponse, TaintJwtAuthorityRequest, TaintJwtAuthorityResponse,
    TaintWitAuthorityRequest, TaintWitAuthorityResponse, TaintX509AuthorityRequest,
    TaintX509AuthorityResponse, TaintX509UpstreamAuthorityRequest,
    TaintX509UpstreamAuthorityResponse,
};
use tonic::{Code, Request, Response, Status};

use super::audit::{Audit, Fields};
use super::{Core, failed, unix};
use crate::ca::{self, AuthorityStates, CaError, LocalAuthorities};
use crate::store::Store;

pub(super) struct Authorities<S>(pub(super) Arc<Core<S>>);

#[tonic::async_trait]
impl<S: Store> Service for Authorities<S> {
    async fn get_jwt_authority_state(
        &self,
        _request: Request<GetJwtAuthorityStateRequest>,
    ) -> Result<Response<GetJwtAuthorityStateResponse>, Status> {
        let states = self.with_jwt()?.jwt_states().await;
        let [active, prepared, old] = told(&states.map_err(|error| plain(&error))?);
        Ok(Response::new(GetJwtAuthorityStateResponse {
            active,
            prepared,
            old,
        }))
    }

    async fn prepare_jwt_authority(
        &self,
        _request: Request<PrepareJwtAuthorityRequest>,
    ) -> Result<Response<PrepareJwtAuthorityResponse>, Status> {
        let prepared = self.with_jwt()?.prepare_jwt().await;
        let prepared = prepared.map_err(|error| refused("failed to prepare JWT authority", error));
        Ok(Response::new(PrepareJwtAuthorityResponse {
            prepared_authority: Some(state(&prepared?)),
        }))
    }

    async fn activate_jwt_authority(
        &self,
        request: Request<ActivateJwtAuthorityRequest>,
    ) -> Result<Response<ActivateJwtAuthorityResponse>, Status> {
        let id = audited(&request, |it| &it.authority_id);
        let activated = self.with_jwt()?.activate_jwt(&id).await;
        let activated = activated.map_err(|error| not_activated(&error))?;
        Ok(Response::new(ActivateJwtAuthorityResponse {
            activated_authority: Some(state(&activated)),
        }))
    }

    async fn taint_jwt_authority(
        &self,
        request: Request<TaintJwtAuthorityRequest>,
    ) -> Result<Response<TaintJwtAuthorityResponse>, Status> {
        let id = audited(&request, |it| &it.authority_id);
        let tainted = self.with_jwt()?.taint_jwt(&id).await;
        tainted.map_err(|error| refused("failed to taint JWT authority", error))?;
        tracing::info!(local_authority_id = %id, "JWT authority tainted successfully");
        Ok(Response::new(TaintJwtAuthorityResponse {
            tainted_authority: Some(only(id)),
        }))
    }

    async fn revoke_jwt_authority(
        &self,
        request: Request<RevokeJwtAuthorityRequest>,
    ) -> Result<Response<RevokeJwtAuthorityResponse>, Status> {
        let id = audited(&request, |it| &it.authority_id);
        let revoked = self.with_jwt()?.revoke_jwt(&id).await;
        let what = "failed to revoke JWT authority";
        revoked.map_err(|error| invalid_or("invalid authority ID", what, error))?;
        tracing::info!(local_authority_id = %id, "JWT authority revoked successfully");
        Ok(Response::new(RevokeJwtAuthorityResponse {
            revoked_authority: Some(only(id)),
        }))
    }

    async fn get_x509_authority_state(
        &self,
        _request: Request<GetX509AuthorityStateRequest>,
    ) -> Result<Response<GetX509AuthorityStateResponse>, Status> {
        let states = self.0.local_authorities.x509_states().await;
        let [active, prepared, old] = told(&states.map_err(|error| plain(&error))?);
        Ok(Response::new(GetX509AuthorityStateResponse {
            active,
            prepared,
            old,
        }))
    }

    async fn prepare_x509_authority(
        &self,
        _request: Request<PrepareX509AuthorityRequest>,
    ) -> Result<Response<PrepareX509AuthorityResponse>, Status> {
        let prepared = self.0.local_authorities.prepare_x509().await;
        let prepared =
            prepared.map_err(|error| refused("failed to prepare X.509 authority", error));
        Ok(Response::new(PrepareX509AuthorityResponse {
            prepared_authority: Some(state(&prepared?)),
        }))
    }

    async fn activate_x509_authority(
        &self,
        request: Request<ActivateX509AuthorityRequest>,
    ) -> Result<Response<ActivateX509AuthorityResponse>, Status> {
        let id = audited(&request, |it| &it.authority_id);
        let activated = self.0.local_authorities.activate_x509(&id).await;
        let activated = activated.map_err(|error| not_activated(&error))?;
        Ok(Response::new(ActivateX509AuthorityResponse {
            activated_authority: Some(state(&activated)),
        }))
    }

    async fn taint_x509_authority(
        &self,
        request: Request<TaintX509AuthorityRequest>,
    ) -> Result<Response<TaintX509AuthorityResponse>, Status> {
        let id = audited(&request, |it| &it.authority_id);
        let tainted = self.0.local_authorities.taint_x509(&id).await;
        let tainted = tainted.map_err(|error| refused("failed to taint X.509 authority", error))?;
        tracing::info!(local_authority_id = %id, "X.509 authority tainted successfully");
        Ok(Response::new(TaintX509AuthorityResponse {
            tainted_authority: Some(state(&tainted)),
        }))
    }

    async fn taint_x509_upstream_authority(
        &self,
        request: Request<TaintX509UpstreamAuthorityRequest>,
    ) -> Result<Response<TaintX509UpstreamAuthorityResponse>, Status> {
        let id = audited_upstream(&request, |it| &it.subject_key_id);
        let tainted = self.0.local_authorities.taint_x509_upstream(&id).await;
        let what = "failed to taint upstream authority";
        tainted.map_err(|error| invalid_or("provided subject key id is not valid", what, error))?;
        tracing::info!(subject_key_id = %id, "X.509 upstream authority tainted successfully");
        Ok(Response::new(TaintX509UpstreamAuthorityResponse {
            upstream_authority_subject_key_id: id,
        }))
    }

    async fn revoke_x509_authority(
        &self,
        request: Request<RevokeX509AuthorityRequest>,
    ) -> Result<Response<RevokeX509AuthorityResponse>, Status> {
        let id = audited(&request, |it| &it.authority_id);
        let revoked = self.0.local_authorities.revoke_x509(&id).await;
        let what = "failed to revoke X.509 authority";
        revoked.map_err(|error| invalid_or("invalid authority ID", what, error))?;
        tracing::info!(local_authority_id = %id, "X.509 authority revoked successfully");
        Ok(Response::new(RevokeX509AuthorityResponse {
            revoked_authority: Some(only(id)),
        }))
    }

    async fn revoke_x509_upstream_authority(
        &self,
        request: Request<RevokeX509UpstreamAuthorityRequest>,
    ) -> Result<Response<RevokeX509UpstreamAuthorityResponse>, Status> {
        let id = audited_upstream(&request, |it| &it.subject_key_id);
        let revoked = self.0.local_authorities.revoke_x509_upstream(&id).await;
        let what = "failed to revoke X.509 upstream authority";
        revoked.map_err(|error| invalid_or("invalid subject key ID", what, error))?;
        tracing::info!(subject_key_id = %id, "X.509 upstream authority successfully revoked");
        Ok(Response::new(RevokeX509UpstreamAuthorityResponse {
            upstream_authority_subject_key_id: id,
        }))
    }

    async fn get_wit_authority_state(
        &self,
        _request: Request<GetWitAuthorityStateRequest>,
    ) -> Result<Response<GetWitAuthorityStateResponse>, Status> {
        Err(no_wit())
    }

    async fn prepare_wit_authority(
        &self,
        _request: Request<PrepareWitAuthorityRequest>,
    ) -> Result<Response<PrepareWitAuthorityResponse>, Status> {
        Err(no_wit())
    }

    async fn activate_wit_authority(
        &self,
        _request: Request<ActivateWitAuthorityRequest>,
    ) -> Result<Response<ActivateWitAuthorityResponse>, Status> {
        Err(no_wit())
    }

    async fn taint_wit_authority(
        &self,
        _request: Request<TaintWitAuthorityRequest>,
    ) -> Result<Response<TaintWitAuthorityResponse>, Status> {
        Err(no_wit())
    }

    async fn revoke_wit_authority(
        &self,
        _request: Request<RevokeWitAuthorityRequest>,
    ) -> Result<Response<RevokeWitAuthorityResponse>, Status> {
        Err(no_wit())
    }
}

impl<S: Store> Authorities<S> {
    fn with_jwt(&self) -> Result<&dyn LocalAuthorities, Status> {
        if self.0.authority.jwt_disabled() {
            return Err(Status::unimplemented("JWT functionality is disabled"));
        }
        Ok(self.0.local_authorities.as_ref())
    }
}

fn no_wit() -> Status {
    Status::unimplemented("WIT-SVID functionality is not yet implemented")
}

fn audited<T>(request: &Request<T>, id: impl Fn(&T) -> &String) -> String {
    about(request, "local_authority_id", id(request.get_ref()).clone())
}

/// In the case that subject key identifiers are kept in.
fn audited_upstream<T>(request: &Request<T>, id: impl Fn(&T) -> &String) -> String {
    let id = id(request.get_ref());
    about(request, "subject_key_id", id.clone());
    id.to_ascii_lowercase()
}

fn about<T>(request: &Request<T>, name: &str, id: String) -> String {
    if !id.is_empty() {
        Audit::of(request).about(|| Fields::default().with(name, id.clone()));
    }
    id
}

/// Active, prepared, old.
fn told(states: &AuthorityStates) -> [Option<AuthorityState>; 3] {
    let other = |status| {
        let other = states.other.as_ref();
        other.filter(|other| other.status == status).map(state)
    };
    [
        Some(state(&states.active)),
        other(ca::Status::Prepared),
        other(ca::Status::Old),
    ]
}

fn state(state: &ca::AuthorityState) -> AuthorityState {
    AuthorityState {
        authority_id: state.id.clone(),
        expires_at: unix(state.not_after),
        upstream_authority_subject_key_id: state.upstream_id.clone(),
    }
}

/// What upstream tells of an authority that it tainted or revoked.
fn only(authority_id: String) -> AuthorityState {
    AuthorityState {
        authority_id,
        ..AuthorityState::default()
    }
}

/// Without more than the error says.
fn plain(error: &CaError) -> Status {
    let code = match error {
        CaError::Initializing => Code::Unavailable,
        CaError::Precondition(_) => Code::FailedPrecondition,
        CaError::Refused(_) | CaError::Status(..) => Code::InvalidArgument,
        _ => Code::Internal,
    };
    let text = match error {
        CaError::Status(why, status) => {
            format!(
                "{why}: unsupported local authority status: {}",
                name(*status)
            )
        }
        other => other.to_string(),
    };
    tracing::error!(?code, "{text}");
    Status::new(code, text)
}

fn name(status: Option<ca::Status>) -> &'static str {
    match status {
        Some(ca::Status::Prepared) => "PREPARED",
        Some(ca::Status::Active) => "ACTIVE",
        Some(ca::Status::Old) => "OLD",
        None => "UNKNOWN",
    }
}

/// What went wrong here is `Internal`, and told with what was tried.
pub(super) fn refused(what: &str, error: CaError) -> Status {
    match error {
        CaError::Initializing
        | CaError::Precondition(_)
        | CaError::Refused(_)
        | CaError::Status(..) => plain(&error),
        other => failed(Code::Internal, what, other),
    }
}

fn not_activated(error: &CaError) -> Status {
    let status = plain(error);
    match error {
        CaError::Status(..) => Status::new(Code::Internal, status.message()),
        _ => status,
    }
}

/// As [`refused`], with what is wrong about an ID told so.
fn invalid_or(invalid: &str, what: &str, error: CaError) -> Status {
    match error {
        CaError::Refused(why) => super::invalid(invalid, why),
        other => refused(what, other),
    }
}
