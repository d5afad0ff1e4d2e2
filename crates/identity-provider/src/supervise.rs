//! The one writer of the identity: vets what a provider gives, keeps the last good one, retries.
//!
//! What a [`Provider`] gives is a candidate. It is put to use when the [`Vet`] accepts it, and until then the last
//! good identity stays. A candidate that was refused is vetted again later, since what was wrong may have been the
//! time; meanwhile the provider is asked anew.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::clock::rfc3339;
use crate::{
    Clock, Explained, Health, Identity, IdentityWatch, Provider, ProviderError, Published,
};

use backoff::backoff;

mod backoff;
mod told;

/// Says whether an identity may be put to use, with the checks its peers will make.
pub trait Vet: Send + Sync + 'static {
    /// `Err` says why peers would refuse `candidate` at the time `now`.
    fn vet(&self, candidate: &Identity, now: SystemTime) -> Result<(), Explained>;
}

/// The longest sleep between two looks at the wall clock, which may have been moved, and at what the provider sees
/// coming.
const TICK: Duration = Duration::from_secs(10);

/// Makes a provider read its source at once (SIGHUP).
#[derive(Clone, Debug)]
pub struct Refresher(Arc<Notify>);

impl Refresher {
    /// Asks for it. Several asks before it happens are one.
    pub fn refresh(&self) {
        self.0.notify_one();
    }
}

/// Drives one provider.
pub struct Supervisor<P> {
    provider: P,
    vet: Arc<dyn Vet>,
    clock: Arc<dyn Clock>,
    health: watch::Sender<Health>,
    refresh: Arc<Notify>,
    /// `None` before the first identity.
    publish: Option<watch::Sender<Arc<Published>>>,
    /// A candidate that was not accepted, to be vetted again.
    refused: Option<Identity>,
    pause: Pause,
    /// A person asked to read the source, and is owed a line about it.
    asked: bool,
    expiry_told: bool,
    unchanged_told: Option<Instant>,
}

/// What is being waited for besides the provider.
#[derive(Clone, Copy)]
enum Pause {
    /// Nothing.
    None,
    /// The provider failed and rests until then, or until its source changes.
    Provider(Instant),
    /// A candidate was refused and is vetted again then, unless the provider gives another before.
    Candidate(Instant),
}

#[expect(
    clippy::large_enum_variant,
    reason = "one value at a time, taken apart where it is made"
)]
enum Wake {
    Provided(Result<Identity, ProviderError>),
    RestOver,
    Refresh,
    Tick,
}

impl<P: Provider> Supervisor<P> {
    /// A supervisor at rest, the health it keeps current, and the handle that makes it read the source at once.
    pub fn new(
        provider: P,
        vet: Arc<dyn Vet>,
        clock: Arc<dyn Clock>,
    ) -> (Self, watch::Receiver<Health>, Refresher) {
        let (health, receiver) = watch::channel(Health {
            provider: provider.kind(),
            generation: 0,
            rotations: 0,
            failures: 0,
            last_error: None,
            next_renewal: None,
            warning: None,
            not_after: None,
        });
        let refresh = Arc::new(Notify::new());
        let supervisor = Self {
            provider,
            vet,
            clock,
            health,
            refresh: Arc::clone(&refresh),
            publish: None,
            refused: None,
            pause: Pause::None,
            asked: false,
            expiry_told: false,
            unchanged_told: None,
        };
        (supervisor, receiver, Refresher(refresh))
    }

    /// Waits for the first identity that peers will accept. What is likely to pass is retried for ever, and
    /// shows in the health meanwhile.
    ///
    /// # Errors
    /// What an operator must mend, or the identity that was given and refused: at start-up somebody is watching.
    pub async fn first(&mut self) -> Result<IdentityWatch, Explained> {
        loop {
            match self.wake().await {
                Wake::Provided(Ok(candidate)) => {
                    let now = self.clock.now();
                    if let Err(refusal) = self.vet.vet(&candidate, now) {
                        self.fail(&refusal, None);
                        return Err(refusal);
                    }
                    return Ok(self.start(candidate, now));
                }
                Wake::Provided(Err(ProviderError::Retry(explained))) => {
                    self.rest(&explained);
                }
                Wake::Provided(Err(
                    ProviderError::Operator(explained) | ProviderError::Fatal(explained),
                )) => {
                    self.fail(&explained, None);
                    return Err(explained);
                }
                Wake::RestOver => self.pause = Pause::None,
                Wake::Refresh => self.ask_again(),
                Wake::Tick => {}
            }
        }
    }

    /// Keeps the identity current until the provider can give no more, and returns why.
    pub async fn run(mut self) -> Explained {
        if self.publish.is_none()
            && let Err(explained) = self.first().await
        {
            return explained;
        }
        loop {
            self.look_ahead();
            match self.wake().await {
                Wake::Provided(Ok(candidate)) => self.consider(candidate),
                Wake::Provided(Err(ProviderError::Fatal(explained))) => {
                    self.fail(&explained, None);
                    return explained;
                }
                Wake::Provided(Err(
                    ProviderError::Retry(explained) | ProviderError::Operator(explained),
                )) => self.rest(&explained),
                Wake::RestOver => self.rest_over(),
                Wake::Refresh => {
                    self.asked = true;
                    self.ask_again();
                }
                Wake::Tick => {}
            }
            self.watch_expiry();
        }
    }

