//! The server's end of a TLS connection, which holds no buffer while nothing is under way.
//!
//! rustls's own connection and the adapters around it keep a page for what comes next. With ten thousand executors that
//! are silent most of the time those pages are a tenth of all memory. Here the bytes of a record are read into, and sealed in,
//! memory that all connections of a thread share; a connection keeps only what is unfinished: a part of a record, what its
//! reader has had no room for, what the socket did not take.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ServerConfig;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, WriteTraffic,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A record at its largest (RFC 8446 section 5.2), with its header.
const RECORD: usize = 5 + FRAGMENT + 256;
/// What a record carries at most (RFC 8446 section 5.1).
const FRAGMENT: usize = 1 << 14;
/// A handshake message may span records (RFC 8446 section 5.1); rustls takes those of up to 64 KiB.
const MOST_KEPT: usize = (1 << 16) + RECORD;
/// How much is read at a time of what was begun.
const PART: usize = 1 << 12;
/// Room for a KeyUpdate and an alert, which rustls may put before what it was asked for.
const CONTROL: usize = 256;

thread_local! {
    static INBOUND: RefCell<Vec<u8>> = RefCell::default();
    static SEALED: RefCell<Vec<u8>> = RefCell::default();
}

/// The server's end of a connection over `IO` whose handshake is done.
///
/// A write is sealed and goes to `IO` at once; [`poll_flush`](AsyncWrite::poll_flush) waits until `IO` has taken all of it. A peer that
/// goes without a `close_notify` makes a read fail with [`UnexpectedEof`](io::ErrorKind::UnexpectedEof): what it sent may be cut short.
pub struct ServerStream<IO> {
    io: IO,
    session: UnbufferedServerConnection,
    /// Records that are not complete, as rustls left them.
    inbound: Vec<u8>,
    /// Received, and not yet read.
    plain: Vec<u8>,
    /// Sealed, and not yet taken by `io`.
    outbound: Vec<u8>,
    /// The peer has said that it sends no more.
    peer_closed: bool,
    /// We have said that we send no more.
    closed: bool,
    /// A record was wrong. rustls must not be asked again: it may panic.
    failed: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> ServerStream<IO> {
    /// Shakes hands as `config` says. When that fails, the alert has been handed to `io`, which is given back with the
    /// reason: a [`rustls::Error`] inside, or what `io` said.
    pub(crate) async fn accept(io: IO, config: Arc<ServerConfig>) -> Result<Self, (io::Error, IO)> {
        let session = match UnbufferedServerConnection::new(config) {
            Ok(session) => session,
            Err(error) => return Err((broken(error), io)),
        };
        let mut stream = Self {
            io,
            session,
            inbound: Vec::new(),
            plain: Vec::new(),
            outbound: Vec::new(),
            peer_closed: false,
            closed: false,
            failed: false,
        };
        match poll_fn(|cx| stream.poll_handshake(cx)).await {
            Ok(()) => Ok(stream),
            Err(error) => Err((error, stream.io)),
        }
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_send(cx))?;
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if self.peer_closed {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            ready!(self.poll_receive(cx, &mut ReadBuf::new(&mut [])))?;
        }
    }

