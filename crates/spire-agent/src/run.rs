//! `spire-agent run` and `spire-agent validate`.

mod plugins;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ah_daemon::logging::{Format, Level, LogEnvironment, LogFile, LogOutput, LogSettings, Logging};
use ah_daemon::signals::Signals;
use ah_daemon::systemd;
use ah_daemon::tasks::{Shutdown, Tasks};
use ah_identity_provider::{Code, Explained, SystemClock};
use ah_spire_plugin::agent::AgentConfig;
use ah_spire_plugin::goflag::Flags;
use ah_spire_plugin::settings::{LogConfig, LogFormat, LogLevel};
use ah_spire_telemetry::{
    HealthChecks, HealthListener, Metrics, Program, PrometheusListener, State,
};
use nix::sys::stat::{Mode, umask};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::agent::{Agent, AgentSettings};
use crate::health::Health;
use crate::workload::{self, WorkloadApi};
use plugins::Plugins;

/// How long open calls may take to end.
const DRAIN: Duration = Duration::from_secs(5);

/// Threads that calls run on. Attestation of workloads and signing have threads of their own.
const WORKERS: usize = 2;

/// Targets of our own in the log.
const TARGETS: &[&str] = &[
    "spire_agent",
    "ah_spire_attest",
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
        let log_file = start_log(&config.log)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_all()
            .build()
            .map_err(cannot_start)?;
        runtime.block_on(Box::pin(serve(config, log_file)))
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

fn start_log(config: &LogConfig) -> Result<Option<LogFile>, Explained> {
    let failed = |error: &dyn std::fmt::Display| {
        Explained::new(Code::Other, "cannot start the log").cause(error)
    };
    let file = match &config.file {
        Some(path) => Some(LogFile::open(path).map_err(|error| {
            failed(&error)
                .cause(path.display())
                .hint("let `log_file` name a file that the agent's user may write")
        })?),
        None => None,
    };
    let settings = LogSettings {
        level: match config.level {
            LogLevel::Panic | LogLevel::Fatal | LogLevel::Error => Level::Error,
            LogLevel::Warn => Level::Warn,
            LogLevel::Info => Level::Info,
            LogLevel::Debug => Level::Debug,
            LogLevel::Trace => Level::Trace,
        },
        format: match config.format {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        },
    };
    let output = file.clone().map_or(LogOutput::Stdout, LogOutput::File);
    let environment = LogEnvironment::of_process().map_err(|error| failed(&error))?;
    Logging::start_to(output, settings, TARGETS, environment).map_err(|error| failed(&error))?;
    Ok(file)
}

async fn serve(config: AgentConfig, log_file: Option<LogFile>) -> Result<(), Explained> {
    let shutdown = Shutdown::default();
    // First of all: an agent that is told to end while it starts ends well.
    let (signals, _reloads) = Signals::install().map_err(cannot_start)?;
    tokio::spawn(signals.act_on(shutdown.clone()));
    reopen_on_signal(log_file).map_err(cannot_start)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    plugins::tell_what_is_missing(&config);
    if let Err(error) = ah_daemon::limits::raise_open_files() {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }

    // Before the node attests: what that takes is counted, too.
    let metrics = Metrics::new(&config.telemetry, Program::Agent, &config.trust_domain)?;
    let prometheus = match &config.telemetry.prometheus {
        Some(prometheus) => Some(PrometheusListener::bind(prometheus, metrics.clone()).await?),
        None => None,
    };
    metrics.started(env!("CARGO_PKG_VERSION"), &config.trust_domain);
    let health_listener = HealthListener::bind(&config.health_checks).await?;
    let plugins = Plugins::open(&config).await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        trust_domain = %config.trust_domain,
        data_dir = %config.data_dir.display(),
        "starting the agent"
    );
    let settings = AgentSettings::from_config(&config);
    let clock = Arc::new(SystemClock);
    let agent = Agent::open(settings, plugins.node, plugins.keys, clock)?;
    let (identities, health) = (agent.identities(), agent.health());
    let drain = shutdown.drain.clone();
    let mut tasks = Tasks::new(shutdown);
    if let Some(socket) = &config.workload_socket {
        let mut api = workload::Config::new(socket, config.trust_domain.clone());
        api.disabled = config.disable_workload_api;
        api.allow_unauthenticated_verifiers = config.allow_unauthenticated_verifiers;
        api.allowed_foreign_jwt_claims = config.allowed_foreign_jwt_claims.clone();
        if !config.log_selectors.is_empty() {
            api.log_selectors = config.log_selectors.clone();
        }
        api.rate_limit = config.experimental.rate_limit;
        api.metrics = metrics;
        let api = WorkloadApi::bind(api, identities, Arc::new(plugins.workload), None)?;
        let stop = drain.clone();
        tasks.spawn("Workload API", async move {
            api.serve(stop.cancelled_owned()).await;
            Ok::<(), Explained>(())
        });
    }
    if let Some(listener) = prometheus {
        let stop = drain.clone();
        tasks.spawn("Prometheus", async move {
            listener.serve(stop).await;
            Ok::<(), Explained>(())
        });
    }
    let checks = HealthChecks::default().with("agent", look_at(health.clone()));
    let stop = drain.clone();
    tasks.spawn("health checks", async move {
        checks.run(health_listener, stop).await;
        Ok::<(), Explained>(())
    });
    tasks.spawn(
        "service manager",
        tell_manager(health.clone(), drain.clone()),
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

/// USR2 opens the log file again, as who rotates logs wants it; USR1 has no use here and must not end the process.
fn reopen_on_signal(file: Option<LogFile>) -> std::io::Result<()> {
    let mut reopen = signal(SignalKind::user_defined2())?;
    let mut reconfigure = signal(SignalKind::user_defined1())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(()) = reopen.recv() => match &file {
                    Some(file) => match file.reopen() {
                        Ok(()) => tracing::info!("the log file was opened again (signal USR2)"),
                        Err(error) => tracing::error!(%error, "the log file cannot be opened again"),
                    },
                    None => tracing::info!("signal USR2: there is no log file to open again"),
                },
                Some(()) = reconfigure.recv() => tracing::warn!(
                    "signal USR1: no plugin of this agent can be told something new while it runs; restart the agent"
                ),
                else => return,
            }
        }
    });
    Ok(())
}

/// Ready once workloads can be served; then a line on how it is.
async fn tell_manager(health: Health, stop: CancellationToken) -> Result<(), Explained> {
    let mut changes = health.watch();
    let watchdog = tokio::spawn(systemd::feed_watchdog(|| true, stop.clone()));
    let mut ready = false;
    loop {
        let state = changes.borrow_and_update().clone();
        let line = match (&state.id, state.not_ready()) {
            (Some(id), None) => format!("serving workloads as {id}"),
            (None, None) => "serving what was kept; not in touch with the server yet".to_owned(),
            (_, Some(why)) => why,
        };
        if state.serving && !ready {
            ready = true;
            systemd::ready(&line);
        } else {
            systemd::status(&line);
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = changes.changed() => if changed.is_err() { break },
        }
    }
    watchdog.abort();
    stop.cancelled().await;
    Ok(())
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
