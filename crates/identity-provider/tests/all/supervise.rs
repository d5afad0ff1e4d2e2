//! The supervisor against a scripted provider, in paused time.

use std::future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ah_identity_provider::{
    Clock, Code, Explained, Health, Identity, IdentityWatch, Provider, ProviderError, ProviderKind,
    Refresher, Supervisor, Vet,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::common::{Ca, HeldClock, Log};

type Outcome = Result<Identity, ProviderError>;

/// Gives what the test sends.
struct Scripted {
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    refreshed: mpsc::UnboundedSender<()>,
}

impl Provider for Scripted {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Exec
    }

    async fn next(&mut self) -> Outcome {
        match self.outcomes.recv().await {
            Some(outcome) => outcome,
            None => future::pending().await,
        }
    }

    fn refresh(&mut self) {
        let _ = self.refreshed.send(());
    }
}

/// Refuses what has expired, and the leaf with this serial until told otherwise.
#[derive(Default)]
struct Picky(Mutex<Option<String>>);

impl Vet for Picky {
    fn vet(&self, candidate: &Identity, now: SystemTime) -> Result<(), Explained> {
        let leaf = candidate.leaf();
        if self.0.lock().unwrap().as_deref() == Some(leaf.serial.as_str()) {
            return Err(Explained::new(Code::NoLocalIssuer, "not this one"));
        }
        if now >= leaf.not_after {
            return Err(Explained::new(Code::ExpiredOrNotYetValid, "too old"));
        }
        Ok(())
    }
}

struct Stage {
    ca: Ca,
    give: mpsc::UnboundedSender<Outcome>,
    refreshed: mpsc::UnboundedReceiver<()>,
    vet: Arc<Picky>,
    clock: HeldClock,
    health: watch::Receiver<Health>,
    refresher: Refresher,
    supervisor: Option<Supervisor<Scripted>>,
}

impl Stage {
    fn new() -> Self {
        let (give, outcomes) = mpsc::unbounded_channel();
        let (refreshed_tx, refreshed) = mpsc::unbounded_channel();
        let provider = Scripted {
            outcomes,
            refreshed: refreshed_tx,
        };
        let vet = Arc::new(Picky::default());
        let clock = HeldClock::new();
        let (supervisor, health, refresher) = Supervisor::new(
            provider,
            Arc::clone(&vet) as Arc<dyn Vet>,
            Arc::new(clock.clone()),
        );
        Self {
            ca: Ca::new("stage CA"),
            give,
            refreshed,
            vet,
            clock,
            health,
            refresher,
            supervisor: Some(supervisor),
        }
    }

    /// An identity that lasts this much longer than the held clock says.
    fn lasting(&self, life: Duration) -> Identity {
        let leaf = self.ca.leaf_until("a.example", self.clock.now() + life);
        self.ca.identity(&leaf)
    }

    fn hour(&self) -> Identity {
        self.lasting(Duration::from_secs(3600))
    }

    async fn started(&mut self, first: Identity) -> (IdentityWatch, JoinHandle<Explained>) {
        self.give.send(Ok(first)).unwrap();
        let mut supervisor = self.supervisor.take().unwrap();
        let watch = supervisor.first().await.unwrap();
        (watch, tokio::spawn(supervisor.run()))
    }

    async fn health_where(&mut self, wanted: impl Fn(&Health) -> bool) -> Health {
        let found = self.health.wait_for(|health| wanted(health));
        let found = timeout(Duration::from_secs(600), found).await;
        found.expect("the health comes about").unwrap().clone()
    }
}

fn retry(text: &str) -> ProviderError {
    ProviderError::Retry(Explained::new(Code::Unavailable, text))
}

// EN-14: generations are numbered, and the log line has the words the guides look for.
#[tokio::test(start_paused = true)]
async fn en_14_a_new_identity_is_published_and_logged() {
    let (log, _guard) = Log::start();
    let mut stage = Stage::new();
    let (first, second) = (stage.hour(), stage.hour());
    let (mut watch, _task) = stage.started(first.clone()).await;
    assert_eq!(watch.current().generation, 1);
    assert!(watch.current().identity.same_material(&first));

    stage.give.send(Ok(second.clone())).unwrap();
    let published = watch.next().await.unwrap();
    assert_eq!(published.generation, 2);
    assert!(published.identity.same_material(&second));
    let health = stage.health_where(|health| health.rotations == 1).await;
    assert_eq!(health.generation, 2);
    assert_eq!(health.not_after, Some(second.leaf().not_after));
    let lines = log.lines_with("certificate rotated");
    assert_eq!(lines.len(), 1);
    let line = lines.first().unwrap();
    assert!(line.contains("generation=2") && line.contains(&second.leaf().serial));
    assert!(line.contains("not_after=") && line.contains("ah_identity_provider"));
}

