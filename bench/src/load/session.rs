//! What a simulated executor says once TLS stands.

use std::io;
use std::time::Duration;

use ah_fleet::proto::access_point_message::Kind as Answer;
use ah_fleet::proto::executor_message::Kind as Say;
use ah_fleet::proto::{
    AccessPointMessage, ExecutorMessage, Heartbeat, HeartbeatReply, Hello, HostFacts,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, header};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::MissedTickBehavior;

/// What to do after the server's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stay {
    /// Close at once.
    Leave,
    /// Close after this time.
    For(Duration),
    /// Stay until the server closes.
    UntilClosed,
}

impl Stay {
    /// Runs a session's idle part for as long as it may last; a session that was not to end returns an error.
    async fn bound(self, idle: impl Future<Output = io::Result<()>>) -> io::Result<()> {
        match self {
            Self::Leave => Ok(()),
            Self::For(time) => tokio::time::timeout(time, idle).await.unwrap_or(Ok(())),
            Self::UntilClosed => idle.await,
        }
    }
}

/// Sends `request`, takes the first bytes that come back as the answer.
pub(crate) async fn bytes(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &[u8],
    stay: Stay,
    confirmed: impl FnOnce(),
) -> io::Result<()> {
    stream.write_all(request).await?;
    stream.flush().await?;
    let mut answer = [0; 512];
    if stream.read(&mut answer).await? == 0 {
        return Err(closed());
    }
    confirmed();
    stay.bound(async {
        let mut rest = [0; 1];
        while stream.read(&mut rest).await? > 0 {}
        Err(closed())
    })
    .await
}

/// What tells one simulated executor's hello from another's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Greeting {
    pub(crate) number: u32,
    pub(crate) instance: u128,
}

/// Opens one gRPC-shaped stream with a message of a hello's size.
pub(crate) async fn raw_stream(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    greeting: &Greeting,
    stay: Stay,
    confirmed: impl FnOnce(),
) -> io::Result<()> {
    on_call(stream, hello(greeting), async |mut call: Call| {
        call.next().await?;
        confirmed();
        stay.bound(async {
            while call.next().await.is_ok() {}
            Err(closed())
        })
        .await
    })
    .await
}

/// Enrolls with the fleet protocol and keeps its rules for as long as the session lasts.
pub(crate) async fn fleet(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    greeting: &Greeting,
    stay: Stay,
    confirmed: impl FnOnce(),
) -> io::Result<()> {
    on_call(stream, hello(greeting), async |mut call: Call| {
        let Some(Answer::Welcome(welcome)) = call.next_message().await? else {
            return Err(io::Error::other("first message is no welcome"));
        };
        confirmed();
        let interval = Duration::from_millis(welcome.heartbeat_interval_ms.max(100).into());
        stay.bound(heartbeats(&mut call, interval)).await
    })
    .await
}

async fn heartbeats(call: &mut Call, interval: Duration) -> io::Result<()> {
    // Each executor of a real fleet has its own phase; so has each here.
    let first = tokio::time::Instant::now() + interval.mul_f64(rand::random::<f64>());
    let mut tick = tokio::time::interval_at(first, interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sequence = 0;
    loop {
        tokio::select! {
            _ = tick.tick() => {
                sequence += 1;
                call.say(Say::Heartbeat(Heartbeat { sequence, last_round_trip_us: 0 }))?;
            }
            answer = call.next_message() => match answer? {
                Some(Answer::Heartbeat(beat)) => {
                    call.say(Say::HeartbeatReply(HeartbeatReply { sequence: beat.sequence }))?;
                }
                Some(Answer::Drain(_)) => return Err(io::Error::other("drained")),
                _ => {}
            },
        }
    }
}

fn hello(greeting: &Greeting) -> Bytes {
    let number = greeting.number;
    let hello = Hello {
        protocol: 1,
        name: format!("bench-{number}"),
        instance_id: format!("{:032x}", greeting.instance),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        labels: [("pool".to_owned(), "bench".to_owned())].into(),
        host: Some(HostFacts {
            hostname: format!("host-{number}"),
            os: "linux".to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            kernel: "6.1.0".to_owned(),
            cpus: 2,
            memory_bytes: 8 << 30,
            boot_id: format!("{number:032x}"),
        }),
        provider: "files".to_owned(),
        clock_unix_ms: 0,
    };
    frame(Say::Hello(Box::new(hello)))
}

fn frame(kind: Say) -> Bytes {
    let message = ExecutorMessage { kind: Some(kind) };
    let length = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(5 + length);
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    buffer.put(message.encode_to_vec().as_slice());
    buffer.freeze()
}

/// An open call of `ah.fleet.v1.Fleet/Enroll`.
struct Call {
    send: SendStream<Bytes>,
    receive: RecvStream,
    buffer: BytesMut,
}

/// Opens the call, runs `talk` on it and drives the connection meanwhile, all in the caller's task.
async fn on_call(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    first: Bytes,
    talk: impl AsyncFnOnce(Call) -> io::Result<()>,
) -> io::Result<()> {
    let (client, connection) = h2::client::handshake(stream)
        .await
        .map_err(io::Error::other)?;
    let call = async {
        // The handle lives until the talk ends: h2 closes a connection that nobody can open a stream on.
        let mut client = client.ready().await.map_err(io::Error::other)?;
        let call = Call::open(&mut client, first).await?;
        talk(call).await
    };
    tokio::select! {
        biased;
        result = connection => Err(result.map_or_else(io::Error::other, |()| closed())),
        result = call => result,
    }
}

impl Call {
    async fn open(client: &mut h2::client::SendRequest<Bytes>, first: Bytes) -> io::Result<Self> {
        let request = Request::builder()
            .method(Method::POST)
            .uri("https://localhost/ah.fleet.v1.Fleet/Enroll")
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(())
            .map_err(io::Error::other)?;
        let (response, mut send) = client
            .send_request(request, false)
            .map_err(io::Error::other)?;
        send.send_data(first, false).map_err(io::Error::other)?;
        let response = response.await.map_err(io::Error::other)?;
        if let Some(refusal) = refusal(response.headers()) {
            return Err(refusal);
        }
        Ok(Self {
            send,
            receive: response.into_body(),
            buffer: BytesMut::new(),
        })
    }

    fn say(&mut self, kind: Say) -> io::Result<()> {
        self.send
            .send_data(frame(kind), false)
            .map_err(io::Error::other)
    }

    async fn next_message(&mut self) -> io::Result<Option<Answer>> {
        let message = self.next().await?;
        let message = AccessPointMessage::decode(message).map_err(io::Error::other)?;
        Ok(message.kind)
    }

    /// The next message of the stream; cancelling it loses nothing.
    async fn next(&mut self) -> io::Result<Bytes> {
        loop {
            if let Some(message) = self.buffered() {
                return Ok(message);
            }
            match self.receive.data().await {
                Some(data) => {
                    let data = data.map_err(io::Error::other)?;
                    self.receive
                        .flow_control()
                        .release_capacity(data.len())
                        .map_err(io::Error::other)?;
                    self.buffer.extend_from_slice(&data);
                }
                None => {
                    let trailers = self.receive.trailers().await.map_err(io::Error::other)?;
                    return Err(trailers.as_ref().and_then(refusal).unwrap_or_else(closed));
                }
            }
        }
    }

    fn buffered(&mut self) -> Option<Bytes> {
        let mut header = self.buffer.get(..5)?;
        header.advance(1);
        let length = usize::try_from(header.get_u32()).ok()?;
        if self.buffer.len() < 5 + length {
            return None;
        }
        self.buffer.advance(5);
        let message = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() {
            // An idle session shall hold no buffer.
            self.buffer = BytesMut::new();
        }
        Some(message)
    }
}

/// What a gRPC status in headers or trailers says, if it is not OK.
fn refusal(headers: &HeaderMap) -> Option<io::Error> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let status = text("grpc-status").filter(|status| *status != "0")?;
    let code = text("ah-code").unwrap_or("none");
    Some(io::Error::other(format!(
        "grpc-status {status}, ah-code {code}"
    )))
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server")
}

