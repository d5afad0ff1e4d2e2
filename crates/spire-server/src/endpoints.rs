//! Where the services are reached: a unix socket for this host, TLS for the network.

mod local;
mod proxy;
mod tcp;
mod tls;

use std::future::{Future, poll_fn};
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub use self::local::LocalSocket;
pub use self::tcp::{Network, bind};
pub use self::tls::{ClientTrust, Configs, ServerSvid};

/// Connections at a time, of each door.
const MOST_CONNECTIONS: usize = 8192;

/// After a failure to accept, so that a process without free descriptors does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs `connection` for each that `accept` gives, until `stop`; then waits for those that are open. More than
/// [`MOST_CONNECTIONS`] are closed as they come.
async fn accept_loop<T, F>(
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
    mut connection: impl FnMut(T) -> F,
    stop: impl Future<Output = ()>,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut stop = std::pin::pin!(stop);
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            Some(ended) = open.join_next() => {
                report_panic(ended);
                continue;
            }
            accepted = poll_fn(&mut accept) => accepted,
        };
        match accepted {
            Ok(_) if open.len() >= MOST_CONNECTIONS => {
                tracing::warn!(
                    most = MOST_CONNECTIONS,
                    "Too many connections; one was closed"
                );
            }
            Ok(accepted) => {
                open.spawn(connection(accepted));
            }
            Err(error) => {
                tracing::error!(%error, "Cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    while let Some(ended) = open.join_next().await {
        report_panic(ended);
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "A connection's task panicked");
    }
}

/// Handshakes at a time; a client that comes above that is cut after its ClientHello.
static HANDSHAKES: Semaphore = Semaphore::const_new(256);
