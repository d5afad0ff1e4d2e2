//! Bars: which executors are revoked here, in the store and at the access points that share it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ah_tls::Revocations;

use super::Shared;
use super::registry::{End, lock};
use super::trust::told_to_executor;
use crate::store::{Change, Durability, RevocationTarget, Store, StoreError};

/// How often an access point looks for revocations that another one wrote to a shared store.
const REVOCATION_POLL: Duration = Duration::from_millis(500);

/// Bars on their way into the store.
#[derive(Default)]
pub(super) struct Bars {
    /// Set (true) and lifted (false) here, and not known to be in the store; with the number of the change.
    unwritten: BTreeMap<RevocationTarget, (bool, u64)>,
    changes: u64,
    /// How many were written. What was read from the store before the last one may lack it.
    written: u64,
}

/// Takes over revocations that another access point wrote to the same store.
pub(super) async fn follow_revocations(shared: Arc<Shared>) {
    let mut seen = None;
    loop {
        tokio::time::sleep(REVOCATION_POLL).await;
        let read = read_revocations(&shared, &mut seen).await;
        shared.note_unread(read.err().map(|error| error.to_string()));
    }
}

async fn read_revocations(
    shared: &Shared,
    seen: &mut Option<(u64, u64)>,
) -> Result<(), StoreError> {
    let written = lock(&shared.bars).written;
    let version = shared.store.revocation_version().await?;
    if *seen == Some((version, written)) {
        return Ok(());
    }
    let revocations = shared.store.revocations().await?;
    let targets = revocations.into_iter().map(|(target, _)| target);
    if shared.take_revocations(targets, written) {
        *seen = Some((version, written));
    }
    Ok(())
}

pub(super) fn revocation_set(targets: impl IntoIterator<Item = RevocationTarget>) -> Revocations {
    let mut set = Revocations::default();
    for target in targets {
        match target {
            RevocationTarget::Id(id) => set.ids.insert(id.to_string()),
            RevocationTarget::Serial(serial) => set.serials.insert(serial),
            RevocationTarget::Sha256(sha256) => set.sha256s.insert(sha256),
        };
    }
    set
}

impl Shared {
    /// Makes `targets`, which the store holds, the bars in force, besides those that are still on their way
    /// into the store, and ends what they forbid. They were read after so many were `written` here; false when
    /// there are more by now, and they have to be read again.
    fn take_revocations(
        &self,
        targets: impl IntoIterator<Item = RevocationTarget>,
        written: u64,
    ) -> bool {
        let mut held = targets.into_iter().collect::<BTreeSet<_>>();
        let mut bars = lock(&self.bars);
        if bars.written != written {
            return false;
        }
        let unwritten = &mut bars.unwritten;
        unwritten.retain(|target, (barred, _)| held.contains(target) != *barred);
        for (target, (barred, _)) in unwritten.iter() {
            if *barred {
                held.insert(target.clone());
            } else {
                held.remove(target);
            }
        }
        // Under the lock, so that a bar set in this moment is not overwritten by what was read before it.
        self.policy
            .update(|policy| policy.revocations = revocation_set(held.iter().cloned()));
        drop(bars);
        self.end_unadmitted();
        true
    }

    /// The store holds the `change` that was made to `target` here: from now on it has the last word on it, which may be
    /// another access point's.
    fn note_written(&self, target: &RevocationTarget, change: u64) {
        let mut bars = lock(&self.bars);
        if bars
            .unwritten
            .get(target)
            .is_some_and(|(_, last)| *last == change)
        {
            bars.unwritten.remove(target);
        }
        bars.written += 1;
    }

    fn note_unread(&self, error: Option<String>) {
        let mut unread = lock(&self.unread_revocations);
        match (&*unread, &error) {
            (None, Some(error)) => tracing::warn!(
                %error,
                "revocations of other access points cannot be read from the store"
            ),
            (Some(_), None) => tracing::info!("revocations are read from the store again"),
            _ => {}
        }
        *unread = error;
    }

    /// Sets or lifts a bar in memory, at once, and hands `change` to the store. Both in one step: of two
    /// operators, the same one has the last word in memory and in the store.
    pub(super) fn bar(
        self: &Arc<Self>,
        target: &RevocationTarget,
        barred: bool,
        change: Change,
    ) -> impl Future<Output = Durability> + Send + use<> {
        let mut bars = lock(&self.bars);
        bars.changes += 1;
        let number = bars.changes;
        bars.unwritten.insert(target.clone(), (barred, number));
        self.policy.update(|policy| {
            let (values, value) = match target {
                RevocationTarget::Id(id) => (&mut policy.revocations.ids, id.as_str()),
                RevocationTarget::Serial(serial) => {
                    (&mut policy.revocations.serials, serial.as_str())
                }
                RevocationTarget::Sha256(sha256) => {
                    (&mut policy.revocations.sha256s, sha256.as_str())
                }
            };
            if barred {
                values.insert(value.to_owned());
            } else {
                values.remove(value);
            }
        });
        // Submitted under the lock, in the order of the numbers.
        let written = self.writer.submit(change);
        drop(bars);
        let shared = Arc::clone(self);
        let target = target.clone();
        async move {
            let durability = written.await;
            if durability == Durability::Committed {
                shared.note_written(&target, number);
            }
            durability
        }
    }

    /// Ends every session that the policy of now would not admit. Returns how many.
    pub(super) fn end_unadmitted(&self) -> usize {
        let policy = self.policy.load();
        let mut ended = 0;
        for session in self.registry.sessions() {
            if let Err(refusal) = session.peer.still_admitted(&policy) {
                session.end(End::Refused(Box::new(told_to_executor(&refusal))));
                ended += 1;
            }
        }
        ended
    }
}
