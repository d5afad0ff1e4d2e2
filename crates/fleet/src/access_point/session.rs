//! Serving one executor's session: hello, welcome, heartbeats, and an end for a stated reason.
//!
//! The session is the response stream itself. It is polled by the connection's own stream task, so an idle
//! executor costs no further task and no channel.

mod enrolled;

use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{Code, Explained};
use futures_util::Stream;
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::Shared;
use super::refusals::Refused;
use super::registry::{Caller, End, Order, Session};
use crate::codec::MAX_MESSAGE_BYTES;
use crate::hello::{Greeting, PROTOCOL};
use crate::moment::unix_millis;
use crate::proto::access_point_message::Kind as Outgoing;
use crate::proto::executor_message::Kind as Incoming;
use crate::proto::{AccessPointMessage, Drain, ExecutorMessage, HeartbeatReply, Welcome};
use crate::refusal;
use enrolled::Enrolled;

/// A peer must say hello within this time of opening its call (stated in `fleet.proto`).
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// A session that its executor has left for a newer one stays for this long, or for as long as a silent one:
/// the newer one's welcome may still be on its way.
const FAREWELL: Duration = Duration::from_secs(10);

/// The response's headers wait this long for the hello, so that the welcome leaves in one record with them.
/// Then they go alone, for a client that sends nothing before it has them.
const HEADERS_WITHIN: Duration = Duration::from_millis(20);

/// Serves the call of `caller` whose messages arrive on `inbound`. Resolves when the response may begin.
pub(super) async fn serve(
    shared: Arc<Shared>,
    caller: Caller,
    mut inbound: Streaming<ExecutorMessage>,
) -> Result<impl Stream<Item = Result<AccessPointMessage, Status>> + Send, Status> {
    let first = tokio::time::timeout(HEADERS_WITHIN, inbound.message())
        .await
        .ok();
    let spoke = first.is_some();
    let mut call = Call {
        shared,
        caller,
        inbound,
        first,
        unsent: None,
        enrolled: None,
        oversized: false,
        finished: false,
    };
    if spoke && let Some(welcome) = call.next().await {
        call.unsent = welcome?.kind.map(Box::new);
    }
    Ok(futures_util::stream::unfold(call, |mut call| async move {
        let item = call.next().await?;
        Some((item, call))
    }))
}

struct Call {
    shared: Arc<Shared>,
    caller: Caller,
    inbound: Streaming<ExecutorMessage>,
    /// What arrived on `inbound` before the response began.
    first: Option<Result<Option<ExecutorMessage>, Status>>,
    /// What is sent next. Boxed, as most of the time there is nothing.
    unsent: Option<Box<Outgoing>>,
    enrolled: Option<Enrolled>,
    /// The peer sent a message above the limit, which has a status of its own.
    oversized: bool,
    finished: bool,
}

impl Call {
    /// The next message to send; `None` closes the call in order, `Err` closes it with a status.
    async fn next(&mut self) -> Option<Result<AccessPointMessage, Status>> {
        if self.finished {
            return None;
        }
        if let Some(kind) = self.unsent.take() {
            return Some(Ok(AccessPointMessage { kind: Some(*kind) }));
        }
        let step = if self.enrolled.is_none() {
            // Boxed, so that an idle session carries no room for its beginning.
            Box::pin(self.enroll()).await.map(Some)
        } else {
            self.converse().await
        };
        match step {
            Ok(Some(kind)) => Some(Ok(AccessPointMessage { kind: Some(kind) })),
            Ok(None) => {
                self.finished = true;
                None
            }
            Err(explained) => {
                self.finished = true;
                if let Some(enrolled) = &mut self.enrolled {
                    enrolled.why = explained.code.as_str();
                    enrolled.reason = Some(explained.text.clone());
                }
                // Out of the registry before the peer learns of it.
                self.enrolled = None;
                Some(Err(if self.oversized {
                    refusal::oversized(&explained)
                } else {
                    refusal::to_status(&explained)
                }))
            }
        }
    }

