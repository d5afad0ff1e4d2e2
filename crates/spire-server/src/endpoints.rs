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

/// Connections at a time, of each door, where the process may open so many files. Each agent has one.
const MOST_CONNECTIONS: usize = 65_536;

/// As many connections as `files` descriptors leave room for: an eighth is for the datastore and files.
fn most_connections(files: u64) -> usize {
    usize::try_from(files - files / 8).map_or(MOST_CONNECTIONS, |most| most.min(MOST_CONNECTIONS))
}

/// After a failure to accept, so that a process without free descriptors does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs `connection` for each that `accept` gives, until `stop`; then waits for those that are open. More than
/// [`most_connections`] are closed as they come.
async fn accept_loop<T, F>(
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
    mut connection: impl FnMut(T) -> F,
    stop: impl Future<Output = ()>,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut stop = std::pin::pin!(stop);
    let mut open = JoinSet::new();
    let files = ah_daemon::limits::raise_open_files().map_or(1024, |files| files.now);
    let most = most_connections(files);
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
            Ok(_) if open.len() >= most => {
                tracing::warn!(
                    most,
                    "Too many connections; one was closed: raise the limit of open files (LimitNOFILE), or add a server"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_connections_as_descriptors_leave_room_for() {
        assert_eq!(most_connections(1024), 896);
        assert_eq!(most_connections(20_000), 17_500);
        assert_eq!(most_connections(524_288), MOST_CONNECTIONS);
        assert_eq!(most_connections(u64::MAX), MOST_CONNECTIONS);
    }
}
