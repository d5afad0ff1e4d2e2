//! UpstreamAuthority `cert-manager` against a stand-in for the API of Kubernetes (inventory section 7).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ah_spire_attest::node::k8s::KubeApi;
use ah_spire_wire::bundle::pem;
use ah_testkit::web::{Asked, Web};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::kit::{domain, place, signs_for_the_bundle};
use super::upstream::{below, intermediate, signed};
use crate::ca::{CaError, CertManagerAuthority, CertManagerSettings, DiskAuthority};

const ALL: &str = "/apis/cert-manager.io/v1/namespaces/sandbox/certificaterequests";

/// Requests by name, and what an approver and an issuer make of new ones.
struct Cluster {
    web: Web,
    requests: Arc<Mutex<BTreeMap<String, Value>>>,
    folder: TempDir,
}

impl Cluster {
    /// `status` is made of the CSR at the second look.
    async fn start(status: impl Fn(&[u8]) -> Value + Send + Sync + 'static) -> Self {
        let web = Web::start().await;
        let requests = Arc::new(Mutex::new(BTreeMap::new()));
        let all = requests.clone();
        web.answers_by(ALL, move |asked| {
            let mut all = all.lock().unwrap();
            if asked.method == Method::GET {
                let items: Vec<&Value> = all.values().collect();
                return Response::new(json!({ "items": items }).to_string().into());
            }
            let mut made: Value = serde_json::from_str(&asked.body).unwrap();
            let prefix = made["metadata"]["generateName"].as_str().unwrap();
            let name = format!("{prefix}x7k2p");
            made["metadata"]["name"] = name.clone().into();
            made["metadata"]["creationTimestamp"] = ago(0).into();
            all.insert(name, made.clone());
            Response::new(made.to_string().into())
        });
        let one = requests.clone();
        web.answers_by(&format!("{ALL}/spiffe-ca-x7k2p"), move |asked| {
            let mut all = one.lock().unwrap();
            let name = "spiffe-ca-x7k2p";
            if asked.method == Method::DELETE {
                return Response::new(all.remove(name).unwrap().to_string().into());
            }
            let found = all.get_mut(name).unwrap();
            let answer = found.to_string();
            let csr = STANDARD.decode(found["spec"]["request"].as_str().unwrap());
            let csr = CertificateSigningRequestDer::from_pem_slice(&csr.unwrap()).unwrap();
            found["status"] = status(&csr);
            Response::new(answer.into())
        });
        let folder = TempDir::new().unwrap();
        Self {
            web,
            requests,
            folder,
        }
    }

    fn authority(&self) -> CertManagerAuthority {
        let path = self.folder.path().join("kubeconfig");
        let text = format!(
            "{{current-context: c, contexts: [{{name: c, context: {{cluster: k, user: u}}}}], clusters: [{{name: k, cluster: {{server: '{}'}}}}], users: [{{name: u, user: {{token: secret}}}}]}}",
            self.web.url("")
        );
        std::fs::write(&path, text).unwrap();
        CertManagerAuthority::new(CertManagerSettings {
            api: KubeApi::new(path, "spire-server"),
            namespace: "sandbox".into(),
            issuer_name: "spire-ca".into(),
            issuer_kind: "Issuer".into(),
            issuer_group: "cert-manager.io".into(),
            trust_domain: domain(),
        })
    }

    fn names(&self) -> Vec<String> {
        self.requests.lock().unwrap().keys().cloned().collect()
    }
}

fn ago(seconds: u64) -> String {
    let then = SystemTime::now() - Duration::from_secs(seconds);
    OffsetDateTime::from(then).format(&Rfc3339).unwrap()
}

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    let message = "because";
    json!({ "conditions": [{ "type": kind, "status": status, "reason": reason, "message": message }] })
}

/// What a CA below a root answers.
fn ready(signer: &DiskAuthority, csr: &[u8]) -> Value {
    let minted = signed(signer, csr, Duration::from_secs(3600));
    let pems =
        |all: &[Vec<u8>]| STANDARD.encode(all.iter().map(|der| pem(der)).collect::<String>());
    let mut status = condition("Ready", "True", "Issued");
    status["certificate"] = pems(&minted.chain).into();
    status["ca"] = pems(&minted.roots).into();
    status
}

