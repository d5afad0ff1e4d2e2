//! A store whose operations are counted, under the names that upstream's have (inventory section 10.1).
//!
//! Where one operation here does what two of upstream's do, in one transaction, both are counted with its time.

use std::collections::BTreeSet;
use std::future::Future;

use ah_spire_telemetry::{CallCounter, Metrics};
use ah_spire_wire::model::{Bundle, Entry};
use spiffe::{SpiffeId, TrustDomain};
use tonic::Code;

use super::{
    Agent, AgentFilter, Agents, BundleChange, BundleDeletion, Bundles, Changed, Created, Entries,
    EntryFilter, EntryMask, Federation, JoinToken, JoinTokens, Journals, Page, Paged, Relationship,
    Spender, StoreError,
};

/// Counts `datastore.*` around `store`.
pub struct Metered<S> {
    store: S,
    bundle: Object,
    bundle_append: CallCounter,
    entry: Object,
    entry_event: Object,
    federation: Object,
    join_token: Object,
    journal: Object,
    node: Object,
    node_event: Object,
    node_selectors: Object,
}

/// The operations on one sort of object.
struct Object {
    count: CallCounter,
    create: CallCounter,
    delete: CallCounter,
    fetch: CallCounter,
    list: CallCounter,
    prune: CallCounter,
    set: CallCounter,
    update: CallCounter,
}

impl Object {
    fn new(metrics: &Metrics, object: &[&str]) -> Self {
        let calls = |operation| {
            let mut key = vec!["datastore"];
            key.extend(object);
            key.push(operation);
            metrics.calls(&key, &[])
        };
        Self {
            count: calls("count"),
            create: calls("create"),
            delete: calls("delete"),
            fetch: calls("fetch"),
            list: calls("list"),
            prune: calls("prune"),
            set: calls("set"),
            update: calls("update"),
        }
    }
}

impl<S> Metered<S> {
    /// Counts in `metrics`.
    pub fn new(store: S, metrics: &Metrics) -> Self {
        let object = |name| Object::new(metrics, &[name]);
        Self {
            store,
            bundle: object("bundle"),
            bundle_append: metrics.calls(&["datastore", "bundle", "append"], &[]),
            entry: object("registration_entry"),
            entry_event: object("registration_entry_event"),
            federation: object("federation_relationship"),
            join_token: object("join_token"),
            journal: object("ca_journal"),
            node: object("node"),
            node_event: object("node_event"),
            node_selectors: Object::new(metrics, &["node", "selectors"]),
        }
    }
}

/// Counts `operation` as one of `calls`.
pub(crate) async fn counted<T>(
    calls: &CallCounter,
    operation: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let call = calls.start();
    // Boxed, for the futures of the store are large and would be here twice.
    let outcome = Box::pin(operation).await;
    call.done(outcome.as_ref().map_or_else(code, |_| Code::Ok));
    outcome
}

/// What upstream's datastore fails with: what is not the caller's fault is unknown.
fn code(error: &StoreError) -> Code {
    match error {
        StoreError::AlreadyExists(_) => Code::AlreadyExists,
        StoreError::NotFound(_) => Code::NotFound,
        StoreError::Invalid(_) => Code::InvalidArgument,
        StoreError::Precondition(_) => Code::FailedPrecondition,
        StoreError::Unavailable(_) | StoreError::Broken(_) => Code::Unknown,
    }
}

impl<S: Entries> Entries for Metered<S> {
    async fn create_entry(&self, entry: Entry) -> Result<Created, StoreError> {
        counted(&self.entry.create, self.store.create_entry(entry)).await
    }

    async fn entry(&self, id: &str) -> Result<Option<Entry>, StoreError> {
        counted(&self.entry.fetch, self.store.entry(id)).await
    }

    async fn entries_by_id(&self, ids: &[String]) -> Result<Vec<Entry>, StoreError> {
        counted(&self.entry.fetch, self.store.entries_by_id(ids)).await
    }

    async fn entries(&self, filter: &EntryFilter, page: &Page) -> Result<Paged<Entry>, StoreError> {
        counted(&self.entry.list, self.store.entries(filter, page)).await
    }

