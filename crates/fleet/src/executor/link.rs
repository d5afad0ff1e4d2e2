//! One enrolled session from the executor's side: heartbeats both ways, and what it hears.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Clock, Explained, Published};
use ah_tls::{Fate, PeerIdentity};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::Streaming;

use super::{Remote, dial};
use crate::moment::unix_millis;
use crate::proto::access_point_message::Kind as Incoming;
use crate::proto::executor_message::Kind as Outgoing;
use crate::proto::{
    AccessPointMessage, ExecutorMessage, Goodbye, Heartbeat, HeartbeatReply, Welcome,
};
use crate::refusal;

/// Bounds on what an access point may ask of us.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(20);
const LONGEST_INTERVAL: Duration = Duration::from_secs(3_600);
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// An open, welcomed session.
pub(super) struct Link {
    pub(super) target: Remote,
    pub(super) remote: SocketAddr,
    pub(super) server: PeerIdentity,
    pub(super) published: Arc<Published>,
    pub(super) generation: u64,
    pub(super) welcome: Welcome,
    pub(super) interval: Duration,
    /// The access point's clock less ours, in milliseconds, at the welcome.
    pub(super) clock_skew_ms: i64,
    pub(super) round_trip: Option<Duration>,
    pub(super) heartbeats: u64,
    fate: Fate,
    outbox: mpsc::Sender<ExecutorMessage>,
    inbound: Streaming<AccessPointMessage>,
    heard: Instant,
    next_heartbeat: Instant,
    heartbeat_sent: Instant,
    _connection: AbortOnDropHandle<()>,
}

/// What the session's owner has to know.
pub(super) enum News {
    /// The access point was heard.
    Heard,
    /// It goes away.
    Drain { after: Duration, spread: Duration },
}

impl Link {
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, where each of them was just made"
    )]
    pub(super) fn new(
        target: Remote,
        remote: SocketAddr,
        server: PeerIdentity,
        published: Arc<Published>,
        fate: Fate,
        welcome: Welcome,
        hello_sent: Instant,
        outbox: mpsc::Sender<ExecutorMessage>,
        inbound: Streaming<AccessPointMessage>,
        connection: AbortOnDropHandle<()>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let now = Instant::now();
        let interval = Duration::from_millis(welcome.heartbeat_interval_ms.into())
            .clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
        Self {
            clock_skew_ms: clock_skew_ms(&welcome, clock.now(), now - hello_sent),
            target,
            remote,
            server,
            generation: published.generation,
            published,
            welcome,
            interval,
            round_trip: None,
            heartbeats: 0,
            fate,
            outbox,
            inbound,
            heard: now,
            // Executors that enrolled in one instant must not beat in one instant for ever.
            next_heartbeat: now + interval.mul_f64(rand::random::<f64>()),
            heartbeat_sent: now,
            _connection: connection,
        }
    }

    /// Keeps the heartbeats going until there is news. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<News, Explained> {
        loop {
            let silent_at = self.heard + 2 * self.interval;
            tokio::select! {
                // After a stall (a suspended host) what has arrived counts before the silence does.
                biased;
                message = self.inbound.message() => {
                    let message = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return Err(self.lost("the access point ended the session")),
                        Err(status) => return Err(self.ended(&status)),
                    };
                    self.heard = Instant::now();
                    match message.kind {
                        Some(Incoming::Heartbeat(heartbeat)) => {
                            self.send(Outgoing::HeartbeatReply(HeartbeatReply {
                                sequence: heartbeat.sequence,
                            }));
                            return Ok(News::Heard);
                        }
                        Some(Incoming::HeartbeatReply(reply)) => {
                            if reply.sequence == self.heartbeats {
                                self.round_trip = Some(self.heartbeat_sent.elapsed());
                            }
                            return Ok(News::Heard);
                        }
                        Some(Incoming::Drain(drain)) => {
                            return Ok(News::Drain {
                                after: Duration::from_millis(drain.reconnect_after_ms.into()),
                                spread: Duration::from_millis(drain.spread_ms.into()),
                            });
                        }
                        // A second welcome, or a kind of a later version.
                        Some(Incoming::Welcome(_)) | None => {}
                    }
                }
                () = tokio::time::sleep_until(self.next_heartbeat) => self.beat(),
                () = tokio::time::sleep_until(silent_at) => {
                    let silence = format!("nothing was heard for {:.1}s", (2 * self.interval).as_secs_f64());
                    return Err(self.lost(&silence));
                }
            }
        }
    }

    /// Says goodbye and waits until the access point has closed, at most a moment.
    pub(super) async fn goodbye(mut self, reason: &str) {
        self.send(Outgoing::Goodbye(Goodbye {
            reason: reason.to_owned(),
        }));
        let closed = async { while let Ok(Some(_)) = self.inbound.message().await {} };
        let _ = tokio::time::timeout(FAREWELL, closed).await;
    }

    fn beat(&mut self) {
        self.heartbeats += 1;
        self.heartbeat_sent = Instant::now();
        self.next_heartbeat = self.heartbeat_sent + self.interval;
        let last = self.round_trip.unwrap_or_default().as_micros();
        self.send(Outgoing::Heartbeat(Heartbeat {
            sequence: self.heartbeats,
            last_round_trip_us: u64::try_from(last).unwrap_or(u64::MAX),
        }));
    }

    /// A full outbox means that the connection takes nothing any more: the silence that follows ends it.
    fn send(&self, kind: Outgoing) {
        let _ = self.outbox.try_send(ExecutorMessage { kind: Some(kind) });
    }

    fn ended(&self, status: &tonic::Status) -> Explained {
        if let Some(alert) = self.fate.explain() {
            return alert;
        }
        if status.metadata().is_empty() {
            return self.lost(status.message());
        }
        refusal::from_status(status)
    }

    fn lost(&self, why: &str) -> Explained {
        self.fate
            .explain()
            .unwrap_or_else(|| dial::lost(&self.target, why))
    }
}

/// The welcome's clock less ours, taking half of the round trip as its way here.
fn clock_skew_ms(welcome: &Welcome, now: SystemTime, round_trip: Duration) -> i64 {
    let ours = unix_millis(now - round_trip / 2);
    welcome.server_time_unix_ms.saturating_sub(ours)
}
