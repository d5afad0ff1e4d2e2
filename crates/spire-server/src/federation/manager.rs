//! Keeps the bundles of the trust domains that this server federates with.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ah_identity_provider::Clock;
use ah_spire_telemetry::Metrics;
use ah_spire_wire::model::Bundle;
use spiffe::TrustDomain;
use tokio::sync::{Mutex as Turn, Notify, Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

use super::client::{Proof, Question, fetch};
use super::interval::until_next;
use crate::store::{Page, Profile, Relationship, Store, StoreError};

/// How often it is looked for relationships that another server of the database has changed.
const LOOK: Duration = Duration::from_secs(10);

/// Endpoints that are asked at a time.
const AT_A_TIME: usize = 32;

/// Polls the bundle endpoint of each relationship, those of the configuration and those of the store.
pub struct Manager<S> {
    ours: TrustDomain,
    configured: BTreeMap<TrustDomain, Relationship>,
    updater: Arc<Updater<S>>,
    changed: Notify,
    polls: Mutex<HashMap<TrustDomain, Poll>>,
    /// Two who look at a time would go by each other's past.
    looking: Turn<()>,
}

/// One trust domain that is polled; no longer when it is dropped.
struct Poll {
    told: watch::Sender<Relationship>,
    state: Arc<State>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct State {
    /// One update at a time: an older answer must not replace a newer one.
    turn: Turn<()>,
    failing: AtomicBool,
}

struct Updater<S> {
    store: Arc<S>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    places: Semaphore,
    post_quantum_only: bool,
}

impl<S: Store> Manager<S> {
    /// For the server of `ours`. `configured` goes before what the store has for the same trust domain. With
    /// `post_quantum_only` endpoints are asked by X25519MLKEM768 alone.
    pub fn new(
        ours: TrustDomain,
        configured: BTreeMap<TrustDomain, Relationship>,
        store: Arc<S>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        post_quantum_only: bool,
    ) -> Self {
        Self {
            ours,
            configured,
            updater: Arc::new(Updater {
                store,
                clock,
                metrics,
                places: Semaphore::new(AT_A_TIME),
                post_quantum_only,
            }),
            changed: Notify::new(),
            polls: Mutex::default(),
            looking: Turn::default(),
        }
    }

    /// Polls until it is dropped.
    pub async fn run(&self) {
        // Whoever ends this ends the polls.
        let _end = Ended(self);
        let mut told = false;
        loop {
            if let Err(error) = self.look(told).await {
                tracing::error!(%error, "Cannot read the federation relationships; the last ones serve on");
            }
            told = tokio::select! {
                () = self.changed.notified() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
        }
    }

    /// A relationship or a federated bundle was changed: they are looked at anew, and what failed is tried again.
    pub fn changed(&self) {
        self.changed.notify_one();
    }

    /// Asks the endpoint of `with` now. `false` when there is no relationship with it.
    ///
    /// # Errors
    /// Why there is no newer bundle.
    pub async fn refresh(&self, with: &TrustDomain) -> Result<bool, String> {
        if let Err(error) = self.look(false).await {
            tracing::error!(%error, "Cannot read the federation relationships; the last ones serve on");
        }
        let found = self.polls().get(with).map(|poll| {
            let relationship = poll.told.borrow().clone();
            (relationship, poll.state.clone())
        });
        let Some((relationship, state)) = found else {
            return Ok(false);
        };
        let (_, updated) = self.updater.update(&relationship, &state).await;
        updated.map(|_| true)
    }

    fn polls(&self) -> std::sync::MutexGuard<'_, HashMap<TrustDomain, Poll>> {
        self.polls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins, changes and ends polls so that they are those of the relationships. With `again` those that failed are
    /// tried at once.
    async fn look(&self, again: bool) -> Result<(), StoreError> {
        let _turn = self.looking.lock().await;
        let stored = self.updater.store.relationships(&Page::default()).await?;
        let stored = stored
            .rows
            .into_iter()
            .map(|it| (it.trust_domain.clone(), it));
        let mut wanted: BTreeMap<_, _> = stored.collect();
        wanted.extend(self.configured.clone());
        // Nobody else speaks for it.
        wanted.remove(&self.ours);
        let mut polls = self.polls();
        polls.retain(|domain, _| {
            let stays = wanted.contains_key(domain);
            if !stays {
                tracing::info!(trust_domain = %domain, "Trust domain no longer managed");
            }
            stays
        });
        for (domain, relationship) in wanted {
            let url = relationship.endpoint_url.clone();
            let profile = name_of(&relationship.profile);
            match polls.get(&domain) {
                Some(poll) => {
                    let differs = *poll.told.borrow() != relationship;
                    if differs {
                        tracing::info!(
                            trust_domain = %domain,
                            bundle_endpoint_url = url,
                            bundle_endpoint_profile = profile,
                            "Updated configuration for managed trust domain"
                        );
                    }
                    if differs || (again && poll.state.failing.load(Ordering::Relaxed)) {
                        poll.told.send_replace(relationship);
                    }
                }
                None => {
                    tracing::info!(
                        trust_domain = %domain,
                        bundle_endpoint_url = url,
                        bundle_endpoint_profile = profile,
                        "Trust domain is now managed"
                    );
                    polls.insert(domain, self.begin(relationship));
                }
            }
        }
        Ok(())
    }

    fn begin(&self, relationship: Relationship) -> Poll {
        let (told, listens) = watch::channel(relationship);
        let state = Arc::new(State::default());
        let task = poll(self.updater.clone(), listens, state.clone());
        Poll {
            told,
            state,
            _task: AbortOnDropHandle::new(tokio::spawn(task)),
        }
    }
}

struct Ended<'a, S>(&'a Manager<S>);

impl<S> Drop for Ended<'_, S> {
    fn drop(&mut self) {
        let mut polls = self.0.polls.lock().unwrap_or_else(PoisonError::into_inner);
        polls.clear();
    }
}

async fn poll<S: Store>(
    updater: Arc<Updater<S>>,
    mut told: watch::Receiver<Relationship>,
    state: Arc<State>,
) {
    loop {
        let relationship = told.borrow_and_update().clone();
        let wait = updater.poll(&relationship, &state).await;
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = told.changed() => if changed.is_err() { return },
        }
    }
}

