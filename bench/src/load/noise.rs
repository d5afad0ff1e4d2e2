//! Sockets that never become a session.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use rustls::ClientConnection;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::connect::{Dialer, Target};
use super::stats::{Event, unix_us};
use crate::pki::{Authority, Files};
use crate::tls::ClientTemplate;

/// What a socket does instead of a handshake.
#[derive(ValueEnum, Clone, Copy, Debug)]
enum Kind {
    /// Sends nothing.
    Silent,
    /// Sends bytes that are not TLS.
    Garbage,
    /// Sends a hello one byte a second.
    Slow,
    /// Sends a whole ClientHello and nothing after it.
    Hello,
    /// The first three in turn.
    Mixed,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Noise {
    #[command(flatten)]
    target: Target,
    /// What the sockets do.
    #[arg(long, value_enum)]
    kind: Kind,
    /// Sockets at a time.
    #[arg(long, default_value_t = 5_000)]
    sockets: u32,
    /// Open a socket again one second after the server has cut it.
    #[arg(long)]
    reopen: bool,
    /// Length of the run in seconds.
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
}

impl Noise {
    /// Reports the sockets open and cut once a second.
    pub(crate) async fn run(self) -> io::Result<()> {
        let dialer = Arc::new(Dialer::new(&self.target)?);
        let hello = Arc::new(client_hello(&self.target)?);
        let open = Arc::new(AtomicU64::new(0));
        let (sender, mut cut) = mpsc::unbounded_channel();
        for number in 0..self.sockets {
            let (dialer, hello, open, sender) =
                (dialer.clone(), hello.clone(), open.clone(), sender.clone());
            let kind = self.kind.of(number);
            let reopen = self.reopen;
            tokio::spawn(async move {
                loop {
                    if let Ok(mut stream) = dialer.connect().await {
                        let begun = Instant::now();
                        open.fetch_add(1, Ordering::Relaxed);
                        let _ = disturb(&mut stream, kind, &hello).await;
                        open.fetch_sub(1, Ordering::Relaxed);
                        let _ = sender.send(begun.elapsed());
                    }
                    if !reopen {
                        break;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
            if number % 64 == 63 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let mut ages = Histogram::<u64>::new(3).map_err(io::Error::other)?;
        let end = Instant::now() + Duration::from_secs_f64(self.seconds);
        while Instant::now() < end {
            let second = Instant::now() + Duration::from_secs(1);
            while let Ok(Some(age)) = tokio::time::timeout_at(second, cut.recv()).await {
                ages.saturating_record(u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
            }
            Event::Noise {
                open: open.load(Ordering::Relaxed),
                cut: ages.len(),
                median_age_us: ages.value_at_quantile(0.5),
                oldest_us: ages.max(),
                unix_us: unix_us(),
            }
            .print();
        }
        Ok(())
    }
}

impl Kind {
    fn of(self, number: u32) -> Self {
        match self {
            Self::Mixed => match number % 3 {
                0 => Self::Silent,
                1 => Self::Garbage,
                _ => Self::Slow,
            },
            kind => kind,
        }
    }
}

/// Does what `kind` says until the server closes.
async fn disturb(stream: &mut TcpStream, kind: Kind, hello: &[u8]) -> io::Result<()> {
    match kind {
        Kind::Silent | Kind::Mixed => {}
        Kind::Garbage => {
            let garbage: [u8; 64] = rand::random();
            stream.write_all(&garbage).await?;
        }
        Kind::Hello => stream.write_all(hello).await?,
        Kind::Slow => {
            for byte in hello {
                stream.write_u8(*byte).await?;
                let mut answer = [0; 1];
                // A second without an answer is what the pace asks for; an answer is the end.
                if let Ok(read) = timeout(Duration::from_secs(1), stream.read(&mut answer)).await {
                    return read.map(drop);
                }
            }
        }
    }
    let mut answer = [0; 512];
    while stream.read(&mut answer).await? > 0 {}
    Ok(())
}

/// A real ClientHello, as the executors send it.
fn client_hello(target: &Target) -> io::Result<Vec<u8>> {
    let authority = Authority::open(&Files::at(&target.pki))?;
    let template = ClientTemplate::new(&authority, target.protocol.alpn())?;
    let key = Authority::executor_key()?;
    let config = template.present(authority.executor(&key, target.first_id)?)?;
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    let mut connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    let mut hello = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut hello)?;
    }
    Ok(hello)
}
