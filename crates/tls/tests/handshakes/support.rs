//! An access point's TLS side that echoes, and who dials it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{Explained, IdentityWatch, Published, SystemClock};
use ah_testkit::ca::{TestCa, TestLeaf};
use ah_tls::{
    AcceptObserver, Accepted, ClientConfigs, Connected, Expect, HandshakeLimits, Handshakes,
    Policy, PolicyCell, Rejection, ServerConfigs, bind, connect, serve,
};
use spiffe::SpiffeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) const SERVE: &str = "spiffe://example.org/ah/serve";
pub(crate) const AGENT: &str = "spiffe://example.org/ah/agent/1";
/// Generous: nothing waits for it unless something is broken.
pub(crate) const SOON: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) enum Event {
    Opened,
    Started,
    Completed,
    Shed,
    TimedOut,
    Abandoned,
    Rejected(Box<Rejection>),
}

struct Observer(mpsc::UnboundedSender<Event>);

impl AcceptObserver for Observer {
    fn opened(&self, _remote: SocketAddr) {
        let _ = self.0.send(Event::Opened);
    }
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

pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    pub(crate) identity: watch::Sender<Arc<Published>>,
    pub(crate) policy: PolicyCell,
    pub(crate) configs: ServerConfigs,
    pub(crate) peers: mpsc::UnboundedReceiver<(String, u64)>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) ended: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(crate) fn start(leaf: &TestLeaf, roots: &[&TestCa], limits: HandshakeLimits) -> Self {
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

    pub(crate) async fn until(&mut self, mut wanted: impl FnMut(&Event) -> bool) -> Event {
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

    pub(crate) async fn rejection(&mut self) -> Rejection {
        match self
            .until(|event| matches!(event, Event::Rejected(_)))
            .await
        {
            Event::Rejected(rejection) => *rejection,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn client(leaf: &TestLeaf, roots: &[&TestCa], expect: Expect) -> ClientConfigs {
    let (_, watch): (_, IdentityWatch) = leaf.watch(roots);
    let (configs, _) = ClientConfigs::publish(watch, expect, false, Arc::new(SystemClock)).unwrap();
    configs
}

pub(crate) fn serve_id() -> Expect {
    Expect::SpiffeId(SpiffeId::new(SERVE).unwrap())
}

pub(crate) async fn dial(server: &Server, configs: &ClientConfigs) -> Result<Connected, Explained> {
    connect("127.0.0.1", server.addr.port(), configs, SOON).await
}

/// Sends a byte and reads the answer: proof that the access point let us in, or what it said instead.
pub(crate) async fn ping(connected: &mut Connected) -> Result<(), Option<Explained>> {
    let talk = async {
        connected.stream.write_all(b"x").await?;
        connected.stream.flush().await?;
        connected.stream.read_exact(&mut [0]).await.map(|_| ())
    };
    let outcome = tokio::time::timeout(SOON, talk).await.expect("an answer");
    outcome.map_err(|_| connected.fate.explain())
}

pub(crate) struct Pki {
    pub(crate) ca: TestCa,
    pub(crate) serve: TestLeaf,
    pub(crate) agent: TestLeaf,
}

pub(crate) fn pki() -> Pki {
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

pub(crate) fn limits() -> HandshakeLimits {
    HandshakeLimits::default()
}
