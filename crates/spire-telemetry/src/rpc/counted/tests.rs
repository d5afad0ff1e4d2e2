use std::future::ready;

use ah_spire_plugin::telemetry::{Prometheus, TelemetryConfig};
use http_body_util::{BodyExt, StreamBody};
use spiffe::TrustDomain;
use tower::{Layer, ServiceExt, service_fn};

use super::*;
use crate::{Metrics, Program};

fn metrics() -> Metrics {
    let config = TelemetryConfig {
        prometheus: Some(Prometheus {
            host: "localhost".into(),
            port: 0,
            tls: None,
        }),
        ..TelemetryConfig::default()
    };
    let trust_domain = TrustDomain::new("example.org").unwrap();
    Metrics::new(&config, Program::Server, &trust_domain)
        .unwrap()
        .0
}

/// The answer to a call of `path`, made by a service that is counted.
async fn called(metrics: &Metrics, path: &str, answer: fn() -> Response<Body>) -> Response<Body> {
    let service = service_fn(move |_: Request<()>| ready(Ok::<_, Infallible>(answer())));
    let request = Request::builder().uri(path).body(()).unwrap();
    let counted = RpcMetrics::new(metrics).layer(service);
    counted.oneshot(request).await.unwrap()
}

/// One message, then a status in the trailers.
fn message() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "5".parse().unwrap());
    let frames = [
        Ok::<_, Status>(Frame::data(Bytes::from_static(b"12345"))),
        Ok(Frame::trailers(trailers)),
    ];
    Response::new(Body::new(StreamBody::new(futures_util::stream::iter(
        frames,
    ))))
}

fn counts(metrics: &Metrics) -> Vec<String> {
    let text = metrics.text();
    let lines = text.lines().filter(|line| !line.contains("elapsed"));
    lines
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn a_call_ends_with_its_trailers() {
    // Inventory §10.1: rpc.<service>.<method>
    let metrics = metrics();
    let path = "/spire.api.server.entry.v1.Entry/GetEntry";
    let answer = called(&metrics, path, message).await;
    assert_eq!(counts(&metrics), [""; 0]);
    let whole = answer.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["grpc-status"], "5");
    assert_eq!(
        counts(&metrics),
        ["spire_server_rpc_entry_v1_entry_get_entry{status=\"NotFound\"} 1"]
    );
}

#[tokio::test]
async fn a_refusal_has_its_status_in_the_headers() {
    // Inventory §10.1
    let metrics = metrics();
    let refuse = || Status::permission_denied("no").into_http();
    called(&metrics, "/grpc.health.v1.Health/Check", refuse).await;
    assert_eq!(
        counts(&metrics),
        ["spire_server_rpc_health_check{status=\"PermissionDenied\"} 1"]
    );
}

#[tokio::test]
async fn a_call_that_is_cut_is_canceled() {
    // Inventory §10.1
    let metrics = metrics();
    drop(called(&metrics, "/SpiffeWorkloadAPI/FetchX509SVID", message).await);
    assert_eq!(
        counts(&metrics),
        ["spire_server_rpc_workload_api_fetch_x509svid{status=\"Canceled\"} 1"]
    );
}

#[tokio::test]
async fn no_caller_can_make_up_metrics() {
    let metrics = metrics();
    let unknown = || Status::unimplemented("no such").into_http();
    called(&metrics, "/made.up.Service/Method", unknown).await;
    called(&metrics, "/grpc.health.v1.Health/Made", unknown).await;
    assert_eq!(counts(&metrics), [""; 0]);
}
