//! `--production`: the checklist of the guides, item by item, for the executor and the access point of this machine.
//!
//! What works need not be fit for production: a development identity enrolls, and so does a certificate of ten years.
//! What cannot be seen from this machine is skipped and says where to look.

mod access_point;

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_daemon::layer::Origin;
use ah_fleet::executor::{Status, read_status};
use ah_identity_provider::{CertificateFacts, Code, Explained, Published};
use spiffe::SpiffeId;

use super::clock::moment;
use super::remote::Visit;
use super::report::{Check, Report};
use crate::render::brief;
use crate::settings::value::is_loopback;
use crate::settings::{DoctorSettings, EnrollSettings, Launch, SourceSettings, VaultSettings};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What was seen of the executor's side.
pub(super) struct Seen {
    pub(super) own: Option<Arc<Published>>,
    pub(super) visits: Vec<Visit>,
}

/// Goes through the list. `seen` is what the ordinary checks found, when an executor is set up here.
pub(super) async fn report(
    launch: &Launch<DoctorSettings>,
    seen: Option<&Seen>,
    admin_socket: &Path,
    report: &mut Report,
) {
    // It works with a key that others can read. Who has read it works with it too.
    report.harden("key-permissions");
    if let (Some(settings), Some(seen)) = (&launch.settings.executor, seen) {
        executor(launch, settings, seen, report).await;
    }
    access_point::report(admin_socket, seen.is_some(), report).await;
}

async fn executor(
    launch: &Launch<DoctorSettings>,
    settings: &EnrollSettings,
    seen: &Seen,
    report: &mut Report,
) {
    match &seen.own {
        Some(own) => {
            let leaf = own.identity.leaf();
            report.add(issuer("issuer", own.provider.as_str(), Some(leaf)));
            report.add(lifetime("lifetime", leaf.not_before, leaf.not_after));
            report.add(trust_domain(leaf));
        }
        None => {
            for name in ["issuer", "lifetime", "trust-domain"] {
                report.add(Check::skip(name, "there is no identity"));
            }
        }
    }
    for visit in &seen.visits {
        report.add_of(
            &visit.shown,
            match visit.server_leaf() {
                Some(leaf) => lifetime("server-lifetime", leaf.not_before, leaf.not_after),
                None => Check::skip("server-lifetime", "its certificate was not seen"),
            },
        );
    }
    let running = read_status(&settings.status_socket).await.ok();
    report.add(renewal(running.as_ref()));
    report.add(reach(settings));
    report.add(secrets(launch, settings));
    if let SourceSettings::Vault(vault) = &settings.identity.source {
        report.add(vault_address(vault));
        report.add(vault_key(vault));
    }
}

/// Certificates are issued by a trusted CA.
fn issuer(name: &'static str, provider: &str, leaf: Option<&CertificateFacts>) -> Check {
    let fix = "use files, spiffe (recommended), vault or exec: docs/providers";
    if provider == "dev" {
        return failed(
            name,
            "the identity is of the development CA of one machine",
            fix,
        );
    }
    match leaf {
        Some(leaf) if leaf.subject == leaf.issuer => failed(
            name,
            format!("the certificate is its own issuer: `{}`", leaf.subject),
            "have a CA sign it: docs/providers/files.md",
        ),
        Some(leaf) => Check::pass(name, format!("{provider}: issued by `{}`", leaf.issuer)),
        None => Check::pass(name, format!("its identity comes from {provider}")),
    }
}

/// Certificate TTLs are short: hours, not days.
fn lifetime(name: &'static str, from: SystemTime, to: SystemTime) -> Check {
    let life = to.duration_since(from).unwrap_or_default();
    let told = format!(
        "certificates of {}, this one until {}",
        brief(life),
        moment(to)
    );
    let fix = "let the issuer give 24 hours or less: --vault-cert-ttl, default_x509_svid_ttl, openssl x509 -days 1";
    // An issuer that dates back against wrong clocks stays within its day.
    if life <= DAY + DAY / 24 {
        Check::pass(name, told)
    } else if life <= 7 * DAY {
        Check::warn(name, format!("{told}: hours would be better than days")).fix(fix)
    } else {
        failed(
            name,
            format!("{told}: a stolen key is of use for as long"),
            fix,
        )
    }
}

/// Separate trust domains for development, staging and production.
fn trust_domain(leaf: &CertificateFacts) -> Check {
    let name = "trust-domain";
    let ids = leaf.uris.iter().filter_map(|uri| SpiffeId::new(uri).ok());
    let Some(domain) = ids.map(|id| id.trust_domain().to_string()).next() else {
        return Check::skip(
            name,
            "no SPIFFE ID: what keeps environments apart is that each has a CA of its own",
        );
    };
    let other = domain
        .split(['.', '-', '_'])
        .find(|word| ["dev", "test", "testing", "stage", "staging", "local"].contains(word));
    match other {
        Some(word) => failed(
            name,
            format!("{domain} is named for `{word}`"),
            "give production a trust domain of its own: trust_domain in /etc/spire/server.conf",
        ),
        None => Check::pass(name, domain),
    }
}

