//! `ah agent access-point` (contract §2).

mod listen;

use std::future::Future;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use ah_daemon::logging::Logging;
use ah_daemon::signals::Signals;
use ah_daemon::systemd;
use ah_daemon::tasks::{Shutdown, Tasks};
use ah_fleet::access_point::http::Token;
use ah_fleet::access_point::{
    AccessPoint, AdminSocket, Operator, Tunables, serve_http, serve_https,
};
use ah_fleet::audit::{AuditLog, AuditTarget};
use ah_fleet::store::AnyStore;
use ah_identity_provider::dev::DevRole;
use ah_identity_provider::{Clock, Code, Explained, Refresher, SystemClock, pem};
use ah_tls::{HandshakeLimits, Handshakes, Role, https_config};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::watch;

use super::identity::{Bearer, Source};
use super::{make_room, no_runtime};
use crate::errors;
use crate::settings::value::DbUrl;
use crate::settings::{AccessPointSettings, HttpSettings, HttpTls, Launch, SourceSettings};

/// Runs an access point until it is told to stop.
pub fn run(launch: Launch<AccessPointSettings>) -> ExitCode {
    let log = launch.settings.log;
    super::run_service(log, &mut Builder::new_multi_thread(), |logging| {
        if let Err(error) = ah_daemon::limits::raise_open_files() {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
        serve(launch, logging)
    })
}

/// What `--validate` looks at beyond the form of the settings: the identity itself (AP-18).
pub fn check(settings: &AccessPointSettings) -> Vec<Explained> {
    let mut faults = super::identity::check(&settings.identity, bearer(settings));
    if let Some(http) = &settings.http {
        if let Some(tls) = &http.tls {
            faults.extend(load_https(tls).err());
        }
        if let Some(path) = &http.token_file {
            faults.extend(read_token(path).err());
        }
    }
    faults
}

async fn serve(launch: Launch<AccessPointSettings>, logging: Logging) -> Result<(), Explained> {
    let settings = &launch.settings;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let shutdown = Shutdown::default();
    // Installed first: a TERM during start-up ends it in order, too.
    let (signals, mut reloads) = Signals::install().map_err(|error| no_runtime(&error))?;
    tokio::spawn(signals.act_on(shutdown.clone()));

    let source = Source::new(&settings.identity, bearer(settings), &clock);
    let health = source.health.clone();
    let refresher = source.refresher.clone();
    let running = tokio::select! {
        running = source.first(super::tell_no_identity) => running?,
        () = shutdown.drain.cancelled() => return Ok(()),
    };
    // Not before: who is refused goes elsewhere or comes back, who is accepted and not answered waits.
    let listeners = listen::listeners(&launch).await?;
    make_room(&settings.admin_socket)?;
    if let DbUrl::Sqlite(path) = &settings.db {
        make_room(path)?;
    }
    if let AuditTarget::File(path) = &settings.audit_log {
        make_room(path)?;
    }
    let store = AnyStore::open(&settings.db.reveal()).await?;
    let audit = AuditLog::open(settings.audit_log.clone(), Arc::clone(&clock))?;
    let admin = AdminSocket::bind(&settings.admin_socket)?;
    let http = match &settings.http {
        Some(http) => Some(Http::bind(http)?),
        None => None,
    };
    let bound = AccessPoint {
        listeners,
        handshakes: Handshakes::new(HandshakeLimits {
            max_handshakes: settings.admission.max_handshakes.get() as usize,
            timeout: settings.admission.handshake_timeout,
            ..HandshakeLimits::default()
        }),
        tunables: tunables(settings),
        store,
        identity: running.identity,
        health,
        audit,
        clock: Arc::clone(&clock),
    }
    .bind()
    .await?;

    let operator = bound.operator();
    let status = format!("serving executors on {}", listed(&bound.addresses()));
    let mut tasks = Tasks::new(shutdown.clone());
    // The supervisor's end is final: the identity would expire with nobody to renew it.
    let supervising = until(shutdown.drain.clone(), running.supervising);
    tasks.spawn("identity", supervising);
    // Operators are served until the last executor has left.
    let drained = tokio_util::sync::CancellationToken::new();
    let serving = {
        let stop = shutdown.drain.clone();
        let drained = drained.clone();
        async move {
            let ended = bound.run(stop).await;
            drained.cancel();
            ended
        }
    };
    tasks.spawn("access point", serving);
    tasks.spawn(
        "admin socket",
        admin.serve(operator.clone(), drained.clone()),
    );
    let mut reload = Reload {
        launch,
        logging,
        operator: operator.clone(),
        refresher,
        https: None,
        token: None,
        status: status.clone(),
    };
    if let Some(http) = http {
        let address = http.address();
        tracing::info!(%address, "HTTP listening");
        reload.https = http.tls.clone();
        reload.token = http.token.clone();
        tasks.spawn("HTTP", http.serve(operator, drained.clone()));
    }
    let stop = shutdown.drain.clone();
    tasks.spawn("reload", async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok::<(), std::convert::Infallible>(()),
                Some(()) = reloads.next() => reload.now(),
            }
        }
    });
    let watchdog = systemd::feed_watchdog(|| true, shutdown.drain.clone());
    let watchdog = tokio::spawn(watchdog);
    systemd::ready(&status);
    let drain_timeout = launch_drain(&shutdown, tasks).await;
    watchdog.abort();
    drain_timeout
}

