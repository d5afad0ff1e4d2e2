//! What outlives a process: entries, attested agents, join tokens, bundles and CA journals.
//!
//! Six small traits, and one conformance suite that every implementation passes. The schema is upstream's, so
//! that a datastore changes hands both ways.

mod config;
mod metered;
mod model;
mod sql;

use std::collections::BTreeSet;
use std::future::Future;

use ah_spire_wire::model::{Bundle, Entry, Selector};
use spiffe::{SpiffeId, TrustDomain};

pub use config::{AwsLogin, BadConfig, StoreConfig};
pub use metered::Metered;
pub(crate) use metered::counted;
pub(crate) use model::ToldHolding;
pub use model::{
    Agent, AgentFilter, EntryFilter, EntryMask, JoinToken, Match, Page, Paged, Profile,
    Relationship, Spender,
};
pub use sql::{OpenError, SqlStore};

/// Why the store did not do it, by what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Cannot be reached, busy or full: trying again may help. The text says what happened.
    #[error("datastore is unavailable: {0}")]
    Unavailable(String),
    /// There is one already.
    #[error("{0} already exists")]
    AlreadyExists(String),
    /// There is none.
    #[error("{0} not found")]
    NotFound(String),
    /// The request makes no sense, such as a page token that was never given out.
    #[error("{0}")]
    Invalid(String),
    /// Something else in the store stands in the way: the caller has to change that first.
    #[error("{0}")]
    Precondition(String),
    /// What is stored cannot be read, or the schema is not one we know.
    #[error("datastore is broken: {0}")]
    Broken(String),
}

/// What came of creating an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// As it stands in the store now.
    New(Entry),
    /// One with the same parent, SPIFFE ID and selectors is there.
    Similar(Entry),
}

/// Something changed an entry or an agent: how several servers on one store keep up with each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Position in the log of changes. Transactions may commit out of order: a gap can fill later.
    pub event: u64,
    /// Entry ID or agent SPIFFE ID.
    pub id: String,
}

