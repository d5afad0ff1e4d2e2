//! A SPIFFE Workload API that says what a test tells it to.
//!
//! It runs on threads of its own, so that tests with and without a runtime use it alike, and real processes too.
//! Its messages are written down here once more, apart from the product's: a slip in either shows.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ah_identity_provider::CertificateFacts;
use bytes::{Buf, BufMut, Bytes};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, ServerStreamingService};

use crate::ca::{TestCa, TestLeaf};
use crate::process::DEADLINE;

/// `X509SVIDResponse`
#[derive(Clone, PartialEq, Message)]
pub struct Svids {
    /// Field 1.
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<Svid>,
    /// Field 3.
    #[prost(map = "string, bytes", tag = "3")]
    pub federated_bundles: HashMap<String, Vec<u8>>,
    /// A field of a later standard.
    #[prost(string, tag = "99")]
    pub unknown: String,
}

/// `X509SVID`
#[derive(Clone, PartialEq, Message)]
pub struct Svid {
    /// Field 1.
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// Field 2.
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    /// Field 3.
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    /// Field 4.
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
    /// Field 5.
    #[prost(string, tag = "5")]
    pub hint: String,
}

impl Svids {
    /// The SVID `leaf`, whose trust domain trusts `ca`.
    pub fn of(leaf: &TestLeaf, ca: &TestCa) -> Self {
        Self::default().and(leaf, ca)
    }

    /// One more SVID.
    #[must_use]
    pub fn and(mut self, leaf: &TestLeaf, ca: &TestCa) -> Self {
        let facts = CertificateFacts::from_der(leaf.der()).expect("a readable leaf");
        self.svids.push(Svid {
            spiffe_id: facts.uris.first().cloned().unwrap_or_default(),
            x509_svid: leaf.chain().iter().flat_map(|der| der.to_vec()).collect(),
            x509_svid_key: leaf.key_der().to_vec(),
            bundle: ca.der().to_vec(),
            hint: String::new(),
        });
        self
    }

    /// The hint of the SVID that was added last.
    #[must_use]
    pub fn hint(mut self, hint: &str) -> Self {
        self.last().hint = hint.to_owned();
        self
    }

    /// These authorities as the bundle of the SVID that was added last.
    #[must_use]
    pub fn trusting(mut self, roots: &[&TestCa]) -> Self {
        self.last().bundle = roots.iter().flat_map(|ca| ca.der().to_vec()).collect();
        self
    }

    /// The bundle of another trust domain.
    #[must_use]
    pub fn federated(mut self, trust_domain: &str, roots: &[&TestCa]) -> Self {
        let bundle = roots.iter().flat_map(|ca| ca.der().to_vec()).collect();
        self.federated_bundles
            .insert(format!("spiffe://{trust_domain}"), bundle);
        self
    }

    fn last(&mut self) -> &mut Svid {
        self.svids.last_mut().expect("an SVID was added")
    }
}

/// What the Workload API has to say.
#[derive(Clone, Debug)]
pub enum Answer {
    /// This set, and the stream stays open.
    Set(Svids),
    /// This set, and the stream ends.
    SetAndEnd(Svids),
    /// No set but this status.
    Refuse(Status),
    /// Nothing.
    Silent,
}

impl Answer {
    /// What an agent says that has no entry for the caller.
    pub fn no_identity() -> Self {
        Self::Refuse(Status::permission_denied("no identity issued"))
    }
}

/// A Workload API. It goes when this is dropped, and the socket with it.
pub struct WorkloadApi {
    place: Place,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

enum Place {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

struct State {
    now: Mutex<Now>,
    changed: Condvar,
}

struct Now {
    answer: Answer,
    streams: Vec<UnboundedSender<Result<Bytes, Status>>>,
    calls: usize,
}

impl WorkloadApi {
    /// Listens on the unix socket `path`.
    pub fn unix(path: impl Into<PathBuf>, answer: Answer) -> Self {
        let mut api = Self::new(Place::Unix(path.into()), answer);
        api.start();
        api
    }

    /// Listens on a free port of the loopback address.
    pub fn tcp(answer: Answer) -> Self {
        let mut api = Self::new(Place::Tcp(([127, 0, 0, 1], 0).into()), answer);
        api.start();
        api
    }

    fn new(place: Place, answer: Answer) -> Self {
        Self {
            place,
            state: Arc::new(State {
                now: Mutex::new(Now {
                    answer,
                    streams: Vec::new(),
                    calls: 0,
                }),
                changed: Condvar::new(),
            }),
            runtime: None,
        }
    }

