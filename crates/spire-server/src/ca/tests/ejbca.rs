//! UpstreamAuthority `ejbca` against a stand-in for EJBCA's REST interface (inventory section 7).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ah_spire_wire::bundle::pem;
use ah_testkit::ca::TestCa;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::kit::{domain, place, signs_for_the_bundle};
use super::upstream::{below, intermediate};
use crate::ca::{
    CaError, DiskAuthority, EjbcaAuthority, EjbcaSettings, EndEntity, NamePart, UpstreamAuthority,
};

/// It asks for a client certificate, and signs with a CA below a root.
struct Ejbca {
    address: SocketAddr,
    ca: TestCa,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    asked: Vec<Value>,
    format: &'static str,
    /// Status and message.
    refuses: Option<(u16, &'static str)>,
}

impl Ejbca {
    async fn start(signer: DiskAuthority) -> Self {
        let ca = TestCa::new("ejbca.example");
        let leaf = ca.leaf().dns("localhost").issue();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut clients = RootCertStore::empty();
        clients.add(ca.root_der().clone()).unwrap();
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(clients), provider.clone());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(leaf.chain().to_vec(), leaf.key().der().clone_key())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            format: "DER",
            ..State::default()
        }));
        let (shared, signer) = (state.clone(), Arc::new(signer));
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), shared.clone());
                let signer = signer.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(|request| enroll(&state, &signer, request));
                    let served = hyper::server::conn::http1::Builder::new();
                    drop(served.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, ca, state }
    }

    fn settings(&self, folder: &Path) -> EjbcaSettings {
        let client = self.ca.leaf().dns("spire").issue();
        let client = client.write(folder, "client");
        EjbcaSettings {
            host: format!("localhost:{}", self.address.port()),
            ca: Some(self.ca.write(folder, "ejbca-ca")),
            certificate: client.cert,
            key: client.key,
            ca_name: "Sub-CA".into(),
            end_entity_profile: "spireEEP".into(),
            certificate_profile: "spireSubCA".into(),
            end_entity: EndEntity::From(vec![NamePart::CommonName, NamePart::Dns, NamePart::Uri]),
            account_binding: None,
        }
    }

    fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }
}

async fn enroll(
    state: &Mutex<State>,
    signer: &DiskAuthority,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = "/ejbca/ejbca-rest-api/v1/certificate/pkcs10enroll";
    assert_eq!(request.uri().path(), path);
    assert_eq!(request.headers()["content-type"], "application/json");
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let csr = asked["certificate_request"].as_str().unwrap();
    let csr = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).unwrap();
    let ttl = Duration::from_secs(3600);
    let signed = signer.mint_x509_ca(&csr, ttl).await.unwrap();
    let mut state = state.lock().unwrap();
    state.asked.push(asked);
    let (status, answer) = match state.refuses {
        Some((status, why)) => (status, json!({"error_code": status, "error_message": why})),
        None => {
            let written = |der: &Vec<u8>| match state.format {
                "PEM" => pem(der),
                _ => STANDARD.encode(der),
            };
            let above = signed.chain.iter().skip(1).chain(&signed.roots);
            let above: Vec<String> = above.map(written).collect();
            let answer = json!({
                "certificate": written(&signed.chain[0]),
                "serial_number": "1",
                "response_format": state.format,
                "certificate_chain": above,
            });
            (201, answer)
        }
    };
    let answer = Response::builder()
        .status(status)
        .body(Full::from(answer.to_string()));
    Ok(answer.unwrap())
}

