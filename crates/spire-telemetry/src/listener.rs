//! The listener that Prometheus asks: `telemetry { Prometheus { } }`.

mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ah_identity_provider::{Code, Explained};
use ah_spire_plugin::telemetry::Prometheus;
use http::StatusCode;
use tokio_util::sync::CancellationToken;

use crate::Metrics;
use crate::http::{FEW_CONNECTIONS, Http, answer, bind};

pub use tls::Known;

/// As `promhttp` names its format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A bound listener. Every path answers with the metrics, as upstream's does.
pub struct PrometheusListener {
    http: Http,
    metrics: Metrics,
}

impl PrometheusListener {
    /// Takes host and port. `known` is asked at each handshake where `tls { }` speaks of SPIFFE. With `post_quantum_only`
    /// the key exchange of TLS is X25519MLKEM768 or there is none.
    ///
    /// # Errors
    /// The address cannot be had, or `tls { }` is not usable. It is TLS 1.3 with `cert_file` and `key_file`, or with
    /// `use_spire_svid`; clients have to show a certificate with `client_ca_file` or `authorized_spiffe_ids`.
    pub async fn bind(
        config: &Prometheus,
        metrics: Metrics,
        known: Arc<dyn Known>,
        post_quantum_only: bool,
    ) -> Result<Self, Explained> {
        let tls = config.tls.as_ref();
        let tls = tls.map(|tls| tls::server_config(tls, known, post_quantum_only));
        let tls = tls.transpose()?;
        let listener = bind(&config.host, &config.port.to_string())
            .await
            .map_err(|error| {
                Explained::new(
                    Code::Usage,
                    format!(
                        "cannot listen for Prometheus on {}:{}",
                        config.host, config.port
                    ),
                )
                .cause(error)
                .hint("set host and port of telemetry.Prometheus to a free address of this machine")
            })?;
        if config.host != "localhost" {
            tracing::warn!(
                host = config.host,
                "metrics are served to other machines: control who can reach the port"
            );
        }
        let http = Http {
            listener,
            tls,
            most_connections: FEW_CONNECTIONS,
        };
        if let Ok(address) = http.address() {
            tracing::info!(%address, "Serving metrics");
        }
        Ok(Self { http, metrics })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.http.address()
    }

    /// Answers until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        let metrics = self.metrics;
        let text = move |_: &_| answer(StatusCode::OK, CONTENT_TYPE, metrics.text());
        self.http.serve(text, stop).await;
    }
}

#[cfg(test)]
mod tests;
