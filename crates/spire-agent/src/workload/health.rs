//! `grpc.health.v1.Health`: whether a workload would be served.

use std::sync::Arc;

use ah_spire_attest::peer::PeerInfo;
use ah_spire_wire::health::health_check_response::ServingStatus;
use ah_spire_wire::health::{HealthCheckRequest, HealthCheckResponse};
use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use prost::Message;
use tonic::Status;

use super::caller::Attest;
use super::service::Shared;
use crate::identities::Identities;
use crate::wire::{framed, message};

pub(super) const SERVICE: &str = "grpc.health.v1.Health";

pub(super) async fn answer<I: Identities, A: Attest>(
    shared: &Arc<Shared<I, A>>,
    method: String,
    request: Request<Incoming>,
) -> Result<Bytes, Status> {
    if method != "Check" {
        return Err(Status::unimplemented(format!(
            "method {method} not implemented"
        )));
    }
    let request: HealthCheckRequest = message(request).await?;
    if !request.service.is_empty() {
        return Err(Status::invalid_argument(
            "per-service health is not supported",
        ));
    }
    let serving = shared.config.disabled || serves_itself(shared).await;
    let status = if serving {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    let response = HealthCheckResponse {
        status: status.into(),
    };
    Ok(framed(&response.encode_to_vec()))
}

/// Does for this process what a call does for a workload. That there is no entry for it is in order.
async fn serves_itself<I: Identities, A: Attest>(shared: &Shared<I, A>) -> bool {
    if let Some(why) = shared.identities.not_ready() {
        tracing::warn!(why, "health check failed: the agent cannot serve workloads");
        return false;
    }
    let own = i32::try_from(std::process::id()).unwrap_or(-1);
    let peer = match PeerInfo::of_process(own) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!(%error, "health check failed: the agent cannot look at its own process");
            return false;
        }
    };
    match shared.attest(&peer).await {
        Ok(selectors) => {
            shared.identities.subscribe(&selectors).await;
            true
        }
        Err(_) => false,
    }
}