// EN-14: a provider that fails keeps the last good identity, and the failure shows at once.
#[tokio::test(start_paused = true)]
async fn en_14_the_last_good_identity_stays_while_the_provider_fails() {
    let (log, _guard) = Log::start();
    let mut stage = Stage::new();
    let (first, second) = (stage.hour(), stage.hour());
    let (mut watch, _task) = stage.started(first.clone()).await;
    for _ in 0..12 {
        stage.give.send(Err(retry("source is away"))).unwrap();
    }
    let health = stage.health_where(|health| health.failures == 12).await;
    let failure = health.last_error.unwrap();
    assert_eq!(failure.explained.text, "source is away");
    assert!(failure.retry_in.unwrap() <= Duration::from_secs(60));
    assert!(watch.current().identity.same_material(&first));
    // 1, 2, 4, 8: a failure that stays the same is told ever less often.
    let warnings = log.lines_with("WARN");
    assert_eq!(warnings.len(), 4, "{warnings:#?}");

    stage.give.send(Ok(second)).unwrap();
    assert_eq!(watch.next().await.unwrap().generation, 2);
    let health = stage.health_where(|health| health.failures == 0).await;
    assert_eq!(health.last_error, None);
    assert_eq!(log.lines_with("renewal works again").len(), 1);
}

// EN-14: a candidate that peers would refuse is not used, and is used once they would not.
#[tokio::test(start_paused = true)]
async fn en_14_a_refused_candidate_waits_for_its_time() {
    let mut stage = Stage::new();
    let (first, second) = (stage.hour(), stage.hour());
    *stage.vet.0.lock().unwrap() = Some(second.leaf().serial.clone());
    let (mut watch, _task) = stage.started(first).await;
    stage.give.send(Ok(second.clone())).unwrap();
    let health = stage.health_where(|health| health.failures == 1).await;
    let failure = health.last_error.unwrap();
    assert_eq!(failure.explained.code, Code::NoLocalIssuer);
    assert_eq!(watch.current().generation, 1);
    // The source is asked again meanwhile.
    stage.refreshed.recv().await.unwrap();
    assert_eq!(watch.current().generation, 1);
    // The provider gives it once more, refused again, and then time heals it without the provider.
    stage.give.send(Ok(second.clone())).unwrap();
    stage.health_where(|health| health.failures == 2).await;
    *stage.vet.0.lock().unwrap() = None;
    let published = watch.next().await.unwrap();
    assert!(published.identity.same_material(&second));
    assert_eq!(published.generation, 2);
    assert_eq!(stage.health.borrow().last_error, None);
}

