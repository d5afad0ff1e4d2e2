//! Real handshakes on loopback: who is let in, what each side is told, what a hostile peer can do.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Code, Explained, IdentityWatch, Published, SystemClock};
use ah_testkit::ca::{TestCa, TestLeaf, published};
use ah_tls::{
    AcceptObserver, Accepted, ClientConfigs, Connected, Expect, HandshakeLimits, Handshakes,
    Policy, PolicyCell, Rejection, SanRules, ServerConfigs, Trust, bind, connect, serve,
    verify_executor,
};
use spiffe::SpiffeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};

const SERVE: &str = "spiffe://example.org/ah/serve";
const AGENT: &str = "spiffe://example.org/ah/agent/1";
/// Generous: nothing waits for it unless something is broken.
const SOON: Duration = Duration::from_secs(20);

#[derive(Debug)]
enum Event {
    Started,
    Completed,
    Shed,
    TimedOut,
    Abandoned,
    Rejected(Box<Rejection>),
}

struct Observer(mpsc::UnboundedSender<Event>);

impl AcceptObserver for Observer {
    fn started(&self) {
        let _ = self.0.send(Event::Started);
    }
    fn completed(&self, _took: Duration) {
        let _ = self.0.send(Event::Completed);
    }
    fn shed(&self, _remote: SocketAddr) {
        let _ = self.0.send(Event::Shed);
    }
    fn timed_out(&self, _remote: SocketAddr) {
        let _ = self.0.send(Event::TimedOut);
    }
    fn abandoned(&self, _remote: SocketAddr) {
        let _ = self.0.send(Event::Abandoned);
    }
    fn rejected(&self, rejection: Rejection) {
        let _ = self.0.send(Event::Rejected(Box::new(rejection)));
    }
}

struct Server {
    addr: SocketAddr,
    events: mpsc::UnboundedReceiver<Event>,
    identity: watch::Sender<Arc<Published>>,
    policy: PolicyCell,
    configs: ServerConfigs,
    peers: mpsc::UnboundedReceiver<(String, u64)>,
    stop: Option<oneshot::Sender<()>>,
    ended: tokio::task::JoinHandle<()>,
}

impl Server {
    fn start(leaf: &TestLeaf, roots: &[&TestCa], limits: HandshakeLimits) -> Self {
        let (identity, watch) = leaf.watch(roots);
        let policy = PolicyCell::new(Policy::default());
        let (configs, follow) =
            ServerConfigs::publish(watch, policy.clone(), Arc::new(SystemClock)).unwrap();
        tokio::spawn(follow);
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let (seen, events) = mpsc::unbounded_channel();
        let (named, peers) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = tokio::spawn(serve(
            listener,
            configs.clone(),
            Handshakes::new(limits),
            Arc::new(Observer(seen)),
            move |accepted: Accepted| {
                let named = named.clone();
                async move {
                    let Accepted {
                        mut stream,
                        peer,
                        generation,
                        ..
                    } = accepted;
                    let _ = named.send((peer.name().to_string(), generation));
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() {
                        let _ = stream.write_all(&byte).await;
                        let _ = stream.flush().await;
                    }
                }
            },
            async {
                let _ = stopped.await;
            },
        ));
        Self {
            addr,
            events,
            identity,
            policy,
            configs,
            peers,
            stop: Some(stop),
            ended,
        }
    }

    async fn until(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        tokio::time::timeout(SOON, async {
            loop {
                let event = self.events.recv().await.expect("the server lives");
                if wanted(&event) {
                    return event;
                }
            }
        })
        .await
        .expect("the event comes")
    }

    async fn rejection(&mut self) -> Rejection {
        match self
            .until(|event| matches!(event, Event::Rejected(_)))
            .await
        {
            Event::Rejected(rejection) => *rejection,
            other => panic!("{other:?}"),
        }
    }
}

fn client(leaf: &TestLeaf, roots: &[&TestCa], expect: Expect) -> ClientConfigs {
    let (_, watch): (_, IdentityWatch) = leaf.watch(roots);
    let (configs, _) = ClientConfigs::publish(watch, expect, false, Arc::new(SystemClock)).unwrap();
    configs
}

fn serve_id() -> Expect {
    Expect::SpiffeId(SpiffeId::new(SERVE).unwrap())
}

async fn dial(server: &Server, configs: &ClientConfigs) -> Result<Connected, Explained> {
    connect("127.0.0.1", server.addr.port(), configs, SOON).await
}

