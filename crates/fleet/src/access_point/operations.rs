//! What operators ask of an access point: list, show, revoke, reinstate, disconnect, watch (FL-1).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use ah_identity_provider::{Code, Explained, ProviderKind};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::broadcast;
use utoipa::{IntoParams, ToSchema};

use super::registry::{End, Session};
use super::{Operator, Tunables};
use crate::audit::{Entry, Event, Outcome};
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
    /// Why, where there is a reason.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
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
            && self.conditions().all(|(key, value)| {
                view.labels
                    .get(key)
                    .is_some_and(|has| value.is_none_or(|value| has == value))
            })
    }

    fn conditions(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let conditions = self.labels.iter().flat_map(|labels| labels.split(','));
        conditions
            .map(str::trim)
            .filter(|condition| !condition.is_empty())
            .map(|condition| match condition.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (condition, None),
            })
    }
}

/// How an operator names an executor or a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(pub String);

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
    pub async fn show(&self, selector: &Selector) -> Result<ExecutorView, Explained> {
        let mut found = self.matching(selector).await?;
        match (found.pop(), found.len()) {
            (Some(mut view), 0) => {
                // Without its history an answer is still an answer.
                let history = self.0.store.history(&ExecutorId(view.id.clone())).await;
                view.history = history.unwrap_or_default();
                Ok(view)
            }
            (Some(view), others) => Err(Explained::new(
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
            .hint("give the executor id instead")),
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
    ) -> Result<RevocationTarget, Explained> {
        let target = self.target(selector).await?;
        let shared = &self.0;
        shared.bar(&target, true);
        let revocation = Revocation {
            at: shared.clock.now().into(),
            reason: reason.to_owned(),
        };
        let written = shared
            .writer
            .submit(Change::Revoked(target.clone(), revocation));
        let ended = shared.end_unadmitted();
        tracing::info!(what = ?target, sessions.ended = ended, reason, "revoked");
        self.record(Event::Revoked, &target, Some(reason));
        durable(written.await, "the revocation")?;
        Ok(target)
    }

    /// Lifts the bar on what `selector` names.
    pub async fn reinstate(&self, selector: &Selector) -> Result<RevocationTarget, Explained> {
        let target = self.target(selector).await?;
        let shared = &self.0;
        if !is_barred(&shared.policy.load(), &target) {
            return Err(Explained::new(Code::Usage, format!("{} is not revoked", selector.0))
                .hint("`ah agent fleet list --revoked` shows what is; a revocation by serial or SHA-256 is lifted by the same"));
        }
        shared.bar(&target, false);
        let written = shared.writer.submit(Change::Reinstated(target.clone()));
        tracing::info!(what = ?target, "reinstated");
        self.record(Event::Reinstated, &target, None);
        durable(written.await, "the reinstatement")?;
        Ok(target)
    }

    /// Ends the live session of one executor, which may come back at once.
    pub async fn disconnect(&self, selector: &Selector) -> Result<ExecutorId, Explained> {
        let view = self.show(selector).await?;
        let id = ExecutorId(view.id);
        let Some(session) = self.0.registry.session(&id) else {
            return Err(Explained::new(
                Code::Usage,
                format!("{} is not connected", id.0),
            ));
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

    /// Since when this access point runs.
    pub fn started_at(&self) -> SystemTime {
        self.0.started_at
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
    async fn matching(&self, selector: &Selector) -> Result<Vec<ExecutorView>, Explained> {
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
            (true, Some(error)) => Err(Explained::new(
                Code::Unavailable,
                "cannot read the registry's store",
            )
            .cause(error)),
            _ => Ok(found),
        }
    }

    /// What a bar for `selector` has to name. A serial or SHA-256 bars that certificate, also one never
    /// seen; an id bars all of an executor's certificates, also before it ever enrolled.
    async fn target(&self, selector: &Selector) -> Result<RevocationTarget, Explained> {
        let text = selector.0.as_str();
        if let Some(hex) = fingerprint(text) {
            return Ok(match hex.len() {
                64 => RevocationTarget::Sha256(hex),
                _ => RevocationTarget::Serial(hex),
            });
        }
        match self.show(selector).await {
            Ok(view) => Ok(RevocationTarget::Id(ExecutorId(view.id))),
            Err(_) if spiffe::SpiffeId::new(text).is_ok() => {
                Ok(RevocationTarget::Id(ExecutorId(text.to_owned())))
            }
            Err(error) => Err(error),
        }
    }

    fn record(&self, event: Event, target: &RevocationTarget, reason: Option<&str>) {
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
        self.0.announce(event, &of, "", reason.clone());
        self.0.audit.record(Entry {
            event,
            outcome: Outcome::Success,
            executor_id,
            peer: None,
            certificate: None,
            provider: None,
            reason,
        });
    }
}

impl super::Shared {
    /// Tells those who watch. Nobody watching is no error.
    pub(super) fn announce(&self, event: Event, id: &str, name: &str, reason: Option<String>) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let _ = self.events.send(FleetEvent {
            at: self.clock.now().into(),
            event,
            id: id.to_owned(),
            name: name.to_owned(),
            reason,
        });
    }
}

/// Lower-case hex of what reads as a serial number or SHA-256: hex digits, with or without colons. A short
/// text without colons might be a name, so it takes a colon, a `0x` or 16 digits to be a fingerprint.
fn fingerprint(text: &str) -> Option<String> {
    let bare = text.strip_prefix("0x").unwrap_or(text);
    let marked = bare.len() != text.len() || bare.contains(':');
    let hex = bare.replace(':', "").to_ascii_lowercase();
    let looks = !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    (looks && (marked || hex.len() >= 16)).then_some(hex)
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

fn unknown(selector: &Selector) -> Explained {
    Explained::new(
        Code::Usage,
        format!("no executor is known as {}", selector.0),
    )
    .hint("`ah agent fleet list` shows ids and names; a serial number or SHA-256 takes hex digits")
}

fn durable(written: Durability, what: &str) -> Result<(), Explained> {
    match written {
        Durability::Committed => Ok(()),
        Durability::Deferred => Err(Explained::new(
            Code::Unavailable,
            format!("{what} is in force but not yet written to the store"),
        )
        .cause("the store does not take writes at the moment; the access point keeps trying")
        .hint("until /readyz is well again a restart of the access point would forget it")),
        Durability::Refused => Err(Explained::new(
            Code::Other,
            format!("{what} is in force until the access point restarts: the store cannot hold it"),
        )
        .hint("name the executor by its id, or the certificate by its SHA-256")),
    }
}
