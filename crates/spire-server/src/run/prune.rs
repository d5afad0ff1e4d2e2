//! Takes out what has expired.

use std::time::Duration;

use ah_spire_plugin::server::PruneAttestedNodes;
use ah_spire_telemetry::{CallCounter, Metrics};
use tokio::time::{MissedTickBehavior, interval};

use crate::moment;
use crate::store::{Store, counted};

/// How often expired entries, tokens and agents are looked for.
const PRUNE: Duration = Duration::from_secs(600);

pub(super) struct Pruner {
    entries: CallCounter,
    agents: CallCounter,
}

impl Pruner {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let calls = |of| metrics.calls(&[of, "manager", "prune"], &[]);
        Self {
            entries: calls("registration_entry"),
            agents: calls("node"),
        }
    }

    /// At once and then at every turn, until it is dropped. What fails is told, and tried again at the next turn.
    pub(super) async fn run(self, store: &impl Store, agents: Option<PruneAttestedNodes>) {
        let mut turns = interval(PRUNE);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            self.prune(store, agents).await;
        }
    }

    async fn prune(&self, store: &impl Store, agents: Option<PruneAttestedNodes>) {
        let now = moment::now();
        match counted(&self.entries, store.prune_entries(now)).await {
            Ok(gone) => gone.iter().for_each(|entry| {
                tracing::info!(entry_id = %entry.id, spiffe_id = %entry.spiffe_id, "Pruned an expired registration");
            }),
            Err(error) => tracing::error!(%error, "Cannot prune entries"),
        }
        if let Err(error) = store.prune_join_tokens(now).await {
            tracing::error!(%error, "Cannot prune join tokens");
        }
        let Some(agents) = agents else { return };
        let expired_for = i64::try_from(agents.expired_for.as_secs()).unwrap_or(i64::MAX);
        let before = now.saturating_sub(expired_for);
        let pruned = store.prune_agents(before, agents.include_tofu, agents.batch_size);
        match counted(&self.agents, pruned).await {
            Ok(gone) => gone.iter().for_each(|id| {
                tracing::info!(spiffe_id = %id, "Pruned an expired agent");
            }),
            Err(error) => tracing::error!(%error, "Cannot prune agents"),
        }
    }
}
