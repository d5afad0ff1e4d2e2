//! Whom the access point still takes: the policy and the trust bundles of now, for peers that were verified before.

use std::sync::Arc;

use ah_identity_provider::{Code, Explained};
use ah_tls::{PeerIdentity, VerifyError};

use super::Shared;
use super::registry::End;

impl Shared {
    /// Whether the policy and the trust bundles of now admit `peer`, who was verified with the bundles of
    /// `generation`.
    pub(super) fn judge(&self, peer: &PeerIdentity, generation: u64) -> Result<(), Explained> {
        let now = self.clock.now();
        let policy = self.policy.load();
        let current = self.configs.current();
        let admitted = if current.generation() == generation {
            peer.still_admitted(&policy)
        } else {
            peer.still_trusted(current.trust(), &policy, now)
        };
        admitted.map_err(|refusal| told_to_executor(&refusal))?;
        if peer.not_after() <= now {
            return Err(Explained::new(
                Code::ClientExpired,
                "client certificate rejected: certificate has expired or is not yet valid",
            ));
        }
        Ok(())
    }
}

/// What the executor is told when the policy turns it away after the handshake.
pub(super) fn told_to_executor(refusal: &VerifyError) -> Explained {
    match refusal.code() {
        Code::ClientRevoked => Explained::new(
            Code::ClientRevoked,
            "client certificate rejected: certificate revoked",
        )
        .hint("ask the fleet's operator: ah agent fleet reinstate lifts a revocation"),
        code => {
            let known = refusal.explained();
            // The first cause is about the executor's certificate; the rules that follow in ER-7 are the
            // access point's own affair.
            let told = match code {
                Code::SanMismatch => 1,
                _ => known.causes.len(),
            };
            let explained = Explained::new(code, known.text.clone());
            let explained = known
                .causes
                .iter()
                .take(told)
                .fold(explained, Explained::cause);
            match &known.hint {
                Some(hint) => explained.hint(hint),
                None => explained,
            }
        }
    }
}

/// Ends sessions whose certificate no longer chains to a trusted root after a bundle changed.
pub(super) async fn follow_trust(shared: Arc<Shared>) {
    let mut configs = shared.configs.clone();
    while let Some(current) = configs.next().await {
        let shared = Arc::clone(&shared);
        // Verifying a path costs some 100 µs; thousands of them do not belong on the event loop.
        let checked = tokio::task::spawn_blocking(move || {
            let policy = shared.policy.load();
            let now = shared.clock.now();
            for session in shared.registry.sessions() {
                if let Err(error) = session.peer.still_trusted(current.trust(), &policy, now) {
                    session.end(End::Refused(Box::new(told_to_executor(&error))));
                }
            }
        });
        if let Err(error) = checked.await {
            tracing::error!(%error, "sessions could not be checked against the new trust bundle");
        }
    }
    std::future::pending().await
}
