//! What operators ask of an access point: list, show, revoke, reinstate, disconnect, watch (FL-1).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ah_identity_provider::{Code, Explained, ProviderKind};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::broadcast;
use utoipa::{IntoParams, ToSchema};

use super::registry::{End, Session, lock};
use super::{Operator, Tunables};
use crate::audit::{Entry, Event, Outcome};
use crate::hello::Greeting;
use crate::store::{
    CertificateRecord, Change, Durability, ExecutorId, ExecutorRecord, HistoryEntry, HostRecord,
    Revocation, RevocationTarget, Store,
};

/// An executor as operators see it: what is remembered, and what is live.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ExecutorView {
    /// Who it is by its certificate.
    pub id: String,
    /// Label for people.
    pub name: String,
    /// Where its identity comes from.
    #[schema(value_type = Option<String>)]
    pub provider: Option<ProviderKind>,
    /// Version of its software.
    pub version: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its host.
    pub host: HostRecord,
    /// The last certificate it enrolled with.
    pub certificate: CertificateRecord,
    /// First enrollment ever; absent while the store has not answered for it.
    #[serde(
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none",
        default
    )]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub first_enrolled: Option<OffsetDateTime>,
    /// Last enrollment or rotation.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub last_enrolled: OffsetDateTime,
    /// The bar in force, if any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub revocation: Option<Revocation>,
    /// The live session at this access point, if any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub live: Option<LiveView>,
    /// The certificates it enrolled with, oldest first. Only when one executor is asked for.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub history: Vec<HistoryEntry>,
}

/// The live session of an executor.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LiveView {
    /// Identifies the session in logs of both sides.
    pub session_id: String,
    /// Where it connects from.
    #[schema(value_type = String)]
    pub peer: SocketAddr,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub since: OffsetDateTime,
    /// Milliseconds since it was last heard.
    pub last_heard_ms: u64,
    /// Last round trip in microseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub round_trip_us: Option<u64>,
}

/// All executors, and whether that is really all.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Listing {
    /// By id.
    pub executors: Vec<ExecutorView>,
    /// Set when the store did not answer: then only live executors are listed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub store_error: Option<String>,
}

/// Something happened to an executor (`fleet watch`).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FleetEvent {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: OffsetDateTime,
    /// What.
    #[schema(value_type = String)]
    pub event: Event,
    /// To whom.
    pub id: String,
    /// Its label, where known.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub name: String,
    /// Its labels, where known.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub labels: BTreeMap<String, String>,
    /// Why, where there is a reason.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// Which events to watch.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct EventFilter {
    /// Labels of the executor concerned: `key=value`, comma separated; a `key` alone matches any value. An
    /// event whose executor is not known by its labels (a refused handshake, a barred serial number) matches none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
}

impl EventFilter {
    /// Whether `event` is to be shown.
    pub fn admits(&self, event: &FleetEvent) -> bool {
        labels_admit(self.labels.as_deref(), &event.labels)
    }
}

/// An access point as it sees itself.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AccessPointView {
    /// Version of this software.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Since when it runs.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub started: OffsetDateTime,
    /// Where executors dial, with the real ports.
    #[schema(value_type = Vec<String>)]
    pub listening: Vec<SocketAddr>,
    /// The certificate that new connections are shown.
    pub certificate: CertificateRecord,
    /// Where its identity comes from.
    #[schema(value_type = String)]
    pub provider: ProviderKind,
    /// How often a new identity replaced an old one.
    pub rotations: u64,
    /// Executors enrolled now.
    pub executors: usize,
}

/// Which executors to list. Every condition given has to hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
pub struct ListFilter {
    /// Labels that the executor has: `key=value`, comma separated; a `key` alone matches any value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<String>,
    /// Live ones only, or only those that are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live: Option<bool>,
    /// Revoked ones only, or only those that are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked: Option<bool>,
}

impl ListFilter {
    fn admits(&self, view: &ExecutorView) -> bool {
        self.live.is_none_or(|live| live == view.live.is_some())
            && self
                .revoked
                .is_none_or(|revoked| revoked == view.revocation.is_some())
            && labels_admit(self.labels.as_deref(), &view.labels)
    }
}

/// Whether `labels` meet every one of the comma-separated `conditions`.
fn labels_admit(conditions: Option<&str>, labels: &BTreeMap<String, String>) -> bool {
    conditions
        .into_iter()
        .flat_map(|conditions| conditions.split(','))
        .map(str::trim)
        .filter(|condition| !condition.is_empty())
        .all(|condition| match condition.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|has| has == value),
            None => labels.contains_key(condition),
        })
}

