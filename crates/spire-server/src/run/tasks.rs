//! The tasks of a server whose parts are there, and their end.

use std::sync::Arc;
use std::time::Duration;

use ah_daemon::signals::{Request, Requests};
use ah_daemon::systemd;
use ah_daemon::tasks::{Shutdown, Tasks};
use ah_spire_plugin::server::ServerConfig;
use ah_spire_telemetry::{HealthChecks, Log, Metrics, Program, State, profile};
use ah_spire_web::AcmeHealth;
use tokio_util::sync::CancellationToken;

use super::Started;
use crate::api::Core;
use crate::entries::Follow;
use crate::federation::Endpoint;
use crate::plugins::Reload;
use crate::store::Store;

/// How long calls under way may take to end.
const DRAIN: Duration = Duration::from_secs(10);

impl<S: Store> Started<S> {
    /// Until it is told to end, by `shutdown` or by a task that fails.
    pub(super) async fn run(
        self,
        config: ServerConfig,
        requests: Requests,
        shutdown: Shutdown,
    ) -> Result<(), String> {
        let drain = shutdown.drain.clone();
        let mut tasks = Tasks::new(shutdown);
        let until = |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            let drain = drain.clone();
            async move {
                tokio::select! {
                    () = work => {}
                    () = drain.cancelled() => {}
                }
                Ok::<(), String>(())
            }
        };
        let manager = self.manager;
        tasks.spawn(
            "ca_manager",
            until(Box::pin(async move { manager.run().await })),
        );
        tasks.spawn("svid_rotator", until(Box::pin(self.svids.run())));
        let bundles = self.trust.own_bundle();
        tasks.spawn(
            "bundle_publishing",
            until(Box::pin(self.outside.run(bundles, self.loaded))),
        );
        tasks.spawn("trust", until(Box::pin(self.trust.run())));
        let federation = self.core.federation.clone();
        tasks.spawn(
            "bundle_client",
            until(Box::pin(async move { federation.run().await })),
        );
        let acme = { self.bundle_endpoint.as_ref() }.and_then(Endpoint::acme);
        if let Some(endpoint) = self.bundle_endpoint {
            let stop = drain.clone();
            tasks.spawn("bundle_endpoint", async move {
                endpoint.run(stop).await;
                Ok::<(), String>(())
            });
        }
        let core = self.core.clone();
        let follow = follow(&config);
        tasks.spawn(
            "entry_cache",
            until(Box::pin(async move {
                core.entries.follow(core.store.as_ref(), &follow).await
            })),
        );
        let core = self.core.clone();
        tasks.spawn(
            "acknowledgements",
            until(Box::pin(async move { core.holdings.run().await })),
        );
        let (core, pruner) = (self.core.clone(), self.pruner);
        let pruned = config.prune_attested_nodes;
        tasks.spawn(
            "pruner",
            until(Box::pin(async move {
                pruner.run(core.store.as_ref(), pruned).await;
            })),
        );
        if let Some(listener) = self.prometheus {
            let stop = drain.clone();
            tasks.spawn("Prometheus", async move {
                listener.serve(stop).await;
                Ok::<(), String>(())
            });
        }
        let (profiling, stop) = (config.profiling.clone(), drain.clone());
        tasks.spawn("profiling", async move {
            profile(profiling, Program::Server, stop).await;
            Ok::<(), String>(())
        });
        let (sinks, stop) = (self.sinks, drain.clone());
        tasks.spawn("telemetry", async move {
            sinks.run(stop).await;
            Ok::<(), String>(())
        });
        let checks = checks(&self.core, acme);
        let (listener, stop) = (self.health, drain.clone());
        tasks.spawn("health", async move {
            checks.run(listener, stop).await;
            Ok::<(), String>(())
        });
        if let Ok(address) = self.network.address() {
            tracing::info!(%address, network = "tcp", "Starting Server APIs");
        }
        let path = config.socket.display();
        tracing::info!(address = %path, network = "unix", "Starting Server APIs");
        let (core, stop) = (self.core.clone(), drain.clone());
        let network = self.network;
        tasks.spawn("endpoints", async move {
            network.run(core, stop).await;
            Ok::<(), String>(())
        });
        let (core, stop, local) = (self.core.clone(), drain.clone(), self.local);
        tasks.spawn("local endpoint", async move {
            local.run(core, stop).await;
            Ok::<(), String>(())
        });
        systemd::ready(&format!("serving {}", config.trust_domain));
        tasks.spawn(
            "signals",
            act_on(requests, self.log, self.metrics, self.reload, drain.clone()),
        );
        let watchdog = tokio::spawn(systemd::feed_watchdog(|| true, drain.clone()));
        let ended = tasks.run(DRAIN).await;
        watchdog.abort();
        systemd::stopping("stopping");
        self.database.close().await;
        let drained = ended.map_err(|error| error.to_string())?;
        if !drained.cut_off.is_empty() {
            tracing::warn!(tasks = ?drained.cut_off, "Cut off: they did not end in time");
        }
        Ok(())
    }
}

/// The parts that a load balancer or a person asks after, under upstream's names. The CA and the server's SVID are there
/// before anything listens, and serve on when they cannot be renewed.
fn checks<S: Store>(core: &Arc<Core<S>>, acme: Option<AcmeHealth>) -> HealthChecks {
    let look = |key: &'static str| {
        let core = core.clone();
        move || {
            let core = core.clone();
            async move {
                match core.store.bundle(&core.trust_domain).await {
                    Ok(Some(_)) => State::healthy(),
                    Ok(None) => State::failed(key, "bundle is missing"),
                    Err(error) => State::failed(key, format!("unable to fetch bundle: {error}")),
                }
            }
        }
    };
    let checks = HealthChecks::default()
        .with("catalog.datastore", look("list_bundle_err"))
        .with("server", look("get_bundle_err"))
        .with("server.ca", || std::future::ready(State::healthy()))
        .with("server.ca.rotator", || std::future::ready(State::healthy()));
    match acme {
        None => checks,
        Some(acme) => checks.with("bundle_endpoint.acme", move || {
            std::future::ready(certificate(&acme))
        }),
    }
}

/// A certificate that is late is no reason to start the server anew.
fn certificate(acme: &AcmeHealth) -> State {
    let healthy = State::healthy();
    match acme.look() {
        Ok(None) => healthy,
        Ok(Some(fault)) => State {
            ready_details: serde_json::json!({ "renewal_err": fault }),
            ..healthy
        },
        Err(why) => State {
            ready: false,
            ready_details: serde_json::json!({ "certificate_err": why }),
            ..healthy
        },
    }
}

fn follow(config: &ServerConfig) -> Follow {
    let (given, default) = (&config.experimental, Follow::default());
    Follow {
        interval: given.cache_reload_interval.unwrap_or(default.interval),
        full_interval: given
            .full_cache_reload_interval
            .unwrap_or(default.full_interval),
        gap_timeout: given.event_timeout.unwrap_or(default.gap_timeout),
        keep_events: given.prune_events_older_than.unwrap_or(default.keep_events),
    }
}

/// Opens the log file again, or has the plugins read their files again and tells what metrics are kept.
async fn act_on(
    mut requests: Requests,
    log: Arc<Log>,
    metrics: Metrics,
    mut reload: Reload,
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
                systemd::reloading();
                metrics.log_memory().await;
                let done = reload.run().await;
                systemd::ready(&done);
            }
            None => {
                stop.cancelled().await;
                return Ok(());
            }
        }
    }
}