/// Runs the tasks to their end. The access point keeps its own drain deadline; this one is the last resort.
async fn launch_drain(shutdown: &Shutdown, tasks: Tasks) -> Result<(), Explained> {
    let stopping = {
        let drain = shutdown.drain.clone();
        tokio::spawn(async move {
            drain.cancelled().await;
            systemd::stopping("draining");
        })
    };
    let ended = tasks.run(LAST_RESORT).await;
    stopping.abort();
    match ended {
        Ok(drained) => {
            if !drained.cut_off.is_empty() {
                tracing::warn!(tasks = drained.cut_off.join(", "), "cut off at the end");
            }
            Ok(())
        }
        Err(failed) => Err(Explained::new(Code::Other, failed.to_string())
            .hint("the log above tells more; start it again once the cause is mended")),
    }
}

/// Longer than any sensible `--drain-timeout`: what hangs beyond it is cut off.
const LAST_RESORT: std::time::Duration = std::time::Duration::from_secs(3600);

async fn until(
    stop: tokio_util::sync::CancellationToken,
    supervising: impl Future<Output = Explained>,
) -> Result<(), Explained> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        gave_up = supervising => Err(gave_up),
    }
}

fn bearer(settings: &AccessPointSettings) -> Bearer {
    Bearer {
        role: Role::AccessPoint,
        dev: dev_role(settings),
        name: host_name(),
        remote_servers: Vec::new(),
        strict_svid: settings.admission.strict_svid,
    }
}

/// What the dev certificate has to carry so that executors who dial a listening address find it there.
fn dev_role(settings: &AccessPointSettings) -> DevRole {
    let remote = matches!(&settings.identity.source, SourceSettings::Dev(dev) if dev.allow_remote);
    let listening = settings.fleet_listen.iter().map(std::net::SocketAddr::ip);
    DevRole::AccessPoint {
        names: if remote {
            vec![host_name()]
        } else {
            Vec::new()
        },
        ips: listening
            .filter(|ip: &IpAddr| !ip.is_unspecified())
            .collect(),
    }
}

fn host_name() -> String {
    gethostname::gethostname().to_string_lossy().into_owned()
}

fn tunables(settings: &AccessPointSettings) -> Tunables {
    let admission = &settings.admission;
    Tunables {
        rules: admission.rules.clone(),
        strict_svid: admission.strict_svid,
        max_executors: admission.max_executors.map(|max| max.get() as usize),
        heartbeat_interval: admission.heartbeat_interval,
        handshake_timeout: admission.handshake_timeout,
        duplicates: admission.duplicates,
        drain_timeout: settings.drain_timeout,
    }
}

fn listed(addresses: &[std::net::SocketAddr]) -> String {
    let texts = addresses.iter().map(ToString::to_string);
    texts.collect::<Vec<_>>().join(", ")
}

/// The HTTP listener with what it needs to answer.
struct Http {
    listener: TcpListener,
    token: Option<TokenReload>,
    tls: Option<HttpsReload>,
}

/// The token that REST asks for: where it is read, and where a newer one is published.
#[derive(Clone)]
struct TokenReload {
    path: PathBuf,
    tokens: watch::Sender<Token>,
}

/// The certificate of HTTPS, and where a newer one is published.
#[derive(Clone)]
struct HttpsReload {
    files: HttpTls,
    configs: watch::Sender<Arc<rustls::ServerConfig>>,
}

