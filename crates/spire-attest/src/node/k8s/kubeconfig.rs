//! How to reach the API of a cluster: a kubeconfig file, or what every pod has.

use std::path::{Path, PathBuf};

use ah_spire_wire::http_client::{HttpClient, Roots};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::credentials::{authorization, bearer, certificates, identity, read};
use crate::node::Secret;

/// Where a pod finds what it needs.
const IN_CLUSTER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A cluster's API, as of one reading of its configuration.
pub(super) struct Access {
    pub(super) client: HttpClient,
    /// Such as `https://10.0.0.1:6443`, without a slash at its end.
    pub(super) server: String,
    /// `Authorization`
    pub(super) authorization: Option<HeaderValue>,
}

impl Access {
    /// Reads the file `path`, or the pod's own settings where it is empty. Read for each attestation, so that a
    /// renewed token or CA is taken.
    pub(super) async fn load(path: &Path) -> Result<Self, String> {
        if path.as_os_str().is_empty() {
            return in_cluster().await;
        }
        let text = Zeroizing::new(read(path).await?);
        let config: KubeConfig = serde_saphyr::from_slice(&text)
            .map_err(|error| format!("{}: {}", path.display(), first_line(&error.to_string())))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let access = config.access(folder).await;
        access.map_err(|error| format!("{}: {error}", path.display()))
    }
}

async fn in_cluster() -> Result<Access, String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(host), Some(port)) = (
        variable("KUBERNETES_SERVICE_HOST"),
        variable("KUBERNETES_SERVICE_PORT"),
    ) else {
        return Err(
            "this is no pod of a cluster (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set): name a \
             kubeconfig file"
                .into(),
        );
    };
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host
    };
    let folder = Path::new(IN_CLUSTER);
    let token = Zeroizing::new(read(&folder.join("token")).await?);
    let authority = read(&folder.join("ca.crt")).await?;
    Ok(Access {
        client: HttpClient::new(Roots::Only(certificates("ca.crt", &authority)?), None)?,
        server: format!("https://{host}:{port}"),
        authorization: Some(bearer(&token)?),
    })
}

/// A kubeconfig, with what is used of it. Anything else in it is passed over.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct KubeConfig {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<Named<Context>>,
    #[serde(default)]
    clusters: Vec<Named<Cluster>>,
    #[serde(default)]
    users: Vec<Named<User>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "context", alias = "cluster", alias = "user")]
    what: T,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    token: Option<Secret>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

impl KubeConfig {
    async fn access(self, folder: &Path) -> Result<Access, String> {
        let context = find("context", &self.current_context, self.contexts)?;
        let cluster = find("cluster", &context.cluster, self.clusters)?;
        let user = match context.user.as_str() {
            "" => User::default(),
            user => find("user", user, self.users)?,
        };
        for (set, key, instead) in [
            (
                cluster.insecure_skip_tls_verify,
                "insecure-skip-tls-verify",
                "certificate-authority",
            ),
            (
                cluster.tls_server_name.is_some(),
                "tls-server-name",
                "a server whose name is in its certificate",
            ),
            (
                cluster.proxy_url.is_some(),
                "proxy-url",
                "a server that is reached directly",
            ),
            (
                user.exec.is_some(),
                "exec",
                "token, tokenFile or client-certificate",
            ),
            (
                user.auth_provider.is_some(),
                "auth-provider",
                "token, tokenFile or client-certificate",
            ),
        ] {
            if set {
                return Err(format!("{key} is not supported: use {instead}"));
            }
        }

        let roots = one_of(
            "certificate-authority",
            folder,
            cluster.certificate_authority.as_deref(),
            cluster.certificate_authority_data.as_deref(),
        );
        let roots = match roots.await? {
            Some(pem) => Roots::Only(certificates("certificate-authority", &pem)?),
            None => Roots::Machine,
        };
        let chain = one_of(
            "client-certificate",
            folder,
            user.client_certificate.as_deref(),
            user.client_certificate_data.as_deref(),
        );
        let key = one_of(
            "client-key",
            folder,
            user.client_key.as_deref(),
            user.client_key_data.as_ref().map(|data| data.0.as_str()),
        );
        let identity = match (chain.await?, key.await?.map(Zeroizing::new)) {
            (None, None) => None,
            (Some(chain), Some(key)) => Some(identity(
                ("client-certificate", &chain),
                ("client-key", &key),
            )?),
            _ => return Err("client-certificate and client-key belong together".into()),
        };
        let shown = match (user.token, user.token_file, user.username) {
            (_, Some(path), _) => {
                let token = Zeroizing::new(read(&folder.join(path)).await?);
                Some(bearer(&token)?)
            }
            (Some(token), ..) => Some(bearer(token.0.as_bytes())?),
            (None, None, Some(name)) => {
                let password = user.password.unwrap_or_default();
                let both = Zeroizing::new(format!("{name}:{}", *password.0));
                Some(authorization("Basic", &STANDARD.encode(both.as_bytes()))?)
            }
            (None, None, None) => None,
        };
        Ok(Access {
            client: HttpClient::new(roots, identity)?,
            server: cluster.server.trim_end_matches('/').to_owned(),
            authorization: shown,
        })
    }
}

fn find<T>(what: &str, name: &str, all: Vec<Named<T>>) -> Result<T, String> {
    let found = all.into_iter().find(|named| named.name == name);
    found
        .map(|named| named.what)
        .ok_or_else(|| match (what, name) {
            ("context", "") => "it has no current-context".to_owned(),
            _ => format!("it has no {what} named {name:?}"),
        })
}

/// The bytes that `data` has in base64, or else those of the file `path`.
async fn one_of(
    what: &str,
    folder: &Path,
    path: Option<&Path>,
    data: Option<&str>,
) -> Result<Option<Vec<u8>>, String> {
    match (data, path) {
        (Some(data), _) => {
            let bytes = STANDARD.decode(data.trim());
            let bytes = bytes.map_err(|_| format!("{what}-data is not base64"))?;
            Ok(Some(bytes))
        }
        (None, Some(path)) => read(&folder.join(path)).await.map(Some),
        (None, None) => Ok(None),
    }
}

/// A parser may show the lines around a fault, and those may hold secrets.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
