//! `health_checks { }`: `/live` and `/ready` over HTTP, in upstream's shape.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use ah_spire_plugin::telemetry::HealthConfig;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::api::Core;
use crate::store::Store;

/// Connections at a time.
static PLACES: Semaphore = Semaphore::const_new(64);

/// One request, from accept to answer.
const ANSWER: Duration = Duration::from_secs(10);

pub(super) async fn bind(config: &HealthConfig) -> Result<TcpListener, String> {
    let failed = |why: &dyn std::fmt::Display| {
        format!(
            "cannot listen on {}:{} for health checks: {why}; set bind_address and bind_port of health_checks to a free address",
            config.host, config.port
        )
    };
    let port: u16 = config.port.parse().map_err(|error| failed(&error))?;
    let bound = TcpListener::bind((config.host.as_str(), port)).await;
    bound.map_err(|error| failed(&error))
}

pub(super) async fn serve<S: Store>(
    listener: TcpListener,
    config: HealthConfig,
    core: Arc<Core<S>>,
    stop: CancellationToken,
) -> Result<(), String> {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "Serving health checks");
    }
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let (Ok((stream, _)), Ok(place)) = (accepted, PLACES.try_acquire()) else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (config, core) = (config.clone(), core.clone());
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let (config, core) = (config.clone(), core.clone());
                async move { Ok::<_, Infallible>(answer(&request, &config, &core).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            let _ = tokio::time::timeout(ANSWER, connection).await;
            drop(place);
        });
    }
}

/// Alive while the process answers and ready while the store does: the CA and the server's SVID are there before this
/// listens.
async fn answer<S: Store>(
    request: &Request<Incoming>,
    config: &HealthConfig,
    core: &Core<S>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let known = path == config.live_path || path == config.ready_path;
    let (status, kind, body) = if !known {
        (
            StatusCode::NOT_FOUND,
            "text/plain; charset=utf-8",
            "404 page not found\n".to_owned(),
        )
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        (
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain; charset=utf-8",
            "use GET\n".to_owned(),
        )
    } else {
        let fault = match core.store.bundle(&core.trust_domain).await {
            Ok(Some(_)) => None,
            Ok(None) => Some("bundle is missing".to_owned()),
            Err(error) => Some(format!("unable to fetch bundle: {error}")),
        };
        let server = fault
            .as_ref()
            .map_or(json!({}), |why| json!({ "err": why }));
        let details = json!({
            "catalog.datastore": server,
            "server": server,
            "server.ca": {},
            "server.ca.rotator": {},
        });
        let status = match fault {
            None => StatusCode::OK,
            Some(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, "application/json", format!("{details}\n"))
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
