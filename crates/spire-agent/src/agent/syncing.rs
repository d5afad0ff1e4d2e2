use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::time::Duration;

use ah_identity_provider::Backoff;
use ah_spire_attest::node::AgentHalf;
use ah_spire_wire::model::{Bundle, Entry};
use ah_tls::verify_spiffe_server;
use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;
use tokio::time::Instant;

use super::attesting::tell_unsaved;
use super::signing::SIGN_AT_ONCE;
use super::{Agent, Lost, SOUND, wait_or_jump};
use crate::health::one_line;
use crate::identities::X509Identity;
use crate::metrics::{SyncStats, counted};
use crate::own::OwnIdentity;
use crate::server_client::{Heard, News, ServerFault, SyncedEntries, roots_of, trust_of};

/// However long the interval is, the first attempt after a failure comes within this time, and so does a renewal that is
/// due: an interval may be long where the server tells of changes.
const FIRST_WAIT: Duration = Duration::from_secs(5);

/// The longest time between two attempts while the server fails, whatever the interval.
const LAST_WAIT: Duration = Duration::from_secs(8 * 60);

/// The longest time, in intervals.
const LAST_WAIT_INTERVALS: u32 = 48;

/// Between two times that it is tried to keep the agent's key, once the disk had no room for it.
const KEEP_WAIT: Duration = Duration::from_secs(5);

/// How one stay with the server goes.
pub(super) struct Stay {
    own: OwnIdentity,
    /// Sequence of the bundle that the server was told of.
    told: Option<u64>,
    tainted: BTreeSet<Vec<u8>>,
    rotate_now: bool,
    rotate_after: Instant,
    rotate_backoff: Backoff,
    /// An own SVID whose key is not on the disk is not replaced before.
    keep_after: Instant,
    /// Signing is not tried before.
    pub(super) sign_after: Instant,
    pub(super) sign_backoff: Backoff,
    pub(super) sign_at_once: usize,
    /// What the server tells, where it does.
    news: Option<News>,
    news_backoff: Backoff,
}

