//! A store whose writes are seen in the cache at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ah_spire_wire::model::{Bundle, Entry};
use spiffe::{SpiffeId, TrustDomain};

use super::EntryCache;
use crate::store::{
    Agent, AgentFilter, Agents, BundleChange, BundleDeletion, Bundles, Changed, Created, Entries,
    EntryFilter, EntryMask, Federation, JoinToken, JoinTokens, Journals, Page, Paged, Relationship,
    Spender, StoreError,
};

/// What this server writes through it is in the cache when the call returns, and agents that listen are told.
#[derive(Clone, Debug)]
pub struct CachedStore<S> {
    store: S,
    cache: Arc<EntryCache>,
}

impl<S> CachedStore<S> {
    /// `cache` was loaded from `store`.
    pub fn new(store: S, cache: Arc<EntryCache>) -> Self {
        Self { store, cache }
    }
}

impl<S: Entries + 'static> Entries for CachedStore<S> {
    async fn create_entry(&self, entry: Entry) -> Result<Created, StoreError> {
        let created = self.store.create_entry(entry).await?;
        if let Created::New(entry) = &created {
            self.cache.put(entry.clone());
        }
        Ok(created)
    }

    async fn entry(&self, id: &str) -> Result<Option<Entry>, StoreError> {
        self.store.entry(id).await
    }

    async fn entries_by_id(&self, ids: &[String]) -> Result<Vec<Entry>, StoreError> {
        self.store.entries_by_id(ids).await
    }

    async fn entries(&self, filter: &EntryFilter, page: &Page) -> Result<Paged<Entry>, StoreError> {
        self.store.entries(filter, page).await
    }

    async fn each_entry(&self, take: impl FnMut(Entry) + Send) -> Result<(), StoreError> {
        self.store.each_entry(take).await
    }

    async fn count_entries(&self, filter: &EntryFilter) -> Result<u64, StoreError> {
        self.store.count_entries(filter).await
    }

    async fn update_entry(&self, entry: Entry, mask: &EntryMask) -> Result<Entry, StoreError> {
        let entry = self.store.update_entry(entry, mask).await?;
        self.cache.put(entry.clone());
        Ok(entry)
    }

    async fn delete_entry(&self, id: &str) -> Result<Entry, StoreError> {
        let entry = self.store.delete_entry(id).await?;
        self.cache.remove(id);
        Ok(entry)
    }

    async fn prune_entries(&self, now: i64) -> Result<Vec<Entry>, StoreError> {
        let pruned = self.store.prune_entries(now).await?;
        for entry in &pruned {
            self.cache.remove(&entry.id);
        }
        Ok(pruned)
    }

    async fn entry_events(&self, after: Option<u64>) -> Result<Vec<Changed>, StoreError> {
        self.store.entry_events(after).await
    }

    async fn entry_events_among(&self, events: &[u64]) -> Result<Vec<Changed>, StoreError> {
        self.store.entry_events_among(events).await
    }

    async fn prune_entry_events(&self, before: i64) -> Result<u64, StoreError> {
        self.store.prune_entry_events(before).await
    }
}

impl<S: Agents + 'static> Agents for CachedStore<S> {
    async fn put_agent(&self, agent: &Agent) -> Result<(), StoreError> {
        let writing = self.cache.doubts.writing(&agent.id);
        self.store.put_agent(agent).await?;
        self.cache.put_agent(agent.clone());
        writing.done();
        Ok(())
    }

    async fn agent(&self, id: &SpiffeId) -> Result<Option<Agent>, StoreError> {
        self.store.agent(id).await
    }

    async fn agents(&self, filter: &AgentFilter, page: &Page) -> Result<Paged<Agent>, StoreError> {
        self.store.agents(filter, page).await
    }

    async fn all_agents(&self) -> Result<Vec<Agent>, StoreError> {
        self.store.all_agents().await
    }

    async fn count_agents(&self, filter: &AgentFilter) -> Result<u64, StoreError> {
        self.store.count_agents(filter).await
    }

    async fn update_agent(
        &self,
        id: &SpiffeId,
        change: impl FnOnce(&mut Agent) + Send,
    ) -> Result<Agent, StoreError> {
        let writing = self.cache.doubts.writing(id);
        let agent = self.store.update_agent(id, change).await?;
        self.cache.put_agent(agent.clone());
        writing.done();
        Ok(agent)
    }

    async fn delete_agent(&self, id: &SpiffeId) -> Result<Agent, StoreError> {
        let writing = self.cache.doubts.writing(id);
        let agent = self.store.delete_agent(id).await?;
        self.cache.remove_agent(id);
        writing.done();
        Ok(agent)
    }

    async fn prune_agents(
        &self,
        before: i64,
        include_non_reattestable: bool,
        batch: u32,
    ) -> Result<Vec<SpiffeId>, StoreError> {
        let pruned = self
            .store
            .prune_agents(before, include_non_reattestable, batch)
            .await?;
        for id in &pruned {
            self.cache.remove_agent(id);
        }
        Ok(pruned)
    }

    async fn agent_events(&self, after: Option<u64>) -> Result<Vec<Changed>, StoreError> {
        self.store.agent_events(after).await
    }

    async fn agent_events_among(&self, events: &[u64]) -> Result<Vec<Changed>, StoreError> {
        self.store.agent_events_among(events).await
    }

    async fn prune_agent_events(&self, before: i64) -> Result<u64, StoreError> {
        self.store.prune_agent_events(before).await
    }
}

