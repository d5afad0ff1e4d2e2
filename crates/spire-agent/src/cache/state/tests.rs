use std::time::{Duration, Instant};

use spiffe::SpiffeId;
use zeroize::Zeroizing;

use super::*;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn hour(hours: u64) -> SystemTime {
    NOW + Duration::from_secs(hours * 3600)
}

fn selector(value: &str) -> Selector {
    Selector::new("unix", value)
}

fn entry(id: &str, selectors: &[&str]) -> Arc<Entry> {
    let mut selectors: Vec<_> = selectors.iter().map(|value| selector(value)).collect();
    selectors.sort_unstable();
    Arc::new(Entry {
        id: id.into(),
        ..Entry::new(
            SpiffeId::new(format!("spiffe://example.org/{id}")).unwrap(),
            SpiffeId::new("spiffe://example.org/spire/agent/a").unwrap(),
            selectors,
        )
    })
}

fn held(entry: &Arc<Entry>, rotate_at: SystemTime, not_after: SystemTime) -> Held {
    let identity = X509Identity {
        entry: entry.clone(),
        chain: vec![vec![]],
        key: Zeroizing::default(),
        not_after,
    };
    Held {
        identity: Arc::new(identity),
        rotate_at,
    }
}

fn state(entries: &[Arc<Entry>]) -> State {
    let mut state = State::default();
    let bundle = Bundle {
        trust_domain: TrustDomain::new("example.org").unwrap(),
        x509: vec![],
        jwt: vec![],
        wit: vec![],
        refresh_hint: 0,
        sequence: 0,
    };
    state.set_bundles(bundle, BTreeMap::new());
    state.set_entries(entries.iter());
    state
}

fn sign(state: &mut State, limit: usize) -> Vec<String> {
    let unsigned = state.unsigned(NOW, limit);
    for entry in &unsigned {
        state.put(held(entry, hour(1), hour(2)));
    }
    unsigned.iter().map(|entry| entry.id.clone()).collect()
}

fn set(values: &[&str]) -> SelectorSet {
    let all: Vec<_> = values.iter().map(|value| selector(value)).collect();
    selector_set(&all)
}

fn matching(state: &State, values: &[&str]) -> Vec<String> {
    let entries = state.matching_entries(&set(values));
    entries.iter().map(|entry| entry.id.clone()).collect()
}

#[test]
fn all_selectors_of_an_entry_have_to_be_found() {
    let mut state = state(&[
        entry("a", &["uid:1"]),
        entry("b", &["uid:1", "gid:1"]),
        entry("c", &["gid:1"]),
    ]);
    assert_eq!(matching(&state, &["uid:1"]), ["a"]);
    assert_eq!(
        matching(&state, &["gid:1", "uid:1", "path:/x"]),
        ["a", "b", "c"]
    );
    assert!(matching(&state, &["path:/x"]).is_empty());
    // Selectors that changed are found in their new place alone.
    state.set_entries([entry("a", &["uid:2"]), entry("b", &["uid:1", "gid:1"])].iter());
    assert_eq!(matching(&state, &["uid:2"]), ["a"]);
    assert!(matching(&state, &["uid:1"]).is_empty());
    assert!(matching(&state, &["gid:1"]).is_empty());
}

