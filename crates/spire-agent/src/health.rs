//! What the agent can truthfully say of itself.

use std::sync::Arc;
use std::time::SystemTime;

use ah_identity_provider::Explained;
use rustls_pki_types::CertificateDer;
use spiffe::SpiffeId;
use tokio::sync::watch;

/// The state of the agent at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentState {
    /// Its SPIFFE ID, once it has one.
    pub id: Option<SpiffeId>,
    /// Its own SVID, leaf first; empty when it has none.
    pub svid: Arc<[CertificateDer<'static>]>,
    /// Until when its own SVID is valid.
    pub svid_not_after: Option<SystemTime>,
    /// When the server was last heard of.
    pub last_sync: Option<SystemTime>,
    /// Whether workloads can be served, with what was synced or kept.
    pub serving: bool,
    /// The server denies this agent: nothing but an operator, or a new attestation, gets it back.
    pub denied: bool,
    /// What keeps the agent from its server now.
    pub fault: Option<Explained>,
}

impl AgentState {
    /// Why the agent is not ready; `None` when it is. A server that is away is no reason while there is something to
    /// serve.
    pub fn not_ready(&self) -> Option<String> {
        if self.serving && !self.denied {
            return None;
        }
        Some(match &self.fault {
            Some(fault) => one_line(fault),
            None if self.id.is_none() => "the node has not attested yet".into(),
            None => "the entries have not been fetched from the server yet".into(),
        })
    }
}

/// All of it in one line: for logs and health checks.
pub(crate) fn one_line(fault: &Explained) -> String {
    let causes = fault.causes.join("; ");
    let hint = fault.hint.as_deref().unwrap_or_default();
    match (causes.is_empty(), hint.is_empty()) {
        (true, true) => fault.text.clone(),
        (true, false) => format!("{} ({hint})", fault.text),
        (false, true) => format!("{}: {causes}", fault.text),
        (false, false) => format!("{}: {causes} ({hint})", fault.text),
    }
}

/// Publishes the state. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health(Arc<watch::Sender<AgentState>>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(AgentState::default())))
    }
}

impl Health {
    /// Now.
    pub fn state(&self) -> AgentState {
        self.0.borrow().clone()
    }

    /// Every change.
    pub fn watch(&self) -> watch::Receiver<AgentState> {
        self.0.subscribe()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut AgentState)) {
        self.0.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            *state != before
        });
    }
}

#[cfg(test)]
mod tests {
    use ah_identity_provider::Code;

    use super::*;

    #[test]
    fn a_server_that_is_away_is_no_reason_while_there_is_something_to_serve() {
        let health = Health::default();
        assert!(health.state().not_ready().is_some());
        health.change(|state| {
            state.serving = true;
            state.fault = Some(Explained::new(Code::Unavailable, "away"));
        });
        assert_eq!(health.state().not_ready(), None);
        health.change(|state| state.denied = true);
        assert_eq!(health.state().not_ready(), Some("away".into()));
    }
}
