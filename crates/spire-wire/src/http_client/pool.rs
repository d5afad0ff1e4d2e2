//! Connections that wait for their next request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// How long a connection waits for a request: less than servers and the middleboxes before them usually do.
const KEPT: Duration = Duration::from_secs(30);

/// Connections that wait, to one place.
const MOST_WAITING: usize = 8;

/// Whom a connection leads to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

/// A connection. It ends when this is dropped.
pub(super) struct Open {
    pub(super) requests: SendRequest<Full<Bytes>>,
    _driver: AbortOnDropHandle<hyper::Result<()>>,
}

impl Open {
    pub(super) async fn over<T>(stream: T) -> Result<Self, String>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (requests, connection) = shaken.map_err(|error| error.to_string())?;
        Ok(Self {
            requests,
            _driver: AbortOnDropHandle::new(tokio::spawn(connection)),
        })
    }
}

/// Those that wait.
pub(super) struct Pool {
    kept: Duration,
    waiting: Mutex<Waiting>,
}

impl Default for Pool {
    fn default() -> Self {
        Self::keeping_for(KEPT)
    }
}

#[derive(Default)]
struct Waiting {
    open: HashMap<Place, Vec<(Instant, Open)>>,
    /// Ends those that waited long enough, as long as there are any.
    sweeper: Option<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn keeping_for(kept: Duration) -> Self {
        Self {
            kept,
            waiting: Mutex::default(),
        }
    }

    /// The one that was used last, if one waits that has not ended.
    pub(super) async fn take(&self, place: &Place) -> Option<Open> {
        loop {
            let (since, mut open) = {
                let mut waiting = self.lock();
                let ready = waiting.open.get_mut(place)?;
                ready.pop()?
            };
            if since.elapsed() < self.kept && open.requests.ready().await.is_ok() {
                return Some(open);
            }
        }
    }

    /// For the next request. Its answer was read to the end.
    pub(super) fn keep(self: &Arc<Self>, place: &Place, open: Open) {
        if open.requests.is_closed() {
            return;
        }
        let mut waiting = self.lock();
        let there = waiting.open.entry(place.clone()).or_default();
        if there.len() >= MOST_WAITING {
            there.remove(0);
        }
        there.push((Instant::now(), open));
        // That of a runtime which has gone is finished, too.
        if { waiting.sweeper.as_ref() }.is_none_or(JoinHandle::is_finished) {
            waiting.sweeper = Some(tokio::spawn(sweep(Arc::downgrade(self), self.kept)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sweep(pool: Weak<Pool>, kept: Duration) {
    loop {
        tokio::time::sleep(kept).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut waiting = pool.lock();
        waiting.open.retain(|_, there| {
            there.retain(|(since, open)| since.elapsed() < kept && !open.requests.is_closed());
            !there.is_empty()
        });
        if waiting.open.is_empty() {
            // Under the lock: who keeps one from now on finds none at work.
            waiting.sweeper = None;
            return;
        }
    }
}
