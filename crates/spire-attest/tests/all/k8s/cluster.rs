//! A Kubernetes API as far as attestation goes: it knows tokens, pods and nodes, and asks for a token of its callers.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ah_testkit::ca::TestCa;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What the SPIRE server shows to the API.
pub(crate) const SERVER_TOKEN: &str = "of-the-spire-server";

/// What the API knows. Objects stand under their paths.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) reviews: HashMap<String, Value>,
    pub(crate) objects: HashMap<String, Value>,
    pub(crate) asked: Vec<String>,
    /// What was posted that is no token.
    pub(crate) posted: Vec<Value>,
}

pub(crate) struct Cluster {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) folder: TempDir,
    address: SocketAddr,
    ca: TestCa,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let ca = TestCa::new("kubernetes.example");
        let leaf = ca.leaf().ip("127.0.0.1").issue();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(leaf.chain().to_vec(), leaf.key().der().clone_key())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(|request| answer(&state, request));
                    let served = hyper::server::conn::http1::Builder::new();
                    drop(served.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self {
            state,
            folder: TempDir::new().unwrap(),
            address,
            ca,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub(crate) fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    /// A kubeconfig with the token of the SPIRE server, as `kubectl config` writes it, and other contexts around it.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_with(&format!("token: {SERVER_TOKEN}"))
    }

    pub(crate) fn kubeconfig_with(&self, user: &str) -> PathBuf {
        let ca = STANDARD.encode(self.ca.pem());
        let text = format!(
            "apiVersion: v1
kind: Config
preferences: {{}}
current-context: admin@here
clusters:
- name: elsewhere
  cluster: {{server: 'https://192.0.2.1:6443', insecure-skip-tls-verify: true}}
- cluster:
    certificate-authority-data: {ca}
    server: https://{address}/
  name: here
contexts:
- context: {{cluster: elsewhere, user: nobody}}
  name: other
- context:
    cluster: here
    namespace: spire
    user: admin
  name: admin@here
users:
- name: admin
  user:
    {user}
",
            address = self.address
        );
        let path = self.folder.path().join("kubeconfig");
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets `token` be of the account `spire:spire-agent` in the pod `agent-x1` on the node `worker-1`.
    pub(crate) fn knows(&self, token: &str) {
        let status = json!({
            "authenticated": true,
            "audiences": ["spire-server"],
            "user": {
                "username": "system:serviceaccount:spire:spire-agent",
                "uid": "ca29bd95",
                "groups": ["system:serviceaccounts"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["agent-x1"],
                    "authentication.kubernetes.io/pod-uid": ["pod-uid-1"],
                },
            },
        });
        self.with(|state| {
            state.reviews.insert(token.to_owned(), status);
            state.objects.insert(
                "/api/v1/namespaces/spire/pods/agent-x1".into(),
                json!({
                    "metadata": {"uid": "pod-uid-1", "labels": {"app": "spire-agent", "secret": "x"}},
                    "spec": {"nodeName": "worker-1"},
                    "status": {"hostIP": "10.0.0.7"},
                }),
            );
            state.objects.insert(
                "/api/v1/nodes/worker-1".into(),
                json!({"metadata": {"uid": "node-uid-1", "labels": {"zone": "a", "rack": "7"}}}),
            );
        });
    }
}

async fn answer(
    state: &Mutex<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes());
    let path = parts.uri.path().to_owned();
    let told = |status: StatusCode, value: Value| {
        let response = Response::builder().status(status);
        Ok(response.body(value.to_string().into()).unwrap())
    };
    let expected = format!("Bearer {SERVER_TOKEN}");
    let shown = parts.headers.get(header::AUTHORIZATION);
    if shown.is_none_or(|shown| shown.as_bytes() != expected.as_bytes()) {
        let status = json!({"kind": "Status", "message": "Unauthorized", "code": 401});
        return told(StatusCode::UNAUTHORIZED, status);
    }
    let mut state = state.lock().unwrap();
    state.asked.push(format!("{} {path}", parts.method));
    if parts.method == Method::POST && path == "/apis/authentication.k8s.io/v1/tokenreviews" {
        let review: Value = serde_json::from_slice(&body.unwrap()).unwrap();
        assert_eq!(review.get("kind"), Some(&json!("TokenReview")));
        let token = review.pointer("/spec/token").and_then(Value::as_str);
        let token = token.unwrap();
        let status = state.reviews.get(token);
        let status = status.cloned().unwrap_or(json!({"authenticated": false}));
        return told(StatusCode::CREATED, json!({"status": status}));
    }
    if parts.method == Method::POST {
        let posted = serde_json::from_slice(&body.unwrap()).unwrap();
        state.posted.push(posted);
    }
    match state.objects.get(&path) {
        Some(object) => told(StatusCode::OK, object.clone()),
        None => told(
            StatusCode::NOT_FOUND,
            json!({"kind": "Status", "message": format!("{path} not found")}),
        ),
    }
}
