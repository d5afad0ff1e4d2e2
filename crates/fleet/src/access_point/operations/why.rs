//! Why a peer was let in or turned away: its last attempts, and the rule that would have matched (ER-25).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ah_identity_provider::{CertificateFacts, Code, Explained};
use ah_tls::SanRules;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use super::selector::{NotDone, Selector, fingerprint};
use crate::access_point::Operator;
use crate::access_point::attempts::Attempt;
use crate::audit::{AuditTarget, Entry, Event, Past, past};
use crate::store::{CertificateRecord, ExecutorId};

/// Attempts that are shown unless more are asked for.
const SHOWN: usize = 10;
/// Most attempts that are shown.
const MOST: usize = 200;

/// How many attempts to show.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct WhyFilter {
    /// At most so many attempts, newest first: 1 to 200, 10 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// The last attempts of one peer.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Why {
    /// Who was asked about.
    pub who: String,
    /// Since when attempts are remembered in memory: the start of the access point.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub known_since: OffsetDateTime,
    /// The SAN rules in force now. None: every certificate that chains to a trusted root is admitted.
    pub rules: Vec<String>,
    /// Newest first.
    pub attempts: Vec<AttemptView>,
    /// Why attempts from before `known_since` are not among them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub no_earlier: Option<String>,
    /// Connections since `known_since` that were reset for want of a place. No attempt tells of them, and nobody
    /// knows whose they were.
    #[serde(default)]
    pub shed: u64,
}

/// From where an attempt is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Known {
    /// This access point saw it since it started.
    Memory,
    /// It was read back from the audit log, which holds less of it.
    AuditLog,
}

/// One attempt to enroll, or several that were the same.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AttemptView {
    /// The last of them.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: OffsetDateTime,
    /// The first of them.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub first: OffsetDateTime,
    /// How many.
    pub times: u64,
    /// From where it is known.
    pub known_from: Known,
    /// Whether the peer was let in.
    pub admitted: bool,
    /// Who the certificate says it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<String>,
    /// Whether the certificate chains to a trusted root; if not, what it says is a claim. Absent where the audit
    /// log does not tell.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vouched: Option<bool>,
    /// What the executor calls itself, where it came to that.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Where the last came from.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>)]
    pub peer: Option<SocketAddr>,
    /// The certificate's names: `URI:…`, `DNS:…`, `IP:…`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub sans: Vec<String>,
    /// The certificate's subject.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub subject: Option<String>,
    /// Who issued it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub issuer: Option<String>,
    /// Which certificate it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub certificate: Option<CertificateRecord>,
    /// The kind of refusal, in a stable word.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(value_type = Option<String>)]
    pub code: Option<Code>,
    /// Why it was refused, in one line.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// What led to it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub causes: Vec<String>,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hint: Option<String>,
    /// For a refusal by the SAN rules: the rule of now that comes closest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nearest: Option<NearestView>,
    /// For a refusal by the SAN rules: whether the rules of now would admit the certificate.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rules_admit_now: Option<bool>,
}

/// The rule that a certificate came closest to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NearestView {
    /// The rule.
    pub rule: String,
    /// The name of the certificate that comes closest to it.
    pub san: String,
    /// Characters, or bits of a network, that differ.
    pub distance: usize,
    /// What differs, in words.
    pub difference: String,
}

