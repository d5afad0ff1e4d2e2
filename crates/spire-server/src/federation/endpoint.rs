//! The bundle endpoint: the own bundle as a SPIFFE bundle document, for whoever asks (SPIFFE Federation §5.1).

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ah_spire_plugin::server::{BundleEndpoint, BundleEndpointProfile};
use ah_spire_telemetry::{Http, answer};
use ah_spire_web::{ACME_PROTOCOL, Acme, AcmeHealth, AcmeSettings, FileCertificate, server_config};
use ah_spire_wire::bundle::{Contents, to_document};
use ah_spire_wire::model::Bundle;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::certificate::Source;
use crate::endpoints::{ServerSvid, bind};

/// More wait to be accepted. Whoever has one is cut when it says nothing for ten seconds.
const MOST_CONNECTIONS: usize = 1024;

const TEXT: &str = "text/plain; charset=utf-8";

/// A bound listener. The bundle that it serves is made when the bundle changes, never for a request: those of strangers
/// cost no look into the store, and while the store does not answer the last bundle is served.
pub struct Endpoint {
    http: Http,
    source: Source,
    documents: Documents,
}

/// The document of the moment.
struct Documents {
    bundles: watch::Receiver<Option<Arc<Bundle>>>,
    refresh_hint: Duration,
    newest: Arc<ArcSwapOption<Bytes>>,
}

impl Endpoint {
    /// Takes the address of `config`. `bundles` is the own one, `svids` the server's own, for the profile `https_spiffe`.
    /// With `post_quantum_only` the key exchange is X25519MLKEM768 or there is none.
    ///
    /// # Errors
    /// The address cannot be had, or the certificate not be read, or its source is not supported.
    pub async fn bind(
        config: &BundleEndpoint,
        bundles: watch::Receiver<Option<Arc<Bundle>>>,
        svids: watch::Receiver<Option<Arc<ServerSvid>>>,
        post_quantum_only: bool,
    ) -> Result<Self, String> {
        let source = match &config.profile {
            BundleEndpointProfile::HttpsSpiffe => Source::Svid {
                svids,
                shown: Arc::default(),
            },
            BundleEndpointProfile::ServingCertFile {
                cert,
                key,
                sync_interval,
            } => Source::Files {
                loaded: FileCertificate::load(cert, key)?,
                interval: *sync_interval,
                shown: Arc::default(),
            },
            BundleEndpointProfile::Acme(settings) => {
                let acme = Acme::new(acme_settings(settings));
                let named = |why| format!("federation.bundle_endpoint: acme: {why}");
                Source::Acme(Box::new(acme.map_err(named)?))
            }
        };
        let tls = server_config(source.certificates(), post_quantum_only);
        let mut tls = tls.map_err(|error| error.to_string())?;
        if source.acme().is_some() {
            tls.alpn_protocols.push(ACME_PROTOCOL.to_vec());
        }
        let listener = listen(config.socket_address()).map_err(|error| {
            format!("federation.bundle_endpoint: {error}: set its address and port to free ones of this machine")
        })?;
        let mut documents = Documents {
            bundles,
            refresh_hint: config.refresh_hint,
            newest: Arc::default(),
        };
        documents.renew();
        let endpoint = Self {
            http: Http {
                listener,
                tls: Some(Arc::new(tls)),
                most_connections: MOST_CONNECTIONS,
            },
            source,
            documents,
        };
        if let Ok(address) = endpoint.address() {
            tracing::info!(addr = %address, refresh_hint = ?config.refresh_hint, "Serving bundle endpoint");
        }
        Ok(endpoint)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.http.listener.local_addr()
    }

    /// How the certificate is that an ACME server issues, if one does.
    pub fn acme(&self) -> Option<AcmeHealth> {
        self.source.acme()
    }

    /// Answers until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let newest = self.documents.newest.clone();
        let served = self
            .http
            .serve(move |request| respond(request, &newest), stop);
        tokio::select! {
            () = served => {}
            () = self.source.follow() => {}
            () = self.documents.follow() => {}
        }
    }
}

fn acme_settings(acme: &ah_spire_plugin::server::Acme) -> AcmeSettings {
    AcmeSettings {
        directory_url: acme.directory_url.clone(),
        email: acme.email.clone(),
        domains: vec![acme.domain_name.clone()],
        cache_dir: Some(acme.cache_dir.clone()),
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match bind(address) {
        // Without an address, and on a machine without IPv6.
        Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
            bind((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    }
}

/// Paths, codes and texts are upstream's.
fn respond(request: &Request<Incoming>, newest: &ArcSwapOption<Bytes>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        return answer(status, TEXT, "405 method not allowed\n");
    }
    if request.uri().path() != "/" {
        return answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n");
    }
    match newest.load_full() {
        Some(document) => answer(StatusCode::OK, "application/json", (*document).clone()),
        None => answer(
            StatusCode::INTERNAL_SERVER_ERROR,
            TEXT,
            "500 unable to retrieve local bundle\n",
        ),
    }
}

impl Documents {
    async fn follow(mut self) {
        while self.bundles.changed().await.is_ok() {
            self.renew();
        }
        std::future::pending::<()>().await;
    }

    fn renew(&mut self) {
        let Some(bundle) = self.bundles.borrow_and_update().clone() else {
            tracing::error!("Unable to retrieve local bundle");
            return;
        };
        let told = Bundle {
            refresh_hint: i64::try_from(self.refresh_hint.as_secs()).unwrap_or(i64::MAX),
            ..(*bundle).clone()
        };
        match to_document(&told, Contents::Spiffe) {
            Ok(document) => self.newest.store(Some(Arc::new(document.into()))),
            Err(error) => tracing::error!(%error, "Unable to marshal local bundle"),
        }
    }
}
