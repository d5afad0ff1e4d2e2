//! `health_checks { }`: `/live` and `/ready` over HTTP, in upstream's shape.

use std::convert::Infallible;

use ah_identity_provider::{Code, Explained};
use ah_spire_plugin::telemetry::HealthConfig;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::health::Health;

pub(super) async fn bind(config: &HealthConfig) -> Result<TcpListener, Explained> {
    let address = (config.host.as_str(), config.port.as_str());
    let failed = |cause: &dyn std::fmt::Display| {
        Explained::new(
            Code::Other,
            format!("cannot listen on {}:{} for health checks", address.0, address.1),
        )
        .cause(cause)
        .hint("set `bind_address` and `bind_port` of health_checks to a free address; a port below 1024 is root's")
    };
    let port: u16 = config.port.parse().map_err(|error| failed(&error))?;
    TcpListener::bind((config.host.as_str(), port))
        .await
        .map_err(|error| failed(&error))
}

pub(super) async fn serve(
    listener: TcpListener,
    config: HealthConfig,
    health: Health,
    stop: CancellationToken,
) -> Result<(), Explained> {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "serving health checks");
    }
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Without descriptors the next one fails too.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let (config, health, stop) = (config.clone(), health.clone(), stop.clone());
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let answer = answer(&request, &config, &health);
                async { Ok::<_, Infallible>(answer) }
            });
            // A header that does not come is cut off by the library after 30 s.
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            tokio::select! {
                () = stop.cancelled() => {}
                _ = connection => {}
            }
        });
    }
}

/// Alive as long as it answers: what the agent waits for, it can get over.
fn answer(
    request: &Request<Incoming>,
    config: &HealthConfig,
    health: &Health,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let known = path == config.live_path || path == config.ready_path;
    let (status, body) = if !known {
        (StatusCode::NOT_FOUND, "404 page not found\n".to_owned())
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        (StatusCode::METHOD_NOT_ALLOWED, "use GET\n".to_owned())
    } else {
        let why = (path == config.ready_path).then(|| health.state().not_ready());
        match why.flatten() {
            None => (StatusCode::OK, "{\"agent\":{}}\n".to_owned()),
            Some(why) => {
                let details = serde_json::json!({ "agent": { "make_new_x509_err": why } });
                (StatusCode::INTERNAL_SERVER_ERROR, format!("{details}\n"))
            }
        }
    };
    let kind = if known {
        "application/json"
    } else {
        "text/plain; charset=utf-8"
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(kind),
    );
    response
}
