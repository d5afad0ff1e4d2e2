//! Who is let in, and what each side is told when the other is not.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::Code;
use ah_testkit::ca::TestCa;
use ah_tls::{Expect, SanRules, bind, connect};
use spiffe::SpiffeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{
    AGENT, Event, Pki, SERVE, SOON, Server, client, dial, limits, ping, pki, serve_id,
};

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let Pki { ca, serve, agent } = pki();
    let mut server = Server::start(&serve, &[&ca], limits());
    let mut connected = dial(&server, &client(&agent, &[&ca], serve_id()))
        .await
        .unwrap();
    assert_eq!(connected.server.name().to_string(), SERVE);
    ping(&mut connected).await.unwrap();
    assert_eq!(server.peers.recv().await.unwrap(), (AGENT.to_owned(), 1));
    assert_eq!(connected.fate.explain(), None);
    server
        .until(|event| matches!(event, Event::Completed))
        .await;

    drop(connected);
    server.stop.take().unwrap().send(()).unwrap();
    tokio::time::timeout(SOON, server.ended)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn en_5_by_name_the_dialled_name_must_be_in_the_sans() {
    // EN-5, ER-3, ER-12
    let Pki { ca, serve, agent } = pki();
    let server = Server::start(&serve, &[&ca], limits());
    dial(&server, &client(&agent, &[&ca], Expect::RemoteName))
        .await
        .unwrap();
    connect(
        "localhost",
        server.addr.port(),
        &client(&agent, &[&ca], Expect::RemoteName),
        SOON,
    )
    .await
    .unwrap();

    let elsewhere = ca.leaf().dns("elsewhere.example.org").issue();
    let server = Server::start(&elsewhere, &[&ca], limits());
    let error = dial(&server, &client(&agent, &[&ca], Expect::RemoteName))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::VerifyFailed);
    assert_eq!(
        error.text,
        "tls handshake failed: certificate verify failed"
    );
    assert!(
        error
            .causes
            .join("\n")
            .contains("DNS:elsewhere.example.org")
    );
    assert!(error.hint.unwrap().contains("--expected-server-id"));

    let other = SpiffeId::new("spiffe://example.org/other").unwrap();
    let server = Server::start(&serve, &[&ca], limits());
    let error = dial(&server, &client(&agent, &[&ca], Expect::SpiffeId(other)))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::ServerIdMismatch);
    assert_eq!(
        error.text,
        "server SPIFFE ID mismatch: expected spiffe://example.org/other, got spiffe://example.org/ah/serve"
    );
}

#[tokio::test]
async fn er_4_5_22_the_executor_refuses_the_access_point() {
    // ER-4, ER-5, ER-22
    let Pki { ca, serve, agent } = pki();
    let hour = Duration::from_secs(3600);
    let below = ca.intermediate().issue();
    let other = TestCa::root("other.org").subject("Other Root").issue();
    let name = |ca: &TestCa| ca.leaf().ip("127.0.0.1");
    let expired = name(&ca)
        .valid_from(SystemTime::now() - 2 * hour)
        .valid_for(hour)
        .issue();
    let future = name(&ca).valid_from(SystemTime::now() + hour).issue();
    let dates = "certificate has expired or is not yet valid";
    let issuer = "unable to get local issuer certificate";
    let authority = "x509: certificate signed by unknown authority";
    let same_name = TestCa::new("example.org");
    let table = [
        (expired, Code::ExpiredOrNotYetValid, dates),
        (future, Code::ExpiredOrNotYetValid, dates),
        (
            name(&below).issue().with_intermediates(&[]),
            Code::NoLocalIssuer,
            issuer,
        ),
        (
            name(&other).issue().with_intermediates(&[other.der()]),
            Code::UnknownAuthority,
            authority,
        ),
        (name(&same_name).issue(), Code::UnknownAuthority, authority),
    ];
    let configs = client(&agent, &[&ca], Expect::RemoteName);
    for (leaf, code, text) in table {
        let mut server = Server::start(&leaf, &[&ca], limits());
        let error = dial(&server, &configs).await.unwrap_err();
        assert_eq!((error.code, error.text.as_str()), (code, text), "{error:?}");
        assert!(!error.causes.is_empty() && error.hint.is_some());
        let seen = server.rejection().await;
        assert_eq!(seen.explained.code, Code::Other, "{seen:?}");
    }
    // The whole chain, and a root sent along, are fine.
    let whole = name(&below)
        .issue()
        .with_intermediates(&[below.der(), ca.der()]);
    let server = Server::start(&whole, &[&ca], limits());
    dial(&server, &configs).await.unwrap();
    drop(serve);
}

