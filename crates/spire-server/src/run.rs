//! `spire-server run`: the parts put together, and their end.

mod keys;
mod prune;
mod scraped;
mod tasks;
mod trust;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use ah_daemon::signals::{Requests, Signals};
use ah_daemon::tasks::Shutdown;
use ah_identity_provider::{Clock, Explained, SystemClock};
use ah_spire_plugin::server::ServerConfig;
use ah_spire_plugin::settings::FeatureFlag;
use ah_spire_telemetry::{
    HealthListener, Log, Metrics, Program, PrometheusListener, RpcMetrics, Sinks,
};
use ah_spire_wire::model::Bundle;
use nix::sys::stat::{Mode, umask};
use spiffe::SpiffeId;

use self::keys::Keys;
use crate::api::{Core, Holdings, RateLimits, RegoPolicy};
use crate::ca::{Authorities, Manager, Profile, ServerSvids, Settings, Subject};
use crate::endpoints::{ClientTrust, Configs, LocalSocket, Network, bind};
use crate::entries::{CachedStore, EntryCache};
use crate::federation::{self, Endpoint};
use crate::keys::MeteredKeys;
use crate::plugins::external::{self, Offered, Running};
use crate::plugins::{NodeAttestors, OutsideWanted, OwnAuthorities, Reload, Wanted};
use crate::publish::Outside;
use crate::store::{Metered, SqlStore, Store};

/// Targets of our own in the log.
const TARGETS: &[&str] = &[
    "spire_server",
    "ah_spire_attest",
    "ah_spire_plugin",
    "ah_spire_telemetry",
    "ah_spire_web",
    "ah_spire_wire",
    "ah_daemon",
    "ah_tls",
];

/// Checks what [`run`] would read, and makes nothing.
///
/// # Errors
/// What an operator has to change.
pub async fn validate(config: &ServerConfig) -> Result<(), String> {
    let wanted = Wanted::read(config)?;
    policy(config)?;
    federation::check(config)?;
    wanted.check_upstream(&config.trust_domain)?;
    metrics(config)?;
    external::check(&wanted.external, config).await
}

/// Where this server counts, and what sends it on.
fn metrics(config: &ServerConfig) -> Result<(Metrics, Sinks), String> {
    Metrics::new(&config.telemetry, Program::Server, &config.trust_domain)
        .map_err(|refused| refused.report())
}

/// The operator's own policy.
fn policy(config: &ServerConfig) -> Result<Option<RegoPolicy>, String> {
    let own = config.experimental.auth_opa_policy_engine.as_ref();
    own.map(RegoPolicy::load).transpose()
}

/// Runs the server until it is told to end.
///
/// # Errors
/// Why it could not start or go on, for people.
pub async fn run(config: ServerConfig) -> Result<(), String> {
    let wanted = Wanted::read(&config)?;
    federation::check(&config)?;
    // Before anything is written: what the server makes is for its group at most.
    let before = umask(Mode::from_bits_truncate(0o027));
    umask(before | Mode::from_bits_truncate(0o027));
    let log = Arc::new(Log::start(&config.log, TARGETS, wanted.store.log_sql)?);
    if !before.contains(Mode::from_bits_truncate(0o027)) {
        let now = before | Mode::from_bits_truncate(0o027);
        tracing::warn!(
            "Current umask {:04o} is too permissive; setting umask {:04o}",
            before.bits(),
            now.bits()
        );
    }
    let ended = serve(config, wanted, log).await;
    if let Err(error) = &ended {
        tracing::error!(error, "Server crashed");
    }
    ended
}

async fn serve(config: ServerConfig, wanted: Wanted, log: Arc<Log>) -> Result<(), String> {
    let cannot_listen = |error: io::Error| format!("cannot listen to signals: {error}");
    let shutdown = Shutdown::default();
    // First of all: a server that is told to end while it starts ends well.
    let (signals, hangups) = Signals::install().map_err(cannot_listen)?;
    let requests = Requests::install(hangups).map_err(cannot_listen)?;
    tokio::spawn(signals.act_on(shutdown.clone()));
    let plugins = OnceLock::new();
    if let Err(error) = ah_daemon::limits::raise_open_files() {
        tracing::warn!(%error, "The limit of open files cannot be raised");
    }
    tracing::info!(
        data_dir = %config.data_dir.display(),
        trust_domain = %config.trust_domain,
        version = env!("CARGO_PKG_VERSION"),
        "Configured"
    );
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let started = tokio::select! {
        started = Box::pin(start(&config, wanted, log, &plugins)) => started,
        () = shutdown.drain.cancelled() => {
            end(&plugins).await;
            tracing::info!("Server stopped gracefully");
            return Ok(());
        }
    };
    let ended = match started {
        Ok(started) => Box::pin(started.run(config, requests, shutdown)).await,
        Err(error) => Err(error),
    };
    // After everything that asks them.
    end(&plugins).await;
    if ended.is_ok() {
        tracing::info!("Server stopped gracefully");
    }
    ended
}

