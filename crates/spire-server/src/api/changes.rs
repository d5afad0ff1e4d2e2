//! Telling an agent that it has news, so that it need not wait for its next poll. Beside upstream's services: agents
//! that do not know of it poll as ever.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ah_spire_wire::changes::changes_server::Changes;
use ah_spire_wire::changes::{Changed, ReportRequest, ReportResponse, WatchRequest};
use ah_spire_wire::types::permission_denied_details::Reason;
use futures_util::stream::{Stream, unfold};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::authorize::{denied, standing};
use super::holdings::Holding;
use super::{Core, Going, PeerSvid, caller};
use crate::store::Store;

/// Between two messages to one agent at least: what changes meanwhile is one message.
const SPACING: Duration = Duration::from_millis(100);

/// A changed bundle concerns every agent, and a changed root makes each connect anew: they are told within this time,
/// not all at once.
const SPREAD: Duration = Duration::from_secs(1);

pub(super) struct Watches<S>(pub(super) Arc<Core<S>>);

#[tonic::async_trait]
impl<S: Store> Changes for Watches<S> {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Changed, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = caller(&request)?;
        let missing = || Status::internal("caller missing from request");
        let svid = caller.svid().ok_or_else(missing)?.clone();
        let going = request.extensions().get::<Going>().ok_or_else(missing)?;
        let core = self.0.clone();
        let left = svid.not_after.duration_since(core.clock.now());
        let watch = Watch {
            entries: core.entries.subscribe(&svid.id),
            bundles: core.entries.subscribe_to_bundles(),
            going: going.0.clone(),
            ends: Instant::now() + left.unwrap_or_default(),
            due: None,
            told: None,
            svid,
            core,
        };
        // It was judged before it subscribed.
        watch.judge().await?;
        let stream = unfold(Some(watch), |watch| async {
            let mut watch = watch?;
            match watch.next().await? {
                Ok(()) => Some((Ok(Changed {}), Some(watch))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportResponse>, Status> {
        let caller = caller(&request)?;
        let missing = || Status::internal("caller missing from request");
        let agent = caller.svid().ok_or_else(missing)?;
        let report = request.into_inner();
        let holding = Holding {
            bundle_sequence: report.bundle_sequence,
            tainted_svids: report.tainted_svids,
        };
        let core = &self.0;
        core.holdings.report(agent, holding, core.clock.now());
        Ok(Response::new(ReportResponse {}))
    }
}

struct Watch<S> {
    core: Arc<Core<S>>,
    svid: PeerSvid,
    entries: watch::Receiver<u64>,
    bundles: watch::Receiver<u64>,
    going: CancellationToken,
    /// When the agent's SVID does.
    ends: Instant,
    /// When there is something to tell.
    due: Option<Instant>,
    told: Option<Instant>,
}

impl<S: Store> Watch<S> {
    /// Resolves when the agent is to look again, or is an agent no longer; `None` when the connection is to end.
    async fn next(&mut self) -> Option<Result<(), Status>> {
        loop {
            let due = self.due;
            tokio::select! {
                biased;
                () = self.going.cancelled() => return None,
                () = sleep_until(self.ends) => {
                    return Some(Err(ended(Reason::AgentExpired)));
                }
                Ok(()) = self.entries.changed() => {
                    if let Err(status) = self.judge().await {
                        return Some(Err(status));
                    }
                    self.tell_at(Instant::now());
                }
                Ok(()) = self.bundles.changed() => {
                    self.tell_at(Instant::now() + SPREAD.mul_f64(rand::random()));
                }
                () = sleep_until(due.unwrap_or(self.ends)), if due.is_some() => {
                    (self.due, self.told) = (None, Some(Instant::now()));
                    return Some(Ok(()));
                }
            }
        }
    }

    fn tell_at(&mut self, at: Instant) {
        let at = self.told.map_or(at, |told| at.max(told + SPACING));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Whether the agent may still listen. The store is asked only when the cache does not know the agent as a good
    /// one: another server may have attested it a moment ago. While the store does not answer nobody is sent away, for
    /// each call is judged by itself.
    async fn judge(&self) -> Result<(), Status> {
        let known = self.core.entries.agent(&self.svid.id);
        if known.is_some_and(|agent| !agent.is_banned()) {
            return Ok(());
        }
        match standing(&self.core, &self.svid).await {
            Ok(Some(reason)) => Err(ended(reason)),
            Ok(None) | Err(_) => Ok(()),
        }
    }
}

fn ended(reason: Reason) -> Status {
    denied("the agent is told of no more changes", Some(reason))
}