#[cfg(test)]
mod tests {
    use http::Response;
    use tokio::io::DuplexStream;

    use ah_fleet::proto::Welcome;

    use super::*;

    const GREETING: Greeting = Greeting {
        number: 7,
        instance: 0xabc,
    };

    fn answer(kind: Answer) -> Bytes {
        let message = AccessPointMessage { kind: Some(kind) }.encode_to_vec();
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).unwrap());
        framed.put_slice(&message);
        framed.freeze()
    }

    fn decode(data: &[u8]) -> Say {
        ExecutorMessage::decode(&data[5..]).unwrap().kind.unwrap()
    }

    async fn next(body: &mut RecvStream) -> Say {
        let data = body.data().await.unwrap().unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        decode(&data)
    }

    /// Welcomes in two pieces, asks for a heartbeat's reply, then ends the call with a status.
    async fn access_point(stream: DuplexStream) -> Vec<Say> {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let driver = tokio::spawn(async move { while connection.accept().await.is_some() {} });
        let mut body = request.into_body();
        let mut heard = vec![next(&mut body).await];
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        let mut welcome = answer(Answer::Welcome(Welcome {
            heartbeat_interval_ms: 3_600_000,
            ..Welcome::default()
        }));
        let rest = welcome.split_off(3);
        send.send_data(welcome, false).unwrap();
        send.send_data(rest, false).unwrap();
        let beat = Heartbeat {
            sequence: 41,
            last_round_trip_us: 0,
        };
        send.send_data(answer(Answer::Heartbeat(beat)), false)
            .unwrap();
        heard.push(next(&mut body).await);
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "7".parse().unwrap());
        trailers.insert("ah-code", "client_revoked".parse().unwrap());
        send.send_trailers(trailers).unwrap();
        driver.await.unwrap();
        heard
    }

    #[tokio::test]
    async fn an_executor_enrolls_answers_heartbeats_and_says_why_it_was_ended() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let server = tokio::spawn(access_point(far));
        let mut confirmed = false;
        let ended = fleet(near, &GREETING, Stay::UntilClosed, || confirmed = true).await;
        assert!(confirmed);
        assert_eq!(
            ended.unwrap_err().to_string(),
            "grpc-status 7, ah-code client_revoked"
        );
        let heard = server.await.unwrap();
        let [Say::Hello(hello), Say::HeartbeatReply(reply)] = heard.as_slice() else {
            panic!("heard {heard:?}");
        };
        assert_eq!((hello.protocol, hello.instance_id.len()), (1, 32));
        assert_eq!(reply.sequence, 41);
    }

    #[tokio::test]
    async fn a_server_that_closes_without_an_answer_confirms_nothing() {
        let (near, far) = tokio::io::duplex(1 << 10);
        drop(far);
        let result = bytes(near, b"!", Stay::Leave, || panic!("confirmed")).await;
        assert!(result.is_err());
    }
}