async fn end(plugins: &OnceLock<Running>) {
    if let Some(plugins) = plugins.get() {
        plugins.stop().await;
    }
}

/// A server whose parts are there and whose sockets are bound.
struct Started<S> {
    database: SqlStore,
    log: Arc<Log>,
    reload: Reload,
    core: Arc<Core<S>>,
    manager: Arc<Manager<S, MeteredKeys<Keys>>>,
    svids: ServerSvids,
    trust: trust::Follower,
    outside: Outside,
    /// What the notifiers were told.
    loaded: Option<Arc<Bundle>>,
    pruner: prune::Pruner,
    local: LocalSocket,
    network: Network,
    bundle_endpoint: Option<Endpoint>,
    health: Option<HealthListener>,
    prometheus: Option<PrometheusListener>,
    metrics: Metrics,
    sinks: Sinks,
}

async fn start(
    config: &ServerConfig,
    wanted: Wanted,
    log: Arc<Log>,
    plugins: &OnceLock<Running>,
) -> Result<Started<impl Store>, String> {
    let told = |fault: Explained| fault.report();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let ours = config.trust_domain.clone();
    let policy = policy(config)?;
    std::fs::create_dir_all(&config.data_dir).map_err(|error| {
        format!(
            "cannot create data_dir {}: {error}",
            config.data_dir.display()
        )
    })?;
    tracing::info!(db_type = %wanted.store.database_type, "Opening SQL database");
    let (metrics, sinks) = metrics(config)?;
    metrics.started(env!("CARGO_PKG_VERSION"), &ours);
    let database = SqlStore::open(&wanted.store)
        .await
        .map_err(|error| error.to_string())?;
    let store = Metered::new(database.clone(), &metrics);
    tracing::info!("Building in-memory entry cache");
    let entries = EntryCache::load_counted(&store, ours.clone(), &metrics).await;
    let entries = Arc::new(entries.map_err(|error| format!("cannot read the entries: {error}"))?);
    let store = Arc::new(CachedStore::new(store, entries.clone()));
    let offered = Offered::new(database.clone(), ours.clone());
    let running = Running::start(&wanted.external, config, &metrics, &offered).await?;
    let running = plugins.get_or_init(|| running);
    let upstream = wanted.upstream(&ours, clock.clone(), running)?;
    let composers = wanted.composers(running)?;
    let keys = Keys::open(wanted.keys, running, clock.clone()).await?;
    let keys = MeteredKeys::new(keys, &metrics);
    let profile = Profile {
        ca_ttl: config.ca_ttl,
        ca_subject: Subject {
            country: config.ca_subject.country.clone(),
            organization: config.ca_subject.organization.clone(),
            common_name: config.ca_subject.common_name.clone().unwrap_or_default(),
            ..Subject::default()
        },
        x509_svid_ttl: config.x509_svid_ttl,
        agent_ttl: config.agent_ttl.unwrap_or(config.x509_svid_ttl),
        jwt_svid_ttl: config.jwt_svid_ttl,
        jwt_issuer: config.jwt_issuer.clone(),
        wit_issuer: config.experimental.wit_issuer.clone(),
        composers,
        ..Profile::new(ours.clone())
    };
    let authorities = Arc::new(Authorities::counted(
        profile,
        clock.clone(),
        metrics.clone(),
    ));
    let wit = (config.experimental.feature_flags).contains(&FeatureFlag::WitSvid);
    let settings = Settings {
        ca_key_type: config.ca_key_type,
        jwt_key_type: config.jwt_key_type,
        disable_jwt: config.disable_jwt_svids,
        wit_key_type: wit.then_some(config.experimental.wit_key_type),
        upstream,
    };
    let manager = Manager::start(authorities.clone(), store.clone(), keys, settings).await;
    let manager = Arc::new(manager.map_err(|error| format!("cannot start the CA: {error}"))?);
    let svids = ServerSvids::new(authorities.clone(), manager.tainted())
        .map_err(|error| format!("cannot sign the server's X509-SVID: {error}"))?;
    offered.offer(svids.subscribe());
    let own = OwnAuthorities {
        store: database.clone(),
        trust_domain: ours.clone(),
    };
    let outside = OutsideWanted::open(wanted.outside, &own, running)?;
    let attestors = NodeAttestors::open(wanted.node, own, running).await?;
    let attestors = Arc::new(attestors);
    let admin_ids: BTreeSet<SpiffeId> = config.admin_ids.iter().cloned().collect();
    let clients = ClientTrust {
        trust_domain: ours.clone(),
        admin_ids: admin_ids.clone(),
    };
    let prometheus = config.telemetry.prometheus.as_ref();
    let scrapers = prometheus.and_then(|prometheus| prometheus.tls.as_ref());
    let scrapers = scrapers.map_or(&[][..], |tls| tls.authorized_spiffe_ids.as_slice());
    let known = admin_ids.iter().chain(scrapers);
    let trust = trust::Follower::start(database.clone(), ours.clone(), known).await?;
    let loaded = trust.own_bundle().borrow().clone();
    if let Some(bundle) = &loaded {
        outside.loaded(bundle).await?;
    }
    let post_quantum_only = config.experimental.require_pq_kem;
    let bundle_endpoint = match &config.federation.bundle_endpoint {
        Some(endpoint) => {
            let (bundle, svids) = (trust.own_bundle(), svids.subscribe());
            Some(Endpoint::bind(endpoint, bundle, svids, post_quantum_only).await?)
        }
        None => None,
    };
    let federation = Arc::new(federation::Manager::new(
        ours.clone(),
        federation::configured(config)?,
        store.clone(),
        clock.clone(),
        metrics.clone(),
        post_quantum_only,
    ));
    let configs = Configs::new(
        svids.subscribe(),
        trust.subscribe(),
        clients,
        clock.clone(),
        post_quantum_only,
    );
    let core = Arc::new(Core {
        trust_domain: ours,
        store,
        authority: manager.clone(),
        local_authorities: manager.clone(),
        holdings: match database.is_shared() {
            true => Holdings::shared(database.clone()),
            false => Holdings::default(),
        },
        entries,
        agent_staleness: database
            .is_shared()
            .then_some(config.max_attested_node_info_staleness),
        federation,
        attestors: attestors.clone(),
        admin_ids,
        policy: policy.map(Arc::new),
        rpc: RpcMetrics::new(&metrics),
        limits: RateLimits::new(
            config.rate_limit.attestation,
            config.rate_limit.signing,
            &metrics,
        ),
        clock: clock.clone(),
        agent_id_as_selector: config.experimental.agent_spiffe_id_as_selector,
        log: log.clone(),
        audit_log: config.audit_log_enabled,
        own_chain: svids.chains(),
        started: SystemTime::now(),
    });
    let address = address(&config.bind_address, config.bind_port).await?;
    let listener = bind(address).map_err(|error| error.to_string())?;
    let pruner = prune::Pruner::new(&metrics);
    let health = HealthListener::bind(&config.health_checks).await;
    let prometheus = match prometheus {
        Some(prometheus) => {
            let known = scraped::OfServer {
                svids: svids.subscribe(),
                bundles: trust.subscribe(),
                clock,
            };
            let (metrics, known) = (metrics.clone(), Arc::new(known));
            let bound = PrometheusListener::bind(prometheus, metrics, known, post_quantum_only);
            Some(bound.await.map_err(told)?)
        }
        None => None,
    };
    let local = LocalSocket::bind(&config.socket).map_err(told)?;
    Ok(Started {
        database,
        log,
        reload: Reload::new(config, attestors, running),
        core,
        manager,
        svids,
        trust,
        outside,
        loaded,
        pruner,
        local,
        network: Network::new(listener, configs)
            .behind(config.proxy_protocol_trusted_cidrs.clone()),
        bundle_endpoint,
        health: health.map_err(told)?,
        prometheus,
        metrics,
        sinks,
    })
}

async fn address(host: &str, port: u16) -> Result<SocketAddr, String> {
    let found = tokio::net::lookup_host((host, port)).await;
    let found = found.map_err(|error| format!("bind_address \"{host}\": {error}"))?;
    { found }
        .next()
        .ok_or_else(|| format!("bind_address \"{host}\" has no address"))
}
