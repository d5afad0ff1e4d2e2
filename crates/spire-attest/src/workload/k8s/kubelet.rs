//! The kubelet of this node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ah_spire_wire::http_client::{HttpClient, Roots};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use zeroize::Zeroizing;

use crate::AttestError;
use crate::credentials::{bearer, certificates, identity, read};
use crate::workload::k8s::K8sConfig;
use crate::workload::k8s::pods::{self, Pod};

/// How long it may take to answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// The largest answer, in bytes: a pod is some 20 KiB, and a node has a few hundred.
const MAX_BYTES: usize = 64 * 1024 * 1024;

const SECURE_PORT: u16 = 10250;
const CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Where it is, and what it is shown.
pub(super) struct Kubelet {
    url: String,
    way: Way,
}

enum Way {
    ReadOnly,
    Secure { server: Server, client: Client },
}

/// Whom the kubelet's certificate has to be of.
enum Server {
    /// `skip_kubelet_verification`
    Anybody,
    /// Below the authorities of this file; `named` as the node.
    Below { ca: PathBuf, named: bool },
}

enum Client {
    Anonymous,
    Token(PathBuf),
    Certificate { chain: PathBuf, key: PathBuf },
}

/// As of one reading of its files.
pub(super) struct Access {
    client: HttpClient,
    authorization: Option<HeaderValue>,
}

impl Kubelet {
    pub(super) fn new(config: &K8sConfig) -> Result<Self, AttestError> {
        let read_only = port("kubelet_read_only_port", config.kubelet_read_only_port)?;
        let secure = port("kubelet_secure_port", config.kubelet_secure_port)?;
        let port = match (read_only, secure) {
            (Some(_), Some(_)) => {
                return Err(AttestError::invalid(
                    "cannot use both the read-only and secure port",
                    "set kubelet_read_only_port or kubelet_secure_port",
                ));
            }
            (Some(port), None) => {
                return Ok(Self {
                    url: format!("http://127.0.0.1:{port}/pods"),
                    way: Way::ReadOnly,
                });
            }
            (None, port) => port.unwrap_or(SECURE_PORT),
        };
        let host = match config.node_name.as_str() {
            "" => "127.0.0.1".to_owned(),
            address if address.contains(':') => format!("[{address}]"),
            name => name.to_owned(),
        };
        let or = |path: &Path, default: &str| match path.as_os_str().is_empty() {
            true => PathBuf::from(default),
            false => path.to_owned(),
        };
        let server = if config.skip_kubelet_verification {
            Server::Anybody
        } else {
            Server::Below {
                ca: or(&config.kubelet_ca_path, CA),
                named: !config.node_name.is_empty(),
            }
        };
        Ok(Self {
            url: format!("https://{host}:{port}/pods"),
            way: Way::Secure {
                server,
                client: client(config, or(&config.token_path, TOKEN))?,
            },
        })
    }

    /// Reads the files.
    pub(super) async fn load(&self) -> Result<Access, String> {
        let Way::Secure { server, client } = &self.way else {
            return Ok(Access {
                client: HttpClient::plain()?.reading(MAX_BYTES),
                authorization: None,
            });
        };
        let roots = match server {
            Server::Anybody => Roots::Unverified,
            Server::Below { ca, named } => {
                let pem = read(ca).await;
                let pem = pem.map_err(|error| format!("unable to load kubelet CA: {error}"))?;
                let roots = certificates(&ca.display().to_string(), &pem)?;
                if *named {
                    Roots::Only(roots)
                } else {
                    Roots::AnyName(roots)
                }
            }
        };
        let (mut shown, mut authorization) = (None, None);
        match client {
            Client::Anonymous => {}
            Client::Token(path) => {
                let token = read(path).await.map(Zeroizing::new);
                let token = token.map_err(|error| format!("unable to load token: {error}"))?;
                authorization = Some(bearer(&token)?);
            }
            Client::Certificate { chain, key } => {
                let pem = read(chain).await;
                let pem = pem.map_err(|error| format!("unable to load certificate: {error}"))?;
                let secret = read(key).await.map(Zeroizing::new);
                let secret =
                    secret.map_err(|error| format!("unable to load private key: {error}"))?;
                shown = Some(identity(
                    (&chain.display().to_string(), &pem),
                    (&key.display().to_string(), &secret),
                )?);
            }
        }
        Ok(Access {
            client: HttpClient::new(roots, shown)?.direct().reading(MAX_BYTES),
            authorization,
        })
    }

    /// The pods of this node.
    pub(super) async fn pods(&self, access: &Access) -> Result<Vec<Pod>, String> {
        let mut request = Request::get(&self.url)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "spire-agent");
        if let Some(value) = &access.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Bytes::new());
        let request = request.map_err(|error| format!("{}: {error}", self.url))?;
        let answer = tokio::time::timeout(TIMEOUT, access.client.send(request)).await;
        let answer = answer.map_err(|_| {
            format!(
                "unable to perform request: {}: no answer within {}s",
                self.url,
                TIMEOUT.as_secs()
            )
        })?;
        let answer = answer.map_err(|error| format!("unable to perform request: {error}"))?;
        if answer.status() != StatusCode::OK {
            let told = String::from_utf8_lossy(answer.body());
            let told: String = told.trim().chars().take(200).collect();
            return Err(format!(
                "unexpected status code on pods response: {} {told}",
                answer.status().as_u16()
            ));
        }
        // Some megabytes: not where others' calls run.
        let parsed = tokio::task::spawn_blocking(move || pods::read(answer.body())).await;
        parsed.unwrap_or_else(|error| Err(error.to_string()))
    }
}

/// What is shown, of what may be shown.
fn client(config: &K8sConfig, token: PathBuf) -> Result<Client, AttestError> {
    let is_set = |path: &Path| !path.as_os_str().is_empty();
    let (chain, key) = (&config.certificate_path, &config.private_key_path);
    Ok(match (is_set(chain), is_set(key)) {
        _ if config.use_anonymous_authentication => Client::Anonymous,
        (false, false) => Client::Token(token),
        (true, true) => Client::Certificate {
            chain: chain.clone(),
            key: key.clone(),
        },
        (true, false) => {
            return Err(AttestError::invalid(
                "the private key path is required with the certificate path",
                "set private_key_path, or take certificate_path out",
            ));
        }
        (false, true) => {
            return Err(AttestError::invalid(
                "the certificate path is required with the private key path",
                "set certificate_path, or take private_key_path out",
            ));
        }
    })
}

/// None for 0 and less.
fn port(key: &str, number: i64) -> Result<Option<u16>, AttestError> {
    if number <= 0 {
        return Ok(None);
    }
    u16::try_from(number).map(Some).map_err(|_| {
        AttestError::invalid(
            format!("{key}: {number} is no port"),
            "ports go up to 65535",
        )
    })
}
