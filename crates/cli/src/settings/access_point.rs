//! An access point's settings (contract §2).

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ah_daemon::layer::Origin;
use ah_daemon::logging::LogSettings;
use ah_daemon::paths::Paths;
use ah_fleet::access_point::Duplicates;
use ah_fleet::audit::AuditTarget;
use ah_identity_provider::Explained;
use ah_tls::SanRules;

use super::identity::{self, Context, Side, dev_leaves, in_state};
use super::value::{DbUrl, MAX_SOCKET_PATH, is_loopback};
use super::{IdentitySettings, Settings, log_settings, no_directory, usage};
use crate::args::{AccessPointArgs, AdmissionArgs, ControlArgs, DuplicatesArg};

/// Everything an access point needs to know before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessPointSettings {
    /// Where to listen, besides sockets that were handed over (AP-1). Loopback for a dev identity.
    pub fleet_listen: Vec<SocketAddr>,
    /// Who the access point is (AP-2).
    pub identity: IdentitySettings,
    /// Who is let in.
    pub admission: AdmissionSettings,
    /// The registry (AP-11).
    pub db: DbUrl,
    /// The audit log (AP-12).
    pub audit_log: AuditTarget,
    /// HTTP, when it is on (AP-13).
    pub http: Option<HttpSettings>,
    /// The socket of `ah agent fleet` (AP-14).
    pub admin_socket: PathBuf,
    /// Logging (AP-15).
    pub log: LogSettings,
    /// How long a drain may last (AP-19).
    pub drain_timeout: Duration,
}

/// Who is let in, and how many (AP-5 to AP-8, AP-16, RG-2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionSettings {
    /// AP-5 to AP-7
    pub rules: SanRules,
    /// AP-8: refuse what the `I` rows name, too.
    pub strict_svid: bool,
    /// RG-2
    pub duplicates: Duplicates,
    /// `None` is unlimited.
    pub max_executors: Option<NonZeroU32>,
    /// Handshakes at a time.
    pub max_handshakes: NonZeroU32,
    /// From accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Between two heartbeats of one side: 100 ms to 1 h.
    pub heartbeat_interval: Duration,
}

/// HTTP (AP-13). An address that others can reach has TLS and a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSettings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// HTTPS, when configured.
    pub tls: Option<HttpTls>,
    /// Where the bearer token is.
    pub token_file: Option<PathBuf>,
}

/// Certificate and key of HTTPS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTls {
    /// Chain in PEM.
    pub cert: PathBuf,
    /// Key in PEM.
    pub key: PathBuf,
}

impl AccessPointSettings {
    /// Whether a socket that was handed over may be listened on: what [`Self::fleet_listen`] is held to (DV-2).
    ///
    /// # Errors
    /// A dev identity, and an address that others reach.
    pub(crate) fn may_take(&self, handed_over: SocketAddr) -> Result<(), Explained> {
        if self.identity.stays_here() && !is_loopback(handed_over.ip()) {
            let address = handed_over.to_string();
            return Err(dev_leaves("ListenStream=", "listen on", &address));
        }
        Ok(())
    }
}

impl Settings for AccessPointSettings {
    type Args = AccessPointArgs;
    const PATH: &'static [&'static str] = &["agent", "access-point"];

    fn resolve(
        args: &AccessPointArgs,
        origins: &BTreeMap<String, Origin>,
        paths: &Paths,
    ) -> Result<Self, Vec<Explained>> {
        let mut faults = Vec::new();
        let identity = identity::resolve(
            args.identity.server_identity,
            &args.identity.providers,
            &Context {
                side: Side::AccessPoint,
                origins,
                paths,
                name: None,
            },
            &mut faults,
        );
        let listen = &args.listen.fleet_listen;
        let mut seen = HashSet::new();
        for address in listen {
            // Port 0 takes another port each time.
            if !seen.insert(*address) && address.port() != 0 {
                faults.push(usage(format!("--fleet-listen {address} is given twice")));
            }
            if identity.as_ref().is_some_and(IdentitySettings::stays_here)
                && !is_loopback(address.ip())
            {
                let fault = dev_leaves("--fleet-listen", "listen on", &address.to_string());
                faults.push(fault);
            }
        }
        let admission = admission(&args.admission, &mut faults);
        let http = http(&args.control, &mut faults);
        let db = match &args.store.db {
            Some(db) => Some(db.clone()),
            None => in_state(paths, "access-point.db", "--db", &mut faults).map(DbUrl::Sqlite),
        };
        let audit_log = match &args.store.audit_log {
            Some(target) => Some(target.clone()),
            None => {
                in_state(paths, "audit.jsonl", "--audit-log", &mut faults).map(AuditTarget::File)
            }
        };
        let admin_socket = admin_socket(args.control.admin_socket.clone(), paths, &mut faults);
        match (identity, db, audit_log, admin_socket) {
            (Some(identity), Some(db), Some(audit_log), Some(admin_socket))
                if faults.is_empty() =>
            {
                Ok(Self {
                    fleet_listen: listen.clone(),
                    identity,
                    admission,
                    db,
                    audit_log,
                    http,
                    admin_socket,
                    log: log_settings(&args.process),
                    drain_timeout: args.process.drain_timeout,
                })
            }
            _ => Err(faults),
        }
    }

    fn files(&self) -> Vec<&Path> {
        let mut files = self.identity.files();
        if let Some(http) = &self.http {
            files.extend(http.token_file.as_deref());
            if let Some(tls) = &http.tls {
                files.extend([tls.cert.as_path(), tls.key.as_path()]);
            }
        }
        files
    }

    fn derived(&self) -> Vec<(&'static str, String)> {
        vec![
            ("db", self.db.to_string()),
            ("audit-log", self.audit_log.to_string()),
            ("admin-socket", self.admin_socket.display().to_string()),
        ]
    }
}

