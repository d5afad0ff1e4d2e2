//! `/live` and `/ready`.

use std::io;
use std::net::SocketAddr;

use ah_identity_provider::{Code, Explained};
use ah_spire_plugin::telemetry::HealthConfig;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{State, States};
use crate::http::{FEW_CONNECTIONS, Http, answer, bind};

/// A bound listener of `health_checks { }`.
pub struct HealthListener {
    http: Http,
    live_path: String,
    ready_path: String,
}

impl HealthListener {
    /// Takes the address; `None` when `listener_enabled` is off.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn bind(config: &HealthConfig) -> Result<Option<Self>, Explained> {
        if !config.enabled {
            return Ok(None);
        }
        let listener = bind(&config.host, &config.port).await.map_err(|error| {
            Explained::new(
                Code::Usage,
                format!(
                    "cannot listen for health checks on {}:{}",
                    config.host, config.port
                ),
            )
            .cause(error)
            .hint("set bind_address and bind_port of health_checks to a free address of this machine; ports below 1024 take a privilege")
        })?;
        Ok(Some(Self {
            http: Http {
                listener,
                tls: None,
                most_connections: FEW_CONNECTIONS,
            },
            live_path: config.live_path.clone(),
            ready_path: config.ready_path.clone(),
        }))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.http.address()
    }

    pub(super) async fn serve(self, states: watch::Receiver<States>, stop: CancellationToken) {
        let Self {
            http,
            live_path,
            ready_path,
        } = self;
        if let Ok(address) = http.address() {
            tracing::info!(%address, "Serving health checks");
        }
        let respond = move |request: &Request<Incoming>| {
            let states = states.borrow();
            match request.uri().path() {
                path if path == ready_path => told(&states, |it| (it.ready, &it.ready_details)),
                path if path == live_path => told(&states, |it| (it.live, &it.live_details)),
                _ => answer(
                    StatusCode::NOT_FOUND,
                    "text/plain; charset=utf-8",
                    "404 page not found\n",
                ),
            }
        };
        http.serve(respond, stop).await;
    }
}

fn told(states: &States, of: impl Fn(&State) -> (bool, &Value)) -> Response<Full<Bytes>> {
    let status = match states.values().all(|state| of(state).0) {
        true => StatusCode::OK,
        false => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let details = states
        .iter()
        .map(|(name, state)| ((*name).to_owned(), of(state).1.clone()))
        .collect::<serde_json::Map<_, _>>();
    answer(
        status,
        "application/json",
        format!("{}\n", Value::Object(details)),
    )
}