// FI-2: the line for a touch that changed nothing.
#[tokio::test(start_paused = true)]
async fn fi_2_the_same_material_is_no_new_generation() {
    let (log, _guard) = Log::start();
    let mut stage = Stage::new();
    let (first, second) = (stage.hour(), stage.hour());
    let (mut watch, _task) = stage.started(first.clone()).await;
    stage.give.send(Ok(first)).unwrap();
    stage.give.send(Ok(second)).unwrap();
    assert_eq!(watch.next().await.unwrap().generation, 2);
    assert_eq!(log.lines_with("certificate unchanged").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn fi_2_refresh_reaches_the_provider_even_while_it_rests() {
    let (log, _guard) = Log::start();
    let mut stage = Stage::new();
    let first = stage.hour();
    let (mut watch, _task) = stage.started(first.clone()).await;
    stage.refresher.refresh();
    stage.refreshed.recv().await.unwrap();
    stage.give.send(Err(retry("away"))).unwrap();
    stage.health_where(|health| health.failures == 1).await;
    stage.refresher.refresh();
    stage.refreshed.recv().await.unwrap();
    stage.give.send(Ok(first)).unwrap();
    stage.health_where(|health| health.failures == 0).await;
    assert_eq!(log.lines_with("certificate unchanged").len(), 1);
    assert!(timeout(Duration::from_secs(1), watch.next()).await.is_err());
}

// ER-4: an identity that ran out is said to have, by the wall clock and after a jump of it.
#[tokio::test(start_paused = true)]
async fn er_4_expiry_is_told_when_the_wall_clock_jumps() {
    let (log, _guard) = Log::start();
    let mut stage = Stage::new();
    let first = stage.hour();
    let (_watch, _task) = stage.started(first).await;
    stage.give.send(Err(retry("source is away"))).unwrap();
    stage.health_where(|health| health.failures == 1).await;
    stage.clock.advance(Duration::from_secs(2 * 3600));
    let health = stage
        .health_where(|health| {
            let last = health.last_error.as_ref();
            last.is_some_and(|last| last.explained.code == Code::ExpiredOrNotYetValid)
        })
        .await;
    let explained = health.last_error.unwrap().explained;
    let report = explained.report();
    assert!(report.starts_with("error: certificate has expired or is not yet valid"));
    assert!(report.contains("own certificate") && report.contains("source is away"));
    assert_eq!(log.lines_with("ERROR").len(), 1);

    // Put back and past the end again: told again.
    stage.clock.put_back(Duration::from_secs(2 * 3600));
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::sleep(Duration::from_secs(31)).await;
    stage.clock.advance(Duration::from_secs(2 * 3600));
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(log.lines_with("ERROR").len(), 2);
}

// EN-14: a retry always comes before the identity in use expires.
#[tokio::test(start_paused = true)]
async fn en_14_the_backoff_never_outlasts_the_identity() {
    let mut stage = Stage::new();
    let first = stage.lasting(Duration::from_secs(20));
    let (_watch, _task) = stage.started(first).await;
    for failures in 1..=10 {
        stage.give.send(Err(retry("away"))).unwrap();
        let health = stage
            .health_where(|health| health.failures == failures)
            .await;
        let wait = health.last_error.unwrap().retry_in.unwrap();
        assert!(wait <= Duration::from_secs(10), "{wait:?}");
    }
}

// EN-13: what may pass is retried before the first identity; what an operator must mend ends the start.
#[tokio::test(start_paused = true)]
async fn en_13_the_start_retries_what_may_pass() {
    let mut stage = Stage::new();
    let first = stage.hour();
    stage.give.send(Err(retry("not yet"))).unwrap();
    stage.give.send(Err(retry("not yet"))).unwrap();
    stage.give.send(Ok(first)).unwrap();
    let watch = stage.supervisor.take().unwrap().first().await.unwrap();
    assert_eq!(watch.current().generation, 1);
    assert_eq!(stage.health.borrow().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn en_13_the_start_ends_at_once_on_what_will_not_pass() {
    let mut stage = Stage::new();
    let why = Explained::new(Code::KeyMismatch, "private key does not match certificate");
    let error = ProviderError::Operator(why.clone());
    stage.give.send(Err(error)).unwrap();
    let ended = stage.supervisor.take().unwrap().first().await.map(drop);
    assert_eq!(ended, Err(why.clone()));
    let health = stage.health.borrow().clone();
    assert_eq!(health.last_error.unwrap().explained, why);

    let mut stage = Stage::new();
    let refused = stage.hour();
    *stage.vet.0.lock().unwrap() = Some(refused.leaf().serial.clone());
    stage.give.send(Ok(refused)).unwrap();
    let ended = stage.supervisor.take().unwrap().first().await.map(drop);
    assert_eq!(ended.unwrap_err().code, Code::NoLocalIssuer);
}

#[tokio::test(start_paused = true)]
async fn a_fatal_error_ends_the_run_and_nothing_else_does() {
    let mut stage = Stage::new();
    let first = stage.hour();
    let (watch, task) = stage.started(first).await;
    let operator = Explained::new(Code::NoSuchFile, "gone");
    let fatal = Explained::new(Code::Other, "over");
    stage
        .give
        .send(Err(ProviderError::Operator(operator)))
        .unwrap();
    stage.health_where(|health| health.failures == 1).await;
    assert!(!task.is_finished());
    stage
        .give
        .send(Err(ProviderError::Fatal(fatal.clone())))
        .unwrap();
    assert_eq!(task.await.unwrap(), fatal);
    assert_eq!(watch.current().generation, 1);
}