fn admission(args: &AdmissionArgs, faults: &mut Vec<Explained>) -> AdmissionSettings {
    let interval = args.heartbeat_interval;
    if interval < Duration::from_millis(100) || interval > Duration::from_secs(3600) {
        faults.push(usage(format!(
            "--heartbeat-interval {} is not between 100ms and 1h",
            humantime::format_duration(interval)
        )));
    }
    let rules = SanRules::parse(
        &args.executor_san_uri_prefix,
        &args.executor_san_dns,
        &args.executor_san_ip,
    );
    AdmissionSettings {
        rules: rules.unwrap_or_else(|wrong| {
            faults.extend(wrong);
            SanRules::default()
        }),
        strict_svid: args.strict_svid,
        duplicates: match args.duplicates {
            DuplicatesArg::Reject => Duplicates::Reject,
            DuplicatesArg::Replace => Duplicates::Replace,
        },
        max_executors: args.max_executors,
        max_handshakes: args.max_handshakes,
        handshake_timeout: args.handshake_timeout,
        heartbeat_interval: interval,
    }
}

/// AP-13
fn http(args: &ControlArgs, faults: &mut Vec<Explained>) -> Option<HttpSettings> {
    let tls = match (&args.http_cert, &args.http_key) {
        (Some(cert), Some(key)) => Some(HttpTls {
            cert: cert.clone(),
            key: key.clone(),
        }),
        (None, None) => None,
        (cert, _) => {
            let (given, missing) = match cert {
                Some(_) => ("--http-cert", "--http-key"),
                None => ("--http-key", "--http-cert"),
            };
            faults.push(
                usage(format!("{given} needs {missing}")).hint("give both for HTTPS, or neither"),
            );
            None
        }
    };
    let Some(listen) = args.http_listen else {
        let given = [
            ("--http-token-file", args.http_token_file.is_some()),
            ("--http-cert", args.http_cert.is_some()),
            ("--http-key", args.http_key.is_some()),
        ];
        if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
            faults.push(
                usage(format!("{flag} has no meaning without --http-listen"))
                    .hint("add --http-listen 127.0.0.1:9443, or leave it out"),
            );
        }
        return None;
    };
    if !is_loopback(listen.ip()) {
        let mut missing = Vec::new();
        if args.http_cert.is_none() {
            missing.push("--http-cert");
        }
        if args.http_key.is_none() {
            missing.push("--http-key");
        }
        if args.http_token_file.is_none() {
            missing.push("--http-token-file");
        }
        if !missing.is_empty() {
            let text = format!("--http-listen {listen} needs {}", missing.join(", "));
            faults.push(
                usage(text)
                    .cause("others can reach this address: HTTP there has TLS and a token")
                    .hint(format!(
                        "give them, or listen on 127.0.0.1:{}",
                        listen.port()
                    )),
            );
        }
    }
    Some(HttpSettings {
        listen,
        tls,
        token_file: args.http_token_file.clone(),
    })
}

/// AP-14
pub(super) fn admin_socket(
    given: Option<PathBuf>,
    paths: &Paths,
    faults: &mut Vec<Explained>,
) -> Option<PathBuf> {
    let default = |run: &Path| run.join("access-point.sock");
    socket(given, paths, default, "--admin-socket", faults)
}

/// A socket's path: the given one, else one below `<run>`.
pub(super) fn socket(
    given: Option<PathBuf>,
    paths: &Paths,
    default: impl FnOnce(&Path) -> PathBuf,
    flag: &str,
    faults: &mut Vec<Explained>,
) -> Option<PathBuf> {
    let path = match given {
        Some(path) => path,
        None => match paths.run() {
            Ok(run) => default(run),
            Err(error) => {
                faults.push(no_directory(&error, flag));
                return None;
            }
        },
    };
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH {
        let text = format!("{flag} {} is too long for a socket", path.display());
        faults.push(
            usage(text)
                .cause(format!(
                    "it has {length} bytes, and {MAX_SOCKET_PATH} are possible"
                ))
                .hint(format!("give a shorter path with {flag}")),
        );
        return None;
    }
    Some(path)
}
