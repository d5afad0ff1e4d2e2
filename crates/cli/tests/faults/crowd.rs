//! Many executors in one process, each with an identity of its own, run by the executor library.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ah_fleet::executor::{Event, Executor, Once, Remote, Status};
use ah_identity_provider::{Explained, Health, ProviderKind, Published, SystemClock};
use ah_testkit::ca::{TestCa, TestLeaf, published};
use ah_testkit::process::eventually;
use ah_tls::{ClientConfigs, Expect};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::site::{self, Site};

/// Executors that try to stay enrolled until this is dropped.
pub(crate) struct Crowd {
    pub(crate) runtime: Runtime,
    stop: CancellationToken,
    members: Vec<Member>,
}

struct Member {
    identity: watch::Sender<Arc<Published>>,
    status: watch::Receiver<Status>,
    told: Arc<Mutex<Vec<Event>>>,
}

impl Crowd {
    /// `count` executors with certificates of `site`'s authority, numbered from 0, once all are enrolled, which takes
    /// at most `limit`. What was told on the way is forgotten.
    pub(crate) fn enrolled(
        site: &Site,
        address: SocketAddr,
        count: usize,
        limit: Duration,
    ) -> Self {
        let crowd = Self::start(site, address, count);
        crowd.wait_enrolled(limit);
        crowd.forget();
        crowd
    }

    fn start(site: &Site, address: SocketAddr, count: usize) -> Self {
        site::raise_open_files();
        let runtime = runtime();
        let stop = CancellationToken::new();
        let members = (0..count)
            .map(|number| {
                let leaf = site.executor_leaf(number);
                Member::spawn(&runtime, &leaf, &site.ca, address, number, stop.clone())
            })
            .collect();
        Self {
            runtime,
            stop,
            members,
        }
    }

    /// Waits until all are enrolled at once, at most `limit`.
    pub(crate) fn wait_enrolled(&self, limit: Duration) {
        let all = async {
            let end = Instant::now() + limit;
            loop {
                let Some(absent) = self.members.iter().find(|m| !m.status.borrow().enrolled) else {
                    return;
                };
                let mut status = absent.status.clone();
                let came = tokio::time::timeout_at(end, status.wait_for(|s| s.enrolled)).await;
                if came.is_err() {
                    panic!(
                        "{} of {} not enrolled within {limit:?}; one of them: {:?}",
                        self.absent(),
                        self.members.len(),
                        absent.told.lock().unwrap().last()
                    );
                }
            }
        };
        self.runtime.block_on(all);
        // The event follows the status; whoever clears the events next must not find it there.
        eventually("the last enrollment was told", || {
            let told = self.told();
            let settled = |told: &Vec<Event>| matches!(told.last(), Some(Event::Enrolled { .. }));
            told.iter().all(settled).then_some(())
        });
    }

    /// How many are not enrolled.
    pub(crate) fn absent(&self) -> usize {
        let absent = self.members.iter().filter(|m| !m.status.borrow().enrolled);
        absent.count()
    }

    /// Forgets what was told so far.
    fn forget(&self) {
        for member in &self.members {
            member.told.lock().unwrap().clear();
        }
    }

    /// What each was told since.
    pub(crate) fn told(&self) -> Vec<Vec<Event>> {
        let told = self.members.iter().map(|m| m.told.lock().unwrap().clone());
        told.collect()
    }

    /// Nothing has happened since to any session, nobody was rejected, and the access point has `sessions`.
    #[track_caller]
    pub(crate) fn undisturbed(&self, http: SocketAddr, sessions: usize) {
        assert_eq!(self.absent(), 0);
        assert!(self.told().iter().all(Vec::is_empty), "no session dropped");
        let (_, metrics) = site::get(http, "/metrics");
        let refused =
            |line: &str| line.starts_with("ah_rejections_total{") && !line.ends_with(" 0");
        assert!(!metrics.lines().any(refused), "{metrics}");
        assert_eq!(site::metric(http, "ah_sessions") as usize, sessions);
    }

    /// Gives executor `number` another identity.
    pub(crate) fn rotate(&self, number: usize, leaf: &TestLeaf, ca: &TestCa) {
        let sender = &self.members[number].identity;
        let generation = sender.borrow().generation + 1;
        sender.send_replace(Arc::new(published(generation, leaf.identity(&[ca]))));
    }

    /// Ends all sessions with a goodbye and waits until they are over.
    pub(crate) fn leave(self) {
        self.stop.cancel();
        self.runtime.shutdown_timeout(Duration::from_secs(5));
    }
}

impl Member {
    fn spawn(
        runtime: &Runtime,
        leaf: &TestLeaf,
        ca: &TestCa,
        address: SocketAddr,
        number: usize,
        stop: CancellationToken,
    ) -> Self {
        let (identity, watch) = leaf.watch(&[ca]);
        let clock = Arc::new(SystemClock);
        let (configs, follow) =
            ClientConfigs::publish(watch, Expect::RemoteName, false, clock).unwrap();
        runtime.spawn(follow);
        let executor = executor(configs, address, number, None, Duration::from_secs(30));
        let status = executor.status();
        let told = Arc::new(Mutex::new(Vec::new()));
        let member = Self {
            identity,
            status: status.subscribe(),
            told: Arc::clone(&told),
        };
        runtime.spawn(async move {
            let tell = move |event: &Event| told.lock().unwrap().push(event.clone());
            if let Err(gave_up) = executor.run(status, tell, stop).await {
                eprintln!("executor {number} gave up: {gave_up}");
            }
        });
        member
    }
}

/// A runtime for a crowd: few threads, so that the access point has the rest of the machine.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// TLS configurations that never change.
pub(crate) fn fixed_configs(leaf: &TestLeaf, ca: &TestCa) -> ClientConfigs {
    let (_, watch) = leaf.watch(&[ca]);
    let clock = Arc::new(SystemClock);
    ClientConfigs::publish(watch, Expect::RemoteName, false, clock)
        .unwrap()
        .0
}

/// An executor as the library takes it.
pub(crate) fn executor(
    configs: ClientConfigs,
    address: SocketAddr,
    number: usize,
    once: Option<Once>,
    connect_timeout: Duration,
) -> Executor {
    let current = Arc::clone(configs.current().published());
    let health = Health {
        provider: ProviderKind::Files,
        generation: current.generation,
        rotations: 0,
        failures: 0,
        last_error: None,
        next_renewal: None,
        warning: None,
        not_after: Some(current.identity.leaf().not_after),
    };
    Executor {
        remotes: vec![Remote {
            host: address.ip().to_string(),
            port: address.port(),
        }],
        name: format!("executor-{number}"),
        labels: BTreeMap::new(),
        connect_timeout,
        once,
        configs,
        health: watch::channel(health).1,
        provider: ProviderKind::Files,
        clock: Arc::new(SystemClock),
    }
}

/// Enrolls, says goodbye, and tells how long the way to the welcome took.
pub(crate) async fn visit(
    configs: ClientConfigs,
    address: SocketAddr,
    number: usize,
) -> Result<Duration, Explained> {
    let limit = Duration::from_secs(30);
    let executor = executor(configs, address, number, Some(Once::Enrolled), limit);
    let status = executor.status();
    let begun = Instant::now();
    let took = Mutex::new(None);
    let tell = |event: &Event| {
        if matches!(event, Event::Enrolled { .. }) {
            *took.lock().unwrap() = Some(begun.elapsed());
        }
    };
    executor.run(status, tell, CancellationToken::new()).await?;
    Ok(took.into_inner().unwrap().expect("it was welcomed"))
}
