//! The streams: the present set at once, and every later one (SV-75).

use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::watch;
use tonic::Status;

use super::messages::Messages;
use super::quota::CallPlace;
use super::refusal::{Refused, no_identity};
use super::service::{Method, Shared};
use crate::identities::{Identities, WorkloadUpdate};
use crate::metrics::OpenCall;

/// What is sent, and to whom.
pub(super) struct Updates<I, A> {
    pub(super) shared: Arc<Shared<I, A>>,
    pub(super) method: Method,
    pub(super) refused: Refused,
    pub(super) sets: watch::Receiver<Arc<WorkloadUpdate>>,
    #[expect(dead_code, reason = "held for as long as the stream is open")]
    pub(super) held: (CallPlace, OpenCall),
}

struct State<I, A> {
    updates: Updates<I, A>,
    /// Shared with whoever has the same set; kept so that the next workload finds it.
    sent: Option<(Arc<Messages>, Bytes)>,
}

impl<I: Identities, A: Send + Sync + 'static> Updates<I, A> {
    /// Each set as a message. Ends with the status that the workload has to be told.
    pub(super) fn into_stream(
        mut self,
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send, Status> {
        // A refusal at the start is the whole answer.
        let first = self.present()?;
        let state = State {
            updates: self,
            sent: None,
        };
        Ok(unfold(Some((state, Some(first))), |state| async move {
            let (mut state, first) = state?;
            let next = match first {
                Some(first) => Ok(first),
                None => state.next().await,
            };
            match next {
                Ok((messages, message)) => {
                    if state.updates.method == Method::FetchJwtBundles {
                        state.updates.shared.metrics.jwt_bundles.increment();
                    }
                    state.sent = Some((messages, message.clone()));
                    Some((Ok(message), Some((state, None))))
                }
                Err(status) => Some((Err(status), None)),
            }
        }))
    }

    /// The newest set's message.
    fn present(&mut self) -> Result<(Arc<Messages>, Bytes), Status> {
        let update = Arc::clone(&self.sets.borrow_and_update());
        let messages = self.shared.messages.messages(&update);
        let open = self.shared.config.allow_unauthenticated_verifiers;
        let message = match self.method {
            Method::FetchX509Svid if messages.has_identity() => messages.svids(),
            Method::FetchX509Bundles if open || messages.has_identity() => messages.x509_bundles(),
            Method::FetchJwtBundles if open || messages.has_identity() => messages.jwt_bundles(),
            _ => return Err(no_identity(&self.shared, &self.refused)),
        };
        Ok((messages, message))
    }
}

impl<I: Identities, A: Send + Sync + 'static> State<I, A> {
    /// The next message that differs from the last one.
    async fn next(&mut self) -> Result<(Arc<Messages>, Bytes), Status> {
        loop {
            if self.updates.sets.changed().await.is_err() {
                return Err(Status::unavailable("the agent is stopping"));
            }
            let (messages, message) = self.updates.present()?;
            // A new SVID changes no bundle. SVIDs are told whenever they are published, as upstream does.
            let same = |(_, sent): &(Arc<Messages>, Bytes)| *sent == message;
            if self.updates.method != Method::FetchX509Svid && self.sent.as_ref().is_some_and(same)
            {
                self.sent = Some((messages, message));
                continue;
            }
            return Ok((messages, message));
        }
    }
}
