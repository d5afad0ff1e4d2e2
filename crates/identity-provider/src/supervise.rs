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
    Clock, Code, Explained, Failure, Health, Identity, IdentityWatch, Provider, ProviderError,
    Published,
};

use backoff::backoff;

mod backoff;

/// Says whether an identity may be put to use, with the checks its peers will make.
pub trait Vet: Send + Sync + 'static {
    /// `Err` says why peers would refuse `candidate` at the time `now`.
    fn vet(&self, candidate: &Identity, now: SystemTime) -> Result<(), Explained>;
}

/// The longest sleep between two looks at the wall clock, which may have been moved, and at what the provider sees
/// coming.
const TICK: Duration = Duration::from_secs(10);

/// The least time between two log lines about a source that changed nothing.
const UNCHANGED_GAP: Duration = Duration::from_secs(1);

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

    /// Shows what the provider sees coming, which may change while it has nothing new to give.
    fn look_ahead(&self) {
        let (next_renewal, warning) = (self.provider.next_renewal(), self.provider.warning());
        self.health.send_if_modified(|health| {
            let new = health.next_renewal != next_renewal || health.warning != warning;
            health.next_renewal = next_renewal;
            health.warning = warning;
            new
        });
    }

    fn succeed(&mut self) {
        let current = self.current();
        let next_renewal = self.provider.next_renewal();
        let mut recovered = 0;
        self.health.send_modify(|health| {
            recovered = health.failures;
            health.failures = 0;
            health.last_error = None;
            health.next_renewal = next_renewal;
            if let Some(current) = current {
                health.generation = current.generation;
                health.not_after = Some(current.identity.leaf().not_after);
            }
        });
        if recovered > 0 {
            tracing::info!(
                provider = %self.provider.kind(),
                failures = recovered,
                "certificate renewal works again"
            );
        }
    }

    /// Shows a failure in the health, and in the log at a decreasing rate as long as it stays the same.
    fn fail(&self, explained: &Explained, retry_in: Option<Duration>) {
        let mut failures = 0;
        let mut new = true;
        let next_renewal = self.provider.next_renewal();
        self.health.send_modify(|health| {
            health.failures = health.failures.saturating_add(1);
            failures = health.failures;
            let last = health.last_error.as_ref();
            new = last.is_none_or(|last| last.explained != *explained);
            health.next_renewal = next_renewal;
            health.last_error = Some(Failure {
                at: self.clock.now(),
                explained: explained.clone(),
                retry_in,
            });
        });
        let retry_in = retry_in.map(tracing::field::debug);
        let causes = explained.causes.join("; ");
        let (provider, hint) = (self.provider.kind(), explained.hint.as_deref());
        if self.publish.is_none() {
            tracing::warn!(
                %provider, failures, retry_in, causes, hint, error = %explained,
                "no certificate yet"
            );
        } else if new || failures.is_power_of_two() {
            tracing::warn!(
                %provider, failures, retry_in, causes, hint, error = %explained,
                "certificate renewal failed, the last good certificate stays in use"
            );
        } else {
            tracing::debug!(
                %provider, failures, retry_in, causes, hint, error = %explained,
                "certificate renewal failed again"
            );
        }
    }

    /// FI-2: a source that was touched or read again and holds the same.
    fn tell_unchanged(&mut self) {
        let now = Instant::now();
        let quiet = self
            .unchanged_told
            .is_some_and(|told| now.duration_since(told) < UNCHANGED_GAP);
        if self.asked || !quiet {
            tracing::info!(provider = %self.provider.kind(), "certificate unchanged");
            self.unchanged_told = Some(now);
        } else {
            tracing::debug!(provider = %self.provider.kind(), "certificate unchanged");
        }
        self.asked = false;
    }

    /// Says once that the identity in use has expired, and forgets it when the clock is put back.
    fn watch_expiry(&mut self) {
        let Some(current) = self.current() else {
            return;
        };
        let leaf = current.identity.leaf();
        let now = self.clock.now();
        if now < leaf.not_after {
            self.expiry_told = false;
            return;
        }
        if self.expiry_told {
            return;
        }
        self.expiry_told = true;
        let mut explained = expired(&leaf.serial, leaf.not_after, now);
        self.health.send_modify(|health| {
            if let Some(last) = &health.last_error {
                explained
                    .causes
                    .push(format!("renewal failed: {}", last.explained.text));
                explained
                    .causes
                    .extend(last.explained.causes.iter().cloned());
                explained.hint.clone_from(&last.explained.hint);
            }
            let retry_in = health.last_error.as_ref().and_then(|last| last.retry_in);
            health.failures = health.failures.max(1);
            health.last_error = Some(Failure {
                at: now,
                explained: explained.clone(),
                retry_in,
            });
        });
        tracing::error!(
            provider = %self.provider.kind(),
            generation = current.generation,
            serial = %leaf.serial,
            not_after = %rfc3339(leaf.not_after),
            causes = explained.causes.join("; "),
            error = %explained,
            "the certificate in use has expired and no other is at hand"
        );
    }
}

/// ER-4, about our own certificate.
fn expired(serial: &str, not_after: SystemTime, now: SystemTime) -> Explained {
    Explained::new(
        Code::ExpiredOrNotYetValid,
        "certificate has expired or is not yet valid",
    )
    .cause(format!(
        "this process's own certificate (serial {serial}) was valid until {}; the clock here says {}",
        rfc3339(not_after),
        rfc3339(now)
    ))
    .hint("renew the certificate where it comes from; `ah agent doctor` checks provider and clock")
}