/// How an operator names an executor or a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(pub String);

/// Why something was not done for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotDone {
    /// Nothing is known by that name.
    Unknown(Explained),
    /// Several are known by that name, or it is not in the state that the request is about.
    Conflict(Explained),
    /// The store did not answer; a bar is in force all the same.
    Unavailable(Explained),
    /// The store can never hold it; a bar is in force until a restart.
    Refused(Explained),
}

impl NotDone {
    /// What to tell.
    pub fn explained(&self) -> &Explained {
        match self {
            Self::Unknown(explained)
            | Self::Conflict(explained)
            | Self::Unavailable(explained)
            | Self::Refused(explained) => explained,
        }
    }
}

impl Operator {
    /// The executors that `filter` admits, live or remembered, in the order of their ids.
    pub async fn list(&self, filter: &ListFilter) -> Listing {
        let shared = &self.0;
        let mut views = BTreeMap::new();
        let mut store_error = None;
        match tokio::try_join!(shared.store.executors(), shared.store.revocations()) {
            Ok((records, revocations)) => {
                let revocations = revocations.into_iter().collect::<BTreeMap<_, _>>();
                for record in records {
                    let revocation = bar_on(&revocations, &record).cloned();
                    views.insert(record.id.0.clone(), remembered(record, revocation));
                }
            }
            Err(error) => store_error = Some(error.to_string()),
        }
        for session in shared.registry.sessions() {
            let view = views
                .entry(session.executor.0.clone())
                .or_insert_with(|| unwritten(&session));
            view.live = Some(live(&session));
        }
        Listing {
            executors: views
                .into_values()
                .filter(|view| filter.admits(view))
                .collect(),
            store_error,
        }
    }

    /// The one executor that `selector` names.
    pub async fn show(&self, selector: &Selector) -> Result<ExecutorView, NotDone> {
        let mut found = self.matching(selector).await?;
        match (found.pop(), found.len()) {
            (Some(mut view), 0) => {
                // Without its history an answer is still an answer.
                let history = self.0.store.history(&ExecutorId(view.id.clone())).await;
                view.history = history.unwrap_or_default();
                Ok(view)
            }
            (Some(view), others) => Err(NotDone::Conflict(
                Explained::new(
                    Code::Usage,
                    format!("{} executors are named {}", others + 1, selector.0),
                )
                .cause(
                    found
                        .iter()
                        .chain([&view])
                        .map(|view| view.id.as_str())
                        .collect::<Vec<_>>()
                        .join(", "),
                )
                .hint("give the executor id instead"),
            )),
            (None, _) => Err(unknown(selector)),
        }
    }

    /// Bars what `selector` names: ends its live sessions now and refuses its next handshakes, durably.
    ///
    /// The bar is in force when this returns, also when the store refused it: then the error says that it
    /// will not survive a restart unless the store recovers, which the writer keeps waiting for.
    pub async fn revoke(
        &self,
        selector: &Selector,
        reason: &str,
    ) -> Result<RevocationTarget, NotDone> {
        let (target, view) = self.target(selector).await?;
        let shared = &self.0;
        let revocation = Revocation {
            at: shared.clock.now().into(),
            reason: reason.to_owned(),
        };
        let change = Change::Revoked(target.clone(), revocation);
        let written = shared.bar(&target, true, change);
        // The cause stands in the audit log before what it leads to.
        self.record(Event::Revoked, &target, view, Some(reason));
        let ended = shared.end_unadmitted();
        tracing::info!(what = ?target, sessions.ended = ended, reason, "revoked");
        durable(written.await, "the revocation")?;
        Ok(target)
    }

    /// Lifts the bar on what `selector` names.
    pub async fn reinstate(&self, selector: &Selector) -> Result<RevocationTarget, NotDone> {
        let (target, view) = self.target(selector).await?;
        let shared = &self.0;
        if !is_barred(&shared.policy.load(), &target) {
            return Err(NotDone::Conflict(Explained::new(Code::Usage, format!("{} is not revoked", selector.0))
                .hint("`ah agent fleet list --revoked` shows what is; a revocation by serial or SHA-256 is lifted by the same")));
        }
        let written = shared.bar(&target, false, Change::Reinstated(target.clone()));
        tracing::info!(what = ?target, "reinstated");
        self.record(Event::Reinstated, &target, view, None);
        durable(written.await, "the reinstatement")?;
        Ok(target)
    }

