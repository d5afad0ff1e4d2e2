//! The life of an executor: enroll, stay, move to each new identity, wait, enroll again.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use ah_tls::ClientConfigs;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::link::{Link, News};
use super::rotation::{Opener, Rotation};
use super::{Event, Executor, Once, Status};
use crate::moment::rfc3339;

pub(super) struct Run<T> {
    pub(super) executor: Executor,
    pub(super) opener: Opener,
    pub(super) status: watch::Sender<Status>,
    pub(super) tell: T,
    /// Index of the access point to try first.
    pub(super) next_remote: usize,
    pub(super) ever_enrolled: bool,
}

impl<T: Fn(&Event) + Send> Run<T> {
    pub(super) async fn keep_enrolled(
        &mut self,
        stop: &CancellationToken,
    ) -> Result<(), Explained> {
        let mut backoff = Backoff::new();
        let mut configs = self.executor.configs.clone();
        loop {
            let mut tried = configs.current().generation();
            let opened = tokio::select! {
                opened = self.enroll() => opened,
                () = stop.cancelled() => return Ok(()),
            };
            let wait = match opened {
                Ok(link) => {
                    self.note_enrolled(&link);
                    if self.executor.once == Some(Once::Enrolled) {
                        link.goodbye("--once=enrolled").await;
                        return Ok(());
                    }
                    let since = Instant::now();
                    let ended = self.stay(link, stop).await;
                    // What came during the session is not news: it must not cut a drain's wait short.
                    tried = configs.current().generation();
                    backoff.session_lasted(since.elapsed());
                    match ended {
                        Ended::Stopped => return Ok(()),
                        Ended::Drained(wait) => {
                            self.status.send_modify(Status::draining);
                            tracing::info!(retry_in = ?wait, "access point is draining; reconnecting");
                            (self.tell)(&Event::Draining { retry_in: wait });
                            self.next_remote += 1;
                            wait
                        }
                        Ended::Lost(explained) => self.note_failure(explained, backoff.next())?,
                    }
                }
                Err(explained) => self.note_failure(explained, backoff.next())?,
            };
            if self.executor.once.is_some() {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // A new identity may be just what was missing.
                () = newer_than(&mut configs, tried) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Tries each access point once, beginning with the one that is next. The error is the last one's, or the
    /// last that may pass: one that is set up wrong is no reason to give up those that are only away.
    async fn enroll(&mut self) -> Result<Link, Explained> {
        self.own_certificate_is_current()?;
        let remotes = self.executor.remotes.clone();
        let mut failure = None;
        for turn in 0..remotes.len() {
            let index = (self.next_remote + turn) % remotes.len();
            let Some(remote) = remotes.get(index) else {
                continue;
            };
            match self.opener.open(remote).await {
                Ok(link) => {
                    self.next_remote = index;
                    return Ok(link);
                }
                Err(explained) => {
                    if turn + 1 < remotes.len() {
                        tracing::warn!(remote = %remote, "{explained}; trying the next access point");
                    }
                    let may_pass =
                        |failure: &Explained| !is_permanent(failure.code, self.ever_enrolled);
                    if may_pass(&explained) || !failure.as_ref().is_some_and(may_pass) {
                        failure = Some(explained);
                    }
                }
            }
        }
        Err(failure.unwrap_or_else(|| {
            Explained::new(Code::Usage, "no access point is named")
                .hint("give --remote-server https://HOST:PORT")
        }))
    }

    /// Dialling with a certificate that has ended only makes noise at the access point.
    fn own_certificate_is_current(&self) -> Result<(), Explained> {
        let published = Arc::clone(self.executor.configs.current().published());
        let leaf = published.identity.leaf();
        let now = self.executor.clock.now();
        if leaf.not_after > now {
            return Ok(());
        }
        Err(Explained::new(
            Code::ExpiredOrNotYetValid,
            "certificate has expired or is not yet valid",
        )
        .cause(format!(
            "our own certificate {} ended at {}; our clock says {}",
            leaf.serial,
            rfc3339(leaf.not_after),
            rfc3339(now),
        ))
        .hint("renew the certificate; it is taken into use as soon as the provider has it"))
    }

    /// Serves an enrollment, moving it to a new connection for each new identity (EN-14).
    async fn stay(&mut self, mut link: Link, stop: &CancellationToken) -> Ended {
        let mut configs = self.executor.configs.clone();
        let mut rotation = Rotation::default();
        loop {
            let known = link.generation.max(rotation.generation);
            let target = link.target.clone();
            tokio::select! {
                () = stop.cancelled() => {
                    link.goodbye("shutting down").await;
                    return Ended::Stopped;
                }
                news = link.next() => match news {
                    Ok(News::Heard) => self.note_heartbeat(&link),
                    Ok(News::Drain { after, spread }) => {
                        let wait = after + spread.mul_f64(rand::random::<f64>());
                        link.goodbye("draining").await;
                        return Ended::Drained(wait);
                    }
                    Err(explained) => return Ended::Lost(explained),
                },
                () = newer_than(&mut configs, known) => {
                    let current = configs.current();
                    let now = self.executor.clock.now();
                    // The access point may present a certificate that is trusted by now: the next connection tells.
                    let trusted = link.server.still_trusted_as_server(current.trust(), now);
                    rotation.distrusted = trusted.err().map(|error| error.explained().clone());
                    rotation.wanted(current.generation());
                }
                opened = rotation.opened(&self.opener, &target) => match opened {
                    Ok(new) => {
                        let old = std::mem::replace(&mut link, new);
                        rotation = Rotation::default();
                        self.note_rotated(&link);
                        // The old connection's farewell must not hold up the new one's heartbeats.
                        tokio::spawn(async move { old.goodbye("rotated").await });
                    }
                    Err(explained) => {
                        // What an agent or an operator no longer trusts is not served until it goes by itself.
                        if let Some(distrusted) = rotation.distrusted {
                            return Ended::Lost(distrusted);
                        }
                        let wait = rotation.backoff.next();
                        tracing::warn!(retry_in = ?wait, "moving to the new certificate failed: {explained}");
                        self.status.send_modify(|status| status.failed(explained, self.executor.clock.now(), None));
                        rotation.start(rotation.generation, Instant::now() + wait);
                    }
                },
            }
        }
    }

    fn note_enrolled(&mut self, link: &Link) {
        self.ever_enrolled = true;
        tracing::info!(
            executor.id = %link.welcome.executor_id,
            access_point = %link.target,
            session = %link.welcome.session_id,
            "enrolled"
        );
        self.status
            .send_modify(|status| status.enrolled(link, self.executor.clock.now()));
        (self.tell)(&Event::Enrolled {
            executor_id: link.welcome.executor_id.clone(),
            access_point: link.target.to_string(),
        });
    }

    fn note_rotated(&self, link: &Link) {
        let leaf = link.published.identity.leaf();
        tracing::info!(
            executor.id = %link.welcome.executor_id,
            cert.serial = %leaf.serial,
            cert.not_after = %rfc3339(leaf.not_after),
            "certificate rotated; enrollment moved to a new connection"
        );
        self.status
            .send_modify(|status| status.moved(link, self.executor.clock.now()));
        (self.tell)(&Event::Rotated {
            serial: leaf.serial.clone(),
        });
    }

    fn note_heartbeat(&self, link: &Link) {
        let now = self.executor.clock.now();
        self.status.send_if_modified(|status| {
            status.heard(link, now);
            false
        });
    }

    /// How long to wait before the next attempt; `Err` when there is to be none.
    fn note_failure(
        &self,
        explained: Explained,
        retry_in: Duration,
    ) -> Result<Duration, Explained> {
        let now = self.executor.clock.now();
        let gives_up =
            self.executor.once.is_some() || is_permanent(explained.code, self.ever_enrolled);
        let retry = (!gives_up).then_some(retry_in);
        self.status
            .send_modify(|status| status.failed(explained.clone(), now, retry));
        if gives_up {
            return Err(explained);
        }
        tracing::warn!(?retry_in, "{explained}");
        (self.tell)(&Event::Failed {
            explained,
            retry_in,
        });
        Ok(retry_in)
    }

    /// Copies the identity's state into the status for as long as it is polled.
    pub(super) fn follow_health(&self) -> impl Future<Output = ()> + Send + use<T> {
        let status = self.status.clone();
        let mut health = self.executor.health.clone();
        let mut configs = self.executor.configs.clone();
        async move {
            loop {
                let now = health.borrow_and_update().clone();
                let published = Arc::clone(configs.current().published());
                status.send_modify(|status| status.identity(&now, &published));
                // The health changes first, and TLS follows: the status has to follow both.
                let alive = tokio::select! {
                    Ok(()) = health.changed() => true,
                    Some(_) = configs.next() => true,
                    else => false,
                };
                if !alive {
                    return std::future::pending().await;
                }
            }
        }
    }
}

/// How a session ended.
enum Ended {
    /// We were told to stop.
    Stopped,
    /// The access point goes away and asked us to wait.
    Drained(Duration),
    /// Anything else.
    Lost(Explained),
}

/// Resolves when there is an identity newer than `generation`.
async fn newer_than(configs: &mut ClientConfigs, generation: u64) {
    while configs.current().generation() <= generation {
        if configs.next().await.is_none() {
            return std::future::pending().await;
        }
    }
}

/// Whether trying again is no use (EN-13). An executor that was enrolled before has a sound set-up, so what
/// a rotation on either side can cure is waited for then.
fn is_permanent(code: Code, ever_enrolled: bool) -> bool {
    match code {
        Code::ServerIdMismatch
        | Code::SanMismatch
        | Code::ClientRevoked
        | Code::KeyMismatch
        | Code::Usage => true,
        Code::VerifyFailed
        | Code::ExpiredOrNotYetValid
        | Code::NoLocalIssuer
        | Code::UnknownAuthority
        | Code::ClientCertificateRequired
        | Code::ClientUnknownAuthority
        | Code::ClientExpired
        | Code::Duplicate => !ever_enrolled,
        _ => false,
    }
}