impl Operator {
    /// The last attempts of the executor id, name, certificate or address `selector`.
    ///
    /// Those of before the start are read back from the audit log, when it is a file.
    pub async fn why(&self, selector: &Selector, filter: &WhyFilter) -> Result<Why, NotDone> {
        let shared = &self.0;
        let most = filter.limit.unwrap_or(SHOWN).clamp(1, MOST);
        let wanted = Wanted::new(selector, self.ids_named(selector).await);
        let rules = shared.policy.load().rules.clone();
        let mut attempts: Vec<AttemptView> = shared
            .attempts
            .matching(|attempt| wanted.is_attempt(attempt))
            .into_iter()
            .take(most)
            .map(|attempt| AttemptView::of(attempt, &rules))
            .collect();
        let known_since = shared.started_at.into();
        let left = most - attempts.len();
        let no_earlier = match shared.audit.target() {
            _ if left == 0 => None,
            AuditTarget::File(path) => {
                let (path, wanted) = (path.clone(), wanted.clone());
                let read = tokio::task::spawn_blocking(move || {
                    past(&path, left, |at, entry| {
                        at < known_since && wanted.is_entry(entry)
                    })
                });
                match read.await.map_err(std::io::Error::other).flatten() {
                    Ok(earlier) => {
                        attempts.extend(earlier.into_iter().map(AttemptView::from));
                        None
                    }
                    Err(error) => Some(format!("the audit log cannot be read: {error}")),
                }
            }
            target => Some(format!("the audit log is no file (--audit-log {target})")),
        };
        let shed = shared.metrics.handshakes_shed.get();
        if attempts.is_empty() {
            return Err(no_attempt(selector, known_since, no_earlier, shed));
        }
        Ok(Why {
            who: selector.0.clone(),
            known_since,
            rules: rules.iter().collect(),
            attempts,
            no_earlier,
            shed,
        })
    }

    /// The ids of the executors that call themselves so, as far as the registry knows.
    async fn ids_named(&self, selector: &Selector) -> Vec<String> {
        let known = self.matching(selector).await.unwrap_or_default();
        known.into_iter().map(|view| view.id).collect()
    }
}

fn no_attempt(
    selector: &Selector,
    since: OffsetDateTime,
    no_earlier: Option<String>,
    shed: u64,
) -> NotDone {
    let since = crate::moment::rfc3339(since.into());
    let shed = (shed > 0).then(|| {
        format!("connections reset since then for want of a place (--max-handshakes): {shed}; whose they were nobody knows")
    });
    let told = Explained::new(
        Code::Usage,
        format!("no attempt of {} is known", selector.0),
    )
    .cause(format!("attempts are remembered since {since}"));
    NotDone::Unknown(
        no_earlier
            .into_iter()
            .chain(shed)
            .fold(told, Explained::cause)
            .hint("ask by the address it comes from, the executor id, or the certificate's serial number or SHA-256; if it never reached this access point, run `ah agent doctor` where the executor runs"),
    )
}

/// What an operator means by a selector, in all the ways an attempt can be known.
#[derive(Clone)]
struct Wanted {
    text: String,
    fingerprint: Option<String>,
    ip: Option<IpAddr>,
    socket: Option<SocketAddr>,
    ids: Arc<[String]>,
}

impl Wanted {
    fn new(selector: &Selector, ids: Vec<String>) -> Self {
        let text = selector.0.trim();
        Self {
            text: text.to_owned(),
            fingerprint: fingerprint(text),
            ip: text.parse().ok().map(|ip: IpAddr| ip.to_canonical()),
            socket: text.parse().ok(),
            ids: ids.into(),
        }
    }

    fn is_attempt(&self, attempt: &Attempt) -> bool {
        let certificate = attempt.certificate.as_ref();
        self.is_id(attempt.id())
            || attempt.name.as_deref() == Some(&self.text)
            || self.is_peer(attempt.peer)
            || certificate.is_some_and(|facts| {
                self.is_certificate(&facts.serial, &facts.sha256) || self.is_named(facts)
            })
    }

    fn is_entry(&self, entry: &Entry) -> bool {
        let concerns = matches!(
            entry.event,
            Event::Rejected | Event::Enrolled | Event::ReEnrolled | Event::Rotated
        );
        let id = entry.executor_id.as_ref().map(ExecutorId::as_str);
        concerns
            && (self.is_id(id)
                || entry.peer.is_some_and(|peer| self.is_peer(peer))
                || entry
                    .certificate
                    .as_ref()
                    .is_some_and(|known| self.is_certificate(&known.serial, &known.sha256)))
    }

    fn is_id(&self, id: Option<&str>) -> bool {
        id.is_some_and(|id| {
            id == self.text
                || short_name(id) == self.text
                || self.ids.iter().any(|known| known == id)
        })
    }

