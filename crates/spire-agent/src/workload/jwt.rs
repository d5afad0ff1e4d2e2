//! `FetchJWTSVID` and `ValidateJWTSVID`.

use std::sync::Arc;
use std::time::SystemTime;

use ah_spire_attest::peer::PeerInfo;
use ah_spire_wire::jwt::validate_jwt_svid;
use ah_spire_wire::workload::{JwtsvidRequest, ValidateJwtsvidRequest, ValidateJwtsvidResponse};
use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use prost::Message;
use serde_json::Value;
use spiffe::SpiffeId;
use tonic::Status;

use super::caller::Attest;
use super::encoded::jwt_svids;
use super::refusal::{Refused, no_identity};
use super::service::{Method, Shared};
use crate::identities::{Identities, JwtError};
use crate::wire::{framed, message};

pub(super) async fn fetch<I: Identities, A: Attest>(
    shared: &Arc<Shared<I, A>>,
    peer: &PeerInfo,
    request: Request<Incoming>,
) -> Result<Bytes, Status> {
    let request: JwtsvidRequest = message(request).await?;
    if request.audience.is_empty() {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    let wanted = asked_for(&request.spiffe_id)?;
    let selectors = shared.attest_for(peer, Method::FetchJwtSvid).await?;
    let svids = shared
        .identities
        .jwt_svids(&selectors, &request.audience, wanted.as_ref())
        .await;
    let svids = match svids {
        Ok(svids) if !svids.is_empty() => svids,
        Ok(_) | Err(JwtError::NoIdentity) => {
            return Err(no_identity(shared, &Refused::of(peer, selectors)));
        }
        Err(JwtError::Unavailable(why) | JwtError::Refused(why)) => {
            tracing::error!(pid = peer.pid(), error = why, "could not fetch JWT-SVID");
            let text = format!("could not fetch JWT-SVID: {why}");
            return Err(Status::unavailable(text));
        }
    };
    Ok(jwt_svids(svids))
}

/// The SPIFFE ID that a request for JWT-SVIDs names, if it does.
pub(crate) fn asked_for(id: &str) -> Result<Option<SpiffeId>, Status> {
    if id.is_empty() {
        return Ok(None);
    }
    let parsed = SpiffeId::new(id)
        .map_err(|error| Status::invalid_argument(format!("invalid requested SPIFFE ID: {error}")));
    parsed.map(Some)
}

pub(super) async fn validate<I: Identities, A: Attest>(
    shared: &Arc<Shared<I, A>>,
    peer: &PeerInfo,
    request: Request<Incoming>,
) -> Result<Bytes, Status> {
    let request: ValidateJwtsvidRequest = message(request).await?;
    if request.audience.is_empty() {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    if request.svid.is_empty() {
        return Err(Status::invalid_argument("svid must be specified"));
    }
    let selectors = shared.attest_for(peer, Method::ValidateJwtSvid).await?;
    let sets = shared.identities.subscribe(&selectors).await;
    let set = Arc::clone(&sets.borrow());
    let bundle_of = |domain: &spiffe::TrustDomain| {
        if set.bundle.trust_domain == *domain {
            return Some(&*set.bundle);
        }
        set.federated.get(domain).map(|bundle| &**bundle)
    };
    let now = SystemTime::now();
    let mut claims = validate_jwt_svid(&request.svid, &request.audience, bundle_of, now)
        .map_err(|error| {
            tracing::warn!(pid = peer.pid(), audience = request.audience, %error, "a JWT-SVID is not valid");
            Status::invalid_argument(error.to_string())
        })?;
    if *claims.spiffe_id.trust_domain() != shared.config.trust_domain {
        let allowed = &shared.config.allowed_foreign_jwt_claims;
        claims.all.retain(|name, _| {
            matches!(name.as_str(), "sub" | "exp" | "aud") || allowed.contains(name)
        });
    }
    // One audience may be a string in a token (RFC 7519 §4.1.3); it is told as a list always, as upstream does.
    if let Some(audience) = claims.all.get_mut("aud")
        && audience.is_string()
    {
        *audience = Value::Array(vec![audience.take()]);
    }
    let response = ValidateJwtsvidResponse {
        spiffe_id: claims.spiffe_id.to_string(),
        claims: Some(claims.to_struct()),
    };
    Ok(framed(&response.encode_to_vec()))
}