/// Sends a byte and reads the answer: proof that the access point let us in, or what it said instead.
async fn ping(connected: &mut Connected) -> Result<(), Option<Explained>> {
    let talk = async {
        connected.stream.write_all(b"x").await?;
        connected.stream.flush().await?;
        connected.stream.read_exact(&mut [0]).await.map(|_| ())
    };
    let outcome = tokio::time::timeout(SOON, talk).await.expect("an answer");
    outcome.map_err(|_| connected.fate.explain())
}

struct Pki {
    ca: TestCa,
    serve: TestLeaf,
    agent: TestLeaf,
}

fn pki() -> Pki {
    let ca = TestCa::new("example.org");
    Pki {
        serve: ca
            .leaf()
            .spiffe(SERVE)
            .dns("localhost")
            .ip("127.0.0.1")
            .issue(),
        agent: ca.leaf().spiffe(AGENT).issue(),
        ca,
    }
}

fn limits() -> HandshakeLimits {
    HandshakeLimits::default()
}

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
async fn still_admitted_and_still_trusted_follow_policy_and_bundles() {
    // EN-14, FL-1: what ends a live session after a change.
    let Pki { ca, agent, .. } = pki();
    let next_ca = TestCa::new("example.org");
    let now = SystemTime::now();
    let mut policy = Policy::default();
    let trust = Trust::new(&ca.bundles());
    let peer = verify_executor(agent.chain(), &trust, &policy, now).unwrap();
    peer.still_trusted(&trust, &policy, now).unwrap();
    let mut both = ca.bundles();
    both.unscoped.push(next_ca.der().clone());
    peer.still_trusted(&Trust::new(&both), &policy, now)
        .unwrap();
    let gone = Trust::new(&next_ca.bundles());
    let error = peer.still_trusted(&gone, &policy, now).unwrap_err();
    assert_eq!(error.code(), Code::ClientUnknownAuthority);
    let error = peer.still_trusted(&trust, &policy, peer.not_after() + Duration::from_secs(1));
    assert_eq!(error.unwrap_err().code(), Code::ClientExpired);

    peer.still_admitted(&policy).unwrap();
    policy.rules = SanRules::parse(&["spiffe://other.org".into()], &[], &[]).unwrap();
    assert_eq!(
        peer.still_admitted(&policy).unwrap_err().code(),
        Code::SanMismatch
    );
    policy.rules = SanRules::default();
    policy
        .revocations
        .serials
        .insert(peer.leaf().serial.clone());
    assert_eq!(
        peer.still_admitted(&policy).unwrap_err().code(),
        Code::ClientRevoked
    );
}

