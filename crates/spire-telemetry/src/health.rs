//! Health of a process: looks at its parts, and answers `/live` and `/ready` (inventory section 10).
//!
//! The answer is JSON with the details of each part, and 200, or 500 when a part is not live or not ready.

mod listener;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::listener::HealthListener;

/// Between looks until everything is live and ready once.
const STARTING: Duration = Duration::from_secs(1);

/// Between looks from then on.
const STEADY: Duration = Duration::from_secs(60);

/// A look that takes longer has failed.
const LONGEST: Duration = Duration::from_secs(60);

/// How a part is.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Whether it is done starting; before that a failure is a warning.
    pub started: bool,
    /// In a good state, or one that it gets out of by itself.
    pub live: bool,
    /// Able to do its work.
    pub ready: bool,
    /// Shown by `/live`.
    pub live_details: Value,
    /// Shown by `/ready`.
    pub ready_details: Value,
}

impl State {
    /// Live and ready.
    pub fn healthy() -> Self {
        let nothing = serde_json::json!({});
        Self {
            started: true,
            live: true,
            ready: true,
            live_details: nothing.clone(),
            ready_details: nothing,
        }
    }

    /// Neither live nor ready, because of `why`, shown under `key`.
    pub fn failed(key: &str, why: impl Into<String>) -> Self {
        let details = serde_json::json!({ key: why.into() });
        Self {
            started: true,
            live: false,
            ready: false,
            live_details: details.clone(),
            ready_details: details,
        }
    }

    /// Before the first look.
    fn unknown() -> Self {
        Self {
            started: true,
            live: false,
            ready: false,
            live_details: Value::Null,
            ready_details: Value::Null,
        }
    }

    fn fault(&self) -> Option<&'static str> {
        match (self.live, self.ready) {
            (true, true) => None,
            (false, true) => Some("subsystem is not live"),
            (true, false) => Some("subsystem is not ready"),
            (false, false) => Some("subsystem is not live or ready"),
        }
    }
}

/// Looks at one part. Functions that give a future of a [`State`] do.
pub trait Check: Send + Sync + 'static {
    /// How it is now.
    fn look(&self) -> Pin<Box<dyn Future<Output = State> + Send + '_>>;
}

impl<F, R> Check for F
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = State> + Send + 'static,
{
    fn look(&self) -> Pin<Box<dyn Future<Output = State> + Send + '_>> {
        Box::pin(self())
    }
}

/// By name.
type States = BTreeMap<&'static str, State>;

/// All parts that are looked at.
pub struct HealthChecks {
    checks: BTreeMap<&'static str, Box<dyn Check>>,
    states: watch::Sender<States>,
}

impl Default for HealthChecks {
    fn default() -> Self {
        Self {
            checks: BTreeMap::new(),
            states: watch::Sender::new(States::new()),
        }
    }
}

impl HealthChecks {
    /// Looks at one part more, shown as `name`.
    #[must_use]
    pub fn with(mut self, name: &'static str, check: impl Check) -> Self {
        self.checks.insert(name, Box::new(check));
        self.states.send_modify(|states| {
            states.insert(name, State::unknown());
        });
        self
    }

    /// Looks until `stop`, and answers on `listener` where there is one.
    pub async fn run(self, listener: Option<HealthListener>, stop: CancellationToken) {
        let answering = async {
            if let Some(listener) = listener {
                listener.serve(self.states.subscribe(), stop.clone()).await;
            }
        };
        let looking = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.look_on() => {}
            }
        };
        tokio::join!(answering, looking);
    }

    async fn look_on(&self) {
        let mut pause = STARTING;
        loop {
            for (name, check) in &self.checks {
                let state = tokio::time::timeout(LONGEST, check.look())
                    .await
                    .unwrap_or_else(|_| State::failed("err", "the check took too long"));
                self.put(name, state);
            }
            if self.states.borrow().values().all(|it| it.fault().is_none()) {
                pause = STEADY;
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn put(&self, name: &'static str, state: State) {
        self.states.send_modify(|states| {
            let before = states.insert(name, state.clone());
            tell(name, before.as_ref(), &state);
        });
    }
}

/// Says what changed.
fn tell(name: &str, before: Option<&State>, now: &State) {
    let failed_before = before.is_some_and(|it| it.fault().is_some());
    let first = before.is_none_or(|it| *it == State::unknown());
    match now.fault() {
        Some(fault) if before != Some(now) => {
            let details = &now.ready_details;
            if now.started {
                tracing::error!(check = name, %details, error = fault, "Health check has failed");
            } else {
                tracing::warn!(check = name, %details, error = fault, "Health check has failed. Starting up still.");
            }
        }
        None if failed_before && !first => {
            tracing::info!(check = name, "Health check recovered");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
