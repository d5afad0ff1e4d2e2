//! `grpc.health.v1.Health`

use std::sync::Arc;

use ah_spire_wire::health::health_check_response::ServingStatus;
use ah_spire_wire::health::health_server::Health as Service;
use ah_spire_wire::health::{HealthCheckRequest, HealthCheckResponse};
use tokio_stream::Empty;
use tonic::{Request, Response, Status};

use super::Core;
use crate::store::Store;

pub(super) struct Healthy<S>(pub(super) Arc<Core<S>>);

#[tonic::async_trait]
impl<S: Store> Service for Healthy<S> {
    /// Serving when the own bundle can be read: then the store answers and the CA has begun.
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.into_inner().service.is_empty() {
            return Err(Status::invalid_argument(
                "per-service health is not supported",
            ));
        }
        let bundle = self.0.store.bundle(&self.0.trust_domain).await;
        let unhealthy = match bundle {
            Ok(Some(_)) => None,
            Ok(None) => Some("bundle is missing".to_owned()),
            Err(error) => Some(format!("unable to fetch bundle: {error}")),
        };
        let status = match unhealthy {
            None => ServingStatus::Serving,
            Some(reason) => {
                tracing::warn!(reason, "Health check failed");
                ServingStatus::NotServing
            }
        };
        Ok(Response::new(HealthCheckResponse {
            status: status.into(),
        }))
    }

    type WatchStream = Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("method Watch not implemented"))
    }
}
