//! Entries by ID, by parent and by what they issue; agents by ID.
//!
//! Each entry is held once, and each index adds a pointer to it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use ah_spire_wire::model::{Entry, Selector};
use foldhash::fast::RandomState;
use spiffe::{SpiffeId, TrustDomain};
use tokio::sync::watch;

use super::held::Held;
use super::metrics::Sizes;
use super::order::{ById, ByIssued, Issued, Parent};
use crate::store::Agent;

pub(super) struct Index {
    /// Entries of other trust domains are nobody's business here.
    trust_domain: TrustDomain,
    pub(super) by_id: HashSet<ById, RandomState>,
    /// Entries that are no aliases, by parent; each list is sorted by entry ID.
    pub(super) children: HashMap<Parent, Vec<Arc<Held>>, RandomState>,
    /// All, by what they issue: the way up from an entry to its agents.
    pub(super) issued: BTreeSet<ByIssued>,
    /// Aliases, by one of their selectors: the one that fewest others are under.
    pub(super) aliases: HashMap<Selector, Vec<Arc<Held>>>,
    pub(super) agents: HashMap<SpiffeId, Arc<Agent>>,
    /// Entries that end, by when.
    pub(super) ends: BTreeSet<(i64, String)>,
}

/// Whom a change concerns.
pub(super) struct Affected<'a> {
    watched: &'a HashMap<SpiffeId, watch::Sender<u64>>,
    agents: HashSet<&'a SpiffeId>,
}

impl<'a> Affected<'a> {
    /// Only these agents want to know.
    pub(super) fn among(watched: &'a HashMap<SpiffeId, watch::Sender<u64>>) -> Self {
        Self {
            watched,
            agents: HashSet::new(),
        }
    }

    /// Those of them that may see a difference.
    pub(super) fn agents(&self) -> impl Iterator<Item = &'a SpiffeId> {
        self.agents.iter().copied()
    }

    /// What they see is not compared: all of them look again.
    pub(super) fn everybody(&mut self) {
        self.agents.extend(self.watched.keys());
    }

    fn add(&mut self, agent: &SpiffeId) {
        if let Some((agent, _)) = self.watched.get_key_value(agent) {
            self.agents.insert(agent);
        }
    }
}