/// Registration entries.
pub trait Entries: Send + Sync {
    /// `entry.id` may be empty: one is made. Revision and creation time are the store's.
    fn create_entry(
        &self,
        entry: Entry,
    ) -> impl Future<Output = Result<Created, StoreError>> + Send;
    /// By entry ID.
    fn entry(&self, id: &str) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;
    /// Several by entry ID; those that are not there are left out.
    fn entries_by_id(
        &self,
        ids: &[String],
    ) -> impl Future<Output = Result<Vec<Entry>, StoreError>> + Send;
    /// Those that match, in the order of their creation.
    fn entries(
        &self,
        filter: &EntryFilter,
        page: &Page,
    ) -> impl Future<Output = Result<Paged<Entry>, StoreError>> + Send;
    /// Gives all there are to `take`, in the order of their creation, as a cache begins with. May come from a replica
    /// and be some seconds old, in step with [`Entries::entry_events`].
    fn each_entry(
        &self,
        take: impl FnMut(Entry) + Send,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// How many match.
    fn count_entries(
        &self,
        filter: &EntryFilter,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;
    /// Takes over the fields of `entry` that `mask` names, and counts the revision up.
    fn update_entry(
        &self,
        entry: Entry,
        mask: &EntryMask,
    ) -> impl Future<Output = Result<Entry, StoreError>> + Send;
    /// The entry that went.
    fn delete_entry(&self, id: &str) -> impl Future<Output = Result<Entry, StoreError>> + Send;
    /// Deletes entries that expired before `now` (Unix seconds).
    fn prune_entries(
        &self,
        now: i64,
    ) -> impl Future<Output = Result<Vec<Entry>, StoreError>> + Send;
    /// Changes after `event`; the newest event when `None`, without its history.
    fn entry_events(
        &self,
        after: Option<u64>,
    ) -> impl Future<Output = Result<Vec<Changed>, StoreError>> + Send;
    /// Those of these events that there are by now: some may have been gaps in the log.
    fn entry_events_among(
        &self,
        events: &[u64],
    ) -> impl Future<Output = Result<Vec<Changed>, StoreError>> + Send;
    /// Forgets events from before `before` (Unix seconds); how many went.
    fn prune_entry_events(
        &self,
        before: i64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;
}

/// Attested agents.
pub trait Agents: Send + Sync {
    /// Creates or replaces the agent with its selectors, in one transaction. One that is banned is not replaced:
    /// [`StoreError::Precondition`].
    fn put_agent(&self, agent: &Agent) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// By SPIFFE ID.
    fn agent(
        &self,
        id: &SpiffeId,
    ) -> impl Future<Output = Result<Option<Agent>, StoreError>> + Send;
    /// Those that match.
    fn agents(
        &self,
        filter: &AgentFilter,
        page: &Page,
    ) -> impl Future<Output = Result<Paged<Agent>, StoreError>> + Send;
    /// All there are, never from a replica: calls are judged by them.
    fn all_agents(&self) -> impl Future<Output = Result<Vec<Agent>, StoreError>> + Send;
    /// How many match.
    fn count_agents(
        &self,
        filter: &AgentFilter,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;
    /// Sets the prepared certificate of a renewal, or makes it the current one, or bans (serials cleared): `change`
    /// is applied in one transaction to what is stored.
    fn update_agent(
        &self,
        id: &SpiffeId,
        change: impl FnOnce(&mut Agent) + Send,
    ) -> impl Future<Output = Result<Agent, StoreError>> + Send;
    /// The agent that went (evicted). The entry that its join token made goes with it.
    fn delete_agent(&self, id: &SpiffeId)
    -> impl Future<Output = Result<Agent, StoreError>> + Send;
    /// Deletes at most `batch` agents whose certificate expired before `before` (Unix seconds).
    fn prune_agents(
        &self,
        before: i64,
        include_non_reattestable: bool,
        batch: u32,
    ) -> impl Future<Output = Result<Vec<SpiffeId>, StoreError>> + Send;
    /// As [`Entries::entry_events`].
    fn agent_events(
        &self,
        after: Option<u64>,
    ) -> impl Future<Output = Result<Vec<Changed>, StoreError>> + Send;
    /// As [`Entries::entry_events_among`].
    fn agent_events_among(
        &self,
        events: &[u64],
    ) -> impl Future<Output = Result<Vec<Changed>, StoreError>> + Send;
    /// As [`Entries::prune_entry_events`].
    fn prune_agent_events(
        &self,
        before: i64,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;
}

/// Join tokens.
pub trait JoinTokens: Send + Sync {
    /// Fails with [`StoreError::AlreadyExists`] when the token is taken.
    fn create_join_token(
        &self,
        token: &JoinToken,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Takes the token out of the store. Of any number of callers, on any number of servers, one gets it. That one
    /// gets it again until [`Spender::until`], as it may not have had its answer; not a token that had expired.
    fn consume_join_token(
        &self,
        token: &str,
        spender: &Spender,
    ) -> impl Future<Output = Result<Option<JoinToken>, StoreError>> + Send;
    /// Deletes tokens that expired before `now` (Unix seconds).
    fn prune_join_tokens(&self, now: i64) -> impl Future<Output = Result<u64, StoreError>> + Send;
}

/// Trust bundles: the own one and those of federated trust domains.
pub trait Bundles: Send + Sync {
    /// Of one trust domain.
    fn bundle(
        &self,
        of: &TrustDomain,
    ) -> impl Future<Output = Result<Option<Bundle>, StoreError>> + Send;
    /// All, by trust domain.
    fn bundles(
        &self,
        page: &Page,
    ) -> impl Future<Output = Result<Paged<Bundle>, StoreError>> + Send;
    /// How many there are.
    fn count_bundles(&self) -> impl Future<Output = Result<u64, StoreError>> + Send;
    /// Creates or replaces.
    fn put_bundle(&self, bundle: &Bundle) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Changes a bundle in one transaction and counts its sequence number up when anything changed. `how` says what
    /// kind of change that is, for those who count them. `change` is given what is stored (`None`: there is none yet) and answers what is to be stored (`None`: leave it). Two servers that append at once both find their keys in it.
    fn update_bundle(
        &self,
        of: &TrustDomain,
        how: BundleChange,
        change: impl FnOnce(Option<Bundle>) -> Option<Bundle> + Send,
    ) -> impl Future<Output = Result<Option<Bundle>, StoreError>> + Send;
    /// `dissociate` takes the domain out of entries that federate with it; `delete_entries` deletes those;
    /// neither refuses while there are any ([`StoreError::Precondition`]).
    fn delete_bundle(
        &self,
        of: &TrustDomain,
        mode: BundleDeletion,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Trust domains of all bundles.
    fn bundle_domains(
        &self,
    ) -> impl Future<Output = Result<BTreeSet<TrustDomain>, StoreError>> + Send;
}

/// What a change does to a bundle, as upstream's datastore tells changes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleChange {
    /// Keys are added; where there is no bundle it begins with them.
    Append,
    /// There was none.
    Create,
    /// What has expired goes.
    Prune,
    /// Anything else.
    Update,
}

/// What becomes of entries that federate with a bundle's trust domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleDeletion {
    /// The bundle stays while there are any.
    Restrict,
    /// They go, too.
    Delete,
    /// They stay, without that trust domain.
    Dissociate,
}

/// Federation with other trust domains: where their bundles come from.
pub trait Federation: Send + Sync {
    /// Fails with [`StoreError::AlreadyExists`] when there is one with that trust domain. A `bundle` replaces the
    /// stored one in the same transaction.
    fn create_relationship(
        &self,
        relationship: &Relationship,
        bundle: Option<&Bundle>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// With one trust domain.
    fn relationship(
        &self,
        with: &TrustDomain,
    ) -> impl Future<Output = Result<Option<Relationship>, StoreError>> + Send;
    /// All, in the order of their creation.
    fn relationships(
        &self,
        page: &Page,
    ) -> impl Future<Output = Result<Paged<Relationship>, StoreError>> + Send;
    /// `change` is applied in one transaction to what is stored. A `bundle` replaces the stored one.
    fn update_relationship(
        &self,
        with: &TrustDomain,
        change: impl FnOnce(&mut Relationship) + Send,
        bundle: Option<&Bundle>,
    ) -> impl Future<Output = Result<Relationship, StoreError>> + Send;
    /// The bundle stays.
    fn delete_relationship(
        &self,
        with: &TrustDomain,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// CA journals: which authorities a server has prepared, active and retired.
pub trait Journals: Send + Sync {
    /// The journal whose active X.509 authority has this ID, as `spire.journal.Entries` bytes.
    fn journal(
        &self,
        active_x509_authority_id: &str,
    ) -> impl Future<Output = Result<Option<(u64, Vec<u8>)>, StoreError>> + Send;
    /// Writes a journal; `id` is the one that reading or the last write gave, `None` makes a new one.
    fn put_journal(
        &self,
        id: Option<u64>,
        active_x509_authority_id: &str,
        data: &[u8],
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;
    /// Every journal there is.
    fn journals(&self) -> impl Future<Output = Result<Vec<(u64, Vec<u8>)>, StoreError>> + Send;
    /// Deletes journals whose authorities have all expired before `now` (Unix seconds).
    fn prune_journals(&self, now: i64) -> impl Future<Output = Result<u64, StoreError>> + Send;
}

/// All of it.
pub trait Store: Entries + Agents + JoinTokens + Bundles + Federation + Journals + 'static {}

impl<T: Entries + Agents + JoinTokens + Bundles + Federation + Journals + 'static> Store for T {}

/// Whether `wanted` and `found` match as the APIs' `SelectorMatch` says. What has none matches nothing.
pub fn selectors_match(
    how: Match,
    wanted: &BTreeSet<Selector>,
    found: &BTreeSet<Selector>,
) -> bool {
    match how {
        Match::Exact => wanted == found,
        Match::Subset => !found.is_empty() && found.is_subset(wanted),
        Match::Superset => found.is_superset(wanted),
        Match::Any => !found.is_disjoint(wanted),
    }
}