    /// Hello to welcome.
    async fn enroll(&mut self) -> Result<Outgoing, Explained> {
        let greeting = match self.hello().await {
            Ok(greeting) => greeting,
            Err(explained) => return Err(self.reject(None, explained)),
        };
        let session = Arc::new(Session::new(
            greeting,
            &self.caller,
            self.shared.heartbeat_interval(),
            self.shared.clock.now(),
        ));
        // The handshake was judged by the policy of its moment; a revocation since then counts too.
        if let Err(explained) = self.judge() {
            return Err(self.reject(Some(&session), explained));
        }
        let admission = match self
            .shared
            .registry
            .admit(&session, &self.shared.limits())
            .await
        {
            Ok(admission) => admission,
            Err(explained) => return Err(self.reject(Some(&session), explained)),
        };
        // What changed between the judgement and the admission found no session to end.
        if let Err(explained) = self.judge() {
            self.shared.registry.leave(&session);
            return Err(self.reject(Some(&session), explained));
        }
        let enrolled = self.enrolled.insert(Enrolled {
            shared: Arc::clone(&self.shared),
            session: Arc::clone(&session),
            sent: 0,
            sent_at: Instant::now(),
            leaving_by: None,
            why: "connection lost",
            reason: None,
        });
        // The audit log has the beginning even if the peer goes away while the store is slow.
        enrolled.record(admission).await;
        Ok(Outgoing::Welcome(Welcome {
            protocol: PROTOCOL,
            session_id: session.id.to_string(),
            executor_id: session.executor.to_string(),
            heartbeat_interval_ms: millis_u32(session.heartbeat_interval),
            server_time_unix_ms: unix_millis(self.shared.clock.now()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    fn judge(&self) -> Result<(), Explained> {
        let Caller {
            peer, generation, ..
        } = &self.caller;
        self.shared.judge(peer, *generation)
    }

    async fn hello(&mut self) -> Result<Greeting, Explained> {
        let first = match self.first.take() {
            Some(first) => first,
            None => tokio::time::timeout(HELLO_WITHIN, self.inbound.message())
                .await
                // Slow or gone is not wrong: the executor may try again.
                .map_err(|_| {
                    Explained::new(Code::Unavailable, "no hello within 10 s of the call")
                })?,
        };
        let first = first
            .map_err(|status| broken(&status, &mut self.oversized))?
            .ok_or_else(|| Explained::new(Code::Unavailable, "call ended before its hello"))?;
        match first.kind {
            Some(Incoming::Hello(hello)) => Greeting::parse(*hello),
            _ => Err(Explained::new(Code::Usage, "first message is not a hello")
                .hint("send Hello as the first message of the call")),
        }
    }

    /// Turns the peer away, with a line in log, audit and metrics.
    fn reject(&self, session: Option<&Session>, explained: Explained) -> Explained {
        self.shared.turned_away(Refused {
            explained: &explained,
            remote: self.caller.remote,
            executor: Some(self.caller.executor()),
            certificate: Some(self.caller.peer.leaf()),
            vouched: true,
            greeting: session.map(|session| &session.greeting),
        });
        explained
    }

    /// Waits for what happens next in an enrolled session.
    async fn converse(&mut self) -> Result<Option<Outgoing>, Explained> {
        let Some(enrolled) = self.enrolled.as_mut() else {
            return Ok(None);
        };
        loop {
            let until = enrolled.check_time()?;
            let Some(until) = until else {
                return Ok(None);
            };
            tokio::select! {
                biased;
                order = enrolled.session.order() => match order {
                    Order::Ping => return Ok(Some(enrolled.heartbeat())),
                    Order::End(End::Refused(explained)) => return Err(*explained),
                    Order::End(End::Superseded) => {
                        enrolled.why = "superseded";
                        let stay = enrolled.session.patience().max(FAREWELL);
                        enrolled.leaving_by = Some(Instant::now() + stay);
                    }
                    Order::End(End::Drain { reconnect_after, spread }) => {
                        enrolled.why = "drained";
                        enrolled.leaving_by = Some(Instant::now() + enrolled.shared.drain_timeout());
                        return Ok(Some(Outgoing::Drain(Drain {
                            reconnect_after_ms: millis_u32(reconnect_after),
                            spread_ms: millis_u32(spread),
                            reason: "access point is shutting down".to_owned(),
                        })));
                    }
                },
                message = self.inbound.message() => {
                    let message = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return Ok(None),
                        Err(status) => return Err(broken(&status, &mut self.oversized)),
                    };
                    enrolled.session.note_heard();
                    match message.kind {
                        Some(Incoming::Heartbeat(heartbeat)) => {
                            enrolled.shared.metrics.heartbeat_received();
                            // Ours rides along, so that an idle executor wakes us once an interval.
                            self.unsent = Some(Box::new(enrolled.heartbeat()));
                            return Ok(Some(Outgoing::HeartbeatReply(HeartbeatReply {
                                sequence: heartbeat.sequence,
                            })));
                        }
                        Some(Incoming::HeartbeatReply(reply)) if reply.sequence == enrolled.sent => {
                            let round_trip = enrolled.sent_at.elapsed();
                            enrolled.session.note_round_trip(round_trip);
                            enrolled.shared.metrics.round_trip(round_trip);
                        }
                        Some(Incoming::Goodbye(goodbye)) => {
                            if enrolled.leaving_by.is_none() {
                                enrolled.why = "goodbye";
                            }
                            enrolled.reason = Some(goodbye.reason).filter(|r| !r.is_empty());
                            return Ok(None);
                        }
                        Some(Incoming::Hello(_)) => {
                            return Err(Explained::new(Code::Usage, "hello was sent twice"));
                        }
                        // An answer to an older heartbeat, or a kind of a later version.
                        Some(Incoming::HeartbeatReply(_)) | None => {}
                    }
                }
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }
}

/// The peer's stream failed: too large a message, a reset, a connection lost.
fn broken(status: &Status, oversized: &mut bool) -> Explained {
    match status.code() {
        tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => {
            *oversized = true;
            Explained::new(
                Code::Usage,
                format!("a message has more than {MAX_MESSAGE_BYTES} bytes"),
            )
            .cause(status.message())
        }
        // What the connection did has a source; what cannot be decoded has none.
        tonic::Code::Internal if std::error::Error::source(&status).is_none() => {
            Explained::new(Code::Usage, status.message().to_owned())
        }
        _ => Explained::new(
            Code::Unavailable,
            format!("connection lost: {}", status.message()),
        ),
    }
}

fn millis_u32(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