#[test]
fn ten_thousand_entries_are_not_searched_one_by_one() {
    // All of them have one selector in common, as the entries of one user on one node do.
    let entries: Vec<_> = (0..10_000)
        .map(|n| entry(&format!("e{n}"), &["uid:1", &format!("path:/{n}")]))
        .collect();
    let state = state(&entries);
    let workload = set(&["uid:1", "gid:1", "path:/77"]);
    // The first entry alone stands below the common selector, where its bucket was as empty as the other.
    assert!(state.index.candidates(&workload).count() <= 2);
    let began = Instant::now();
    for _ in 0..1000 {
        assert_eq!(state.matching_entries(&workload).len(), 1);
    }
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn who_is_served_is_never_evicted_and_the_least_used_is() {
    let entries: Vec<_> = (0..6)
        .map(|n| entry(&format!("e{n}"), &[&format!("uid:{n}")]))
        .collect();
    let mut state = state(&entries);
    // There is room for three.
    assert_eq!(sign(&mut state, 3).len(), 3);
    let (wanted, other) = (set(&["uid:5"]), set(&["uid:0"]));
    state.start_waiting(&wanted);
    assert_eq!(
        sign(&mut state, 3),
        ["e5"],
        "who waits comes first, over the limit"
    );
    let stream = state.subscribe(&wanted, NOW, false).unwrap();
    state.stop_waiting(&wanted);
    drop(state.subscribe(&other, NOW, false).unwrap());
    state.publish(NOW);
    state.evict(2);
    let left: Vec<_> = ["e0", "e1", "e2", "e5"]
        .into_iter()
        .filter(|id| state.records[*id].svid.is_some())
        .collect();
    assert_eq!(left, ["e0", "e5"], "e0 was used, e5 is");
    state.evict(0);
    assert!(state.records["e5"].svid.is_some());
    drop(stream);
    state.evict(0);
    assert_eq!(state.svids(), 0);
}

#[test]
fn what_is_not_to_be_prefetched_is_made_when_it_is_wanted() {
    let mut lazy = entry("a", &["uid:1"]);
    Arc::make_mut(&mut lazy).disable_x509_svid_prefetch = true;
    let mut state = state(&[lazy]);
    assert!(sign(&mut state, 10).is_empty());
    let wanted = set(&["uid:1"]);
    assert!(state.subscribe(&wanted, NOW, false).is_none());
    state.start_waiting(&wanted);
    assert_eq!(sign(&mut state, 10), ["a"]);
    assert!(state.subscribe(&wanted, NOW, false).is_some());
}

#[test]
fn svids_are_due_by_age_and_by_a_changed_entry() {
    let (a, b) = (entry("a", &["uid:1"]), entry("b", &["uid:1"]));
    let mut state = state(&[a.clone(), b.clone()]);
    state.put(held(&a, hour(1), hour(2)));
    state.put(held(&b, hour(3), hour(6)));
    let due = |state: &State, at| -> Vec<String> {
        let unsigned = state.unsigned(at, 10);
        unsigned.iter().map(|entry| entry.id.clone()).collect()
    };
    assert!(due(&state, NOW).is_empty());
    assert_eq!(due(&state, hour(1)), ["a"]);
    assert_eq!(
        due(&state, hour(5)),
        ["b", "a"],
        "one that ended is no better than none"
    );
    let mut changed = b.clone();
    Arc::make_mut(&mut changed).revision = 1;
    state.set_entries([a.clone(), changed.clone()].iter());
    assert_eq!(due(&state, NOW), ["b"]);
    // One that was asked for before the change is of the old entry.
    state.put(held(&b, hour(3), hour(6)));
    assert_eq!(due(&state, NOW), ["b"]);
    state.put(held(&changed, hour(3), hour(6)));
    assert!(due(&state, NOW).is_empty());
}

#[test]
fn what_ended_is_not_served_and_no_lie_is_told_instead() {
    let a = entry("a", &["uid:1"]);
    let mut state = state(std::slice::from_ref(&a));
    state.put(held(&a, hour(1), hour(2)));
    let workload = set(&["uid:1"]);
    let receiver = state.subscribe(&workload, NOW, false).unwrap();
    // Nobody is told that no entry matches: one does.
    state.publish(hour(3));
    assert!(!receiver.has_changed().unwrap());
    assert!(state.subscribe(&workload, hour(3), true).is_none());
    state.put(held(&a, hour(4), hour(5)));
    state.publish(hour(3));
    assert!(receiver.has_changed().unwrap());
}

#[test]
fn before_the_first_word_of_the_server_nothing_is_said() {
    let mut state = State::default();
    assert!(state.subscribe(&set(&["uid:1"]), NOW, true).is_none());
}

// As upstream's agents do: a hundred each five seconds, for every agent hears of a taint at the same time.
#[test]
fn what_a_tainted_authority_signed_is_replaced_batch_by_batch() {
    let entries: Vec<_> = (0..250)
        .map(|n| entry(&n.to_string(), &["uid:1"]))
        .collect();
    let mut state = state(&entries);
    assert_eq!(sign(&mut state, 1000).len(), 250);
    assert_eq!((state.tainted(), state.unsigned(NOW, 1000).len()), (0, 0));
    assert_eq!(state.taint(|_| true, Some(NOW)), 250);
    assert_eq!(state.tainted(), 250);
    for (seconds, due) in [(0, 100), (4, 100), (5, 200), (10, 250)] {
        let at = NOW + Duration::from_secs(seconds);
        assert_eq!(state.unsigned(at, 1000).len(), due, "after {seconds} s");
    }
    assert_eq!(state.next_rotation(), Some(NOW));
    assert_eq!(sign(&mut state, 1000).len(), 100);
    assert_eq!(state.tainted(), 150);
    // What nobody believes any more does not wait.
    state.taint(|_| true, None);
    assert_eq!(state.unsigned(NOW, 1000).len(), 250);
}
