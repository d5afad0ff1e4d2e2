//! An executor's settings (contract §3).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ah_daemon::layer::Origin;
use ah_daemon::logging::LogSettings;
use ah_daemon::paths::Paths;
use ah_fleet::MAX_LABELS;
use ah_fleet::executor::Once;
use ah_identity_provider::Explained;
use spiffe::SpiffeId;

use super::access_point::socket;
use super::identity::{self, Context, Side, dev_leaves};
use super::value::{Label, Name, RemoteServer, default_status_socket};
use super::{IdentitySettings, Settings, log_settings, read_fault, usage};
use crate::args::{EnrollArgs, OnceArg};

/// Everything an executor needs to know before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrollSettings {
    /// Whom to dial, in this order (EN-1). At least one; loopback for a dev identity.
    pub servers: Vec<RemoteServer>,
    /// Who this executor is (EN-2).
    pub identity: IdentitySettings,
    /// The SPIFFE ID that the access point must have (EN-5). `None`: its certificate must carry the host
    /// that was dialled.
    pub expected_server_id: Option<SpiffeId>,
    /// Label for people (EN-6).
    pub name: Name,
    /// At most 64, within the limits of the protocol (EN-8).
    pub labels: BTreeMap<String, String>,
    /// For one connection attempt (EN-9).
    pub connect_timeout: Duration,
    /// When to leave by itself (EN-10).
    pub once: Option<Once>,
    /// The socket of `ah agent status` (EN-11).
    pub status_socket: PathBuf,
    /// Logging (AP-15).
    pub log: LogSettings,
    /// How long a goodbye may take (AP-19).
    pub drain_timeout: Duration,
}

impl Settings for EnrollSettings {
    type Args = EnrollArgs;
    const PATH: &'static [&'static str] = &["agent", "enroll"];

    fn resolve(
        args: &EnrollArgs,
        origins: &BTreeMap<String, Origin>,
        paths: &Paths,
    ) -> Result<Self, Vec<Explained>> {
        let mut faults = Vec::new();
        let name = match &args.executor.name {
            Some(name) => Some(name.clone()),
            None => host_name(&mut faults),
        };
        let identity = identity::resolve(
            args.identity.identity,
            &args.identity.providers,
            &Context {
                side: Side::Executor,
                origins,
                paths,
                name: name.as_ref().map(Name::as_str),
            },
            &mut faults,
        );
        let mut servers: Vec<RemoteServer> = Vec::new();
        for server in &args.remote.remote_server {
            if servers.contains(server) {
                faults.push(usage(format!(
                    "--remote-server https://{server} is given twice"
                )));
                continue;
            }
            if identity.as_ref().is_some_and(IdentitySettings::stays_here)
                && !server.host.is_loopback()
            {
                let url = format!("https://{server}");
                faults.push(dev_leaves("--remote-server", "dial", &url));
            }
            servers.push(server.clone());
        }
        let labels = labels(args, &mut faults);
        let status_socket = name.as_ref().and_then(|name| {
            socket(
                args.executor.status_socket.clone(),
                paths,
                |run| default_status_socket(run, name),
                "--status-socket",
                &mut faults,
            )
        });
        match (identity, name, status_socket) {
            (Some(identity), Some(name), Some(status_socket)) if faults.is_empty() => Ok(Self {
                servers,
                identity,
                expected_server_id: args.remote.expected_server_id.clone(),
                name,
                labels,
                connect_timeout: args.remote.connect_timeout,
                once: match args.remote.once {
                    None | Some(OnceArg::Off) => None,
                    Some(OnceArg::Failure) => Some(Once::Failed),
                    Some(OnceArg::Enrolled) => Some(Once::Enrolled),
                },
                status_socket,
                log: log_settings(&args.process),
                drain_timeout: args.process.drain_timeout,
            }),
            _ => Err(faults),
        }
    }

    fn files(&self) -> Vec<&Path> {
        self.identity.files()
    }

    fn derived(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.to_string()),
            ("status-socket", self.status_socket.display().to_string()),
        ]
    }
}

fn host_name(faults: &mut Vec<Explained>) -> Option<Name> {
    let host = gethostname::gethostname();
    match host.to_string_lossy().parse() {
        Ok(name) => Some(name),
        Err(wrong) => {
            faults.push(
                usage("the host name cannot be used as a name")
                    .cause(wrong)
                    .hint("give --name"),
            );
            None
        }
    }
}

/// The labels of the file, then those of the flags, which win (EN-8).
fn labels(args: &EnrollArgs, faults: &mut Vec<Explained>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    if let Some(path) = &args.executor.labels_file {
        match fs::read_to_string(path) {
            Ok(text) => from_lines(path, &text, &mut labels, faults),
            Err(error) => faults.push(read_fault(path, &error)),
        }
    }
    let mut by_flag = BTreeMap::new();
    for Label { key, value } in &args.executor.label {
        if by_flag.insert(key.clone(), value.clone()).is_some() {
            faults.push(usage(format!("--label {key} is given twice")));
        }
    }
    labels.extend(by_flag);
    if labels.len() > MAX_LABELS {
        faults.push(usage(format!(
            "{} labels are given, and at most {MAX_LABELS} are possible",
            labels.len()
        )));
    }
    labels
}

fn from_lines(
    path: &Path,
    text: &str,
    labels: &mut BTreeMap<String, String>,
    faults: &mut Vec<Explained>,
) {
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = format!("{}:{number}", path.display());
        match line.parse::<Label>() {
            Ok(Label { key, value }) => {
                if labels
                    .insert(key.trim().to_owned(), value.trim().to_owned())
                    .is_some()
                {
                    faults.push(usage(format!(
                        "{place}: label '{}' is set a second time",
                        key.trim()
                    )));
                }
            }
            Err(wrong) => {
                let fault = usage(format!("{place}: {}", wrong.what));
                faults.push(match wrong.hint {
                    Some(hint) => fault.hint(hint),
                    None => fault,
                });
            }
        }
    }
}