    async fn each_entry(&self, take: impl FnMut(Entry) + Send) -> Result<(), StoreError> {
        counted(&self.entry.list, self.store.each_entry(take)).await
    }

    async fn count_entries(&self, filter: &EntryFilter) -> Result<u64, StoreError> {
        counted(&self.entry.count, self.store.count_entries(filter)).await
    }

    async fn update_entry(&self, entry: Entry, mask: &EntryMask) -> Result<Entry, StoreError> {
        counted(&self.entry.update, self.store.update_entry(entry, mask)).await
    }

    async fn delete_entry(&self, id: &str) -> Result<Entry, StoreError> {
        counted(&self.entry.delete, self.store.delete_entry(id)).await
    }

    async fn prune_entries(&self, now: i64) -> Result<Vec<Entry>, StoreError> {
        counted(&self.entry.prune, self.store.prune_entries(now)).await
    }

    async fn entry_events(&self, after: Option<u64>) -> Result<Vec<Changed>, StoreError> {
        counted(&self.entry_event.list, self.store.entry_events(after)).await
    }

    async fn entry_events_among(&self, events: &[u64]) -> Result<Vec<Changed>, StoreError> {
        let fetch = self.store.entry_events_among(events);
        counted(&self.entry_event.fetch, fetch).await
    }

    async fn prune_entry_events(&self, before: i64) -> Result<u64, StoreError> {
        let prune = self.store.prune_entry_events(before);
        counted(&self.entry_event.prune, prune).await
    }
}

impl<S: Agents> Agents for Metered<S> {
    async fn put_agent(&self, agent: &Agent) -> Result<(), StoreError> {
        let put = counted(&self.node.create, self.store.put_agent(agent));
        counted(&self.node_selectors.set, put).await
    }

    async fn agent(&self, id: &SpiffeId) -> Result<Option<Agent>, StoreError> {
        let fetch = counted(&self.node.fetch, self.store.agent(id));
        counted(&self.node_selectors.fetch, fetch).await
    }

    async fn agents(&self, filter: &AgentFilter, page: &Page) -> Result<Paged<Agent>, StoreError> {
        counted(&self.node.list, self.store.agents(filter, page)).await
    }

    async fn all_agents(&self) -> Result<Vec<Agent>, StoreError> {
        let list = counted(&self.node.list, self.store.all_agents());
        counted(&self.node_selectors.list, list).await
    }

    async fn count_agents(&self, filter: &AgentFilter) -> Result<u64, StoreError> {
        counted(&self.node.count, self.store.count_agents(filter)).await
    }

    async fn update_agent(
        &self,
        id: &SpiffeId,
        change: impl FnOnce(&mut Agent) + Send,
    ) -> Result<Agent, StoreError> {
        counted(&self.node.update, self.store.update_agent(id, change)).await
    }

    async fn delete_agent(&self, id: &SpiffeId) -> Result<Agent, StoreError> {
        counted(&self.node.delete, self.store.delete_agent(id)).await
    }

    async fn prune_agents(
        &self,
        before: i64,
        include_non_reattestable: bool,
        batch: u32,
    ) -> Result<Vec<SpiffeId>, StoreError> {
        let prune = self
            .store
            .prune_agents(before, include_non_reattestable, batch);
        counted(&self.node.prune, prune).await
    }

    async fn agent_events(&self, after: Option<u64>) -> Result<Vec<Changed>, StoreError> {
        counted(&self.node_event.list, self.store.agent_events(after)).await
    }

    async fn agent_events_among(&self, events: &[u64]) -> Result<Vec<Changed>, StoreError> {
        let fetch = self.store.agent_events_among(events);
        counted(&self.node_event.fetch, fetch).await
    }

    async fn prune_agent_events(&self, before: i64) -> Result<u64, StoreError> {
        let prune = self.store.prune_agent_events(before);
        counted(&self.node_event.prune, prune).await
    }
}

impl<S: JoinTokens> JoinTokens for Metered<S> {
    async fn create_join_token(&self, token: &JoinToken) -> Result<(), StoreError> {
        counted(&self.join_token.create, self.store.create_join_token(token)).await
    }

