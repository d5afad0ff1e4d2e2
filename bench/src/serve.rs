//! Bare servers: the least that does the work, against which ours is measured.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ah_tls::{AcceptObserver, HandshakeLimits, Handshakes};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http::{HeaderValue, Request, Response, header};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::pki::Files;
use crate::{product, tls};

/// Which bare server.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Serve {
    /// TLS over TCP, each byte answered by a byte.
    Tcp(ServeArgs),
    /// The accept path of the access point alone, with its SPIFFE policy, each byte answered by a byte.
    Accept(ServeArgs),
    /// HTTP/2 over TLS, one bidirectional stream whose first message is sent back.
    H2(ServeArgs),
    /// TCP without TLS, each byte answered: what a TLS proxy has behind it.
    Plain(ServeArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ServeArgs {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Folder with the authority and server identity (see `ah-bench pki`).
    #[arg(long)]
    pki: PathBuf,
}

impl Serve {
    /// Serves until the process is ended.
    pub(crate) async fn run(self) -> io::Result<()> {
        match self {
            Self::Tcp(args) => accept(&args, &[], answer_bytes).await,
            Self::Accept(args) => accept_path(&args).await,
            Self::H2(args) => accept(&args, &[b"h2"], answer_stream).await,
            Self::Plain(args) => {
                let listener = listen(&args).await?;
                loop {
                    let stream = next_connection(&listener).await;
                    tokio::spawn(answer_bytes(stream));
                }
            }
        }
    }
}

async fn accept<F, A>(args: &ServeArgs, alpn: &[&[u8]], answer: F) -> io::Result<()>
where
    F: Fn(TlsStream<TcpStream>) -> A + Copy + Send + 'static,
    A: Future<Output = io::Result<()>> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(&Files::at(&args.pki), alpn)?));
    let listener = listen(args).await?;
    loop {
        let stream = next_connection(&listener).await;
        let handshake = acceptor.clone();
        tokio::spawn(async move {
            stream.set_nodelay(true)?;
            let stream = handshake.accept(stream).await?;
            answer(stream).await
        });
    }
}

/// Waits for a connection, however many attempts fail for want of descriptors.
async fn next_connection(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn accept_path(args: &ServeArgs) -> io::Result<()> {
    struct Silent;
    impl AcceptObserver for Silent {}

    let (_identity, configs, follow) = product::server_configs(&Files::at(&args.pki))?;
    tokio::spawn(follow);
    ah_tls::serve(
        listen(args).await?,
        configs,
        Handshakes::new(HandshakeLimits::default()),
        Arc::new(Silent),
        |accepted| async {
            let _ = answer_bytes(accepted.stream).await;
        },
        std::future::pending(),
    )
    .await;
    Ok(())
}

async fn listen(args: &ServeArgs) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(args.listen).await?;
    eprintln!("listening address={}", listener.local_addr()?);
    Ok(listener)
}

async fn answer_bytes<S>(mut stream: S) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    while let Ok(byte) = stream.read_u8().await {
        stream.write_u8(byte).await?;
        stream.flush().await?;
    }
    Ok(())
}

async fn answer_stream(stream: TlsStream<TcpStream>) -> io::Result<()> {
    let service = service_fn(|request: Request<Incoming>| async {
        let mut response = Response::new(FirstMessage {
            request: request.into_body(),
            answered: false,
        });
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        Ok::<_, Infallible>(response)
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

/// Sends the request's first data back and stays open for as long as the request does.
struct FirstMessage {
    request: Incoming,
    answered: bool,
}

impl Body for FirstMessage {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            let frame = ready!(Pin::new(&mut self.request).poll_frame(cx)?);
            match frame.map(Frame::into_data) {
                None => return Poll::Ready(None),
                Some(Ok(data)) if !self.answered => {
                    self.answered = true;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(_) => {}
            }
        }
    }
}