    /// Ends the live session of one executor, which may come back at once.
    pub async fn disconnect(&self, selector: &Selector) -> Result<ExecutorId, NotDone> {
        let view = self.show(selector).await?;
        let id = ExecutorId(view.id);
        let Some(session) = self.0.registry.session(&id) else {
            return Err(NotDone::Conflict(Explained::new(
                Code::Usage,
                format!("{} is not connected", id.0),
            )));
        };
        session.end(End::Refused(Explained::new(
            Code::Unavailable,
            "an operator disconnected the executor",
        )));
        Ok(id)
    }

    /// What happens from now on.
    pub fn watch(&self) -> broadcast::Receiver<FleetEvent> {
        self.0.events.subscribe()
    }

    /// Resolves when the access point has stopped: there will be no more events.
    pub async fn over(&self) {
        self.0.over.cancelled().await;
    }

    /// Metrics as Prometheus scrapes them.
    pub fn metrics(&self) -> String {
        self.0.metrics.render(&self.0.sample())
    }

    /// What keeps this access point from being ready; empty when it is.
    pub fn not_ready(&self) -> Vec<String> {
        let shared = &self.0;
        let mut reasons = Vec::new();
        let store = shared.writer.health();
        if !store.ok {
            let error = store.last_error.unwrap_or_default();
            reasons.push(format!("store: {error} ({} changes wait)", store.pending));
        }
        if let Some(error) = &*lock(&shared.unread_revocations) {
            reasons.push(format!("store: revocations cannot be read: {error}"));
        }
        let audit = shared.audit.health();
        if !audit.ok {
            let error = audit.last_error.unwrap_or_default();
            reasons.push(format!("audit: {error} ({} lines wait)", audit.pending));
        }
        let health = shared.health.borrow();
        if health
            .not_after
            .is_some_and(|end| end <= shared.clock.now())
        {
            reasons.push("identity: our certificate has expired".to_owned());
        }
        reasons
    }

    /// The access point itself.
    pub fn access_point(&self) -> AccessPointView {
        let shared = &self.0;
        let published = std::sync::Arc::clone(shared.configs.current().published());
        AccessPointView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: shared.started_at.into(),
            listening: shared.listening.clone(),
            certificate: published.identity.leaf().into(),
            provider: published.provider,
            rotations: shared.health.borrow().rotations,
            executors: shared.registry.len(),
        }
    }

    /// Takes new rules and limits into use, and ends sessions that the new rules do not admit.
    pub fn retune(&self, tunables: Tunables) {
        let shared = &self.0;
        shared.policy.update(|policy| {
            policy.rules = tunables.rules.clone();
            policy.strict_svid = tunables.strict_svid;
        });
        shared.tunables.store(std::sync::Arc::new(tunables));
        let ended = shared.end_unadmitted();
        tracing::info!(sessions.ended = ended, "settings reloaded");
    }

    /// Opens the audit log anew under its path, after a log rotation moved it away.
    pub fn reopen_audit(&self) {
        self.0.audit.reopen();
    }

    /// Executors whose id, name, or last certificate is what `selector` says.
    async fn matching(&self, selector: &Selector) -> Result<Vec<ExecutorView>, NotDone> {
        let listing = self.list(&ListFilter::default()).await;
        let text = selector.0.as_str();
        let fingerprint = fingerprint(text);
        let is_it = |view: &ExecutorView| {
            view.id == text
                || view.name == text
                || fingerprint.as_ref().is_some_and(|hex| {
                    view.certificate.serial == *hex || view.certificate.sha256 == *hex
                })
        };
        let mut found = listing.executors;
        // An id is exact: a name that reads like another executor's id does not compete with it.
        if let Some(exact) = found.iter().position(|view| view.id == text) {
            return Ok(vec![found.swap_remove(exact)]);
        }
        found.retain(is_it);
        match (found.is_empty(), listing.store_error) {
            (true, Some(error)) => Err(NotDone::Unavailable(
                Explained::new(Code::Unavailable, "cannot read the registry's store").cause(error),
            )),
            _ => Ok(found),
        }
    }

    /// What a bar for `selector` has to name. A serial or SHA-256 bars that certificate, also one never
    /// seen; an id bars all of an executor's certificates, also before it ever enrolled.
    ///
    /// What reads as an id is that id and never somebody's name: an executor chooses its own name, and could
    /// draw a bar upon itself that is meant for another.
    async fn target(
        &self,
        selector: &Selector,
    ) -> Result<(RevocationTarget, Option<ExecutorView>), NotDone> {
        let text = selector.0.as_str();
        if let Some(hex) = fingerprint(text) {
            let target = match hex.len() {
                64 => RevocationTarget::Sha256(hex),
                _ => RevocationTarget::Serial(hex),
            };
            return Ok((target, None));
        }
        let reads_as_id =
            spiffe::SpiffeId::new(text).is_ok() || text.parse::<std::net::IpAddr>().is_ok();
        let found = self.show(selector).await;
        if reads_as_id {
            let view = found.ok().filter(|view| view.id == text);
            return Ok((RevocationTarget::Id(ExecutorId(text.to_owned())), view));
        }
        let view = found?;
        Ok((
            RevocationTarget::Id(ExecutorId(view.id.clone())),
            Some(view),
        ))
    }

    fn record(
        &self,
        event: Event,
        target: &RevocationTarget,
        view: Option<ExecutorView>,
        reason: Option<&str>,
    ) {
        let (executor_id, of) = match target {
            RevocationTarget::Id(id) => (Some(id.clone()), id.0.clone()),
            RevocationTarget::Serial(serial) => (None, format!("serial {serial}")),
            RevocationTarget::Sha256(sha256) => (None, format!("sha256 {sha256}")),
        };
        let reason = match (reason.filter(|reason| !reason.is_empty()), &executor_id) {
            (Some(reason), Some(_)) => Some(reason.to_owned()),
            (Some(reason), None) => Some(format!("{of}: {reason}")),
            (None, Some(_)) => None,
            (None, None) => Some(of.clone()),
        };
        let (name, labels) = view
            .map(|view| (view.name, view.labels))
            .unwrap_or_default();
        self.0.tell_watchers(|at| FleetEvent {
            at,
            event,
            id: of,
            name,
            labels,
            reason: reason.clone(),
        });
        let mut entry = Entry::new(event, Outcome::Success);
        entry.executor_id = executor_id;
        entry.reason = reason;
        self.0.audit.record(entry);
    }
}