impl<S: JoinTokens + 'static> JoinTokens for CachedStore<S> {
    async fn create_join_token(&self, token: &JoinToken) -> Result<(), StoreError> {
        self.store.create_join_token(token).await
    }

    async fn consume_join_token(
        &self,
        token: &str,
        spender: &Spender,
    ) -> Result<Option<JoinToken>, StoreError> {
        self.store.consume_join_token(token, spender).await
    }

    async fn prune_join_tokens(&self, now: i64) -> Result<u64, StoreError> {
        self.store.prune_join_tokens(now).await
    }
}

impl<S: Bundles + Entries + Agents + JoinTokens + Federation + Journals + 'static> Bundles
    for CachedStore<S>
{
    async fn bundle(&self, of: &TrustDomain) -> Result<Option<Bundle>, StoreError> {
        self.store.bundle(of).await
    }

    async fn bundles(&self, page: &Page) -> Result<Paged<Bundle>, StoreError> {
        self.store.bundles(page).await
    }

    async fn count_bundles(&self) -> Result<u64, StoreError> {
        self.store.count_bundles().await
    }

    async fn put_bundle(&self, bundle: &Bundle) -> Result<(), StoreError> {
        let before = self.store.bundle(&bundle.trust_domain).await?;
        self.store.put_bundle(bundle).await?;
        if before.as_ref() != Some(bundle) {
            self.cache.bundles_changed();
        }
        Ok(())
    }

    async fn update_bundle(
        &self,
        of: &TrustDomain,
        how: BundleChange,
        change: impl FnOnce(Option<Bundle>) -> Option<Bundle> + Send,
    ) -> Result<Option<Bundle>, StoreError> {
        let mut differs = false;
        let change = |before: Option<Bundle>| {
            let after = change(before.clone());
            differs = after.is_some() && after != before;
            after
        };
        let updated = self.store.update_bundle(of, how, change).await?;
        if differs {
            self.cache.bundles_changed();
        }
        Ok(updated)
    }

    async fn delete_bundle(
        &self,
        of: &TrustDomain,
        mode: BundleDeletion,
    ) -> Result<(), StoreError> {
        self.store.delete_bundle(of, mode).await?;
        self.cache.bundles_changed();
        if mode != BundleDeletion::Restrict {
            // It is deleted, whether or not its entries are looked at now.
            if let Err(error) = self.cache.catch_up(&self.store, Duration::MAX).await {
                tracing::warn!(%error, "entries that federated with a deleted bundle are read again later");
            }
        }
        Ok(())
    }

    async fn bundle_domains(&self) -> Result<BTreeSet<TrustDomain>, StoreError> {
        self.store.bundle_domains().await
    }
}

impl<S: Federation + 'static> Federation for CachedStore<S> {
    async fn create_relationship(
        &self,
        relationship: &Relationship,
        bundle: Option<&Bundle>,
    ) -> Result<(), StoreError> {
        self.store.create_relationship(relationship, bundle).await?;
        if bundle.is_some() {
            self.cache.bundles_changed();
        }
        Ok(())
    }

    async fn relationship(&self, with: &TrustDomain) -> Result<Option<Relationship>, StoreError> {
        self.store.relationship(with).await
    }

    async fn relationships(&self, page: &Page) -> Result<Paged<Relationship>, StoreError> {
        self.store.relationships(page).await
    }

    async fn update_relationship(
        &self,
        with: &TrustDomain,
        change: impl FnOnce(&mut Relationship) + Send,
        bundle: Option<&Bundle>,
    ) -> Result<Relationship, StoreError> {
        let updated = self.store.update_relationship(with, change, bundle).await?;
        if bundle.is_some() {
            self.cache.bundles_changed();
        }
        Ok(updated)
    }

    async fn delete_relationship(&self, with: &TrustDomain) -> Result<(), StoreError> {
        self.store.delete_relationship(with).await
    }
}

impl<S: Journals + 'static> Journals for CachedStore<S> {
    async fn journal(
        &self,
        active_x509_authority_id: &str,
    ) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        self.store.journal(active_x509_authority_id).await
    }

    async fn put_journal(
        &self,
        id: Option<u64>,
        active_x509_authority_id: &str,
        data: &[u8],
    ) -> Result<u64, StoreError> {
        self.store
            .put_journal(id, active_x509_authority_id, data)
            .await
    }

    async fn journals(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.store.journals().await
    }

    async fn prune_journals(&self, now: i64) -> Result<u64, StoreError> {
        self.store.prune_journals(now).await
    }
}
