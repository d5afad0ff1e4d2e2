//! What is due, looked for by the clock.

use tokio::time::{MissedTickBehavior, interval};

use super::follow::newest;
use super::{
    CaError, Manager, PRUNE_BUNDLE_INTERVAL, PRUNE_JOURNALS_INTERVAL, ROTATE_INTERVAL, State,
    log_failure,
};
use crate::ca::authority::Token;
use crate::ca::slots::{Status, Step};
use crate::keys::{KeyManager, KeyType};
use crate::store::{Bundles, Journals};

/// Activate, prepare, rotate, prepare. An authority that has ended when it is made is not made over and over.
const MOST_STEPS: usize = 4;

impl<S: Bundles + Journals + 'static, K: KeyManager> Manager<S, K> {
    /// Rotates and prunes until it is dropped. What fails is logged and tried again at its next turn.
    pub async fn run(&self) {
        let [mut rotate, mut bundle, mut journals] = [
            ROTATE_INTERVAL,
            PRUNE_BUNDLE_INTERVAL,
            PRUNE_JOURNALS_INTERVAL,
        ]
        .map(|period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        // The first tick of an interval is at once, and start has just rotated.
        rotate.reset();
        bundle.reset();
        journals.reset();
        let upstream = self.settings.upstream.as_ref();
        let mut followed = upstream.and_then(|upstream| upstream.bundles());
        // What was told before this is looked at, too.
        let mut behind = true;
        if let Some(told) = &mut followed {
            told.mark_changed();
        }
        loop {
            tokio::select! {
                newest = newest(&mut followed) => {
                    let taken = self.follow(&newest).await;
                    behind = taken.is_err();
                    log_failure(taken, "bundle of the upstream authority not taken over, which is tried again");
                }
                _ = rotate.tick() => {
                    // A failure was logged where it came up.
                    let _ = self.rotate().await;
                    if let (Some(told), true) = (&mut followed, behind) {
                        told.mark_changed();
                    }
                }
                _ = bundle.tick() => log_failure(self.prune_bundle().await, "bundle not pruned"),
                _ = journals.tick() => log_failure(self.prune_journals().await, "CA journals not pruned"),
            }
        }
    }

    /// Does what is due.
    pub async fn rotate(&self) -> Result<(), CaError> {
        let state = &mut *self.state.lock().await;
        let saved = state.journal.save(self.store.as_ref()).await;
        log_failure(saved, "CA journal not saved, which is tried again");
        if state.x509.current.status() == Some(Status::Active) {
            let left = self.leave_tainted(state).await;
            log_failure(
                left,
                "tainted upstream authority not left, which is tried again",
            );
        }
        let x509 = self.rotate_x509(state).await;
        if let Err(error) = &x509 {
            tracing::error!(%error, "unable to rotate X.509 CA");
            // Without a journal, which an active X.509 authority begins, no other key would be found again.
            if state.x509.current.is_empty() {
                return x509;
            }
        }
        let mut rotated = x509;
        for (of, kind) in self.settings.tokens() {
            let token = self.rotate_token(of, kind, state).await;
            if let Err(error) = &token {
                tracing::error!(%error, "unable to rotate {}", of.key_name());
            }
            rotated = rotated.and(token);
        }
        rotated
    }

    async fn rotate_x509(&self, state: &mut State) -> Result<(), CaError> {
        for _ in 0..MOST_STEPS {
            let Some(step) = state.x509.step(self.now()) else {
                break;
            };
            match step {
                Step::PrepareCurrent | Step::PrepareNext => self.prepare_x509_ca(state).await?,
                Step::ActivateCurrent => self.activate_x509_ca(state).await,
                Step::Rotate => {
                    state.x509.swap();
                    self.activate_x509_ca(state).await;
                }
            }
        }
        Ok(())
    }

    async fn rotate_token(
        &self,
        of: Token,
        kind: KeyType,
        state: &mut State,
    ) -> Result<(), CaError> {
        for _ in 0..MOST_STEPS {
            let Some(step) = state.tokens(of).step(self.now()) else {
                break;
            };
            match step {
                Step::PrepareCurrent | Step::PrepareNext => {
                    self.prepare_token_key(of, kind, state).await?;
                }
                Step::ActivateCurrent => self.activate_token_key(of, state).await,
                Step::Rotate => {
                    state.tokens(of).swap();
                    self.activate_token_key(of, state).await;
                }
            }
        }
        Ok(())
    }
}
