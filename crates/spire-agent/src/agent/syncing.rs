use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::time::Duration;

use ah_spire_attest::node::AgentHalf;
use ah_spire_wire::model::{Bundle, Entry};
use ah_tls::verify_spiffe_server;
use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;
use tokio::time::Instant;

use super::signing::SIGN_AT_ONCE;
use super::{Agent, Lost, wait_or_jump};
use crate::backoff::Backoff;
use crate::health::one_line;
use crate::metrics::{SyncStats, counted};
use crate::own::OwnIdentity;
use crate::server_client::{ServerFault, SyncedEntries, roots_of, trust_of};

/// The longest time between two attempts while the server fails, whatever the interval.
const LAST_WAIT: Duration = Duration::from_secs(8 * 60);

/// The longest time, in intervals.
const LAST_WAIT_INTERVALS: u32 = 48;

/// How one stay with the server goes.
pub(super) struct Stay {
    own: OwnIdentity,
    /// Sequence of the bundle that the server was told of.
    told: Option<u64>,
    tainted: BTreeSet<Vec<u8>>,
    rotate_now: bool,
    rotate_after: Instant,
    rotate_backoff: Backoff,
    /// Signing is not tried before.
    pub(super) sign_after: Instant,
    pub(super) sign_backoff: Backoff,
    pub(super) sign_at_once: usize,
}