    /// Where it is, as `--spiffe-socket` takes it.
    pub fn endpoint(&self) -> String {
        match &self.place {
            Place::Unix(path) => path.display().to_string(),
            Place::Tcp(address) => format!("tcp://{address}"),
        }
    }

    /// Says this to every open stream now, and to every later call.
    pub fn say(&self, answer: Answer) {
        let mut now = self.state.lock();
        for stream in std::mem::take(&mut now.streams) {
            if send(&stream, &answer) {
                now.streams.push(stream);
            }
        }
        now.answer = answer;
    }

    /// How many calls there were.
    pub fn calls(&self) -> usize {
        self.state.lock().calls
    }

    /// Waits until there were so many calls.
    pub fn wait_for_calls(&self, calls: usize) {
        let enough = |now: &mut Now| now.calls < calls;
        let waited = self
            .state
            .changed
            .wait_timeout_while(self.state.lock(), DEADLINE, enough);
        let (now, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!timeout.timed_out(), "only {} calls came", now.calls);
    }

    /// Ends as a killed agent does: connections are cut, the socket's file stays behind.
    pub fn kill(&mut self) {
        self.state.lock().streams.clear();
        if let Some(runtime) = self.runtime.take() {
            // A runtime waits for its tasks to end, which a test with a runtime may not do on its own thread.
            let ended = std::thread::spawn(move || drop(runtime)).join();
            ended.expect("the Workload API ends");
        }
    }

    /// Ends as a stopped agent does: the socket's file goes too.
    pub fn stop(&mut self) {
        self.kill();
        if let Place::Unix(path) = &self.place {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Starts again at the same place, with a new socket.
    pub fn start(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let guard = runtime.enter();
        let state = Arc::clone(&self.state);
        match &mut self.place {
            Place::Unix(path) => {
                let listener = fresh(path);
                runtime.spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(connection(stream, Arc::clone(&state)));
                    }
                });
            }
            Place::Tcp(address) => {
                let listener = std::net::TcpListener::bind(*address).expect("a port");
                listener.set_nonblocking(true).expect("a socket");
                *address = listener.local_addr().expect("an address");
                let listener = TcpListener::from_std(listener).expect("a listener");
                runtime.spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(connection(stream, Arc::clone(&state)));
                    }
                });
            }
        }
        drop(guard);
        self.runtime = Some(runtime);
    }
}

impl Drop for WorkloadApi {
    fn drop(&mut self) {
        self.stop();
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket that takes the place of another in one step, as careful agents do it.
fn fresh(path: &Path) -> UnixListener {
    let draft = path.with_extension("new");
    let _ = std::fs::remove_file(&draft);
    let listener = UnixListener::bind(&draft).expect("a socket");
    std::fs::rename(&draft, path).expect("the socket takes its place");
    listener
}

/// Says `answer` on a stream; whether the stream goes on.
fn send(stream: &UnboundedSender<Result<Bytes, Status>>, answer: &Answer) -> bool {
    let (item, goes_on) = match answer {
        Answer::Set(svids) => (Ok(svids.encode_to_vec().into()), true),
        Answer::SetAndEnd(svids) => (Ok(svids.encode_to_vec().into()), false),
        Answer::Refuse(status) => (Err(status.clone()), false),
        Answer::Silent => return !stream.is_closed(),
    };
    stream.send(item).is_ok() && goes_on
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    state: Arc<State>,
) {
    let service = service_fn(move |request| call(Arc::clone(&state), request));
    let _ = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn call(
    state: Arc<State>,
    request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<Body>, Infallible> {
    if request.uri().path() != "/SpiffeWorkloadAPI/FetchX509SVID" {
        return Ok(Status::unimplemented("no such method").into_http());
    }
    let request = request.map(Body::new);
    Ok(Grpc::new(Raw).server_streaming(Fetch(state), request).await)
}

struct Fetch(Arc<State>);

impl ServerStreamingService<Bytes> for Fetch {
    type Response = Bytes;
    type ResponseStream = UnboundedReceiverStream<Result<Bytes, Status>>;
    type Future = Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        // Workload Endpoint §3, §6 (SV-69).
        let header = request.metadata().get("workload.spiffe.io");
        if header.is_none_or(|value| value != "true") {
            let message = "security header missing from request";
            return ready(Err(Status::invalid_argument(message)));
        }
        let mut now = self.0.lock();
        now.calls += 1;
        self.0.changed.notify_all();
        if let Answer::Refuse(status) = &now.answer {
            return ready(Err(status.clone()));
        }
        let (sender, receiver) = unbounded_channel();
        if send(&sender, &now.answer) {
            now.streams.push(sender);
        }
        ready(Ok(tonic::Response::new(receiver.into())))
    }
}

/// Messages as the bytes they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
