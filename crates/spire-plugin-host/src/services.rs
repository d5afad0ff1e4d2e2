//! What the daemon offers to its plugins.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use ah_spire_telemetry::Metrics;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tower::Service;

use crate::packages::spire::hostservice::common::metrics::v1 as wire;
use wire::metrics_server::MetricsServer;

/// Services that plugins may call.
#[derive(Clone)]
pub struct HostServices {
    pub(crate) names: Vec<&'static str>,
    pub(crate) routes: Routes,
}

impl HostServices {
    /// Metrics, which every plugin may count in.
    pub fn new(metrics: &Metrics) -> Self {
        let none = Self {
            names: Vec::new(),
            routes: Routes::default(),
        };
        none.with(MetricsServer::new(Counting(metrics.clone())))
    }

    /// With `service`, a generated server.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        self.names.push(S::NAME);
        self.routes = self.routes.add_service(service);
        self
    }
}

/// `spire.hostservice.common.metrics.v1.Metrics`
struct Counting(Metrics);

/// A series of a request.
struct Series<'a> {
    key: Vec<&'a str>,
    labels: Vec<(&'a str, &'a str)>,
}

impl<'a> Series<'a> {
    fn of(key: &'a [String], labels: &'a [wire::Label]) -> Self {
        let labels = labels.iter();
        Self {
            key: key.iter().map(String::as_str).collect(),
            labels: labels
                .map(|label| (label.name.as_str(), label.value.as_str()))
                .collect(),
        }
    }
}

#[tonic::async_trait]
impl wire::metrics_server::Metrics for Counting {
    async fn set_gauge(
        &self,
        request: Request<wire::SetGaugeRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let Series { key, labels } = Series::of(&request.key, &request.labels);
        self.0.gauge(&key, &labels).set(request.val.into());
        Ok(Response::new(()))
    }

    async fn emit_key(
        &self,
        request: Request<wire::EmitKeyRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let Series { key, .. } = Series::of(&request.key, &[]);
        self.0.point(&key, request.val.into());
        Ok(Response::new(()))
    }

    async fn incr_counter(
        &self,
        request: Request<wire::IncrCounterRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let Series { key, labels } = Series::of(&request.key, &request.labels);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "such a cast saturates, and a counter goes up only"
        )]
        let by = request.val.round() as u64;
        self.0.counter(&key, &labels).add(by);
        Ok(Response::new(()))
    }

    async fn add_sample(
        &self,
        request: Request<wire::AddSampleRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let Series { key, labels } = Series::of(&request.key, &request.labels);
        self.0.summary(&key, &labels).observe(request.val.into());
        Ok(Response::new(()))
    }

    async fn measure_since(
        &self,
        request: Request<wire::MeasureSinceRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let Series { key, labels } = Series::of(&request.key, &request.labels);
        let since = Duration::from_nanos(u64::try_from(request.time).unwrap_or_default());
        let since = SystemTime::UNIX_EPOCH.checked_add(since);
        let took = since.and_then(|since| SystemTime::now().duration_since(since).ok());
        let took = took.unwrap_or_default().as_secs_f64() * 1000.0;
        self.0.timer(&key, &labels).observe(took);
        Ok(Response::new(()))
    }
}
