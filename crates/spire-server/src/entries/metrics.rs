//! What the cache counts, under upstream's names (inventory section 10.1).

use ah_spire_telemetry::{CallCounter, Gauge, Metrics};

/// How much an index holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Entries that are no aliases.
    pub(super) entries: usize,
    pub(super) aliases: usize,
    /// Of all aliases.
    pub(super) alias_selectors: usize,
    /// Those that are not banned.
    pub(super) agents: usize,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    on: bool,
    pub(super) reload: CallCounter,
    entries: Gauge,
    aliases: Gauge,
    alias_selectors: Gauge,
    agents: Gauge,
    agent_ends: Gauge,
    entry_gaps: Gauge,
    agent_gaps: Gauge,
}

impl Counts {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let entry = |what| metrics.gauge(&["entry", what, "count"], &[]);
        let node = |what| metrics.gauge(&["node", what, "count"], &[]);
        Self {
            on: metrics.is_on(),
            reload: metrics.calls(&["entry", "cache", "reload"], &[]),
            entries: entry("entries_by_entryid_cache"),
            aliases: entry("nodealiases_by_entryid_cache"),
            alias_selectors: entry("nodealiases_by_selector_cache"),
            agents: node("agents_by_id_cache"),
            agent_ends: node("agents_by_expiresat_cache"),
            entry_gaps: entry("skipped_entry_event_ids"),
            agent_gaps: node("skipped_node_event_ids"),
        }
    }

    /// Counting through an index takes a while: it is done for somebody.
    pub(super) fn are_on(&self) -> bool {
        self.on
    }

    /// `gaps` are the events of entries and of agents that are waited for.
    pub(super) fn tell(&self, sizes: &Sizes, gaps: (usize, usize)) {
        self.entries.set_count(sizes.entries);
        self.aliases.set_count(sizes.aliases);
        self.alias_selectors.set_count(sizes.alias_selectors);
        self.agents.set_count(sizes.agents);
        self.agent_ends.set_count(sizes.agents);
        self.entry_gaps.set_count(gaps.0);
        self.agent_gaps.set_count(gaps.1);
    }
}