impl<A: AgentHalf> Agent<A> {
    /// Keeps the cache in step until the server is lost. Returns the newest own identity besides.
    pub(super) async fn serve(&mut self, own: OwnIdentity) -> (OwnIdentity, Lost) {
        let interval = self.settings.sync_interval;
        let mut backoff = Backoff::new(interval, LAST_WAIT.min(interval * LAST_WAIT_INTERVALS));
        let mut stay = Stay {
            own,
            told: None,
            tainted: BTreeSet::new(),
            rotate_now: false,
            rotate_after: Instant::now(),
            rotate_backoff: Backoff::new(Duration::from_secs(5), Duration::from_secs(120)),
            sign_after: Instant::now(),
            sign_backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(60)),
            sign_at_once: SIGN_AT_ONCE,
        };
        if let Err(lost) = self.take_credentials(&stay.own).await {
            return (stay.own, lost);
        }
        loop {
            let wait = match Box::pin(self.round(&mut stay)).await {
                Ok(()) => {
                    backoff.reset();
                    self.untrusted_since = None;
                    // A tenth of it is random, so that the agents of a fleet do not ask in step.
                    interval.mul_f64(0.95 + rand::random::<f64>() / 10.0)
                }
                Err(fault) => {
                    let wait = backoff.next();
                    self.tell(fault.explained(), wait);
                    if let ServerFault::Denied(why, _) = fault {
                        return (stay.own, Lost::Denied(why));
                    }
                    if self.may_rebootstrap(&fault, stay.own.reattestable) {
                        return (stay.own, Lost::Rebootstrap);
                    }
                    wait
                }
            };
            if !stay.own.is_valid(self.clock.now()) {
                return (stay.own, Lost::Expired);
            }
            self.wait_and_sign(&mut stay, wait).await;
        }
    }

    /// Until the next round; meanwhile whoever comes and has no SVID yet gets one.
    async fn wait_and_sign(&mut self, stay: &mut Stay, wait: Duration) {
        let clock = self.clock.clone();
        let waited = wait_or_jump(clock.as_ref(), wait);
        tokio::pin!(waited);
        loop {
            let cache = self.cache.clone();
            let sign_after = stay.sign_after;
            let wanted = async {
                if self.data.data().bundle.is_empty() {
                    pending::<()>().await;
                }
                tokio::time::sleep_until(sign_after).await;
                cache.wanted().await;
            };
            tokio::select! {
                () = &mut waited => return,
                () = wanted => {}
            }
            if let Err(fault) = Box::pin(self.sign(stay)).await {
                tracing::warn!(
                    error = one_line(fault.explained()),
                    "X509-SVIDs cannot be made now"
                );
            }
        }
    }

    /// Asks the server for everything that may have changed.
    async fn round(&mut self, stay: &mut Stay) -> Result<(), ServerFault> {
        self.rotate_if_due(stay).await?;
        let call = self.metrics.fetch_entries.start();
        let (entries, bundle, federated) = counted(call, Box::pin(self.fetch()).await)?;

        self.take_roots(&bundle, stay).await?;
        self.taint(&bundle, stay);
        if stay.told != Some(bundle.sequence) {
            match self
                .client
                .post_status(env!("CARGO_PKG_VERSION"), bundle.sequence)
                .await
            {
                Ok(()) => stay.told = Some(bundle.sequence),
                Err(fault) => {
                    tracing::debug!(error = %fault, "the server was not told the agent's status");
                }
            }
        }
        self.cache.update(&entries, bundle, federated);
        self.known = entries;
        let now = self.clock.now();
        self.health.change(|state| {
            state.last_sync = Some(now);
            state.serving = true;
            state.denied = false;
            state.fault = None;
        });
        let signed = if Instant::now() >= stay.sign_after {
            Box::pin(self.sign(stay)).await
        } else {
            Ok(())
        };
        // An authority that was tainted a moment ago may be the agent's own.
        if stay.rotate_now {
            self.rotate_if_due(stay).await?;
        }
        if let Some(warm) = &self.warm {
            warm.keep(&self.cache);
        }
        signed
    }

    /// Everything at once: entries without the bundles that they name are of no use.
    async fn fetch(
        &self,
    ) -> Result<(SyncedEntries, Bundle, BTreeMap<TrustDomain, Bundle>), ServerFault> {
        let entries = if self.settings.use_sync_authorized_entries {
            self.client.sync_entries(&self.known).await?
        } else {
            self.client.authorized_entries().await?
        };
        let bundle = self.client.bundle().await?;
        let own = &self.settings.trust_domain;
        let domains = entries.values().flat_map(|entry| &entry.federates_with);
        let domains: BTreeSet<TrustDomain> =
            domains.filter(|domain| *domain != own).cloned().collect();
        let federated = self.client.federated_bundles(domains).await?;
        if self.settings.use_sync_authorized_entries {
            let stats = stats(&self.known, &entries);
            self.metrics.synced(stats, federated.len() + 1);
        }
        Ok((entries, bundle, federated))
    }

    async fn rotate_if_due(&mut self, stay: &mut Stay) -> Result<(), ServerFault> {
        let due = stay.rotate_now || self.clock.now() >= stay.own.rotate_at;
        if !due || Instant::now() < stay.rotate_after {
            return Ok(());
        }
        match Box::pin(self.rotate(&stay.own)).await {
            Ok(own) => {
                self.health.change(|state| {
                    state.svid = own.svid.as_slice().into();
                    state.svid_not_after = Some(own.not_after);
                });
                stay.own = own;
                stay.rotate_now = false;
                stay.rotate_backoff.reset();
                let roots = self.data.data().bundle.clone();
                self.client
                    .replace(&stay.own.credentials(roots))
                    .await
                    .map_err(ServerFault::Refused)
            }
            // The old SVID is still good: only what the server says about the agent itself ends the stay.
            Err(fault @ ServerFault::Denied(..)) => Err(fault),
            Err(fault) => {
                let wait = stay.rotate_backoff.next();
                stay.rotate_after = Instant::now() + wait;
                tracing::warn!(
                    error = one_line(fault.explained()),
                    retry_in = ?wait,
                    not_after = %humantime::format_rfc3339_seconds(stay.own.not_after),
                    "the agent's certificate renewal failed"
                );
                Ok(())
            }
        }
    }

    async fn take_credentials(&mut self, own: &OwnIdentity) -> Result<(), Lost> {
        let roots = self.data.data().bundle.clone();
        match self.client.replace(&own.credentials(roots)).await {
            Ok(()) => Ok(()),
            Err(error) => {
                // Key and certificate were compared when they were loaded, so this cannot be got over with them.
                tracing::error!(error = one_line(&error), "the agent's SVID cannot be used");
                Err(Lost::Expired)
            }
        }
    }

    /// Remembers the roots when they changed, and trusts them from now on.
    async fn take_roots(&mut self, bundle: &Bundle, stay: &Stay) -> Result<(), ServerFault> {
        let roots = roots_of(bundle);
        if self.data.data().bundle == roots {
            return Ok(());
        }
        tracing::info!(
            authorities = roots.len(),
            sequence = bundle.sequence,
            "the trust bundle changed"
        );
        self.data
            .update(|data| data.bundle = roots.clone())
            .map_err(ServerFault::Refused)?;
        self.client
            .replace(&stay.own.credentials(roots))
            .await
            .map_err(ServerFault::Refused)
    }

    /// What an authority signed that is tainted since the last round, or not in the bundle any more, is replaced; the
    /// agent's own SVID too.
    fn taint(&mut self, bundle: &Bundle, stay: &mut Stay) {
        let now_known = roots_of(bundle);
        let tainted = bundle.x509.iter().filter(|authority| authority.tainted);
        let mut fresh: Vec<CertificateDer<'static>> = tainted
            .filter(|authority| stay.tainted.insert(authority.der.clone()))
            .map(|authority| authority.der.clone().into())
            .collect();
        let before = self.cache.roots();
        fresh.extend(before.into_iter().filter(|root| !now_known.contains(root)));
        if fresh.is_empty() {
            return;
        }
        tracing::info!(
            authorities = fresh.len(),
            "authorities are tainted or gone: what they signed is replaced"
        );
        let trust = trust_of(&self.settings.trust_domain, fresh);
        let now = self.clock.now();
        if verify_spiffe_server(&stay.own.svid, &trust, &stay.own.id, now).is_ok() {
            stay.rotate_now = true;
        }
        self.cache.taint(|identity| {
            let chain: Vec<CertificateDer<'_>> = identity
                .chain
                .iter()
                .map(|der| der.as_slice().into())
                .collect();
            verify_spiffe_server(&chain, &trust, &identity.entry.spiffe_id, now).is_ok()
        });
    }
}

/// What became of `known` with `synced`.
fn stats(known: &SyncedEntries, synced: &SyncedEntries) -> SyncStats {
    let before = |id: &String| known.get(id);
    let found = synced.iter().map(|(id, entry)| (before(id), entry));
    let mut stats = SyncStats {
        total: synced.len(),
        dropped: known.keys().filter(|id| !synced.contains_key(*id)).count(),
        ..SyncStats::default()
    };
    for (before, entry) in found {
        match before {
            None => stats.missing += 1,
            Some(before) if is_stale(before, entry) => stats.stale += 1,
            Some(_) => {}
        }
    }
    stats
}

fn is_stale(before: &Entry, entry: &Entry) -> bool {
    before.revision != entry.revision || before.created_at != entry.created_at
}