impl super::Shared {
    /// Tells those who watch of an executor, with what it said of itself.
    pub(super) fn announce(
        &self,
        event: Event,
        id: &str,
        greeting: Option<&Greeting>,
        reason: Option<&str>,
    ) {
        self.tell_watchers(|at| FleetEvent {
            at,
            event,
            id: id.to_owned(),
            name: greeting
                .map(|greeting| greeting.name.clone())
                .unwrap_or_default(),
            labels: greeting
                .map(|greeting| greeting.labels.clone())
                .unwrap_or_default(),
            reason: reason.map(str::to_owned),
        });
    }

    /// Nobody watching is no error, and costs nothing.
    fn tell_watchers(&self, event: impl FnOnce(OffsetDateTime) -> FleetEvent) {
        if self.events.receiver_count() > 0 {
            let _ = self.events.send(event(self.clock.now().into()));
        }
    }
}

/// Lower-case hex of what reads as a serial number or SHA-256: hex digits, with or without colons. A short
/// text without colons might be a name, so it takes a colon, a `0x` or 16 digits to be a fingerprint.
fn fingerprint(text: &str) -> Option<String> {
    let bare = text.strip_prefix("0x").unwrap_or(text);
    let marked = bare.len() != text.len() || bare.contains(':');
    let hex = bare.replace(':', "").to_ascii_lowercase();
    let looks = !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !looks || !(marked || hex.len() >= 16) {
        return None;
    }
    if hex.len() == 64 {
        return Some(hex);
    }
    Some(serial_as_encoded(&hex))
}

/// A serial number as certificates encode it and we keep it: whole bytes, no needless zeros in front, and one
/// where the first bit is set (X.690 §8.3.2). `openssl x509 -serial` leaves that one out.
fn serial_as_encoded(hex: &str) -> String {
    let digits = hex.trim_start_matches('0');
    let digits = if digits.is_empty() { "0" } else { digits };
    let sign = match (digits.len() % 2, digits.chars().next()) {
        (1, _) => "0",
        (_, Some('8'..='f')) => "00",
        _ => "",
    };
    format!("{sign}{digits}")
}

fn is_barred(policy: &ah_tls::Policy, target: &RevocationTarget) -> bool {
    match target {
        RevocationTarget::Id(ExecutorId(id)) => policy.revocations.ids.contains(id),
        RevocationTarget::Serial(serial) => policy.revocations.serials.contains(serial),
        RevocationTarget::Sha256(sha256) => policy.revocations.sha256s.contains(sha256),
    }
}

