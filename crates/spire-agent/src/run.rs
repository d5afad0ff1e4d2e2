//! `spire-agent run` and `spire-agent validate`.

mod plugins;
mod scraped;
mod signals;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ah_daemon::signals::{Requests, Signals};
use ah_daemon::systemd;
use ah_daemon::tasks::{Shutdown, Tasks};
use ah_identity_provider::{Code, Explained, SystemClock};
use ah_spire_plugin::agent::AgentConfig;
use ah_spire_plugin::goflag::Flags;
use ah_spire_telemetry::{
    HealthChecks, HealthListener, Log, Metrics, Program, PrometheusListener, Sinks, State, profile,
};
use nix::sys::stat::{Mode, umask};
use tokio_util::sync::CancellationToken;

use crate::admin::{AdminApi, Delegation, Insight};
use crate::agent::{Agent, AgentSettings};
use crate::broker::BrokerApi;
use crate::health::Health;
use crate::svid_store::StoreService;
use crate::workload::{self, WorkloadApi};
use plugins::Plugins;
use signals::Manager;

/// How long open calls may take to end.
const DRAIN: Duration = Duration::from_secs(5);

/// Threads that calls run on. Attestation of workloads and signing have threads of their own.
const WORKERS: usize = 2;

/// Targets of our own in the log.
const TARGETS: &[&str] = &[
    "spire_agent",
    "ah_spire_attest",
    "ah_spire_plugin",
    "ah_spire_telemetry",
    "ah_spire_wire",
    "ah_daemon",
    "ah_tls",
];

/// `spire-agent run`
#[must_use]
pub fn run(flags: &Flags) -> ExitCode {
    ended(load(flags).and_then(|config| {
        // Before anything is written: what the agent makes is for nobody else, whoever started it.
        umask(umask(Mode::empty()) | Mode::from_bits_truncate(0o027));
        let log = Log::start(&config.log, TARGETS, false).map_err(|cause| {
            Explained::new(Code::Other, "cannot start the log")
                .cause(cause)
                .hint("let `log_file` name a file that the agent's user may write")
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_all()
            .build()
            .map_err(cannot_start)?;
        runtime.block_on(Box::pin(serve(config, Arc::new(log))))
    }))
}

/// `spire-agent validate`: everything that `run` reads, and nothing that it does.
#[must_use]
pub fn validate(flags: &Flags) -> ExitCode {
    let checked = load(flags).and_then(|config| {
        for warning in &config.warnings {
            eprintln!("warning: {warning}");
        }
        Metrics::new(&config.telemetry, Program::Agent, &config.trust_domain)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(cannot_start)?;
        runtime.block_on(Box::pin(Plugins::check(&config)))
    });
    if checked.is_ok() {
        println!("SPIRE agent configuration file is valid.");
    }
    ended(checked)
}

fn cannot_start(error: std::io::Error) -> Explained {
    Explained::new(Code::Other, "cannot start").cause(error)
}

fn ended(outcome: Result<(), Explained>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.report());
            ExitCode::FAILURE
        }
    }
}

fn load(flags: &Flags) -> Result<AgentConfig, Explained> {
    AgentConfig::load(flags, &|name| std::env::var(name).ok()).map_err(|error| {
        Explained::new(Code::Usage, error.to_string())
            .hint("`spire-agent validate -config PATH` checks the file without starting anything")
    })
}

async fn serve(config: AgentConfig, log: Arc<Log>) -> Result<(), Explained> {
    let shutdown = Shutdown::default();
    // First of all: an agent that is told to end while it starts ends well.
    let (signals, hangups) = Signals::install().map_err(cannot_start)?;
    let requests = Requests::install(hangups).map_err(cannot_start)?;
    tokio::spawn(signals.act_on(shutdown.clone()));
    let limits = plugins::limits_of_user(&config)?;
    for warning in config.warnings.iter().chain(&limits) {
        tracing::warn!("{warning}");
    }
    if let Err(error) = ah_daemon::limits::raise_open_files() {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }

    // Before the node attests: what that takes is counted, too.
    let started = Instant::now();
    let (metrics, sinks) = Metrics::new(&config.telemetry, Program::Agent, &config.trust_domain)?;
    metrics.started(env!("CARGO_PKG_VERSION"), &config.trust_domain);
    let health_listener = HealthListener::bind(&config.health_checks).await?;
    let opened = tokio::select! {
        opened = Plugins::open(&config, &metrics) => opened,
        // Whatever was started ends with what would have held it.
        () = shutdown.drain.cancelled() => return Ok(()),
    };
    let mut plugins = opened?;
    let running = std::mem::take(&mut plugins.running);
    let start = Start {
        metrics,
        sinks,
        health_listener,
        started,
    };
    let outcome = Box::pin(serve_with(config, log, shutdown, requests, plugins, start)).await;
    // After everything that asks them.
    running.stop().await;
    outcome
}

/// What is there before the plugins are.
struct Start {
    metrics: Metrics,
    sinks: Sinks,
    health_listener: Option<HealthListener>,
    started: Instant,
}

