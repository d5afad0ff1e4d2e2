//! A client that speaks the protocol byte by byte, to say what a sound executor never would.

use std::sync::Arc;
use std::time::Duration;

use ah_fleet::proto;
use ah_fleet::proto::access_point_message::Kind as Incoming;
use ah_fleet::proto::executor_message::Kind as Outgoing;
use ah_fleet::proto::{AccessPointMessage, ExecutorMessage};
use ah_identity_provider::SystemClock;
use ah_testkit::ca::TestLeaf;
use ah_tls::{ClientConfigs, Expect};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming as Body};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::support::{DEADLINE, Running, Site};

type Frames = std::pin::Pin<
    Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> + Send>,
>;

/// One TLS connection.
pub(crate) struct Connection {
    requests: SendRequest<StreamBody<Frames>>,
    pub(crate) driving: JoinHandle<Result<(), hyper::Error>>,
}

/// One call of Enroll.
pub(crate) struct Call {
    messages: mpsc::UnboundedSender<Bytes>,
    body: Option<Body>,
    buffer: BytesMut,
    ended: Option<Ended>,
    pub(crate) session: String,
}

/// How a call ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) code: tonic::Code,
    pub(crate) message: String,
    pub(crate) headers: http::HeaderMap,
}

impl Ended {
    pub(crate) fn ah_code(&self) -> &str {
        self.headers
            .get("ah-code")
            .map_or("", |word| word.to_str().unwrap())
    }

    fn of(headers: &http::HeaderMap) -> Self {
        let text = |name: &str| {
            headers
                .get(name)
                .map_or("", |value| value.to_str().unwrap())
                .to_owned()
        };
        Self {
            code: tonic::Code::from_bytes(text("grpc-status").as_bytes()),
            message: text("grpc-message").replace("%20", " "),
            headers: headers.clone(),
        }
    }
}

pub(crate) fn hello(instance: &str) -> proto::Hello {
    proto::Hello {
        protocol: 1,
        name: "raw".into(),
        instance_id: format!("{instance}-0123456789abcdef"),
        version: "9".into(),
        provider: "files".into(),
        ..Default::default()
    }
}

pub(crate) fn message(kind: Outgoing) -> Vec<u8> {
    ExecutorMessage { kind: Some(kind) }.encode_to_vec()
}

pub(crate) fn heartbeat(sequence: u64) -> Vec<u8> {
    message(Outgoing::Heartbeat(proto::Heartbeat {
        sequence,
        last_round_trip_us: 0,
    }))
}

pub(crate) async fn connect(site: &Site, to: &Running, leaf: &TestLeaf) -> Connection {
    let (_identity, watch) = leaf.watch(&[&site.ca]);
    let (configs, _follow) =
        ClientConfigs::publish(watch, Expect::RemoteName, false, Arc::new(SystemClock)).unwrap();
    let connected = ah_tls::connect("127.0.0.1", to.address.port(), &configs, DEADLINE)
        .await
        .unwrap();
    let (requests, connection) = http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(connected.stream))
        .await
        .unwrap();
    Connection {
        requests,
        driving: tokio::spawn(connection),
    }
}

impl Connection {
    pub(crate) async fn call(&mut self) -> Call {
        let (messages, queue) = mpsc::unbounded_channel();
        let frames = UnboundedReceiverStream::new(queue).map(|bytes| Ok(Frame::data(bytes)));
        let request = http::Request::post("https://127.0.0.1/ah.fleet.v1.Fleet/Enroll")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(Box::pin(frames) as Frames))
            .unwrap();
        let answer = self.requests.send_request(request);
        let answer = tokio::time::timeout(DEADLINE, answer)
            .await
            .unwrap()
            .unwrap();
        let ended = answer
            .headers()
            .contains_key("grpc-status")
            .then(|| Ended::of(answer.headers()));
        Call {
            messages,
            body: Some(answer.into_body()),
            buffer: BytesMut::new(),
            ended,
            session: String::new(),
        }
    }

    pub(crate) async fn greet(&mut self, hello: proto::Hello) -> Call {
        let call = self.call().await;
        call.send(&message(Outgoing::Hello(Box::new(hello))));
        call
    }

    /// A session that was welcomed.
    pub(crate) async fn enroll(&mut self, hello: proto::Hello) -> Call {
        let mut call = self.greet(hello).await;
        match call.next().await {
            Ok(Incoming::Welcome(welcome)) => call.session = welcome.session_id,
            other => panic!("{other:?}"),
        }
        call
    }

    /// Waits until the access point has closed the connection.
    pub(crate) async fn closed(self) {
        drop(self.requests);
        let _ = tokio::time::timeout(DEADLINE, self.driving).await.unwrap();
    }
}

impl Call {
    /// Sends a message with its gRPC length in front.
    pub(crate) fn send(&self, message: &[u8]) {
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).unwrap());
        frame.put_slice(message);
        self.send_bytes(frame.freeze());
    }

    pub(crate) fn send_bytes(&self, bytes: Bytes) {
        let _ = self.messages.send(bytes);
    }

    /// The next message that this test knows, or how the call ended.
    pub(crate) async fn next(&mut self) -> Result<Incoming, Ended> {
        tokio::time::timeout(DEADLINE, self.receive())
            .await
            .unwrap()
    }

    /// How the call ended, whatever came before.
    pub(crate) async fn ended(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.next().await {
                return ended;
            }
        }
    }

    async fn receive(&mut self) -> Result<Incoming, Ended> {
        loop {
            if self.buffer.len() >= 5 {
                let length = (&self.buffer[1..5]).get_u32() as usize;
                if self.buffer.len() >= 5 + length {
                    let bytes = self.buffer.split_to(5 + length);
                    let message = AccessPointMessage::decode(&bytes[5..]).unwrap();
                    return Ok(message.kind.unwrap());
                }
            }
            if let Some(ended) = &self.ended {
                return Err(ended.clone());
            }
            let frame = match &mut self.body {
                Some(body) => body.frame().await,
                None => None,
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.put_slice(&data),
                    Err(frame) => {
                        self.ended = frame.trailers_ref().map(Ended::of);
                    }
                },
                _ => {
                    return Err(Ended {
                        code: tonic::Code::Unknown,
                        message: "connection lost".into(),
                        headers: http::HeaderMap::new(),
                    });
                }
            }
        }
    }

    /// Goes on as a sound executor would, answering heartbeats, until the call ends. Sends its own every 200 ms.
    pub(crate) fn answering(mut self) -> JoinHandle<Ended> {
        tokio::spawn(async move {
            let mut beats = tokio::time::interval(Duration::from_millis(200));
            let mut sequence = 0;
            loop {
                tokio::select! {
                    next = self.receive() => match next {
                        Ok(Incoming::Heartbeat(beat)) => {
                            self.send(&message(Outgoing::HeartbeatReply(proto::HeartbeatReply {
                                sequence: beat.sequence,
                            })));
                        }
                        Ok(_) => {}
                        Err(ended) => return ended,
                    },
                    _ = beats.tick() => {
                        sequence += 1;
                        self.send(&heartbeat(sequence));
                    }
                }
            }
        })
    }

    pub(crate) fn goodbye(&self) {
        self.send(&message(Outgoing::Goodbye(proto::Goodbye {
            reason: "done".into(),
        })));
    }
}
