//! What operators ask of an access point: list, show, why, revoke, reinstate, disconnect, watch (FL-1).

mod filters;
mod recent;
mod selector;
mod views;
mod why;

use std::collections::BTreeMap;

use ah_identity_provider::{Code, Explained};
use time::OffsetDateTime;
use tokio::sync::broadcast;

use super::registry::{End, lock};
use super::{Operator, Tunables};
use crate::audit::{Entry, Event, Outcome};
use crate::hello::Greeting;
use crate::store::{
    Change, Durability, ExecutorId, ExecutorRecord, Revocation, RevocationTarget, Store,
};

pub use filters::{EventFilter, ListFilter};
pub(super) use recent::AuditFilter;
pub use selector::{NotDone, Selector, path_segment};
use selector::{fingerprint, unknown};
pub use views::{AccessPointView, BarView, ExecutorView, FleetEvent, Listing, LiveView};
use views::{live, remembered, unwritten};
pub use why::{AttemptView, Known, NearestView, Why, WhyFilter};

impl Operator {
    /// The executors that `filter` admits, live or remembered, in the order of their ids, and where it asks for what is
    /// revoked the bars in force.
    pub async fn list(&self, filter: &ListFilter) -> Listing {
        let shared = &self.0;
        let mut views = BTreeMap::new();
        let (mut bars, mut store_error) = (Vec::new(), None);
        match tokio::try_join!(shared.store.executors(), shared.store.revocations()) {
            Ok((records, revocations)) => {
                let revocations = revocations.into_iter().collect::<BTreeMap<_, _>>();
                for record in records {
                    let revocation = bar_on(&revocations, &record).cloned();
                    views.insert(record.id.to_string(), remembered(record, revocation));
                }
                if filter.wants_bars() {
                    let bar = |(target, revocation)| BarView { target, revocation };
                    bars.extend(revocations.into_iter().map(bar));
                }
            }
            Err(error) => store_error = Some(error.to_string()),
        }
        for session in shared.registry.sessions() {
            let view = views
                .entry(session.executor.to_string())
                .or_insert_with(|| unwritten(&session));
            view.live = Some(live(&session));
        }
        Listing {
            executors: views
                .into_values()
                .filter(|view| filter.admits(view))
                .collect(),
            bars,
            store_error,
        }
    }

    /// The one executor that `selector` names.
    pub async fn show(&self, selector: &Selector) -> Result<ExecutorView, NotDone> {
        let mut found = self.matching(selector).await?;
        match (found.pop(), found.len()) {
            (Some(mut view), 0) => {
                // Without its history an answer is still an answer.
                let history = self
                    .0
                    .store
                    .history(&ExecutorId::from(view.id.as_str()))
                    .await;
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
        let id = ExecutorId::from(view.id);
        let Some(session) = self.0.registry.session(&id) else {
            return Err(NotDone::Conflict(Explained::new(
                Code::Usage,
                format!("{id} is not connected"),
            )));
        };
        session.end(End::Refused(Box::new(Explained::new(
            Code::Unavailable,
            "an operator disconnected the executor",
        ))));
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

    /// Notes that somebody collected the metrics.
    pub(super) fn note_scrape(&self) {
        *lock(&self.0.scraped) = Some(self.0.clock.now());
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
        let health = shared.health.borrow().clone();
        AccessPointView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: shared.started_at.into(),
            listening: shared.listening.clone(),
            certificate: published.identity.leaf().into(),
            provider: published.provider,
            certificate_not_before: published.identity.leaf().not_before.into(),
            rotations: health.rotations,
            renewal_failures: health.failures,
            rules: shared.policy.load().rules.iter().collect(),
            audit_log: shared.audit.target().to_string(),
            metrics_read: (*lock(&shared.scraped)).map(Into::into),
            identity_warning: health.warning,
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
            return Ok((RevocationTarget::Id(text.into()), view));
        }
        let view = found?;
        Ok((RevocationTarget::Id(view.id.as_str().into()), Some(view)))
    }

    fn record(
        &self,
        event: Event,
        target: &RevocationTarget,
        view: Option<ExecutorView>,
        reason: Option<&str>,
    ) {
        let (executor_id, of) = match target {
            RevocationTarget::Id(id) => (Some(id.clone()), id.to_string()),
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
                .map(|greeting| greeting.labels.to_map())
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

fn is_barred(policy: &ah_tls::Policy, target: &RevocationTarget) -> bool {
    match target {
        RevocationTarget::Id(id) => policy.revocations.ids.contains(id.as_str()),
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