impl Index {
    pub(super) fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            by_id: HashSet::default(),
            children: HashMap::default(),
            issued: BTreeSet::new(),
            aliases: HashMap::new(),
            agents: HashMap::new(),
            ends: BTreeSet::new(),
        }
    }

    pub(super) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn sizes(&self) -> Sizes {
        let mut sizes = Sizes {
            agents: self.agents.values().filter(|it| !it.is_banned()).count(),
            ..Sizes::default()
        };
        for alias in self.aliases.values().flatten() {
            sizes.aliases += 1;
            sizes.alias_selectors += alias.selectors.len();
        }
        sizes.entries = self.by_id.len().saturating_sub(sizes.aliases);
        sizes
    }

    pub(super) fn entry(&self, id: &str) -> Option<&Arc<Held>> {
        self.by_id.get(id.as_bytes()).map(|found| &found.0)
    }

    pub(super) fn agent(&self, id: &SpiffeId) -> Option<&Arc<Agent>> {
        self.agents.get(id)
    }

    pub(super) fn authorized(&self, agent: &SpiffeId, now: i64) -> Vec<Arc<Held>> {
        if *agent.trust_domain() != self.trust_domain {
            return Vec::new();
        }
        let selectors = match self.agents.get(agent) {
            Some(known) if known.is_banned() => return Vec::new(),
            Some(known) => known.selectors.as_slice(),
            // Attested a moment ago, by another server: what is below it is known all the same.
            None => &[],
        };
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut parents = vec![agent.path().as_bytes()];
        parents.extend(self.aliases_of(selectors, now).map(Held::path));
        while let Some(parent) = parents.pop() {
            let Some(children) = self.children.get(parent) else {
                continue;
            };
            if !seen.insert(parent) {
                continue;
            }
            for child in children.iter().filter(|child| is_valid(child, now)) {
                found.push(Arc::clone(child));
                parents.push(child.path());
            }
        }
        found
    }

    pub(super) fn authorized_entry(
        &self,
        agent: &SpiffeId,
        id: &str,
        now: i64,
    ) -> Option<Arc<Held>> {
        let known = self.agents.get(agent);
        if known.is_some_and(|known| known.is_banned()) {
            return None;
        }
        let entry = self
            .entry(id)
            .filter(|entry| is_valid(entry, now) && !entry.is_alias())?;
        let selectors = known.map_or(&[][..], |known| known.selectors.as_slice());
        let mut reached = false;
        self.climb(
            &entry.parent_id,
            |step| {
                reached |= match step {
                    Step::Id(id) => id == agent,
                    Step::Alias(alias) => {
                        is_valid(alias, now) && has_all(selectors, &alias.selectors)
                    }
                };
                !reached
            },
            |entry| is_valid(entry, now),
        );
        reached.then(|| Arc::clone(entry))
    }

    /// An older state of an entry than the one that is held is ignored.
    pub(super) fn put(&mut self, entry: Entry, affected: &mut Affected<'_>) {
        let is_ours = self.is_ours(&entry);
        let entry = self.hold(&entry);
        let held = self.entry(entry.id());
        if held.is_some_and(|held| {
            **held == entry || held.created_at == entry.created_at && held.revision > entry.revision
        }) {
            return;
        }
        self.remove(entry.id(), affected);
        if !is_ours {
            return;
        }
        let entry = Arc::new(entry);
        self.by_id.insert(ById(Arc::clone(&entry)));
        self.issued.insert(ByIssued(Arc::clone(&entry)));
        if entry.expires_at != 0 {
            self.ends.insert((entry.expires_at, entry.id().to_owned()));
        }
        if entry.is_alias() {
            self.add_alias(Arc::clone(&entry));
        } else {
            let parent = Parent(Arc::clone(&entry.parent_id));
            let siblings = self.children.entry(parent).or_default();
            let place = siblings.partition_point(|sibling| sibling.id_bytes() < entry.id_bytes());
            siblings.insert(place, Arc::clone(&entry));
        }
        self.affect(&entry, affected);
    }

    /// Entries below one parent share its ID.
    pub(super) fn hold(&self, entry: &Entry) -> Held {
        let known = self
            .children
            .get_key_value(entry.parent_id.path().as_bytes());
        let parent = match known {
            Some((Parent(parent), _)) if **parent == entry.parent_id => Arc::clone(parent),
            _ => Arc::new(entry.parent_id.clone()),
        };
        Held::new(entry, parent)
    }

    pub(super) fn remove(&mut self, id: &str, affected: &mut Affected<'_>) {
        let Some(ById(entry)) = self.by_id.take(id.as_bytes()) else {
            return;
        };
        // While the way up is still whole: the entry may be on it.
        self.affect(&entry, affected);
        self.issued.remove(&ByIssued(Arc::clone(&entry)));
        if entry.expires_at != 0 {
            self.ends.remove(&(entry.expires_at, entry.id().to_owned()));
        }
        if entry.is_alias() {
            for selector in &entry.selectors {
                if let Some(aliases) = self.aliases.get_mut(selector) {
                    aliases.retain(|alias| alias.id_bytes() != entry.id_bytes());
                    if aliases.is_empty() {
                        self.aliases.remove(selector);
                    }
                }
            }
        } else if let Some(siblings) = self.children.get_mut(entry.parent_id.path().as_bytes()) {
            let place =
                siblings.binary_search_by(|sibling| sibling.id_bytes().cmp(entry.id_bytes()));
            if let Ok(place) = place {
                siblings.remove(place);
            }
            if siblings.is_empty() {
                self.children.remove(entry.parent_id.path().as_bytes());
            }
        }
    }

    pub(super) fn put_agent(&mut self, agent: Arc<Agent>, affected: &mut Affected<'_>) {
        let id = agent.id.clone();
        let (selectors, banned) = (agent.selectors.clone(), agent.is_banned());
        let held = self.agents.insert(id.clone(), agent);
        let sees_the_same =
            held.is_some_and(|held| held.selectors == selectors && held.is_banned() == banned);
        if !sees_the_same {
            affected.add(&id);
        }
    }

    pub(super) fn remove_agent(&mut self, id: &SpiffeId, affected: &mut Affected<'_>) {
        if self.agents.remove(id).is_some() {
            affected.add(id);
        }
    }

    /// Entries that were valid at `before` and are not at `now`.
    pub(super) fn expire(&self, before: i64, now: i64, affected: &mut Affected<'_>) {
        if before >= now {
            return;
        }
        let first = Bound::Excluded((before, String::from(char::MAX)));
        let last = Bound::Included((now, String::from(char::MAX)));
        for (_, id) in self.ends.range((first, last)) {
            if let Some(entry) = self.entry(id) {
                self.affect(entry, affected);
            }
        }
    }

    pub(super) fn add_alias(&mut self, alias: Arc<Held>) {
        let under = |selector: &&Selector| self.aliases.get(*selector).map_or(0, Vec::len);
        if let Some(selector) = alias.selectors.iter().min_by_key(under) {
            self.aliases
                .entry(selector.clone())
                .or_default()
                .push(alias);
        }
    }

    fn aliases_of<'a>(
        &'a self,
        selectors: &'a [Selector],
        now: i64,
    ) -> impl Iterator<Item = &'a Held> {
        let under = selectors
            .iter()
            .filter_map(|selector| self.aliases.get(selector));
        under
            .flatten()
            .filter(move |alias| is_valid(alias, now) && has_all(selectors, &alias.selectors))
            .map(|alias| &**alias)
    }

    /// The agents, of those that are watched, that may serve this entry or what is below it.
    fn affect(&self, entry: &Held, affected: &mut Affected<'_>) {
        if affected.watched.is_empty() {
            return;
        }
        let mut reached = |step: Step<'_>| {
            match step {
                Step::Id(id) => affected.add(id),
                Step::Alias(alias) => {
                    for id in affected.watched.keys() {
                        let known = self.agents.get(id);
                        if known.is_some_and(|known| has_all(&known.selectors, &alias.selectors)) {
                            affected.agents.insert(id);
                        }
                    }
                }
            }
            true
        };
        if entry.is_alias() {
            reached(Step::Alias(entry));
        } else {
            self.climb(&entry.parent_id, reached, |_| true);
        }
    }

    /// Visits everything from which `parent` is reached downwards, through entries that `passes` lets through,
    /// until `visit` answers `false`.
    fn climb<'a>(
        &'a self,
        parent: &'a SpiffeId,
        mut visit: impl FnMut(Step<'a>) -> bool,
        passes: impl Fn(&Held) -> bool,
    ) {
        let mut seen = HashSet::new();
        let mut next = vec![parent];
        while let Some(id) = next.pop() {
            if !seen.insert(id) {
                continue;
            }
            if !visit(Step::Id(id)) {
                return;
            }
            for entry in self.issuers(id) {
                if !entry.is_alias() {
                    if passes(entry) {
                        next.push(&entry.parent_id);
                    }
                } else if !visit(Step::Alias(entry)) {
                    return;
                }
            }
        }
    }

    /// Entries that issue `id`.
    fn issuers<'a>(&'a self, id: &'a SpiffeId) -> impl Iterator<Item = &'a Held> {
        let path = id.path().as_bytes();
        let first: &dyn Issued = &(path, &[][..]);
        self.issued
            .range::<dyn Issued + '_, _>((Bound::Included(first), Bound::Unbounded))
            .map(|found| &*found.0)
            .take_while(move |entry| entry.path() == path)
    }

    pub(super) fn is_ours(&self, entry: &Entry) -> bool {
        *entry.spiffe_id.trust_domain() == self.trust_domain
            && *entry.parent_id.trust_domain() == self.trust_domain
    }
}