#[tokio::test]
async fn er_7_20_21_the_access_point_refuses_the_executor() {
    // ER-7, ER-21
    let Pki { ca, serve, agent } = pki();
    let hour = Duration::from_secs(3600);
    let stranger = TestCa::new("example.org").leaf().spiffe(AGENT).issue();
    let expired = ca
        .leaf()
        .spiffe(AGENT)
        .valid_from(SystemTime::now() - 2 * hour)
        .valid_for(hour)
        .issue();
    let outsider = ca
        .leaf()
        .spiffe("spiffe://example.org/ah/agent-evil/1")
        .issue();
    let broken = ca.leaf().spiffe(AGENT).as_ca().issue();
    let revoked = ca.leaf().spiffe("spiffe://example.org/ah/agent/2").issue();
    let rejected = "client certificate rejected";
    let table = [
        (
            stranger,
            Code::ClientUnknownAuthority,
            "certificate signed by unknown authority",
        ),
        (
            expired,
            Code::ClientExpired,
            "certificate has expired or is not yet valid",
        ),
        (revoked, Code::ClientRevoked, "certificate revoked"),
        (outsider, Code::SanMismatch, ""),
        (broken, Code::VerifyFailed, ""),
    ];
    let mut server = Server::start(&serve, &[&ca], limits());
    server.policy.update(|policy| {
        policy.rules =
            SanRules::parse(&["spiffe://example.org/ah/agent".into()], &[], &[]).unwrap();
        policy
            .revocations
            .ids
            .insert("spiffe://example.org/ah/agent/2".into());
    });
    for (leaf, code, reason) in table {
        let mut connected = dial(&server, &client(&leaf, &[&ca], serve_id()))
            .await
            .unwrap();
        let told = ping(&mut connected)
            .await
            .unwrap_err()
            .expect("a TLS alert arrived");
        assert_eq!(told.code, code);
        let seen = server.rejection().await;
        assert_eq!(seen.explained.code, code);
        assert_eq!(seen.certificate.unwrap().uris.len(), 1);
        if code == Code::SanMismatch {
            for explained in [&told, &seen.explained] {
                assert_eq!(
                    explained.text,
                    "certificate SAN does not match expected pattern"
                );
                assert!(explained.causes.join("").contains("agent-evil"), "its SANs");
            }
            assert!(
                seen.explained
                    .causes
                    .join("")
                    .contains("URI:spiffe://example.org/ah/agent")
            );
        } else {
            assert!(
                told.text.starts_with(rejected) && told.text.contains(reason),
                "{told:?}"
            );
            assert!(seen.explained.text.starts_with(rejected));
        }
    }
    // The one that fits is let in, and refused from the moment it is revoked.
    let configs = client(&agent, &[&ca], serve_id());
    ping(&mut dial(&server, &configs).await.unwrap())
        .await
        .unwrap();
    server.policy.update(|policy| {
        policy.revocations.sha256s.insert(
            ah_identity_provider::CertificateFacts::from_der(agent.der())
                .unwrap()
                .sha256,
        );
    });
    let told = ping(&mut dial(&server, &configs).await.unwrap())
        .await
        .unwrap_err()
        .unwrap();
    assert_eq!(told.code, Code::ClientRevoked);
}

#[tokio::test]
async fn er_20_no_client_certificate() {
    // ER-20
    let Pki { ca, serve, agent } = pki();
    let mut server = Server::start(&serve, &[&ca], limits());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(server.addr).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector
        .connect("localhost".try_into().unwrap(), tcp)
        .await
        .unwrap();
    let error = stream.read_exact(&mut [0]).await.unwrap_err();
    let told = ah_tls::explain_io(&error, &agent.identity(&[&ca]), "ap:4433").unwrap();
    assert_eq!(told.code, Code::ClientCertificateRequired);
    assert_eq!(told.text, "client certificate required");
    let seen = server.rejection().await.explained;
    assert_eq!(seen.text, "client certificate required");
}

#[tokio::test]
async fn er_1_2_24_what_is_no_access_point() {
    // ER-1, ER-2, ER-24
    let Pki { ca, agent, .. } = pki();
    let configs = client(&agent, &[&ca], serve_id());
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    let taken = bind(addr).unwrap_err();
    assert!(taken.text.contains(&addr.to_string()) && taken.hint.unwrap().contains("ss -tlnp"));

    // Listens and says nothing.
    let error = connect(
        "127.0.0.1",
        addr.port(),
        &configs,
        Duration::from_millis(50),
    )
    .await;
    let error = error.unwrap_err();
    assert_eq!(error.code, Code::ConnectionTimedOut);
    assert_eq!(error.text, "connection timed out after 50ms");

    // Answers, but not in TLS.
    let answer = tokio::spawn(async move {
        // The first is the one that timed out.
        for _ in 0..2 {
            let (mut peer, _) = listener.accept().await.unwrap();
            let _ = peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            let mut rest = [0; 4096];
            let _ = peer.read(&mut rest).await;
        }
    });
    let error = connect("127.0.0.1", addr.port(), &configs, SOON)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Other);
    assert!(error.causes.join("").contains("not TLS"), "{error:?}");
    answer.await.unwrap();

    // Nobody listens any more.
    let error = connect("127.0.0.1", addr.port(), &configs, SOON)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::ConnectionRefused);
    assert_eq!(error.text, format!("connection refused to {addr}"));

    let error = connect("no-such-host.invalid", 4433, &configs, SOON)
        .await
        .unwrap_err();
    assert!(error.text.contains("no-such-host.invalid"));
}