fn bar_on<'a>(
    revocations: &'a BTreeMap<RevocationTarget, Revocation>,
    record: &ExecutorRecord,
) -> Option<&'a Revocation> {
    [
        RevocationTarget::Id(record.id.clone()),
        RevocationTarget::Serial(record.certificate.serial.clone()),
        RevocationTarget::Sha256(record.certificate.sha256.clone()),
    ]
    .iter()
    .find_map(|target| revocations.get(target))
}

fn remembered(record: ExecutorRecord, revocation: Option<Revocation>) -> ExecutorView {
    ExecutorView {
        id: record.id.0,
        name: record.name,
        provider: record.provider,
        version: record.version,
        labels: record.labels,
        host: record.host,
        certificate: record.certificate,
        first_enrolled: Some(record.first_enrolled),
        last_enrolled: record.last_enrolled,
        revocation,
        live: None,
        history: Vec::new(),
    }
}

/// A live executor that the store does not know yet.
fn unwritten(session: &Session) -> ExecutorView {
    ExecutorView {
        id: session.executor.0.clone(),
        name: session.greeting.name.clone(),
        provider: session.greeting.provider,
        version: session.greeting.version.clone(),
        labels: session.greeting.labels.clone(),
        host: session.greeting.host.clone(),
        certificate: session.certificate.clone(),
        first_enrolled: None,
        last_enrolled: session.enrolled_at.into(),
        revocation: None,
        live: None,
        history: Vec::new(),
    }
}

fn live(session: &Session) -> LiveView {
    LiveView {
        session_id: session.id.to_string(),
        peer: session.remote,
        since: session.enrolled_at.into(),
        last_heard_ms: whole(session.silence(), Duration::as_millis),
        round_trip_us: session
            .round_trip()
            .map(|trip| whole(trip, Duration::as_micros)),
    }
}

fn whole(duration: Duration, unit: fn(&Duration) -> u128) -> u64 {
    u64::try_from(unit(&duration)).unwrap_or(u64::MAX)
}

fn unknown(selector: &Selector) -> NotDone {
    NotDone::Unknown(
        Explained::new(
            Code::Usage,
            format!("no executor is known as {}", selector.0),
        )
        .hint(
            "`ah agent fleet list` shows ids and names; a serial number or SHA-256 takes hex digits",
        ),
    )
}

fn durable(written: Durability, what: &str) -> Result<(), NotDone> {
    match written {
        Durability::Committed => Ok(()),
        Durability::Deferred => Err(NotDone::Unavailable(
            Explained::new(
                Code::Unavailable,
                format!("{what} is in force but not yet written to the store"),
            )
            .cause("the store does not take writes at the moment; the access point keeps trying")
            .hint("until /readyz is well again a restart of the access point would forget it"),
        )),
        Durability::Refused => Err(NotDone::Refused(
            Explained::new(
                Code::Other,
                format!(
                    "{what} is in force until the access point restarts: the store cannot hold it"
                ),
            )
            .hint("name the executor by its id, or the certificate by its SHA-256"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // FL-1: serial numbers as people copy them.
    #[test]
    fn fingerprints_are_read_as_people_write_them() {
        let cases = [
            ("0x1", Some("01")),
            ("01:AB", Some("01ab")),
            ("00:c3:5d", Some("00c35d")),
            ("c3:5d", Some("00c35d")),
            ("0000000000000001", Some("01")),
            ("C35D1122334455667788", Some("00c35d1122334455667788")),
            ("deadbeef", None),
            ("worker-1", None),
            ("", None),
            (":", None),
        ];
        for (text, expected) in cases {
            assert_eq!(fingerprint(text).as_deref(), expected, "{text}");
        }
        let sha256 = "00AB".repeat(16);
        assert_eq!(fingerprint(&sha256), Some(sha256.to_lowercase()));
    }

    #[test]
    fn every_label_condition_has_to_hold() {
        let labels = BTreeMap::from([("zone".into(), "a".into()), ("gpu".into(), "".into())]);
        for (conditions, admitted) in [
            (None, true),
            (Some(""), true),
            (Some("zone=a, gpu"), true),
            (Some("gpu="), true),
            (Some("zone"), true),
            (Some("zone=b"), false),
            (Some("zone=a,rack=1"), false),
        ] {
            assert_eq!(
                labels_admit(conditions, &labels),
                admitted,
                "{conditions:?}"
            );
        }
    }
}
