//! The ways to a first trust bundle, and to the server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ah_testkit::ca::TestCa;
use ah_testkit::process::{Process, eventually};
use rustls::crypto::aws_lc_rs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::fake::Fake;
use crate::program::{Conf, fetch, serve_us};
use crate::rig::Node;

/// A web server with a certificate of `ca` for localhost, that answers with `body`, and below `/to/` with a redirect to
/// what stands there. Returns its port.
async fn web_server(ca: &TestCa, body: String) -> u16 {
    let leaf = ca.leaf().dns("localhost").server_only().issue();
    let key = leaf.key_der().to_vec().try_into().unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(leaf.chain().to_vec(), key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await.unwrap_or_default();
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            let asked = request.split(' ').nth(1).unwrap_or_default();
            let answer = match asked.strip_prefix("/to/") {
                Some(to) => {
                    format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")
                }
                None => {
                    let length = body.len();
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")
                }
            };
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    port
}

fn pem_in(directory: &Path, name: &str, ca: &TestCa) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, ca.pem()).unwrap();
    path
}

// Inventory 1.1: trust_bundle_url with the machine's roots, which SSL_CERT_FILE names.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_comes_from_a_web_server_that_the_machine_trusts() {
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    let (web, other) = (TestCa::new("web.test"), TestCa::new("other.test"));
    let bundle = ah_identity_provider::pem::certificate_pem(&fake.state().ca.der);
    let port = web_server(&web, bundle).await;
    let mut conf = Conf::new(&node);
    conf.bootstrap = format!("trust_bundle_url = \"https://localhost:{port}/bundle.pem\"");
    let with_roots = |roots: PathBuf| {
        let mut command = conf.command(&node, &fake, "run");
        command
            .env("SSL_CERT_FILE", roots)
            .env_remove("SSL_CERT_DIR");
        Process::start(&mut command)
    };
    let directory = node.directory.path();
    let mut agent = with_roots(pem_in(directory, "other.pem", &other));
    agent.wait_for(&format!(
        "error: cannot fetch the trust bundle from https://localhost:{port}/bundle.pem"
    ));
    assert_eq!(fake.calls("AttestAgent"), 0);
    agent.kill();
    let _agent = with_roots(pem_in(directory, "web.pem", &web));
    fake.called_in_all("SyncAuthorizedEntries", 1).await;
}

// Inventory 1.1: trust_bundle_url; a redirect is followed, but not out of HTTPS.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_moved_is_fetched_where_it_is() {
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    let web = TestCa::new("web.test");
    let roots = pem_in(node.directory.path(), "web.pem", &web);
    let bundle = ah_identity_provider::pem::certificate_pem(&fake.state().ca.der);
    let port = web_server(&web, bundle).await;
    let from = |path: &str| {
        let mut conf = Conf::new(&node);
        conf.bootstrap = format!("trust_bundle_url = \"https://localhost:{port}/{path}\"");
        let mut command = conf.command(&node, &fake, "run");
        command
            .env("SSL_CERT_FILE", &roots)
            .env_remove("SSL_CERT_DIR");
        Process::start(&mut command)
    };
    let mut agent = from("to/http://localhost/bundle.pem");
    agent.wait_for("it redirects to http://localhost/bundle.pem, which is not https");
    assert_eq!(fake.calls("AttestAgent"), 0);
    agent.kill();
    let _agent = from("to//bundle.pem");
    fake.called_in_all("SyncAuthorizedEntries", 1).await;
}

// Inventory 1.1: trust_bundle_spiffe_workload_api
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_comes_from_the_workload_api_of_another_agent() {
    let fake = Fake::start().await;
    serve_us(&fake);
    // The token lets both in.
    fake.state().reattestable = true;
    let (outer, inner) = (Node::new(&fake), Node::new(&fake));
    let mut first = Process::start(&mut Conf::new(&outer).command(&outer, &fake, "run"));
    eventually("the first agent serves", || {
        fetch(&outer, &[]).status.success().then_some(())
    });
    let mut conf = Conf::new(&inner);
    let socket = outer.directory.path().join("public/api.sock");
    conf.bootstrap = format!(
        "trust_bundle_spiffe_workload_api = \"unix://{}\"",
        socket.display()
    );
    let _second = Process::start(&mut conf.command(&inner, &fake, "run"));
    eventually("the second agent serves", || {
        fetch(&inner, &[]).status.success().then_some(())
    });
    first.kill();
}

// Several addresses of one name: whichever comes first, the one that answers is found, and found again when it moves.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_found_at_whichever_of_its_addresses_it_is() {
    if !nix::unistd::getuid().is_root() {
        return;
    }
    let fake = Fake::start().await;
    let node = Node::new(&fake);
    let hosts = node.directory.path().join("hosts");
    std::fs::write(
        &hosts,
        "127.0.0.9 spire.test\n127.0.0.1 spire.test\n::1 spire.test\n",
    )
    .unwrap();
    let mut conf = Conf::new(&node);
    conf.server = "spire.test".into();
    let config = conf.write(&node, &fake);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-ec"])
        .arg(r#"mount --bind "$1" /etc/hosts; exec "$2" run -config "$3""#)
        .arg("sh")
        .arg(&hosts)
        .arg(env!("CARGO_BIN_EXE_spire-agent"))
        .arg(&config);
    let mut agent = Process::start(&mut command);
    fake.called_in_all("SyncAuthorizedEntries", 2).await;
    fake.go_away();
    agent.wait_for("failed to connect to spire server");
    let elsewhere = ([127, 0, 0, 9], fake.address.port()).into();
    fake.come_back_at(elsewhere).await;
    fake.called("SyncAuthorizedEntries", 2).await;
    assert!(agent.is_running());
}