async fn serve_with(
    config: AgentConfig,
    log: Arc<Log>,
    shutdown: Shutdown,
    requests: Requests,
    plugins: Plugins,
    start: Start,
) -> Result<(), Explained> {
    let Start {
        metrics,
        sinks,
        health_listener,
        started,
    } = start;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        trust_domain = %config.trust_domain,
        data_dir = %config.data_dir.display(),
        "starting the agent"
    );
    let settings = AgentSettings::from_config(&config, metrics.clone());
    let clock = Arc::new(SystemClock);
    let mut agent = Agent::open(settings, plugins.node, plugins.keys, clock.clone())?;
    let stored = (!plugins.stores.is_empty()).then(|| agent.store_svids());
    let stores = stored
        .clone()
        .map(|cache| StoreService::new(cache, plugins.stores, &metrics));
    let (identities, health) = (agent.identities(), agent.health());
    let attestors = Arc::new(plugins.workload);
    let drain = shutdown.drain.clone();
    let mut tasks = Tasks::new(shutdown);
    if let Some(path) = &config.admin_socket {
        let insight = Insight {
            health: health.clone(),
            cache: agent.cache(),
            stored,
            started,
        };
        let delegates = config.authorized_delegates.clone();
        let delegation = Delegation::new(agent.cache(), attestors.clone(), delegates, &metrics);
        let api = AdminApi::bind(path, insight, delegation, log.clone(), &metrics)?;
        tasks.spawn("admin API", endless(api.serve(drain.clone())));
    }
    if let Some(broker) = &config.experimental.broker {
        let api = BrokerApi::bind(
            broker,
            agent.cache(),
            attestors.clone(),
            agent.own(),
            clock.clone(),
            config.experimental.require_pq_kem,
            &metrics,
        );
        tasks.spawn("Broker API", endless(api.await?.serve(drain.clone())));
    }
    if let Some(socket) = &config.workload_socket {
        let api = workload_api(&config, socket, metrics.clone());
        let api = WorkloadApi::bind(api, identities, attestors)?;
        let stop = drain.clone().cancelled_owned();
        tasks.spawn("Workload API", endless(api.serve(stop)));
    }
    if let Some(service) = stores {
        let stop = drain.clone();
        tasks.spawn("SVIDStores", async move {
            tokio::select! {
                () = service.run() => {}
                () = stop.cancelled() => {}
            }
            Ok::<(), Explained>(())
        });
    }
    if let Some(prometheus) = &config.telemetry.prometheus {
        let known = scraped::OfAgent {
            own: agent.own(),
            bundles: agent.cache().bundles(),
            clock,
        };
        let post_quantum_only = config.experimental.require_pq_kem;
        let (metrics, known) = (metrics.clone(), Arc::new(known));
        let bound = PrometheusListener::bind(prometheus, metrics, known, post_quantum_only);
        let listener = bound.await?;
        tasks.spawn("Prometheus", endless(listener.serve(drain.clone())));
    }
    let profiling = profile(config.profiling.clone(), Program::Agent, drain.clone());
    tasks.spawn("profiling", endless(profiling));
    tasks.spawn("telemetry", endless(sinks.run(drain.clone())));
    let checks = HealthChecks::default().with("agent", look_at(health.clone()));
    let checks = checks.run(health_listener, drain.clone());
    tasks.spawn("health checks", endless(checks));
    let manager = Arc::new(Manager::default());
    tasks.spawn(
        "service manager",
        manager.clone().tell(health.clone(), drain.clone()),
    );
    tasks.spawn(
        "signals",
        signals::act_on(
            requests,
            log,
            metrics,
            plugins.reload,
            manager,
            drain.clone(),
        ),
    );
    tasks.spawn("faults", print_faults(health, drain.clone()));
    let (ended, end) = tokio::sync::oneshot::channel();
    tasks.spawn("agent", async move {
        let outcome = agent.run(drain).await;
        let failed = outcome.clone().map_err(|error| error.text);
        let _ = ended.send(outcome);
        failed
    });
    let outcome = tasks.run(DRAIN).await;
    systemd::stopping("stopped");
    // What the agent itself says is better than that its task failed.
    if let Ok(Err(error)) = end.await {
        return Err(error);
    }
    match outcome {
        Ok(_) => {
            tracing::info!("the agent has stopped");
            Ok(())
        }
        Err(error) => Err(Explained::new(Code::Other, error.to_string())),
    }
}

/// A task that ends only when it is told to.
async fn endless(task: impl Future<Output = ()>) -> Result<(), Explained> {
    task.await;
    Ok(())
}

fn workload_api(config: &AgentConfig, socket: &Path, metrics: Metrics) -> workload::Config {
    let mut api = workload::Config::new(socket, config.trust_domain.clone());
    api.disabled = config.disable_workload_api;
    api.sds = (!config.disable_sds_api).then(|| config.sds.clone());
    api.allow_unauthenticated_verifiers = config.allow_unauthenticated_verifiers;
    api.allowed_foreign_jwt_claims
        .clone_from(&config.allowed_foreign_jwt_claims);
    if !config.log_selectors.is_empty() {
        api.log_selectors.clone_from(&config.log_selectors);
    }
    api.rate_limit = config.experimental.rate_limit;
    api.metrics = metrics;
    api
}

/// Alive as long as it answers: what the agent waits for, it can get over.
fn look_at(health: Health) -> impl Fn() -> std::future::Ready<State> {
    move || {
        let state = health.state();
        std::future::ready(match state.not_ready() {
            None => State::healthy(),
            Some(why) => State {
                started: state.serving,
                live: true,
                live_details: State::healthy().live_details,
                ..State::failed("make_new_x509_err", why)
            },
        })
    }
}

/// Contract §8: whoever started the agent by hand reads what is wrong on stderr, once.
async fn print_faults(health: Health, stop: CancellationToken) -> Result<(), Explained> {
    let mut changes = health.watch();
    let mut printed = None;
    loop {
        let fault = changes.borrow_and_update().fault.clone();
        if let Some(fault) = fault.filter(|fault| printed.as_ref() != Some(fault)) {
            eprintln!("{}", fault.report());
            printed = Some(fault);
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => if changed.is_err() {
                stop.cancelled().await;
                return Ok(());
            },
        }
    }
}