    /// Reads from `io` once. What was sent to us goes to `reader` and, where that is full, to `self.plain`.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = if self.inbound.is_empty() {
            let mut shared = INBOUND.take();
            shared.resize(RECORD, 0);
            let outcome = poll_fill(&mut self.io, cx, &mut shared).map_ok(|read| {
                let input = shared.get_mut(..read).unwrap_or_default();
                let (done, outcome) = self.process(input, reader, |_| Ok(()));
                self.inbound = input.get(done..).unwrap_or_default().to_vec();
                outcome
            });
            INBOUND.set(shared);
            outcome
        } else {
            // Behind what is there, which is not moved: a peer that sends a byte at a time must not have us copy all for each.
            let mut kept = std::mem::take(&mut self.inbound);
            let start = kept.len();
            kept.resize(start + PART, 0);
            let room = kept.get_mut(start..).unwrap_or_default();
            let outcome = poll_fill(&mut self.io, cx, room);
            let read = match &outcome {
                Poll::Ready(Ok(read)) => *read,
                _ => 0,
            };
            kept.truncate(start + read);
            if read > 0 {
                let (done, processed) = self.process(&mut kept, reader, |_| Ok(()));
                self.keep(kept, done);
                outcome.map_ok(|_| processed)
            } else {
                self.keep(kept, 0);
                outcome.map_ok(|_| Ok(None))
            }
        };
        let outcome = ready!(outcome)?;
        if outcome.is_err() {
            // The alert, as far as it can be handed over at once: what went wrong is told, whatever becomes of it.
            let _ = self.poll_send(cx);
        } else if self.inbound.len() > MOST_KEPT {
            let endless = "a handshake message does not end";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, endless)));
        }
        Poll::Ready(outcome.map(drop))
    }

    /// Keeps what of `input` comes after the first `done` bytes.
    fn keep(&mut self, mut input: Vec<u8>, done: usize) {
        input.drain(..done.min(input.len()));
        if !input.is_empty() {
            self.inbound = input;
        }
    }

    /// Takes the records in `input`, tells how many of its bytes are done with, and runs `write` once we may write; `None`
    /// while we may not.
    fn process<T>(
        &mut self,
        input: &mut [u8],
        reader: &mut ReadBuf<'_>,
        mut write: impl FnMut(&mut WriteTraffic<'_, ServerConnectionData>) -> io::Result<T>,
    ) -> (usize, io::Result<Option<T>>) {
        let Self {
            session,
            plain,
            outbound,
            peer_closed,
            failed,
            ..
        } = self;
        if *failed {
            return (input.len(), Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut done = 0;
        let outcome = loop {
            let rest = input.get_mut(done..).unwrap_or_default();
            let status = session.process_tls_records(rest);
            let mut discard = status.discard;
            let outcome = match status.state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        discard += record.discard;
                        deliver(record.payload, reader, plain);
                    }
                    None
                }
                Ok(ConnectionState::EncodeTlsData(mut record)) => {
                    encode(&mut record, outbound);
                    None
                }
                // It is in `outbound`, from where it goes before anything else.
                Ok(ConnectionState::TransmitTlsData(sent)) => {
                    sent.done();
                    None
                }
                Ok(ConnectionState::PeerClosed) => {
                    *peer_closed = true;
                    None
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => Some(Ok(None)),
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    Some(write(&mut traffic).map(Some))
                }
                // We take no early data, and no rustls of this version has another state.
                Ok(_) => Some(Err(io::ErrorKind::Unsupported.into())),
                Err(error) => {
                    *failed = true;
                    Some(Err(broken(error)))
                }
            };
            done += discard;
            if let Some(outcome) = outcome {
                break outcome;
            }
        };
        // The alert: rustls has one for most of what goes wrong, and no use for the rest of the input.
        while *failed && session.wants_write() {
            let state = session.process_tls_records(&mut []).state;
            let Ok(ConnectionState::EncodeTlsData(mut alert)) = state else {
                break;
            };
            encode(&mut alert, outbound);
        }
        (if *failed { input.len() } else { done }, outcome)
    }

    /// Runs `write` with what is kept of the peer's records, so that rustls finds them as it left them.
    fn write<T>(
        &mut self,
        write: impl FnMut(&mut WriteTraffic<'_, ServerConnectionData>) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut kept = std::mem::take(&mut self.inbound);
        let (done, written) = self.process(&mut kept, &mut ReadBuf::new(&mut []), write);
        self.keep(kept, done);
        written?.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    /// Gives `io` what comes before `record`, as answers of rustls do, and as much of `record` as it takes now.
    fn hand_over(&mut self, cx: &mut Context<'_>, record: &[u8]) -> io::Result<()> {
        let sent = match self.poll_send(cx)? {
            Poll::Ready(()) if !record.is_empty() => {
                match Pin::new(&mut self.io).poll_write(cx, record)? {
                    Poll::Ready(sent) => sent,
                    Poll::Pending => 0,
                }
            }
            _ => 0,
        };
        self.outbound
            .extend_from_slice(record.get(sent..).unwrap_or_default());
        Ok(())
    }

    /// Gives `io` what it has not yet taken.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbound.is_empty() {
            let sent = ready!(Pin::new(&mut self.io).poll_write(cx, &self.outbound))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outbound.drain(..sent);
        }
        self.outbound = Vec::new();
        Poll::Ready(Ok(()))
    }
}

impl<IO: fmt::Debug> fmt::Debug for ServerStream<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerStream")
            .field("io", &self.io)
            .field("peer_closed", &self.peer_closed)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

/// Reads into `room` once; the end is an error.
fn poll_fill<IO: AsyncRead + Unpin>(
    io: &mut IO,
    cx: &mut Context<'_>,
    room: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut room = ReadBuf::new(room);
    ready!(Pin::new(io).poll_read(cx, &mut room))?;
    match room.filled().len() {
        0 => Poll::Ready(Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "peer closed the connection without a close_notify",
        ))),
        read => Poll::Ready(Ok(read)),
    }
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// As much of `payload` as `reader` has room for, once all before it was read; the rest behind that.
fn deliver(payload: &[u8], reader: &mut ReadBuf<'_>, plain: &mut Vec<u8>) {
    let room = if plain.is_empty() {
        reader.remaining().min(payload.len())
    } else {
        0
    };
    let (now, later) = payload.split_at(room);
    reader.put_slice(now);
    plain.extend_from_slice(later);
}

