//! A connection whose first two messages leave in one record.
//!
//! An HTTP/2 server sends its settings, then confirms the client's, which are there by then: one record and one write
//! less for each connection, and a packet that wakes the client once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are held at most; settings and their confirmation have about 60.
const MOST: usize = 1024;

/// Holds what is written before the first flush until the second, unless the peer waits for it.
pub(super) struct Opening<S> {
    stream: S,
    held: Vec<u8>,
    stage: Stage,
    heard: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing was flushed yet.
    First,
    /// Something may be held that was flushed.
    Held,
    /// Everything passes.
    Open,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Opening<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            held: Vec::new(),
            stage: Stage::First,
            heard: false,
        }
    }

    /// Writes what is held; from then on everything passes.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..written);
        }
        self.held = Vec::new();
        self.stage = Stage::Open;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Opening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf)?;
        if read.is_ready() {
            self.heard = true;
        } else if self.stage == Stage::Held && !self.heard {
            // The peer says nothing before it has our settings.
            if self.poll_open(cx)?.is_ready() {
                let _ = Pin::new(&mut self.stream).poll_flush(cx)?;
            }
        }
        read.map(Ok)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Opening<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.stage == Stage::Open {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        }
        if self.held.len() + buf.len() > MOST {
            ready!(self.poll_open(cx))?;
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        }
        self.held.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.stage == Stage::Open {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        let first = bufs.iter().find(|buf| !buf.is_empty());
        self.poll_write(cx, first.map_or(&[], |buf| buf))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stage {
            Stage::First if !self.held.is_empty() => {
                self.stage = Stage::Held;
                return Poll::Ready(Ok(()));
            }
            Stage::First => {}
            Stage::Held => ready!(self.poll_open(cx))?,
            Stage::Open => {}
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_open(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Gives `inbound` piece by piece, is silent then, and keeps each write.
    #[derive(Default)]
    struct Peer {
        inbound: VecDeque<&'static [u8]>,
        writes: Vec<Vec<u8>>,
    }

    impl AsyncRead for Peer {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Some(bytes) = self.inbound.pop_front() else {
                return Poll::Pending;
            };
            buf.put_slice(bytes);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Peer {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            // Never more than eight at a time.
            let taken = &buf[..buf.len().min(8)];
            self.writes.push(taken.to_vec());
            Poll::Ready(Ok(taken.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    struct Server(Opening<Peer>);

    impl Server {
        fn of(inbound: &[&'static [u8]]) -> Self {
            Self(Opening::new(Peer {
                inbound: inbound.iter().copied().collect(),
                ..Peer::default()
            }))
        }

        fn send(&mut self, bytes: &[u8]) {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let mut rest = bytes;
            while !rest.is_empty() {
                match Pin::new(&mut self.0).poll_write(&mut cx, rest) {
                    Poll::Ready(Ok(written)) => rest = &rest[written..],
                    other => panic!("{other:?}"),
                }
            }
            assert!(matches!(
                Pin::new(&mut self.0).poll_flush(&mut cx),
                Poll::Ready(Ok(()))
            ));
        }

        /// Whether there was something to read.
        fn reads(&mut self) -> bool {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let mut room = [0; 64];
            let mut buf = ReadBuf::new(&mut room);
            Pin::new(&mut self.0)
                .poll_read(&mut cx, &mut buf)
                .is_ready()
        }

        fn written(&self) -> Vec<u8> {
            self.0.stream.writes.concat()
        }
    }

    #[test]
    fn settings_leave_with_what_answers_a_client_that_has_spoken() {
        let mut server = Server::of(&[b"preface", b"settings"]);
        server.send(b"mine");
        assert!(server.reads() && server.reads() && !server.reads());
        assert_eq!(server.written(), b"");
        server.send(b"ack");
        assert_eq!(server.0.stream.writes, [b"mineack"]);
        server.send(b"later");
        server.send(b"and so on");
        assert_eq!(server.written(), b"mineacklaterand so on");
    }

    #[test]
    fn a_client_that_waits_for_the_settings_has_them_at_once() {
        let mut server = Server::of(&[]);
        server.send(b"longer than one write");
        assert!(!server.reads());
        assert_eq!(server.written(), b"longer than one write");
        server.send(b"ack");
        assert_eq!(server.written(), b"longer than one writeack");
    }

    #[test]
    fn much_is_not_held_and_nothing_is_lost_at_the_end() {
        let mut server = Server::of(&[b"preface"]);
        server.send(&[b'a'; MOST + 1]);
        assert_eq!(server.written().len(), MOST + 1);

        let mut server = Server::of(&[b"preface"]);
        server.send(b"mine");
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let ended = Pin::new(&mut server.0).poll_shutdown(&mut cx);
        assert!(matches!(ended, Poll::Ready(Ok(()))));
        assert_eq!(server.written(), b"mine");
    }
}