impl<S: Store> Updater<S> {
    /// One attempt, and the time until the next: a tenth of it more or less, so that servers that started together do not
    /// ask together for ever.
    async fn poll(&self, relationship: &Relationship, state: &State) -> Duration {
        let domain = relationship.trust_domain.as_str();
        let labels = [("trust_domain_id", domain)];
        // It is never closed.
        let _place = self.places.acquire().await.ok();
        let call = self
            .metrics
            .calls(&["bundle_manager", "fetch", "federated_bundle"], &labels)
            .start();
        let (local, updated) = self.update(relationship, state).await;
        let wait = match &updated {
            Ok(fetched) => {
                call.done(Code::Ok);
                until_next(fetched.as_ref(), local.as_ref())
            }
            Err(error) => {
                call.done(Code::Unknown);
                tracing::error!(trust_domain = domain, %error, "Error updating bundle");
                until_next(None, local.as_ref())
            }
        };
        wait.mul_f64(rand::random_range(0.9..1.1))
    }

    /// The bundle that was stored before, and the one that replaced it, where it differs.
    async fn update(
        &self,
        relationship: &Relationship,
        state: &State,
    ) -> (Option<Bundle>, Result<Option<Bundle>, String>) {
        let _turn = state.turn.lock().await;
        let mut local = None;
        let updated = self.attempt(relationship, &mut local).await;
        state.failing.store(updated.is_err(), Ordering::Relaxed);
        if let Ok(Some(bundle)) = &updated {
            let domain = relationship.trust_domain.as_str();
            let labels = [("trust_domain_id", domain)];
            self.metrics
                .counter(&["bundle_manager", "update", "federated_bundle"], &labels)
                .increment();
            tracing::info!(
                trust_domain = domain,
                sequence_number = bundle.sequence,
                "Bundle refreshed"
            );
        }
        (local, updated)
    }

    async fn attempt(
        &self,
        relationship: &Relationship,
        local: &mut Option<Bundle>,
    ) -> Result<Option<Bundle>, String> {
        let domain = &relationship.trust_domain;
        *local = self.stored(domain).await?;
        let proof = match &relationship.profile {
            Profile::HttpsWeb => Proof::Web,
            Profile::HttpsSpiffe(id) => Proof::Spiffe {
                id: id.clone(),
                bundle: self.stored(id.trust_domain()).await?.ok_or_else(|| {
                    format!(
                        "can't perform SPIFFE Authentication: local copy of bundle not found: set the first bundle of {} with `spire-server bundle set`",
                        id.trust_domain()
                    )
                })?,
                clock: self.clock.clone(),
            },
        };
        let question = Question {
            domain,
            url: &relationship.endpoint_url,
            proof: &proof,
            post_quantum_only: self.post_quantum_only,
        };
        let fetched = fetch(question)
            .await
            .map_err(|why| format!("failed to fetch federated bundle from endpoint: {why}"))?;
        if let Some(local) = local {
            if same(local, &fetched) {
                return Ok(None);
            }
            // A server whose database is new counts from the beginning, so that this is no proof of an old copy.
            if fetched.sequence < local.sequence {
                tracing::warn!(
                    trust_domain = %domain,
                    before = local.sequence,
                    now = fetched.sequence,
                    "The sequence number of a federated bundle went back: its server's database is new, or an old copy is served; it is taken"
                );
            }
        }
        if fetched.x509.is_empty() && fetched.jwt.is_empty() {
            tracing::warn!(trust_domain = %domain, "A federated bundle has no keys any more: nobody of its trust domain is trusted");
        }
        let put = self.store.put_bundle(&fetched).await;
        put.map_err(|error| format!("failed to store fetched federated bundle: {error}"))?;
        Ok(Some(fetched))
    }

    async fn stored(&self, domain: &TrustDomain) -> Result<Option<Bundle>, String> {
        let stored = self.store.bundle(domain).await;
        stored.map_err(|error| {
            format!("failed to fetch local copy of bundle for \"{domain}\": {error}")
        })
    }
}

/// Keys have no order, and a document says neither when they end nor whether they are tainted.
fn same(a: &Bundle, b: &Bundle) -> bool {
    let cas = |bundle: &Bundle| {
        let mut ders: Vec<_> = bundle.x509.iter().map(|ca| ca.der.clone()).collect();
        ders.sort_unstable();
        ders
    };
    let keys = |bundle: &Bundle| {
        let keys = bundle.jwt.iter();
        let keys: BTreeMap<_, _> = keys.map(|key| (key.id.clone(), key.spki.clone())).collect();
        keys
    };
    (a.refresh_hint, a.sequence) == (b.refresh_hint, b.sequence)
        && cas(a) == cas(b)
        && keys(a) == keys(b)
}

fn name_of(profile: &Profile) -> &'static str {
    match profile {
        Profile::HttpsWeb => "https_web",
        Profile::HttpsSpiffe(_) => "https_spiffe",
    }
}
