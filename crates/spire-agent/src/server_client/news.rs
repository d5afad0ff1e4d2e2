use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ah_spire_wire::Channel;
use ah_spire_wire::changes::changes_client::ChangesClient;
use ah_spire_wire::changes::{Changed, ReportRequest, WatchRequest};
use futures_util::FutureExt;
use tokio::time::Instant;
use tonic::Streaming;

use super::{ServerClient, ServerFault};

/// A server that tells of changes says so at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a server tells of changes. It outlives the connection's use for calls, so that nothing is missed between two.
pub(crate) struct News {
    stream: Streaming<Changed>,
    since: Instant,
    /// The connection's, which tells it from others.
    of: Arc<AtomicBool>,
    /// What the server was told last.
    reported: Option<Holds>,
}

/// What an agent holds: operators wait for it before they change an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holds {
    /// Sequence number of the own trust domain's bundle.
    pub(crate) bundle_sequence: u64,
    /// X509-SVIDs of tainted authorities.
    pub(crate) tainted_svids: usize,
}

/// What was heard.
pub(crate) enum Heard {
    /// What this agent is served with has changed, once or often.
    Changed,
    /// The server does not want this agent any more.
    Denied,
    /// The stream ended, or broke.
    Ended,
}

impl ServerClient {
    /// What is told on the present connection: `held`, or a new stream. Once it is there, no change is missed. `None` when
    /// the server does not tell of changes.
    pub(crate) async fn news(&self, held: Option<News>) -> Result<Option<News>, ServerFault> {
        const WHAT: &str = "listening for changes";
        let connection = self.connection().await?;
        if let Some(held) = held.filter(|held| Arc::ptr_eq(&held.of, &connection.silent)) {
            return Ok(Some(held));
        }
        if connection.silent.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut client = ChangesClient::with_origin(connection.channel, Channel::origin());
        let answer = tokio::time::timeout(PATIENCE, client.watch(WatchRequest {})).await;
        let why = match answer {
            Ok(Ok(answer)) => {
                return Ok(Some(News {
                    stream: answer.into_inner(),
                    since: Instant::now(),
                    of: connection.silent,
                    reported: None,
                }));
            }
            Ok(Err(status)) => {
                match ServerFault::of_status(WHAT, &status, &self.settings().address) {
                    fault @ ServerFault::Denied(..) => return Err(fault),
                    // What is wrong with the connection, the next call finds out.
                    ServerFault::Unreachable(_) => return Ok(None),
                    fault => fault,
                }
            }
            Err(_) => ServerFault::timed_out(WHAT, PATIENCE, &self.settings().address),
        };
        connection.silent.store(true, Ordering::Relaxed);
        tracing::debug!(error = %why, "the server does not tell of changes: it is asked at each interval");
        Ok(None)
    }

    /// Tells the server what is held, where it was not told yet by who listens to `news`. Over the present connection:
    /// where that is a newer one, the round that listens there tells it again.
    pub(crate) async fn report(&self, news: &mut News, holds: Holds) {
        if news.reported == Some(holds) {
            return;
        }
        let Ok(connection) = self.connection().await else {
            return;
        };
        let request = ReportRequest {
            bundle_sequence: holds.bundle_sequence,
            tainted_svids: u32::try_from(holds.tainted_svids).unwrap_or(u32::MAX),
        };
        let mut client = ChangesClient::with_origin(connection.channel, Channel::origin());
        match tokio::time::timeout(PATIENCE, client.report(request)).await {
            Ok(Ok(_)) => news.reported = Some(holds),
            // An older server does not want to know.
            Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => {
                news.reported = Some(holds);
            }
            Ok(Err(status)) => {
                tracing::debug!(
                    error = status.message(),
                    "the server was not told what is held"
                );
            }
            Err(_) => tracing::debug!("the server was not told what is held: no answer"),
        }
    }
}

impl News {
    /// Waits for the next news. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Heard {
        match self.stream.message().await {
            Ok(Some(_)) => {
                // One look at the server is enough for all that has come by now.
                while let Some(Ok(Some(_))) = self.stream.message().now_or_never() {}
                Heard::Changed
            }
            Ok(None) => Heard::Ended,
            Err(status) if status.code() == tonic::Code::PermissionDenied => Heard::Denied,
            Err(_) => Heard::Ended,
        }
    }

    /// For how long the server has told.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }
}