impl Http {
    fn bind(settings: &HttpSettings) -> Result<Self, Explained> {
        let token = match &settings.token_file {
            Some(path) => Some(TokenReload {
                tokens: watch::Sender::new(read_token(path)?),
                path: path.clone(),
            }),
            None => None,
        };
        let tls = match &settings.tls {
            Some(files) => Some(HttpsReload {
                configs: watch::Sender::new(load_https(files)?),
                files: files.clone(),
            }),
            None => None,
        };
        Ok(Self {
            listener: ah_tls::bind(settings.listen)?,
            token,
            tls,
        })
    }

    fn address(&self) -> String {
        match self.listener.local_addr() {
            Ok(address) => address.to_string(),
            Err(error) => error.to_string(),
        }
    }

    async fn serve(
        self,
        operator: Operator,
        stop: tokio_util::sync::CancellationToken,
    ) -> std::io::Result<()> {
        let token = self.token.map(|token| token.tokens.subscribe());
        match self.tls {
            Some(tls) => {
                serve_https(
                    self.listener,
                    tls.configs.subscribe(),
                    operator,
                    token,
                    stop,
                )
                .await
            }
            None => serve_http(self.listener, operator, token, stop).await,
        }
    }
}

fn load_https(files: &HttpTls) -> Result<Arc<rustls::ServerConfig>, Explained> {
    let unusable = |path: &Path, error: pem::PemError| {
        Explained::new(
            Code::Other,
            format!("cannot use {}: {error}", path.display()),
        )
        .hint("--http-cert takes a PEM chain, leaf first, and --http-key its private key")
    };
    let chain = pem::certificates(read_text(&files.cert)?.as_bytes())
        .map_err(|error| unusable(&files.cert, error))?;
    let key = zeroize::Zeroizing::new(read_text(&files.key)?);
    let key =
        pem::private_key(key.as_bytes(), None).map_err(|error| unusable(&files.key, error))?;
    https_config(chain, &key)
}

fn read_token(path: &Path) -> Result<Token, Explained> {
    Token::new(&zeroize::Zeroizing::new(read_text(path)?))
}

fn read_text(path: &Path) -> Result<String, Explained> {
    std::fs::read_to_string(path).map_err(|error| crate::settings::read_fault(path, &error))
}

/// What a HUP does (AP-19).
struct Reload {
    launch: Launch<AccessPointSettings>,
    logging: Logging,
    operator: Operator,
    refresher: Refresher,
    https: Option<HttpsReload>,
    token: Option<TokenReload>,
    status: String,
}

impl Reload {
    /// Reads everything again. What is wrong is told, and what was in use stays.
    fn now(&mut self) {
        systemd::reloading();
        self.refresher.refresh();
        self.operator.reopen_audit();
        if let Some(https) = &self.https {
            match load_https(&https.files) {
                Ok(config) => {
                    https.configs.send_replace(config);
                }
                Err(explained) => refused("the HTTPS certificate", &[explained]),
            }
        }
        if let Some(token) = &self.token {
            match read_token(&token.path) {
                Ok(new) => {
                    token.tokens.send_replace(new);
                }
                Err(explained) => refused("the HTTP token", &[explained]),
            }
        }
        match self.launch.reload() {
            Ok(launch) => {
                self.adopt(&launch.settings);
                self.launch.settings = launch.settings;
            }
            Err(faults) => refused("the settings", &faults),
        }
        systemd::ready(&self.status);
    }

    fn adopt(&self, new: &AccessPointSettings) {
        let old = &self.launch.settings;
        self.operator.retune(tunables(new));
        if new.log.level != old.log.level
            && let Err(error) = self.logging.set_level(new.log.level)
        {
            tracing::warn!(%error, "the log level cannot be changed");
        }
        let fixed = [
            ("fleet_listen", new.fleet_listen != old.fleet_listen),
            ("server_identity", new.identity != old.identity),
            ("db", new.db != old.db),
            ("audit_log", new.audit_log != old.audit_log),
            ("http_listen", new.http != old.http),
            ("admin_socket", new.admin_socket != old.admin_socket),
        ];
        for (name, _) in fixed.iter().filter(|(_, changed)| *changed) {
            tracing::warn!(
                setting = name,
                "changed in the settings file; takes a restart"
            );
        }
    }
}

fn refused(what: &str, faults: &[Explained]) {
    tracing::error!("reload: {what} cannot be used; what was in use stays");
    errors::print(faults);
}
