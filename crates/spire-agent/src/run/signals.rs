//! Signals besides those that end the process, and what the service manager hears of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ah_daemon::signals::{Request, Requests};
use ah_daemon::systemd;
use ah_identity_provider::Explained;
use ah_spire_telemetry::{Log, Metrics};
use tokio_util::sync::CancellationToken;

use super::plugins::Reload;
use crate::health::Health;

/// Opens the log file again, or has the plugins read their files again and tells what metrics are kept.
pub(super) async fn act_on(
    mut requests: Requests,
    log: Arc<Log>,
    metrics: Metrics,
    mut reload: Reload,
    manager: Arc<Manager>,
    stop: CancellationToken,
) -> Result<(), Explained> {
    loop {
        let request = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            request = requests.next() => request,
        };
        match request {
            Some(Request::ReopenLog) => log.reopen(),
            Some(Request::Reload) => {
                manager.reloading();
                metrics.log_memory().await;
                let done = Box::pin(reload.run()).await;
                manager.reloaded(&done);
            }
            None => {
                stop.cancelled().await;
                return Ok(());
            }
        }
    }
}

/// What the service manager is told.
#[derive(Default)]
pub(super) struct Manager {
    ready: AtomicBool,
}

impl Manager {
    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    fn reloading(&self) {
        if self.is_ready() {
            systemd::reloading();
        }
    }

    fn reloaded(&self, done: &str) {
        if self.is_ready() {
            systemd::ready(done);
        }
    }

    /// Ready once workloads can be served; then a line on how it is.
    pub(super) async fn tell(
        self: Arc<Self>,
        health: Health,
        stop: CancellationToken,
    ) -> Result<(), Explained> {
        let mut changes = health.watch();
        let watchdog = tokio::spawn(systemd::feed_watchdog(|| true, stop.clone()));
        loop {
            let state = changes.borrow_and_update().clone();
            let line = match (&state.id, state.not_ready()) {
                (Some(id), None) => format!("serving workloads as {id}"),
                (None, None) => {
                    "serving what was kept; not in touch with the server yet".to_owned()
                }
                (_, Some(why)) => why,
            };
            if state.serving && !self.ready.swap(true, Ordering::Relaxed) {
                systemd::ready(&line);
            } else {
                systemd::status(&line);
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = changes.changed() => if changed.is_err() { break },
            }
        }
        watchdog.abort();
        stop.cancelled().await;
        Ok(())
    }
}
