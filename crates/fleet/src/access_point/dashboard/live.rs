//! Tells open pages that something happened, at most twice a second however much happens.
//!
//! A beat carries no news: a page that hears it asks for itself anew. So nothing is told to a page that it could not
//! have loaded, and a page that missed beats has missed nothing.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use tokio::sync::broadcast::{Receiver, error::RecvError, error::TryRecvError};
use tokio::sync::watch;

use super::Dashboard;
use crate::access_point::registry::lock;
use crate::access_point::{FleetEvent, Operator};

/// Beats are at least this far apart.
const APART: Duration = Duration::from_millis(500);
/// One more beat follows the last event after so long: by then the store has what was decided.
const SETTLED: Duration = Duration::from_secs(1);
/// And one comes when nothing happens: times go on.
const IDLE: Duration = Duration::from_secs(10);

/// One listener for all pages. It runs while there are any.
pub(super) struct Live {
    operator: Operator,
    beats: watch::Sender<u64>,
    running: Mutex<bool>,
}

impl Live {
    pub(super) fn new(operator: Operator) -> Self {
        Self {
            operator,
            beats: watch::Sender::new(0),
            running: Mutex::new(false),
        }
    }

    fn follow(self: &Arc<Self>) -> watch::Receiver<u64> {
        let mut running = lock(&self.running);
        let beats = self.beats.subscribe();
        if !std::mem::replace(&mut *running, true) {
            // Subscribed before the page is answered: it misses nothing that happens from then on.
            tokio::spawn(Arc::clone(self).run(self.operator.watch()));
        }
        beats
    }

    async fn run(self: Arc<Self>, mut events: Receiver<FleetEvent>) {
        let mut wait = IDLE;
        loop {
            let happened = drained(&mut events)
                || tokio::select! {
                    event = events.recv() => !matches!(event, Err(RecvError::Closed)),
                    () = tokio::time::sleep(wait) => false,
                    () = self.operator.over() => false,
                };
            {
                let mut running = lock(&self.running);
                if self.beats.receiver_count() == 0 {
                    *running = false;
                    return;
                }
            }
            self.beats
                .send_modify(|beats| *beats = beats.wrapping_add(1));
            tokio::time::sleep(APART).await;
            wait = if happened { SETTLED } else { IDLE };
        }
    }
}

/// Takes all events that wait. Whether there were any.
fn drained(events: &mut Receiver<FleetEvent>) -> bool {
    let mut any = false;
    loop {
        match events.try_recv() {
            Ok(_) | Err(TryRecvError::Lagged(_)) => any = true,
            Err(TryRecvError::Empty | TryRecvError::Closed) => return any,
        }
    }
}

/// `GET /live`: beats as server-sent events, until the session or the access point ends.
pub(super) async fn stream(
    State(dashboard): State<Arc<Dashboard>>,
    headers: HeaderMap,
) -> Response {
    let beats = dashboard.live.follow();
    let beats = stream::unfold(
        (beats, dashboard, headers),
        |(mut beats, dashboard, headers)| async move {
            tokio::select! {
                beat = beats.changed() => beat.ok()?,
                // An open answer would keep the server from ending in order.
                () = dashboard.operator.over() => return None,
            }
            dashboard.door.admit(&Method::GET, &headers).ok()?;
            let line = format!("data: {}\n\n", *beats.borrow_and_update());
            Some((line, (beats, dashboard, headers)))
        },
    );
    // The first line makes the answer begin at once.
    let lines = stream::iter(["retry: 2000\n\n".to_owned()]).chain(beats);
    (
        [(header::CONTENT_TYPE, "text/event-stream")],
        Body::from_stream(lines.map(Ok::<_, Infallible>)),
    )
        .into_response()
}
