//! A person's own PKI made with openssl, and openssl's client against our accept loop.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use ah_identity_provider::{Identity, PrivateKey, SystemClock, TrustBundles, Vet};
use ah_testkit::ca::TestCa;
use ah_tls::{
    AcceptObserver, Accepted, HandshakeLimits, Handshakes, IdentityVet, Policy, PolicyCell, Role,
    ServerConfigs, Trust, bind, serve, verify_executor,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::AsyncWriteExt;

fn openssl(dir: &Path, line: &str) {
    let args = line.split_whitespace();
    let out = Command::new("openssl")
        .current_dir(dir)
        .args(args)
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "openssl {line}\n{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

fn cert(dir: &Path, name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(dir.join(name)).unwrap()
}

#[test]
fn a_pki_made_with_openssl_works_with_every_kind_of_key() {
    // FI-1, EN-3: an RSA-4096 CA that signs leaves directly, without any extension that openssl does not
    // add by itself.
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    openssl(
        dir,
        "req -x509 -newkey rsa:4096 -nodes -keyout ca-key.pem -out ca.pem -days 3650 -subj /CN=Own-CA",
    );
    let keys = [
        "rsa -pkeyopt rsa_keygen_bits:2048",
        "ec -pkeyopt ec_paramgen_curve:P-256",
        "ec -pkeyopt ec_paramgen_curve:P-384",
        "ed25519",
    ];
    let bundles = TrustBundles {
        unscoped: vec![cert(dir, "ca.pem")],
        ..TrustBundles::default()
    };
    for key in keys {
        openssl(dir, &format!("genpkey -algorithm {key} -out key.pem"));
        openssl(
            dir,
            "req -new -key key.pem -out leaf.csr -subj /CN=worker-1",
        );
        for san in [
            "DNS:worker-1.example.com",
            "IP:10.0.0.1",
            "URI:spiffe://example.org/ah/agent/1",
        ] {
            std::fs::write(dir.join("san.cnf"), format!("subjectAltName={san}\n")).unwrap();
            openssl(
                dir,
                "x509 -req -in leaf.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -out cert.pem -days 30 -extfile san.cnf",
            );
            let now = SystemTime::now();
            let leaf = cert(dir, "cert.pem");
            let peer = verify_executor(
                std::slice::from_ref(&leaf),
                &Trust::new(&bundles),
                &Policy::default(),
                now,
            )
            .unwrap_or_else(|error| unreachable!("{key} {san}: {:?}", error.explained()));
            assert!(san.ends_with(&peer.name().to_string()), "{san}");
            let der =
                rustls_pki_types::PrivatePkcs8KeyDer::from_pem_file(dir.join("key.pem")).unwrap();
            let key = PrivateKey::pkcs8(der.secret_pkcs8_der().to_vec());
            let identity = Identity::new(vec![leaf], key, bundles.clone()).unwrap();
            IdentityVet::new(Role::Executor, false)
                .vet(&identity, now)
                .unwrap();
        }
    }
}

struct Quiet;

impl AcceptObserver for Quiet {}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_s_client_with_and_without_a_certificate() {
    // The troubleshooting guide's command; ER-20 as openssl prints it.
    let ca = TestCa::new("example.org");
    let dir = tempfile::tempdir().unwrap();
    let files = ca
        .leaf()
        .spiffe("spiffe://example.org/ah/agent/1")
        .issue()
        .write(dir.path(), "executor");
    let root = ca.write(dir.path(), "ca");
    let server = ca.leaf().dns("localhost").ip("127.0.0.1").issue();
    let (_identity, watch) = server.watch(&[&ca]);
    let policy = PolicyCell::new(Policy::default());
    let (configs, follow) = ServerConfigs::publish(watch, policy, Arc::new(SystemClock)).unwrap();
    tokio::spawn(follow);
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let greet = |accepted: Accepted| async move {
        let Accepted {
            mut stream, peer, ..
        } = accepted;
        let _ = stream
            .write_all(format!("hello {}\n", peer.name()).as_bytes())
            .await;
        let _ = stream.shutdown().await;
    };
    let serving = tokio::spawn(serve(
        listener,
        configs,
        Handshakes::new(HandshakeLimits::default()),
        Arc::new(Quiet),
        greet,
        std::future::pending(),
    ));
    let s_client = |more: Vec<String>| {
        let connect = format!("127.0.0.1:{port}");
        let root = root.clone();
        tokio::task::spawn_blocking(move || {
            let out = Command::new("openssl")
                .args(["s_client", "-connect", &connect, "-alpn", "h2", "-ign_eof"])
                .args(["-verify_return_error", "-verify_ip", "127.0.0.1", "-CAfile"])
                .arg(root)
                .args(more)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
        })
    };
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let with = vec![
        "-cert".into(),
        path(&files.cert),
        "-key".into(),
        path(&files.key),
    ];
    let text = s_client(with).await.unwrap();
    assert!(text.contains("Verification: OK"), "{text}");
    assert!(
        text.contains("TLSv1.3") && text.contains("ALPN protocol: h2"),
        "{text}"
    );
    assert!(
        text.contains("hello spiffe://example.org/ah/agent/1"),
        "{text}"
    );
    assert!(
        !text.contains("Post-Handshake New Session Ticket"),
        "no tickets: {text}"
    );
    assert!(
        text.contains("TLS_AES_128_GCM_SHA256"),
        "our order, and not that of openssl, which asks for TLS_AES_256_GCM_SHA384 first: {text}"
    );

    let text = s_client(vec!["-showcerts".into()]).await.unwrap();
    assert!(text.contains("Verification: OK"), "{text}");
    assert!(text.contains("certificate required"), "{text}");

    let text = s_client(vec!["-tls1_2".into()]).await.unwrap();
    assert!(text.contains("alert"), "TLS 1.2 is refused: {text}");
    serving.abort();
}