impl<A: AgentHalf> Agent<A> {
    /// Keeps the cache in step until the server is lost. Returns the newest own identity besides.
    pub(super) async fn serve(&mut self, own: OwnIdentity) -> (OwnIdentity, Lost) {
        let interval = self.settings.sync_interval;
        let mut backoff = Backoff::new(
            interval.min(FIRST_WAIT),
            LAST_WAIT.min(interval.saturating_mul(LAST_WAIT_INTERVALS)),
        );
        let mut stay = Stay {
            own,
            told: None,
            tainted: BTreeSet::new(),
            rotate_now: false,
            rotate_after: Instant::now(),
            keep_after: Instant::now(),
            rotate_backoff: Backoff::new(Duration::from_secs(5), Duration::from_secs(120)),
            sign_after: Instant::now(),
            sign_backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(60)),
            sign_at_once: SIGN_AT_ONCE,
            news: None,
            news_backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
        };
        if let Err(lost) = self.take_credentials(&stay.own).await {
            return (stay.own, lost);
        }
        loop {
            if self.was_set_back() {
                tracing::warn!("the clock was set back: all SVIDs are replaced");
                stay.rotate_now = true;
                self.taint_at_once(|_| true);
            }
            let wait = match Box::pin(self.round(&mut stay)).await {
                Ok(()) => {
                    backoff.reset();
                    self.untrusted_since = None;
                    // A tenth of it is random, so that the agents of a fleet do not ask in step.
                    let wait = interval.mul_f64(0.95 + rand::random::<f64>() / 10.0);
                    wait.min(self.until_rotation(&stay).max(FIRST_WAIT))
                }
                Err(fault) => {
                    let wait = backoff.next_wait();
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

    /// Until the next round, which is earlier when the server tells of a change; meanwhile whoever comes and has no SVID
    /// yet gets one.
    async fn wait_and_sign(&mut self, stay: &mut Stay, wait: Duration) {
        let clock = self.clock.clone();
        let waited = wait_or_jump(clock.as_ref(), wait);
        tokio::pin!(waited);
        // What changed while nothing was told is found by the round that listens anew.
        let mut listen_again = None;
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
                heard = next(&mut stay.news) => match heard {
                    Heard::Changed => return,
                    ended => {
                        let lasted = stay.news.take().is_some_and(|news| news.age() > SOUND);
                        if matches!(ended, Heard::Denied) {
                            return;
                        }
                        if lasted {
                            stay.news_backoff.reset();
                        }
                        listen_again = Some(Instant::now() + stay.news_backoff.next_wait());
                        continue;
                    }
                },
                () = at(listen_again) => return,
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
        // Before anything is asked for, so that what changes from now on is heard.
        stay.news = self.client.news(stay.news.take()).await?;
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
        if let Some(stored) = &self.stored {
            stored.update(&entries, &bundle, &federated, self.clock.now());
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
        if let Some(news) = &mut stay.news {
            let mut holds = self.cache.holds();
            holds.tainted_svids += usize::from(stay.rotate_now);
            let stored = self.stored.as_ref();
            holds.tainted_svids += stored.map_or(0, |stored| stored.tainted());
            self.client.report(news, holds).await;
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

    /// Until the agent's own SVID or one of the workloads' is due.
    fn until_rotation(&self, stay: &Stay) -> Duration {
        let stored = self.stored.as_ref().and_then(|it| it.next_rotation());
        let next = self.cache.next_rotation().into_iter().chain(stored).min();
        let next = next.map_or(stay.own.rotate_at, |next| next.min(stay.own.rotate_at));
        next.duration_since(self.clock.now()).unwrap_or_default()
    }

    async fn rotate_if_due(&mut self, stay: &mut Stay) -> Result<(), ServerFault> {
        let due = stay.rotate_now || self.clock.now() >= stay.own.rotate_at;
        let wanted = if due {
            Instant::now() >= stay.rotate_after
        } else {
            !stay.own.kept && Instant::now() >= stay.keep_after
        };
        if !wanted {
            return Ok(());
        }
        match Box::pin(self.rotate(&stay.own, due)).await {
            Ok(own) => {
                self.show(&own);
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
            Err(_) if !due => {
                stay.keep_after = Instant::now() + KEEP_WAIT;
                Ok(())
            }
            Err(fault) => {
                let wait = stay.rotate_backoff.next_wait();
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
        let changed = self.data.data().bundle != roots;
        // With a full disk too: the next SVIDs are of the new roots.
        let saved = self.data.take(|data| data.bundle.clone_from(&roots));
        if !changed {
            return Ok(());
        }
        tell_unsaved(saved, "the trust bundle");
        tracing::info!(
            authorities = roots.len(),
            sequence = bundle.sequence,
            "the trust bundle changed"
        );
        self.client
            .replace(&stay.own.credentials(roots))
            .await
            .map_err(ServerFault::Refused)
    }

    /// What an authority signed that is not in the bundle any more is replaced, and batch by batch what one signed that
    /// is tainted since the last round; the agent's own SVID too.
    fn taint(&mut self, bundle: &Bundle, stay: &mut Stay) {
        let now_known = roots_of(bundle);
        let tainted = bundle.x509.iter().filter(|authority| authority.tainted);
        let tainted: Vec<CertificateDer<'static>> = tainted
            .filter(|authority| stay.tainted.insert(authority.der.clone()))
            .map(|authority| authority.der.clone().into())
            .collect();
        let mut gone = self.cache.roots();
        gone.retain(|root| !now_known.contains(root));
        if tainted.is_empty() && gone.is_empty() {
            return;
        }
        tracing::info!(
            tainted = tainted.len(),
            gone = gone.len(),
            "authorities are tainted or gone: what they signed is replaced"
        );
        let now = self.clock.now();
        for (roots, at_once) in [(gone, true), (tainted, false)] {
            if roots.is_empty() {
                continue;
            }
            let trust = trust_of(&self.settings.trust_domain, roots);
            if verify_spiffe_server(&stay.own.svid, &trust, &stay.own.id, now).is_ok() {
                stay.rotate_now = true;
            }
            let issued_by = |identity: &X509Identity| {
                let chain: Vec<CertificateDer<'_>> = identity
                    .chain
                    .iter()
                    .map(|der| der.as_slice().into())
                    .collect();
                verify_spiffe_server(&chain, &trust, &identity.entry.spiffe_id, now).is_ok()
            };
            if at_once {
                self.taint_at_once(issued_by);
            } else {
                self.cache.taint_in_batches(issued_by);
                self.taint_stored(issued_by);
            }
        }
    }

    fn taint_at_once(&self, issued_by: impl Fn(&X509Identity) -> bool) {
        self.cache.taint(&issued_by);
        self.taint_stored(issued_by);
    }

    /// Stores hold few SVIDs: they are replaced with the next round.
    fn taint_stored(&self, issued_by: impl Fn(&X509Identity) -> bool) {
        if let Some(stored) = &self.stored {
            let processing = self.metrics.taint_stored.start();
            let tainted = stored.taint(issued_by);
            tracing::info!(tainted, "Tainted X.509 SVIDs of SVIDStores");
            processing.done(tonic::Code::Ok);
        }
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

async fn next(news: &mut Option<News>) -> Heard {
    match news {
        Some(news) => news.next().await,
        None => pending().await,
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => pending().await,
    }
}
