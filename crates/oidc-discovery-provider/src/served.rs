//! Where the documents are served, and how.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use ah_spire_attest::socket::{Purpose, Socket};
use ah_spire_plugin::oidc::{OidcAcme, OidcConfig, OidcListen};
use ah_spire_telemetry::{Http, Peer, answer_on, listen};
use ah_spire_web::{
    ACME_PROTOCOL, Acme, AcmeHealth, AcmeSettings, FileCertificate, Shown, server_config,
};
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::documents::Documents;

/// Connections at a time; more wait to be accepted, or on a unix socket are closed.
const MOST_CONNECTIONS: usize = 1024;

/// Where ACME servers look for the proof (RFC 8737 §3).
const ACME_ADDRESS: &str = ":443";

/// Any web server of this machine may be in front of it.
const PURPOSE: Purpose = Purpose {
    api: "OIDC discovery",
    key: "listen_socket_path",
    mode: 0o777,
    folder_mode: 0o755,
};

/// A bound listener.
pub(crate) enum Served {
    Socket(Socket),
    Tcp(Http),
    Tls {
        http: Http,
        certificate: FileCertificate,
        sync_interval: Duration,
        shown: Arc<Shown>,
    },
    Acme {
        http: Http,
        acme: Box<Acme>,
    },
}

impl Served {
    /// Takes what `listen` names.
    ///
    /// # Errors
    /// What an operator has to change.
    pub(crate) async fn bind(config: &OidcConfig) -> Result<Self, Explained> {
        match &config.listen {
            OidcListen::Insecure(address) => {
                let http = http("insecure_addr", address).await?;
                tracing::warn!(address = %told(&http), "Serving HTTP (insecure)");
                Ok(Self::Tcp(http))
            }
            OidcListen::Socket(path) => {
                let socket = Socket::bind(path, &PURPOSE)?;
                tracing::info!(network = "unix", address = %path.display(), "Serving HTTP");
                Ok(Self::Socket(socket))
            }
            OidcListen::ServingCertFile {
                cert,
                key,
                address,
                sync_interval,
            } => Self::with_files(cert, key, address, *sync_interval).await,
            OidcListen::Acme(acme) => Self::with_acme(acme, &config.domains).await,
        }
    }

    async fn with_files(
        cert: &Path,
        key: &Path,
        address: &str,
        sync_interval: Duration,
    ) -> Result<Self, Explained> {
        let certificate = FileCertificate::load(cert, key).map_err(|why| {
            Explained::new(Code::Usage, why).hint("cert_file_path and key_file_path of serving_cert_file name PEM files; the key is that of the first certificate")
        })?;
        let shown = Arc::new(Shown::default());
        let mut http = http("serving_cert_file.addr", address).await?;
        let tls = server_config(shown.clone(), false)
            .map_err(|error| Explained::new(Code::Other, "cannot serve HTTPS").cause(error))?;
        http.tls = Some(Arc::new(tls));
        tracing::info!(
            cert_file_path = %cert.display(),
            address = %told(&http),
            "Serving HTTPS using certificate loaded from disk"
        );
        Ok(Self::Tls {
            http,
            certificate,
            sync_interval,
            shown,
        })
    }

    async fn with_acme(settings: &OidcAcme, domains: &[String]) -> Result<Self, Explained> {
        let acme = Acme::new(AcmeSettings {
            directory_url: settings.directory_url.clone(),
            email: settings.email.clone(),
            domains: domains.to_vec(),
            cache_dir: settings.cache_dir.clone(),
        });
        let acme = acme.map_err(|why| Explained::new(Code::Usage, format!("acme: {why}")))?;
        let mut http = http("acme", ACME_ADDRESS).await?;
        let tls = server_config(acme.certificates(), false);
        let mut tls =
            tls.map_err(|error| Explained::new(Code::Other, "cannot serve HTTPS").cause(error))?;
        tls.alpn_protocols.push(ACME_PROTOCOL.to_vec());
        http.tls = Some(Arc::new(tls));
        tracing::info!(address = %told(&http), "Serving HTTPS via ACME");
        Ok(Self::Acme {
            http,
            acme: Box::new(acme),
        })
    }

    /// Whether clients come by TLS.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls { .. } | Self::Acme { .. })
    }

    /// How the certificates are that an ACME server issues, if one does.
    pub(crate) fn acme(&self) -> Option<AcmeHealth> {
        match self {
            Self::Acme { acme, .. } => Some(acme.health()),
            Self::Socket(_) | Self::Tcp(_) | Self::Tls { .. } => None,
        }
    }

    /// Answers until `stop`.
    pub(crate) async fn run(self, documents: Documents, log: bool, stop: CancellationToken) {
        let respond = move |request: &Request<Incoming>| respond(&documents, log, request);
        match self {
            Self::Tcp(http) => http.serve(respond, stop).await,
            Self::Tls {
                http,
                certificate,
                sync_interval,
                shown,
            } => {
                let following = certificate.follow(sync_interval, "discovery provider", &shown);
                tokio::select! {
                    () = http.serve(respond, stop) => {}
                    () = following => {}
                }
            }
            Self::Acme { http, acme } => {
                tokio::select! {
                    () = http.serve(respond, stop) => {}
                    () = Box::pin(acme.run()) => {}
                }
            }
            Self::Socket(socket) => serve_socket(socket, respond, stop).await,
        }
    }
}

async fn serve_socket<F>(socket: Socket, respond: F, stop: CancellationToken)
where
    F: Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Clone + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let take = |stream: UnixStream| {
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(
                most = MOST_CONNECTIONS,
                "Too many connections; one was closed"
            );
            return;
        };
        let answering = answer_on(stream, respond.clone(), stop.clone());
        tokio::spawn(async move {
            if let Err(error) = answering.await {
                tracing::debug!(%error, "HTTP connection broke");
            }
            drop(place);
        });
    };
    socket.serve(stop.cancelled(), take).await;
}

fn respond(documents: &Documents, log: bool, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if log {
        let peer = request.extensions().get::<Peer>();
        let agent = request.headers().get(header::USER_AGENT);
        tracing::debug!(
            remote_addr = peer.map(|peer| tracing::field::display(peer.0)),
            method = %request.method(),
            url = %request.uri(),
            user_agent = agent.and_then(|agent| agent.to_str().ok()),
            "Incoming request"
        );
    }
    documents.respond(request)
}

async fn http(key: &str, address: &str) -> Result<Http, Explained> {
    let listener = listen(address).await.map_err(|error| {
        Explained::new(Code::Usage, format!("cannot listen on {address} ({key})"))
            .cause(error)
            .hint(format!("set {key} to a free address of this machine, as HOST:PORT; ports below 1024 take a privilege"))
    })?;
    Ok(Http {
        listener,
        tls: None,
        most_connections: MOST_CONNECTIONS,
    })
}

fn told(http: &Http) -> String {
    http.address()
        .map_or_else(|error| error.to_string(), |address| address.to_string())
}

/// Answers health checks on `port` of all addresses.
pub(crate) async fn health_listener(port: u16) -> Result<Http, Explained> {
    let http = http("health_checks.bind_port", &format!(":{port}")).await?;
    tracing::info!(address = %told(&http), "Serving health checks");
    Ok(Http {
        most_connections: 64,
        ..http
    })
}