fn encode(record: &mut EncodeTlsData<'_, ServerConnectionData>, outbound: &mut Vec<u8>) {
    let start = outbound.len();
    // The first try asks how long it is.
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) =
        record.encode(&mut [])
    {
        outbound.resize(start + required_size, 0);
        let room = outbound.get_mut(start..).unwrap_or_default();
        let written = record.encode(room).unwrap_or_default();
        outbound.truncate(start + written);
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for ServerStream<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.plain.is_empty() {
            let ready = self.plain.len().min(buf.remaining());
            buf.put_slice(self.plain.get(..ready).unwrap_or_default());
            self.plain.drain(..ready);
            if self.plain.is_empty() {
                self.plain = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        while buf.filled().len() == before && buf.remaining() > 0 && !self.peer_closed {
            ready!(self.poll_receive(cx, buf))?;
            // What answers a record of the protocol itself, such as a KeyUpdate, does not wait for a write.
            let _ = self.poll_send(cx)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ServerStream<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        // So no more than a record ever waits for `io`.
        ready!(self.poll_send(cx))?;
        let fragment = buf.get(..buf.len().min(FRAGMENT)).unwrap_or_default();
        let mut sealed = SEALED.take();
        sealed.resize(RECORD + CONTROL, 0);
        let room = sealed.as_mut_slice();
        let length =
            self.write(|traffic| traffic.encrypt(fragment, room).map_err(io::Error::other));
        let record = sealed.get(..*length.as_ref().unwrap_or(&0));
        let sent = self.hand_over(cx, record.unwrap_or_default());
        SEALED.set(sealed);
        length.and(sent)?;
        Poll::Ready(Ok(fragment.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            self.closed = true;
            let mut alert = [0; CONTROL];
            let length = self.write(|traffic| {
                traffic
                    .queue_close_notify(&mut alert)
                    .map_err(io::Error::other)
            });
            // A session that failed has no more to say.
            let alert = alert.get(..length.unwrap_or_default()).unwrap_or_default();
            self.outbound.extend_from_slice(alert);
        }
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ah_identity_provider::SystemClock;
    use ah_testkit::ca::TestCa;
    use rustls_pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;

    use super::*;
    use crate::{ClientConfigs, Expect, Policy, PolicyCell, ServerConfigs};

    struct Pair {
        server: Arc<ServerConfig>,
        client: TlsConnector,
    }

    impl Pair {
        /// An access point and an executor that presents `intermediates` of its authorities, too.
        fn new(intermediates: usize) -> Self {
            let ca = TestCa::new("example.org");
            let dns = |leaf: &str| ca.leaf().dns(leaf).issue();
            let needless = vec![ca.der(); intermediates];
            let executor = dns("executor").with_intermediates(&needless);
            let clock = Arc::new(SystemClock);
            let policy = PolicyCell::new(Policy::default());
            let (_, watch) = dns("localhost").watch(&[&ca]);
            let (server, _) = ServerConfigs::publish(watch, policy, clock.clone()).unwrap();
            let (_, watch) = executor.watch(&[&ca]);
            let (client, _) =
                ClientConfigs::publish(watch, Expect::RemoteName, false, clock).unwrap();
            Self {
                server: server.current().config().clone(),
                client: client.current().config().clone().into(),
            }
        }

        /// Shakes hands over a pipe that holds `room` bytes each way.
        async fn meet(&self, room: usize) -> (TlsStream<DuplexStream>, ServerStream<DuplexStream>) {
            let (near, far) = duplex(room);
            let localhost = ServerName::try_from("localhost").unwrap();
            let (client, server) = tokio::join!(
                self.client.connect(localhost, near),
                ServerStream::accept(far, self.server.clone())
            );
            (client.unwrap(), server.map_err(|(error, _)| error).unwrap())
        }
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..251).cycle().take(length).collect()
    }

    #[tokio::test]
    async fn what_is_sent_arrives_however_it_is_cut() {
        let pair = Pair::new(0);
        for room in [7, 1000, 16_411, 1 << 20] {
            let (client, server) = pair.meet(room).await;
            let sent = pattern(if room < 100 { 3_000 } else { 150_000 });
            let (mut client_reads, mut client_writes) = split(client);
            let (mut server_reads, mut server_writes) = split(server);
            let there = async {
                client_writes.write_all(&sent).await.unwrap();
                client_writes.shutdown().await.unwrap();
            };
            let back = async {
                let mut room = vec![0; 1_500];
                loop {
                    let read = server_reads.read(&mut room).await.unwrap();
                    if read == 0 {
                        break;
                    }
                    server_writes.write_all(&room[..read]).await.unwrap();
                }
                // A peer that sends no more still reads.
                server_writes.shutdown().await.unwrap();
            };
            let mut received = Vec::new();
            let (_, _, end) = tokio::join!(there, back, client_reads.read_to_end(&mut received));
            end.unwrap();
            assert!(received == sent, "over a pipe of {room}");
        }
    }

    #[tokio::test]
    async fn an_idle_connection_holds_no_buffer() {
        let (mut client, mut server) = Pair::new(0).meet(1 << 16).await;
        for length in [10, 20_000] {
            let sent = pattern(length);
            client.write_all(&sent).await.unwrap();
            let mut received = vec![0; length];
            server.read_exact(&mut received).await.unwrap();
            server.write_all(&received).await.unwrap();
            server.flush().await.unwrap();
            client.read_exact(&mut received).await.unwrap();
            assert!(received == sent);
        }
        let held = [&server.inbound, &server.plain, &server.outbound];
        assert_eq!(held.map(Vec::capacity), [0; 3]);
    }

    #[tokio::test]
    async fn keys_change_when_the_peer_asks_for_it() {
        let (mut client, mut server) = Pair::new(0).meet(1 << 16).await;
        for round in 0..3 {
            // RFC 8446 section 4.6.3: update_requested, which we answer.
            client.get_mut().1.refresh_traffic_keys().unwrap();
            client.write_all(&[round]).await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), round);
            server.write_all(&[round]).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), round);
        }
    }

    #[tokio::test]
    async fn a_handshake_message_of_many_records_is_put_together() {
        let pair = Pair::new(60);
        for room in [64, 1 << 16] {
            let (mut client, mut server) = pair.meet(room).await;
            client.write_all(b"x").await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), b'x');
        }
    }

    #[tokio::test]
    async fn an_end_without_a_farewell_is_told() {
        let (client, mut server) = Pair::new(0).meet(1 << 16).await;
        drop(client);
        let error = server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);

        let (mut client, mut server) = Pair::new(0).meet(1 << 16).await;
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0, "and again");
    }

    /// A record with the alert of `level` and `description`.
    fn alert(level: u8, description: u8) -> [u8; 7] {
        [21, 3, 3, 0, 2, level, description]
    }

    #[tokio::test]
    async fn who_speaks_no_tls_is_told_so() {
        let pair = Pair::new(0);
        for (said, answer) in [
            // decode_error and unexpected_message, fatal: RFC 8446 section 6.
            (b"GET / HTTP/1.1\r\n\r\n".as_slice(), None),
            (&[22, 3, 1, 0, 4, 1, 0, 0, 0], Some(alert(2, 50))),
            (&[23, 3, 3, 0, 1, 0], Some(alert(2, 10))),
        ] {
            let (mut near, far) = duplex(1 << 16);
            near.write_all(said).await.unwrap();
            let (error, io) = ServerStream::accept(far, pair.server.clone())
                .await
                .err()
                .unwrap();
            assert!(error.get_ref().unwrap().is::<rustls::Error>(), "{error:?}");
            drop(io);
            let mut heard = Vec::new();
            near.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard.first(), Some(&21), "an alert: {heard:?}");
            if let Some(answer) = answer {
                assert_eq!(heard, answer);
            }
        }
    }

    #[tokio::test]
    async fn a_record_that_nobody_sealed_ends_the_session() {
        let (client, mut server) = Pair::new(0).meet(1 << 16).await;
        let (mut transport, _) = client.into_inner();
        let mut forged = vec![23, 3, 3, 0, 40];
        forged.extend([7; 40]);
        transport.write_all(&forged).await.unwrap();
        let error = server.read_u8().await.unwrap_err();
        let tls = error.get_ref().unwrap().downcast_ref::<rustls::Error>();
        assert_eq!(tls, Some(&rustls::Error::DecryptError));
        let mut heard = [0; 5];
        transport.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard[0], 23, "an alert, sealed");
        server.write_all(b"x").await.expect_err("it is over");
        let _ = tokio::time::timeout(Duration::from_secs(1), server.shutdown())
            .await
            .expect("waits for nobody");
    }

    #[tokio::test]
    async fn a_handshake_message_without_an_end_is_not_kept() {
        let (mut near, far) = duplex(1 << 20);
        // One of 16 MiB, as its length says, in records of 16 KiB.
        let mut endless = vec![1, 0xff, 0xff, 0xff];
        endless.resize(FRAGMENT * 8, 7);
        for fragment in endless.chunks(FRAGMENT) {
            near.write_all(&[22, 3, 1, 0x40, 0]).await.unwrap();
            near.write_all(fragment).await.unwrap();
        }
        let accepted = ServerStream::accept(far, Pair::new(0).server).await;
        let (error, _) = accepted.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