#[tokio::test]
async fn configurations_prefer_post_quantum_and_resume_nothing() {
    let Pki { ca, serve, agent } = pki();
    let server = Server::start(&serve, &[&ca], limits());
    let tls = server.configs.current();
    let groups = &tls.config().crypto_provider().kx_groups;
    assert_eq!(groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(tls.config().send_tls13_tickets, 0);
    assert!(!tls.config().session_storage.can_cache());

    let config = client(&agent, &[&ca], serve_id())
        .current()
        .config()
        .clone();
    let connector = tokio_rustls::TlsConnector::from(config);
    for _ in 0..2 {
        let tcp = TcpStream::connect(server.addr).await.unwrap();
        let mut stream = connector
            .connect("localhost".try_into().unwrap(), tcp)
            .await
            .unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        let connection = stream.get_ref().1;
        assert_eq!(
            connection.handshake_kind(),
            Some(rustls::HandshakeKind::Full)
        );
        let group = connection.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
    }
}

#[tokio::test]
async fn ap_1_ipv6_listens_and_is_dialled() {
    // AP-1
    let Pki { ca, agent, .. } = pki();
    let listener = bind("[::1]:0".parse().unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let configs = client(&agent, &[&ca], serve_id());
    let error = connect("::1", port, &configs, SOON).await.unwrap_err();
    assert_eq!(error.text, format!("connection refused to [::1]:{port}"));
}

#[tokio::test]
async fn every_handshake_after_a_swap_shows_the_new_certificate() {
    let Pki { ca, serve, agent } = pki();
    let mut server = Server::start(&serve, &[&ca], limits());
    let configs = client(&agent, &[&ca], serve_id());
    let mut old = dial(&server, &configs).await.unwrap();
    for generation in 2..12 {
        let next = ca.leaf().spiffe(SERVE).issue();
        server
            .identity
            .send_replace(Arc::new(published(generation, next.identity(&[&ca]))));
        assert_eq!(
            server.configs.next().await.unwrap().generation(),
            generation
        );
        let mut connected = dial(&server, &configs).await.unwrap();
        assert_eq!(connected.server.chain(), next.chain());
        ping(&mut connected).await.unwrap();
    }
    ping(&mut old).await.expect("the old connection stays up");
}

/// The first flight of a real client.
fn client_hello(configs: &ClientConfigs) -> Vec<u8> {
    let config = configs.current().config().clone();
    let mut client =
        rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn ap_16_without_a_place_a_peer_is_reset_and_silence_takes_no_place() {
    // AP-16
    let Pki { ca, serve, agent } = pki();
    let limits = HandshakeLimits {
        max_handshakes: 1,
        max_waiting: 64,
        ..limits()
    };
    let mut server = Server::start(&serve, &[&ca], limits);
    let configs = client(&agent, &[&ca], serve_id());
    // More silent sockets than either limit.
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(server.addr).await.unwrap());
    }
    ping(&mut dial(&server, &configs).await.unwrap())
        .await
        .unwrap();

    // One that stops after its ClientHello holds the only place for a while.
    let mut stalled = TcpStream::connect(server.addr).await.unwrap();
    stalled.write_all(&client_hello(&configs)).await.unwrap();
    server
        .until(|event| matches!(event, Event::Completed))
        .await;
    server.until(|event| matches!(event, Event::Started)).await;
    let error = dial(&server, &configs).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    server.until(|event| matches!(event, Event::Shed)).await;

    // When it goes, its place is free.
    drop(stalled);
    server
        .until(|event| matches!(event, Event::Abandoned))
        .await;
    ping(&mut dial(&server, &configs).await.unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn ap_16_a_peer_that_never_finishes_is_cut_at_the_timeout() {
    // AP-16
    let Pki { ca, serve, agent } = pki();
    let limits = HandshakeLimits {
        timeout: Duration::from_millis(200),
        ..limits()
    };
    let mut server = Server::start(&serve, &[&ca], limits);
    let hello = client_hello(&client(&agent, &[&ca], serve_id()));
    for sent in [0, 1, hello.len() - 1, hello.len()] {
        let mut peer = TcpStream::connect(server.addr).await.unwrap();
        peer.write_all(&hello[..sent]).await.unwrap();
        server.until(|event| matches!(event, Event::TimedOut)).await;
        let mut rest = Vec::new();
        let _ = peer.read_to_end(&mut rest).await;
    }
}

#[tokio::test]
async fn a_client_hello_byte_by_byte_is_served() {
    let Pki { ca, serve, agent } = pki();
    let mut server = Server::start(&serve, &[&ca], limits());
    let hello = client_hello(&client(&agent, &[&ca], serve_id()));
    let mut peer = TcpStream::connect(server.addr).await.unwrap();
    peer.set_nodelay(true).unwrap();
    for byte in &hello {
        peer.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    server.until(|event| matches!(event, Event::Started)).await;
    let mut answer = [0];
    tokio::time::timeout(SOON, peer.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(answer, [22], "a handshake record");
}

#[tokio::test]
async fn no_bytes_of_a_peer_do_harm() {
    let Pki { ca, serve, agent } = pki();
    let mut server = Server::start(&serve, &[&ca], limits());
    let configs = client(&agent, &[&ca], serve_id());
    let hello = client_hello(&configs);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..300 {
        let mut bytes = hello.clone();
        match round % 3 {
            // Mutated, cut, and not TLS at all.
            0 => (0..8).for_each(|_| {
                let at = random() as usize % bytes.len();
                bytes[at] = random() as u8;
            }),
            1 => bytes.truncate(random() as usize % bytes.len()),
            _ => bytes.iter_mut().for_each(|byte| *byte = random() as u8),
        }
        let mut peer = TcpStream::connect(server.addr).await.unwrap();
        let _ = peer.write_all(&bytes).await;
        let _ = peer.shutdown().await;
        let ended = |event: &Event| matches!(event, Event::Abandoned | Event::Rejected(_));
        server.until(ended).await;
    }
    ping(&mut dial(&server, &configs).await.unwrap())
        .await
        .unwrap();
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