/// Certificate rotation is working.
fn renewal(running: Option<&Status>) -> Check {
    let name = "renewal";
    let fix = "sudo systemctl enable --now ah-executor; ah agent status --watch";
    let Some(status) = running else {
        return failed(
            name,
            "no executor of this name runs here, so that no renewal was seen",
            fix,
        );
    };
    if let Some(warning) = &status.identity_warning {
        return Check::fail(name, warning);
    }
    match (status.rotations, status.next_renewal) {
        (0, Some(at)) => Check::warn(
            name,
            format!("none seen yet; the next is due {}", moment(at.into())),
        )
        .fix("look again after that: ah agent status"),
        (0, None) => Check::warn(name, "none seen yet").fix(
            "bring a new certificate as your PKI will, then look again: ah agent status shows `rotations`",
        ),
        (count, _) => Check::pass(name, format!("{count} seen since the executor started")),
    }
}

/// Firewall allows the port, from another machine.
fn reach(settings: &EnrollSettings) -> Check {
    let name = "reach";
    let servers: Vec<String> = settings.servers.iter().map(ToString::to_string).collect();
    let servers = servers.join(", ");
    if settings
        .servers
        .iter()
        .all(|server| server.host.is_loopback())
    {
        return Check::warn(
            name,
            format!("{servers} is this machine: no firewall was passed"),
        )
        .fix("ask from a machine that executors run on");
    }
    Check::pass(
        name,
        format!("{servers}: `tcp` above tells whether the port is open"),
    )
}

/// Secrets are where only this user reads them.
fn secrets(launch: &Launch<DoctorSettings>, settings: &EnrollSettings) -> Check {
    let name = "secrets";
    if let SourceSettings::Vault(vault) = &settings.identity.source
        && let Some((flag, variable)) = vault.exposed.first()
    {
        return failed(
            name,
            format!("--{flag} is on the command line, where every user of this machine reads it"),
            format!("set {variable} in an EnvironmentFile of mode 0600, or give --{flag}-file"),
        );
    }
    let kept = ["vault-secret-id", "vault-role-id", "vault-token"];
    let in_file = kept
        .iter()
        .find_map(|flag| match launch.origins.get(*flag) {
            Some(Origin::File(file, _)) => Some((flag, file)),
            _ => None,
        });
    let Some((flag, file)) = in_file else {
        return Check::pass(name, "none is on the command line or in the settings file");
    };
    let shown = file.display();
    match std::fs::metadata(file).map(|facts| facts.permissions().mode()) {
        Ok(mode) if mode & 0o077 != 0 => failed(
            name,
            format!("{shown} holds {flag} and has mode {:04o}", mode & 0o7777),
            format!("sudo chmod 600 {shown}"),
        ),
        Ok(_) => Check::pass(
            name,
            format!("{shown} holds {flag}, and only its owner reads it"),
        ),
        Err(error) => Check::skip(name, format!("{shown} cannot be looked at: {error}")),
    }
}

/// Vault is spoken to over HTTPS.
fn vault_address(vault: &VaultSettings) -> Check {
    let name = "vault-address";
    let is_here = |host: &str| host == "localhost" || host.parse::<IpAddr>().is_ok_and(is_loopback);
    let open = vault
        .config
        .addresses
        .iter()
        .find(|address| !address.tls() && !is_here(address.host()));
    match open {
        Some(address) => failed(
            name,
            format!("{address} is not HTTPS: the login is there to read"),
            "give --vault-addr https://…, and --vault-ca when its CA is your own",
        ),
        None => Check::pass(name, "HTTPS, or this machine"),
    }
}

/// The private key never leaves the executor.
fn vault_key(vault: &VaultSettings) -> Check {
    let name = "vault-key";
    let pki = &vault.config.pki;
    if pki.sign() {
        return Check::pass(name, format!("{pki}: the key is made here and stays here"));
    }
    Check::warn(
        name,
        format!("{pki}: Vault makes the private key and sends it"),
    )
    .fix(format!(
        "--vault-pki-path {}/sign/{}",
        pki.mount(),
        pki.role()
    ))
}

fn failed(name: &'static str, evidence: impl Into<String>, fix: impl Into<String>) -> Check {
    Check::fail(
        name,
        &Explained::new(Code::Other, evidence).hint(fix.into()),
    )
}