    fn is_peer(&self, peer: SocketAddr) -> bool {
        self.ip == Some(peer.ip().to_canonical()) || self.socket == Some(peer)
    }

    fn is_certificate(&self, serial: &str, sha256: &str) -> bool {
        let fingerprint = self.fingerprint.as_deref();
        fingerprint.is_some_and(|hex| hex == serial || hex == sha256)
    }

    /// Any of its names: the one that became the id is not the only one that people know.
    fn is_named(&self, facts: &CertificateFacts) -> bool {
        facts
            .uris
            .iter()
            .chain(&facts.dns)
            .any(|name| *name == self.text)
            || self.ip.is_some_and(|ip| facts.ips.contains(&ip))
    }
}

/// What people call an executor whose id this is, though it never came so far as to say its name: the last
/// segment of a URI, the first label of a DNS name.
fn short_name(id: &str) -> &str {
    if id.contains("://") {
        return id.rsplit('/').next().unwrap_or(id);
    }
    if id.parse::<IpAddr>().is_ok() {
        return id;
    }
    id.split('.').next().unwrap_or(id)
}

impl AttemptView {
    pub(super) fn of(attempt: Attempt, rules: &SanRules) -> Self {
        let facts = attempt.certificate;
        let by_rules = attempt
            .refused
            .as_ref()
            .is_some_and(|refused| refused.code == Code::SanMismatch);
        let nearest = facts
            .as_ref()
            .filter(|_| by_rules)
            .and_then(|facts| rules.nearest(facts));
        let admit_now = rules.is_empty() || nearest.as_ref().is_some_and(|rule| rule.distance == 0);
        let refused = attempt.refused;
        let admitted = refused.is_none();
        let (code, reason, causes, hint) = match refused.map(Arc::unwrap_or_clone) {
            Some(Explained {
                code,
                text,
                causes,
                hint,
            }) => (Some(code), Some(text), causes, hint),
            None => (None, None, Vec::new(), None),
        };
        Self {
            at: attempt.at.into(),
            first: attempt.first.into(),
            times: attempt.times,
            known_from: Known::Memory,
            admitted,
            id: attempt.executor.map(|id| id.to_string()),
            vouched: Some(attempt.vouched),
            name: attempt.name,
            peer: Some(attempt.peer),
            sans: facts.as_ref().map(|facts| facts.sans()).unwrap_or_default(),
            subject: facts.as_ref().map(|facts| facts.subject.clone()),
            issuer: facts.as_ref().map(|facts| facts.issuer.clone()),
            certificate: facts
                .as_ref()
                .map(|facts| CertificateRecord::from(&**facts)),
            code,
            reason,
            causes,
            hint,
            nearest: nearest.map(|nearest| NearestView {
                rule: nearest.rule,
                san: nearest.san,
                distance: nearest.distance,
                difference: nearest.difference,
            }),
            rules_admit_now: by_rules.then_some(admit_now),
        }
    }
}

impl From<Past> for AttemptView {
    fn from(past: Past) -> Self {
        let Past { at, entry } = past;
        Self {
            at,
            first: at,
            times: 1,
            known_from: Known::AuditLog,
            admitted: entry.event != Event::Rejected,
            id: entry.executor_id.map(|id| id.to_string()),
            vouched: None,
            name: None,
            peer: entry.peer,
            sans: Vec::new(),
            subject: None,
            issuer: None,
            certificate: entry.certificate,
            code: None,
            reason: entry.reason,
            causes: Vec::new(),
            hint: None,
            nearest: None,
            rules_admit_now: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_call_an_executor_by_the_last_of_its_id() {
        for (id, name) in [
            ("spiffe://example.org/ah/agent/w-1", "w-1"),
            ("w-1.executors.example.com", "w-1"),
            ("10.1.2.3", "10.1.2.3"),
            ("2001:db8::1", "2001:db8::1"),
            ("CN=w-1", "CN=w-1"),
        ] {
            assert_eq!(short_name(id), name);
        }
    }
}
