//! The provider: its parts put together, and their end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ah_daemon::signals::{Request, Requests, Signals};
use ah_daemon::systemd;
use ah_daemon::tasks::{Shutdown, Tasks};
use ah_identity_provider::{Code, Explained};
use ah_spire_plugin::oidc::OidcConfig;
use ah_spire_telemetry::Log;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use crate::documents::Documents;
use crate::domains::Domains;
use crate::health::Health;
use crate::keys::Poller;
use crate::served::{self, Served};

/// Targets of our own in the log.
const TARGETS: &[&str] = &[
    "oidc_discovery_provider",
    "ah_spire_attest",
    "ah_spire_plugin",
    "ah_spire_telemetry",
    "ah_spire_web",
    "ah_spire_wire",
    "ah_daemon",
];

/// It answers from memory.
const WORKERS: usize = 2;

/// How long connections may take to end.
const DRAIN: Duration = Duration::from_secs(10);

/// Until it is told to end.
///
/// # Errors
/// Why it could not start or go on, for people.
pub(crate) fn run(config: OidcConfig) -> Result<(), Explained> {
    let domains = Domains::new(&config.domains).map_err(|why| {
        Explained::new(Code::Usage, format!("domains: {why}"))
            .hint("write each domain as it stands in a certificate, without port and path")
    })?;
    let log = Log::start(&config.log, TARGETS, false).map_err(|cause| {
        Explained::new(Code::Other, "cannot start the log")
            .cause(cause)
            .hint("let log_path name a file that the provider's user may write")
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(cannot_start)?;
    let ended = runtime.block_on(Box::pin(serve(config, domains, Arc::new(log))));
    if let Err(error) = &ended {
        tracing::error!(%error, "Provider crashed");
    }
    ended
}

fn cannot_start(error: io::Error) -> Explained {
    Explained::new(Code::Other, "cannot start").cause(error)
}

async fn serve(config: OidcConfig, domains: Domains, log: Arc<Log>) -> Result<(), Explained> {
    let shutdown = Shutdown::default();
    // First of all: a provider that is told to end while it starts ends well.
    let (signals, hangups) = Signals::install().map_err(cannot_start)?;
    let requests = Requests::install(hangups).map_err(cannot_start)?;
    tokio::spawn(signals.act_on(shutdown.clone()));
    if let Err(error) = ah_daemon::limits::raise_open_files() {
        tracing::warn!(%error, "The limit of open files cannot be raised");
    }
    tell(&config);

    let served = Served::bind(&config).await?;
    let poller = Poller::new(
        config.keys.clone(),
        config.poll_interval,
        config.set_key_use,
    );
    let documents = Documents::new(&config, domains, poller.known(), served.is_tls());
    let drain = shutdown.drain.clone();
    let mut tasks = Tasks::new(shutdown);
    if let Some(paths) = config.health_checks.clone() {
        let http = served::health_listener(paths.port).await?;
        let health = Health::new(paths, poller.known(), config.poll_interval).with(served.acme());
        let stop = drain.clone();
        tasks.spawn("health_checks", async move {
            let respond = move |request: &http::Request<Incoming>| health.respond(request);
            http.serve(respond, stop).await;
            Ok::<(), String>(())
        });
    }
    let stop = drain.clone();
    tasks.spawn("keys", async move {
        tokio::select! {
            () = poller.run() => {}
            () = stop.cancelled() => {}
        }
        Ok::<(), String>(())
    });
    let (log_requests, stop) = (config.log_requests, drain.clone());
    tasks.spawn("endpoint", async move {
        served.run(documents, log_requests, stop).await;
        Ok::<(), String>(())
    });
    tasks.spawn("signals", act_on(requests, log, drain.clone()));
    systemd::ready("serving");
    let watchdog = tokio::spawn(systemd::feed_watchdog(|| true, drain));
    let ended = tasks.run(DRAIN).await;
    watchdog.abort();
    systemd::stopping("stopping");
    ended.map_err(|error| Explained::new(Code::Other, error.to_string()))?;
    tracing::info!("Provider stopped gracefully");
    Ok(())
}

fn tell(config: &OidcConfig) {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if config.allow_insecure_scheme {
        tracing::warn!(
            "allow_insecure_scheme is enabled: clients that come by HTTP are told of keys over HTTP. Leave it off unless nobody can come between them and this provider"
        );
    }
    if config.log_requests {
        tracing::info!("Logging all requests");
    }
}

/// Opens the log file again when it is asked to. Files are read again by themselves.
async fn act_on(
    mut requests: Requests,
    log: Arc<Log>,
    stop: CancellationToken,
) -> Result<(), String> {
    loop {
        let request = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            request = requests.next() => request,
        };
        match request {
            Some(Request::ReopenLog) => log.reopen(),
            Some(Request::Reload) => {
                tracing::info!(
                    "Nothing to read again: certificate and keys are looked at by themselves"
                );
            }
            None => {
                stop.cancelled().await;
                return Ok(());
            }
        }
    }
}