    async fn consume_join_token(
        &self,
        token: &str,
        spender: &Spender,
    ) -> Result<Option<JoinToken>, StoreError> {
        let delete = self.join_token.delete.start();
        let consume = self.store.consume_join_token(token, spender);
        let consumed = counted(&self.join_token.fetch, consume).await;
        match &consumed {
            Ok(Some(_)) => delete.done(Code::Ok),
            Ok(None) | Err(_) => delete.discard(),
        }
        consumed
    }

    async fn prune_join_tokens(&self, now: i64) -> Result<u64, StoreError> {
        counted(&self.join_token.prune, self.store.prune_join_tokens(now)).await
    }
}

impl<S: Bundles> Bundles for Metered<S> {
    async fn bundle(&self, of: &TrustDomain) -> Result<Option<Bundle>, StoreError> {
        counted(&self.bundle.fetch, self.store.bundle(of)).await
    }

    async fn bundles(&self, page: &Page) -> Result<Paged<Bundle>, StoreError> {
        counted(&self.bundle.list, self.store.bundles(page)).await
    }

    async fn count_bundles(&self) -> Result<u64, StoreError> {
        counted(&self.bundle.count, self.store.count_bundles()).await
    }

    async fn put_bundle(&self, bundle: &Bundle) -> Result<(), StoreError> {
        counted(&self.bundle.set, self.store.put_bundle(bundle)).await
    }

    async fn update_bundle(
        &self,
        of: &TrustDomain,
        how: BundleChange,
        change: impl FnOnce(Option<Bundle>) -> Option<Bundle> + Send,
    ) -> Result<Option<Bundle>, StoreError> {
        let calls = match how {
            BundleChange::Append => &self.bundle_append,
            BundleChange::Create => &self.bundle.create,
            BundleChange::Prune => &self.bundle.prune,
            BundleChange::Update => &self.bundle.update,
        };
        counted(calls, self.store.update_bundle(of, how, change)).await
    }

    async fn delete_bundle(
        &self,
        of: &TrustDomain,
        mode: BundleDeletion,
    ) -> Result<(), StoreError> {
        counted(&self.bundle.delete, self.store.delete_bundle(of, mode)).await
    }

    async fn bundle_domains(&self) -> Result<BTreeSet<TrustDomain>, StoreError> {
        counted(&self.bundle.list, self.store.bundle_domains()).await
    }
}

impl<S: Federation> Federation for Metered<S> {
    async fn create_relationship(
        &self,
        relationship: &Relationship,
        bundle: Option<&Bundle>,
    ) -> Result<(), StoreError> {
        let create = self.store.create_relationship(relationship, bundle);
        counted(&self.federation.create, create).await
    }

    async fn relationship(&self, with: &TrustDomain) -> Result<Option<Relationship>, StoreError> {
        counted(&self.federation.fetch, self.store.relationship(with)).await
    }

    async fn relationships(&self, page: &Page) -> Result<Paged<Relationship>, StoreError> {
        counted(&self.federation.list, self.store.relationships(page)).await
    }

    async fn update_relationship(
        &self,
        with: &TrustDomain,
        change: impl FnOnce(&mut Relationship) + Send,
        bundle: Option<&Bundle>,
    ) -> Result<Relationship, StoreError> {
        let update = self.store.update_relationship(with, change, bundle);
        counted(&self.federation.update, update).await
    }

    async fn delete_relationship(&self, with: &TrustDomain) -> Result<(), StoreError> {
        let delete = self.store.delete_relationship(with);
        counted(&self.federation.delete, delete).await
    }
}

impl<S: Journals> Journals for Metered<S> {
    async fn journal(
        &self,
        active_x509_authority_id: &str,
    ) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        let fetch = self.store.journal(active_x509_authority_id);
        counted(&self.journal.fetch, fetch).await
    }

    async fn put_journal(
        &self,
        id: Option<u64>,
        active_x509_authority_id: &str,
        data: &[u8],
    ) -> Result<u64, StoreError> {
        let set = self.store.put_journal(id, active_x509_authority_id, data);
        counted(&self.journal.set, set).await
    }

    async fn journals(&self) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        counted(&self.journal.fetch, self.store.journals()).await
    }

    async fn prune_journals(&self, now: i64) -> Result<u64, StoreError> {
        counted(&self.journal.prune, self.store.prune_journals(now)).await
    }
}