/// What is met on the way up.
enum Step<'a> {
    Id(&'a SpiffeId),
    Alias(&'a Held),
}

fn is_valid(entry: &Held, now: i64) -> bool {
    entry.expires_at == 0 || entry.expires_at > now
}

/// Both are sorted.
fn has_all(found: &[Selector], wanted: &[Selector]) -> bool {
    let mut found = found.iter();
    wanted
        .iter()
        .all(|one| found.by_ref().any(|other| other == one))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::build::Building;
    use super::*;

    const AGENTS: [&str; 3] = ["spire/agent/a", "spire/agent/b", "spire/agent/c"];
    const NODES: [&str; 3] = ["node/1", "node/2", "node/3"];
    const SELECTORS: [&str; 3] = ["t:1", "t:2", "t:3"];

    fn id(path: &str) -> SpiffeId {
        SpiffeId::new(format!("spiffe://example.org/{path}")).unwrap()
    }

    fn selectors(mask: u8) -> Vec<Selector> {
        let chosen = SELECTORS
            .iter()
            .enumerate()
            .filter(|(n, _)| mask & (1 << n) != 0);
        chosen.map(|(_, text)| text.parse().unwrap()).collect()
    }

    fn entry(name: u8, spiffe_id: &str, parent: &str, chosen: u8, expires_at: i64) -> Entry {
        Entry {
            id: name.to_string(),
            expires_at,
            ..Entry::new(id(spiffe_id), id(parent), selectors(chosen))
        }
    }

    fn agent(name: &str, chosen: u8, banned: bool) -> Agent {
        Agent {
            id: id(name),
            attestation_type: "t".into(),
            serial_number: if banned { "" } else { "1" }.into(),
            expires_at: 0,
            new_serial_number: String::new(),
            new_expires_at: 0,
            selectors: selectors(chosen),
            can_reattest: true,
            version: String::new(),
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(Entry),
        Remove(u8),
        PutAgent(Agent),
        RemoveAgent(&'static str),
        Clock(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Few names, so that entries meet: chains, rings, aliases under agents, and agents that are issued.
        let parents = prop_oneof![
            2 => Just("spire/server"),
            4 => prop::sample::select(NODES.to_vec()),
            3 => prop::sample::select(AGENTS.to_vec()),
        ];
        let issued = prop_oneof![
            6 => prop::sample::select(NODES.to_vec()),
            2 => Just("w"),
            1 => prop::sample::select(AGENTS.to_vec()),
        ];
        let ends = prop_oneof![3 => Just(0), 1 => 1..4_i64];
        let put = (0..12_u8, issued, parents, 1..8_u8, ends).prop_map(
            |(name, issued, parent, chosen, end)| {
                Step::Put(entry(name, issued, parent, chosen, end))
            },
        );
        let agents = prop::sample::select(AGENTS.to_vec());
        let put_agent = (agents.clone(), 0..8_u8, prop::bool::weighted(0.2))
            .prop_map(|(name, chosen, banned)| Step::PutAgent(agent(name, chosen, banned)));
        prop_oneof![
            8 => put,
            3 => (0..12_u8).prop_map(Step::Remove),
            3 => put_agent,
            1 => agents.prop_map(Step::RemoveAgent),
            1 => (0..5_i64).prop_map(Step::Clock),
        ]
    }

    /// As one would say it, without any index.
    #[derive(Default)]
    struct Model {
        entries: HashMap<String, Entry>,
        agents: HashMap<SpiffeId, Agent>,
    }

    impl Model {
        fn authorized(&self, agent: &SpiffeId, now: i64) -> BTreeSet<String> {
            let known = self.agents.get(agent);
            if known.is_some_and(Agent::is_banned) {
                return BTreeSet::new();
            }
            let found: Vec<_> = known
                .map(|known| known.selectors.clone())
                .unwrap_or_default();
            let valid = |entry: &&Entry| entry.expires_at == 0 || entry.expires_at > now;
            let entries: Vec<_> = self.entries.values().filter(valid).collect();
            let mut reached = HashSet::from([agent.clone()]);
            for alias in entries
                .iter()
                .filter(|entry| entry.parent_id == id("spire/server"))
            {
                if alias.selectors.iter().all(|wanted| found.contains(wanted)) {
                    reached.insert(alias.spiffe_id.clone());
                }
            }
            let mut may_serve = BTreeSet::new();
            loop {
                let before = may_serve.len();
                for entry in &entries {
                    if entry.parent_id != id("spire/server") && reached.contains(&entry.parent_id) {
                        may_serve.insert(entry.id.clone());
                        reached.insert(entry.spiffe_id.clone());
                    }
                }
                if may_serve.len() == before {
                    return may_serve;
                }
            }
        }
    }

    fn ids(index: &Index, agent: &SpiffeId, now: i64) -> BTreeSet<String> {
        let found = index.authorized(agent, now);
        let ids: BTreeSet<_> = found.iter().map(|entry| entry.id().to_owned()).collect();
        assert_eq!(ids.len(), found.len(), "each entry once");
        ids
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        // inventory §8 Entry: GetAuthorizedEntries, SyncAuthorizedEntries
        #[test]
        fn agents_see_what_a_naive_model_sees_and_hear_of_every_change(steps in prop::collection::vec(step(), 1..60)) {
            let trust_domain = TrustDomain::new("example.org").unwrap();
            let mut index = Index::new(trust_domain.clone());
            let mut model = Model::default();
            let mut now = 0;
            let watched: HashMap<_, _> = AGENTS.iter().map(|name| (id(name), watch::channel(0).0)).collect();
            for step in steps {
                let before: HashMap<_, _> = watched.keys().map(|agent| (agent, model.authorized(agent, now))).collect();
                let mut affected = Affected::among(&watched);
                match step {
                    Step::Put(entry) => {
                        model.entries.insert(entry.id.clone(), entry.clone());
                        index.put(entry, &mut affected);
                    }
                    Step::Remove(name) => {
                        model.entries.remove(&name.to_string());
                        index.remove(&name.to_string(), &mut affected);
                    }
                    Step::PutAgent(agent) => {
                        model.agents.insert(agent.id.clone(), agent.clone());
                        index.put_agent(Arc::new(agent), &mut affected);
                    }
                    Step::RemoveAgent(name) => {
                        model.agents.remove(&id(name));
                        index.remove_agent(&id(name), &mut affected);
                    }
                    Step::Clock(later) => {
                        let later = later.max(now);
                        index.expire(now, later, &mut affected);
                        now = later;
                    }
                }
                let told: HashSet<_> = affected.agents().collect();
                for (agent, before) in before {
                    let wanted = model.authorized(agent, now);
                    prop_assert_eq!(&ids(&index, agent, now), &wanted);
                    for entry in model.entries.values() {
                        let single = index.authorized_entry(agent, &entry.id, now).is_some();
                        prop_assert_eq!(single, wanted.contains(&entry.id), "{} for {}", entry.id, agent);
                    }
                    prop_assert!(before == wanted || told.contains(agent), "{} was not told", agent);
                }
            }
            // Built at once it is the same.
            let mut building = Building::new(trust_domain);
            model.entries.values().cloned().for_each(|entry| building.add(entry));
            let built = building.finish(model.agents.values().cloned().collect());
            for agent in watched.keys() {
                prop_assert_eq!(ids(&built, agent, now), model.authorized(agent, now));
            }
            prop_assert!(built.issued.iter().map(Issued::key).eq(index.issued.iter().map(Issued::key)));
            prop_assert_eq!(&built.ends, &index.ends);
            prop_assert_eq!(built.children.len(), index.children.len(), "nothing empty is kept");
        }
    }

    #[test]
    fn others_are_left_alone_and_older_states_ignored() {
        let mut index = Index::new(TrustDomain::new("example.org").unwrap());
        let watched: HashMap<_, _> = AGENTS
            .iter()
            .map(|name| (id(name), watch::channel(0).0))
            .collect();
        let told = |index: &mut Index, change: &dyn Fn(&mut Index, &mut Affected<'_>)| {
            let mut affected = Affected::among(&watched);
            change(index, &mut affected);
            affected.agents().cloned().collect::<Vec<_>>()
        };
        let mut newer = entry(1, "w", AGENTS[0], 1, 0);
        newer.revision = 2;
        let put = |entry: &Entry| {
            let entry = entry.clone();
            move |index: &mut Index, affected: &mut Affected<'_>| index.put(entry.clone(), affected)
        };
        assert_eq!(told(&mut index, &put(&newer)), [id(AGENTS[0])]);
        assert!(told(&mut index, &put(&newer)).is_empty(), "nothing changed");
        let mut older = newer.clone();
        older.revision = 1;
        older.hint = "old".into();
        assert!(told(&mut index, &put(&older)).is_empty());
        assert_eq!(index.entry("1").unwrap().to_wire().unwrap().hint, "");
        // Deleted and made anew under the same ID.
        older.created_at = 5;
        assert_eq!(told(&mut index, &put(&older)), [id(AGENTS[0])]);
        let mut foreign = entry(2, "w", AGENTS[0], 1, 0);
        foreign.spiffe_id = SpiffeId::new("spiffe://other.org/w").unwrap();
        assert!(told(&mut index, &put(&foreign)).is_empty());
        assert!(index.entry("2").is_none());
    }
}
