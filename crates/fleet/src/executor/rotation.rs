//! Moving an enrollment to a new identity while the session under the old one goes on (EN-14).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{Clock, Explained};
use ah_tls::ClientConfigs;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::link::Link;
use super::{Remote, dial};
use crate::proto;

/// All that an attempt to enroll needs besides the address.
#[derive(Clone)]
pub(super) struct Opener {
    pub(super) configs: ClientConfigs,
    pub(super) hello: proto::Hello,
    pub(super) timeout: Duration,
    pub(super) clock: Arc<dyn Clock>,
}

impl Opener {
    pub(super) fn open(
        &self,
        remote: &Remote,
    ) -> Pin<Box<dyn Future<Output = Result<Link, Explained>> + Send>> {
        Box::pin(dial::open(
            remote.clone(),
            self.configs.clone(),
            self.hello.clone(),
            self.timeout,
            Arc::clone(&self.clock),
        ))
    }
}

/// Moving to a new identity while the session under the old one goes on.
#[derive(Default)]
pub(super) struct Rotation {
    step: Step,
    pub(super) backoff: Backoff,
    /// Generation that the move is for; 0 when there was none.
    pub(super) generation: u64,
    /// Why the present session must not outlive the next attempt: its server is no longer trusted.
    pub(super) distrusted: Option<Explained>,
}

#[derive(Default)]
enum Step {
    #[default]
    Idle,
    Waiting(Instant),
    Opening(Pin<Box<dyn Future<Output = Result<Link, Explained>> + Send>>),
}

impl Rotation {
    pub(super) fn start(&mut self, generation: u64, at: Instant) {
        self.generation = generation;
        self.step = Step::Waiting(at);
    }

    /// A newer identity is there. An attempt under way goes on: the access point may have moved the
    /// enrollment to it already, and dropping it would cost both connections.
    pub(super) fn wanted(&mut self, generation: u64) {
        match self.step {
            Step::Opening(_) => self.generation = generation,
            Step::Idle | Step::Waiting(_) => self.start(generation, Instant::now()),
        }
    }

    /// Resolves when an attempt has ended. Cancel safe: an attempt under way goes on with the next call.
    pub(super) async fn opened(
        &mut self,
        opener: &Opener,
        remote: &Remote,
    ) -> Result<Link, Explained> {
        loop {
            match &mut self.step {
                Step::Idle => std::future::pending().await,
                Step::Waiting(at) => {
                    tokio::time::sleep_until(*at).await;
                    self.step = Step::Opening(opener.open(remote));
                }
                Step::Opening(attempt) => {
                    let opened = attempt.await;
                    self.step = Step::Idle;
                    return opened;
                }
            }
        }
    }
}
