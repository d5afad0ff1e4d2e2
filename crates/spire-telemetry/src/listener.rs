//! The listener that Prometheus asks: `telemetry { Prometheus { } }`.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use ah_identity_provider::{Code, Explained, pem};
use ah_spire_plugin::telemetry::{Prometheus, PrometheusTls};
use http::StatusCode;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::Metrics;
use crate::http::{FEW_CONNECTIONS, Http, answer, bind};

/// As `promhttp` names its format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A bound listener. Every path answers with the metrics, as upstream's does.
pub struct PrometheusListener {
    http: Http,
    metrics: Metrics,
}

impl PrometheusListener {
    /// Takes host and port. With `post_quantum_only` the key exchange of TLS is X25519MLKEM768 or there is none.
    ///
    /// # Errors
    /// The address cannot be had, or `tls { }` is not usable: TLS 1.3 with `cert_file` and `key_file`, and
    /// `client_ca_file` for clients that have to show a certificate.
    pub async fn bind(
        config: &Prometheus,
        metrics: Metrics,
        post_quantum_only: bool,
    ) -> Result<Self, Explained> {
        let tls = config.tls.as_ref();
        let tls = tls.map(|tls| server_config(tls, post_quantum_only));
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

fn server_config(
    tls: &PrometheusTls,
    post_quantum_only: bool,
) -> Result<Arc<ServerConfig>, Explained> {
    let refused = |what: &str, hint: &str| {
        Err(Explained::new(Code::Usage, format!("telemetry.Prometheus.tls: {what}")).hint(hint))
    };
    if tls.use_spire_svid {
        return refused(
            "use_spire_svid is not supported",
            "remove use_spire_svid and set cert_file and key_file",
        );
    }
    if !tls.authorized_spiffe_ids.is_empty() {
        return refused(
            "authorized_spiffe_ids is not supported",
            "remove authorized_spiffe_ids; client_ca_file limits who may ask",
        );
    }
    let (Some(cert_file), Some(key_file)) = (&tls.cert_file, &tls.key_file) else {
        return refused(
            "cert_file and key_file must both be set",
            "set both to PEM files, or remove the block tls",
        );
    };
    let chain = pem::certificates(&read(cert_file)?).map_err(|error| bad(cert_file, error))?;
    let key = pem::private_key(&read(key_file)?, None).map_err(|error| bad(key_file, error))?;
    let unusable = |error: rustls::Error| bad(cert_file, error);
    let mut provider = aws_lc_rs::default_provider();
    if post_quantum_only {
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    }
    let builder = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?;
    let builder = match &tls.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(file) => builder.with_client_cert_verifier(clients_of(file)?),
    };
    let mut config = builder
        .with_single_cert(chain, key.der().clone_key())
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn clients_of(
    file: &Path,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, Explained> {
    let mut roots = RootCertStore::empty();
    for root in pem::certificates(&read(file)?).map_err(|error| bad(file, error))? {
        roots.add(root).map_err(|error| bad(file, error))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| bad(file, error))
}

fn read(file: &Path) -> Result<Vec<u8>, Explained> {
    std::fs::read(file).map_err(|error| bad(file, error))
}

fn bad(file: &Path, why: impl std::fmt::Display) -> Explained {
    Explained::new(
        Code::Usage,
        format!(
            "telemetry.Prometheus.tls: {} cannot be used",
            file.display()
        ),
    )
    .cause(why)
    .hint("cert_file, key_file and client_ca_file are PEM files; key_file has the key of the first certificate")
}

#[cfg(test)]
mod tests;