#[tokio::test]
async fn an_issuer_of_cert_manager_signs() {
    let (dir, store, clock) = place();
    let signer = DiskAuthority::open(intermediate(dir.path()), domain(), clock.clone()).unwrap();
    let cluster = Cluster::start(move |csr| ready(&signer, csr)).await;
    // Left by a server that was killed, by one that waits, and by an operator who has not yet looked.
    for (name, seconds, status) in [
        ("old-ready", 3600, condition("Ready", "True", "Issued")),
        ("old-denied", 3600, condition("Denied", "True", "Policy")),
        ("old-failed", 3600, condition("Ready", "False", "Failed")),
        ("old-pending", 3600, condition("Ready", "False", "Pending")),
        ("new-ready", 30, condition("Ready", "True", "Issued")),
    ] {
        let made = json!({
            "metadata": { "name": name, "creationTimestamp": ago(seconds) },
            "status": status,
        });
        let requests = cluster.requests.clone();
        requests.lock().unwrap().insert(name.into(), made);
        cluster
            .web
            .answers_by(&format!("{ALL}/{name}"), move |asked| {
                assert_eq!(asked.method, Method::DELETE);
                requests.lock().unwrap().remove(name);
                Response::new("{}".into())
            });
    }
    let manager = below(cluster.authority(), &store, clock.clone())
        .await
        .unwrap();
    signs_for_the_bundle(manager.authorities(), &store);
    assert_eq!(cluster.names(), ["new-ready", "old-pending"]);

    let asked = cluster.web.asked();
    let made: Value = serde_json::from_str(&asked[0].body).unwrap();
    assert_eq!(
        (&asked[0].method, asked[0].target.as_str()),
        (&Method::POST, ALL)
    );
    assert_eq!(asked[0].header("authorization"), "Bearer secret");
    assert_eq!(made["apiVersion"], "cert-manager.io/v1");
    assert_eq!(made["kind"], "CertificateRequest");
    assert_eq!(
        made["metadata"],
        json!({
            "generateName": "spiffe-ca-",
            "namespace": "sandbox",
            "labels": { "cert-manager.spiffe.io/trust-domain": "example.org" },
        })
    );
    let spec = &made["spec"];
    assert_eq!(
        spec["issuerRef"],
        json!({ "name": "spire-ca", "kind": "Issuer", "group": "cert-manager.io" })
    );
    assert_eq!(spec["duration"], "86400s");
    assert_eq!(
        (&spec["isCA"], &spec["usages"]),
        (&json!(true), &json!(["cert sign", "crl sign"]))
    );
    let listed = |it: &&Asked| {
        it.target
            .ends_with("?labelSelector=cert-manager.spiffe.io%2Ftrust-domain%3Dexample.org")
    };
    assert_eq!(asked.iter().filter(listed).count(), 1);
}

#[tokio::test]
async fn what_cert_manager_refuses_is_told_and_cleaned_up() {
    let (dir, store, clock) = place();
    let told =
        async |cluster: &Cluster| match below(cluster.authority(), &store, clock.clone()).await {
            Err(CaError::Upstream(error)) => error.to_string(),
            other => panic!("{:?}", other.map(|_| ())),
        };
    for (status, text) in [
        (
            condition("Denied", "True", "Policy"),
            "request has been denied: Policy because",
        ),
        (
            condition("Ready", "False", "Failed"),
            "request has failed: Failed because",
        ),
        (
            json!({ "certificate": "AAAA" }),
            "no upstream CA root returned from request: the issuer has to tell its CA (status.ca)",
        ),
        (
            json!({ "certificate": "AAAA", "ca": "%" }),
            "failed to parse CA certificate: ",
        ),
    ] {
        let cluster = Cluster::start(move |_| status.clone()).await;
        let told = told(&cluster).await;
        assert!(told.starts_with(text), "{told}");
        assert_eq!(cluster.names(), [""; 0]);
    }
    let cluster = Cluster::start(|_| Value::Null).await;
    let mut refused = Response::new(Bytes::from(json!({ "message": "not for you" }).to_string()));
    *refused.status_mut() = StatusCode::FORBIDDEN;
    cluster.web.answers_with(ALL, refused);
    assert_eq!(told(&cluster).await, "failed to create object: not for you");
    drop(dir);
}