#[tokio::test]
async fn a_ca_of_ejbca_signs() {
    let (dir, store, clock) = place();
    let signer = DiskAuthority::open(intermediate(dir.path()), domain(), clock.clone()).unwrap();
    let ejbca = Ejbca::start(signer).await;
    for format in ["DER", "PEM"] {
        ejbca.state.lock().unwrap().format = format;
        let authority = EjbcaAuthority::open(ejbca.settings(dir.path())).unwrap();
        let manager = below(authority, &store, clock.clone()).await.unwrap();
        signs_for_the_bundle(manager.authorities(), &store);
        let asked = ejbca.asked();
        assert_eq!(asked.len(), 1);
        for (key, value) in [
            ("certificate_authority_name", json!("Sub-CA")),
            ("end_entity_profile_name", json!("spireEEP")),
            ("certificate_profile_name", json!("spireSubCA")),
            // The CSR has no common name and no DNS name.
            ("username", json!("spiffe://example.org")),
            ("include_chain", json!(true)),
            ("account_binding_id", Value::Null),
        ] {
            assert_eq!(asked[0][key], value, "{key}");
        }
        assert!(asked[0]["password"].as_str().unwrap().len() >= 24);
    }
    let named = EjbcaSettings {
        end_entity: EndEntity::Named("spire".into()),
        account_binding: Some("foo123".into()),
        ..ejbca.settings(dir.path())
    };
    let named = EjbcaAuthority::open(named).unwrap();
    below(named, &store, clock.clone()).await.unwrap();
    let asked = ejbca.asked();
    assert_eq!(asked[0]["username"], "spire");
    assert_eq!(asked[0]["account_binding_id"], "foo123");
}

#[tokio::test]
async fn what_ejbca_refuses_is_told() {
    let (dir, store, clock) = place();
    let signer = DiskAuthority::open(intermediate(dir.path()), domain(), clock.clone()).unwrap();
    let ejbca = Ejbca::start(signer).await;
    let told = async |settings: EjbcaSettings| {
        let authority = EjbcaAuthority::open(settings).unwrap();
        match below(authority, &store, clock.clone()).await {
            Err(CaError::Upstream(error)) => error.to_string(),
            other => panic!("{:?}", other.map(|_| ())),
        }
    };
    let settings = ejbca.settings(dir.path());
    for (status, why, text) in [
        (
            403,
            "not authorized",
            "EJBCA answered 403 Forbidden: not authorized (the client certificate's role",
        ),
        (
            404,
            "",
            "EJBCA answered 404 Not Found:  (is REST Certificate Management enabled",
        ),
        (
            400,
            "CA Sub-CA doesn't exist",
            "EJBCA answered 400 Bad Request: CA Sub-CA doesn't exist",
        ),
    ] {
        ejbca.state.lock().unwrap().refuses = Some((status, why));
        let told = told(settings.clone()).await;
        assert!(
            told.starts_with(&format!("failed to enroll CSR: {text}")),
            "{told}"
        );
    }
    {
        let mut state = ejbca.state.lock().unwrap();
        state.refuses = None;
        state.format = "JKS";
    }
    assert_eq!(
        told(settings.clone()).await,
        "ejbca returned unsupported certificate format: \"JKS\""
    );
    let no_name = EjbcaSettings {
        end_entity: EndEntity::From(vec![NamePart::Ip]),
        ..settings.clone()
    };
    let text = told(no_name).await;
    assert!(text.starts_with("no valid end entity name"), "{text}");
    // A client certificate of somebody else, an EJBCA of somebody else, and none at all.
    let others = TestCa::new("ejbca.example");
    let other = others.leaf().dns("spire").issue();
    let other = other.write(dir.path(), "other");
    let unknown = EjbcaSettings {
        certificate: other.cert,
        key: other.key,
        ..settings.clone()
    };
    assert!(
        told(unknown)
            .await
            .starts_with("failed to enroll CSR: localhost:")
    );
    let untrusted = EjbcaSettings {
        ca: Some(others.write(dir.path(), "other-ca")),
        ..settings.clone()
    };
    let text = told(untrusted).await;
    assert!(text.contains("TLS: invalid peer certificate"), "{text}");
    let gone = EjbcaSettings {
        host: "localhost:1".into(),
        ..settings.clone()
    };
    let text = told(gone).await;
    assert!(text.contains("localhost:1: Connection refused"), "{text}");
    assert!(ejbca.asked().len() == 4);
    let missing = EjbcaSettings {
        key: dir.path().join("none"),
        ..settings
    };
    let text = EjbcaAuthority::open(missing)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(text.starts_with("client_cert_key_path "), "{text}");
}
