//! "no identity issued", and what the operator needs to find out why.

use ah_spire_attest::peer::PeerInfo;
use ah_spire_wire::model::{Entry, Selector};
use tonic::Status;

use super::service::Shared;
use crate::identities::Identities;

/// Whom it would be told to.
#[derive(Clone)]
pub(super) struct Refused {
    pub(super) pid: i32,
    pub(super) uid: u32,
    pub(super) own: bool,
    pub(super) selectors: Vec<Selector>,
}

impl Refused {
    pub(super) fn of(peer: &PeerInfo, selectors: Vec<Selector>) -> Self {
        Self {
            pid: peer.pid(),
            uid: peer.uid(),
            own: is_own(peer),
            selectors,
        }
    }
}

/// Whether the agent calls itself: that is left out of logs and limits.
pub(super) fn is_own(peer: &PeerInfo) -> bool {
    u32::try_from(peer.pid()) == Ok(std::process::id())
}

/// The refusal, which the log explains.
pub(super) fn no_identity<I: Identities, A>(shared: &Shared<I, A>, whom: &Refused) -> Status {
    tell_no_identity(shared, whom);
    Status::permission_denied("no identity issued")
}

/// Says in the log what is missing, as far as `log_selectors` allows.
pub(super) fn tell_no_identity<I: Identities, A>(shared: &Shared<I, A>, whom: &Refused) {
    if !whom.own {
        let loggable = |selector: &&Selector| is_loggable(selector, &shared.config.log_selectors);
        let entries = shared.identities.entries();
        let nearest = entries
            .iter()
            .map(|entry| (entry, missing(entry, &whom.selectors)))
            .min_by_key(|(_, missing)| missing.len());
        let (entry, lacking, lacks) = match &nearest {
            Some((entry, missing)) => (
                entry.spiffe_id.to_string(),
                missing.len(),
                joined(missing.iter().copied().filter(loggable)),
            ),
            None => (String::new(), 0, String::new()),
        };
        tracing::error!(
            pid = whom.pid,
            uid = whom.uid,
            registered = false,
            selectors = joined(whom.selectors.iter().filter(loggable)),
            nearest.spiffe_id = entry,
            nearest.lacking = lacking,
            nearest.selectors = lacks,
            entries = entries.len(),
            "no identity issued"
        );
    }
}

/// What `entry` asks for that was not found.
pub(super) fn missing<'a>(entry: &'a Entry, found: &[Selector]) -> Vec<&'a Selector> {
    let asked = entry.selectors.iter();
    asked.filter(|asked| !found.contains(asked)).collect()
}

/// A prefix ends at a colon of the selector, or is all of it.
fn is_loggable(selector: &Selector, prefixes: &[String]) -> bool {
    let selector = selector.to_string();
    let starts = |prefix: &String| {
        let rest = selector.strip_prefix(prefix.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    };
    prefixes.iter().any(starts)
}

fn joined<'a>(selectors: impl Iterator<Item = &'a Selector>) -> String {
    let mut selectors: Vec<String> = selectors.map(ToString::to_string).collect();
    selectors.sort_unstable();
    selectors.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    // Inventory 1.1, log_selectors
    #[test]
    fn a_prefix_of_selectors_ends_at_a_colon() {
        let selector = Selector::new("k8s", "ns:default");
        let allowed = |prefix: &str| is_loggable(&selector, &[prefix.to_owned()]);
        for prefix in ["k8s", "k8s:ns", "k8s:ns:default"] {
            assert!(allowed(prefix), "{prefix}");
        }
        for prefix in ["", "k8", "k8s:", "k8s:n", "k8s:ns:defaul", "unix"] {
            assert!(!allowed(prefix), "{prefix}");
        }
        assert!(!is_loggable(&selector, &[]));
    }
}