    /// Waits for whatever comes first. The provider's futures are dropped here often: they are cancel safe.
    async fn wake(&mut self) -> Wake {
        let tick = self.tick();
        let refresh = self.refresh.notified();
        match self.pause {
            Pause::None => tokio::select! {
                outcome = self.provider.next() => Wake::Provided(outcome),
                () = refresh => Wake::Refresh,
                () = sleep(tick) => Wake::Tick,
            },
            Pause::Provider(until) => tokio::select! {
                () = self.provider.changed() => Wake::RestOver,
                () = sleep_until(until) => Wake::RestOver,
                () = refresh => Wake::Refresh,
                () = sleep(tick) => Wake::Tick,
            },
            Pause::Candidate(until) => tokio::select! {
                outcome = self.provider.next() => Wake::Provided(outcome),
                () = sleep_until(until) => Wake::RestOver,
                () = refresh => Wake::Refresh,
                () = sleep(tick) => Wake::Tick,
            },
        }
    }

    /// How long to sleep at most: until the identity expires, and never past [`TICK`].
    fn tick(&self) -> Duration {
        match self.left() {
            Some(left) if !left.is_zero() => left.min(TICK),
            _ => TICK,
        }
    }

    /// What is left of the identity in use, zero once it is over.
    fn left(&self) -> Option<Duration> {
        let not_after = self.current()?.identity.leaf().not_after;
        let left = not_after.duration_since(self.clock.now());
        Some(left.unwrap_or_default())
    }

    fn current(&self) -> Option<Arc<Published>> {
        Some(Arc::clone(&self.publish.as_ref()?.borrow()))
    }

    fn ask_again(&mut self) {
        self.provider.refresh();
        self.pause = Pause::None;
    }

    /// A rest is over: a refused candidate is vetted again, and the provider asked again.
    fn rest_over(&mut self) {
        let candidate_rested = matches!(self.pause, Pause::Candidate(_));
        self.pause = Pause::None;
        let Some(candidate) = self.refused.take() else {
            return;
        };
        let now = self.clock.now();
        if self.vet.vet(&candidate, now).is_ok() {
            self.replace(candidate, now);
            return;
        }
        self.refused = Some(candidate);
        if candidate_rested {
            // Whether the source gives the same again or better, its answer is vetted and reported.
            self.provider.refresh();
        }
    }

    /// Puts a candidate to use, or says why not.
    fn consider(&mut self, candidate: Identity) {
        let now = self.clock.now();
        self.pause = Pause::None;
        let same = self
            .current()
            .is_some_and(|current| current.identity.same_material(&candidate));
        if let Err(refusal) = self.vet.vet(&candidate, now) {
            let wait = self.backoff();
            self.fail(&refusal, Some(wait));
            self.pause = Pause::Candidate(Instant::now() + wait);
            self.refused = (!same).then_some(candidate);
            self.asked = false;
            if same {
                self.pause = Pause::Provider(Instant::now() + wait);
            }
        } else if same {
            self.refused = None;
            self.tell_unchanged();
            self.succeed();
        } else {
            self.replace(candidate, now);
        }
    }

    fn start(&mut self, identity: Identity, now: SystemTime) -> IdentityWatch {
        let published = Published {
            generation: 1,
            identity,
            provider: self.provider.kind(),
            since: now,
        };
        let leaf = published.identity.leaf();
        tracing::info!(
            provider = %published.provider,
            generation = published.generation,
            serial = %leaf.serial,
            not_after = %rfc3339(leaf.not_after),
            "certificate in use"
        );
        let (sender, watch) = IdentityWatch::starting_at(published);
        self.publish = Some(sender);
        self.pause = Pause::None;
        self.asked = false;
        self.succeed();
        watch
    }

    fn replace(&mut self, identity: Identity, now: SystemTime) {
        let Some(sender) = &self.publish else {
            return;
        };
        let published = Arc::new(Published {
            generation: sender.borrow().generation.saturating_add(1),
            identity,
            provider: self.provider.kind(),
            since: now,
        });
        sender.send_replace(Arc::clone(&published));
        let leaf = published.identity.leaf();
        tracing::info!(
            provider = %published.provider,
            generation = published.generation,
            serial = %leaf.serial,
            not_after = %rfc3339(leaf.not_after),
            "certificate rotated"
        );
        self.health.send_modify(|health| {
            health.rotations = health.rotations.saturating_add(1);
        });
        self.refused = None;
        self.expiry_told = false;
        self.asked = false;
        self.succeed();
    }

    /// The provider failed and rests.
    fn rest(&mut self, explained: &Explained) {
        let wait = self.backoff();
        self.fail(explained, Some(wait));
        self.pause = Pause::Provider(Instant::now() + wait);
        self.asked = false;
    }

    fn backoff(&self) -> Duration {
        let failures = self.health.borrow().failures;
        backoff(failures, self.left(), rand::random_range(0.0..=1.0))
    }
}
