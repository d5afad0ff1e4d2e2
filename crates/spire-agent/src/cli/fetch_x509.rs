//! `api fetch`, `api fetch x509`

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::Instant;

use ah_identity_provider::pem::certificate_pem;
use ah_spire_plugin::goflag::{FlagSet, Flags};
use ah_spire_wire::workload::{X509svidRequest, X509svidResponse};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::call::{self, Agent, secured};
use super::failure::Failure;
use super::svids::{Certificate, Svids};
use super::{gotext, output};

/// As upstream makes them.
const PUBLIC: u32 = 0o644;
const PRIVATE: u32 = 0o600;

pub(super) fn flags() -> FlagSet {
    let flags = FlagSet::new("fetch x509")
        .bool("silent", false, "Suppress stdout")
        .string(
            "write",
            "",
            "Write SVID data to the specified path (optional; only available for pretty output format)",
        );
    output::with_flag(call::with_flags(flags))
}

pub(super) async fn run(flags: &Flags) -> Result<(), Failure> {
    let start = Instant::now();
    let agent = Agent::connect(flags).await?;
    let mut api = agent.workload_api();
    let fetched = agent.first(api.fetch_x509svid(secured(X509svidRequest {})));
    let response = fetched.await.map_err(|status| agent.failed(&status))?;
    let after = start.elapsed();
    if output::is_json(flags, "output") {
        return output::print(&format!("{}\n", gotext::json(&as_json(&response))));
    }
    let svids = Svids::read(response)?;
    if !flags.bool("silent") {
        output::print(&svids.pretty(after))?;
    }
    match flags.nonempty("write") {
        Some(to) => write(&svids, &Files::named_by(to)?),
        None => Ok(()),
    }
}

fn as_json(response: &X509svidResponse) -> Value {
    let svids = response.svids.iter().map(|svid| {
        json!({
            "bundle": output::bytes(&svid.bundle),
            "hint": svid.hint,
            "spiffe_id": svid.spiffe_id,
            "x509_svid": output::bytes(&svid.x509_svid),
            "x509_svid_key": output::bytes(&svid.x509_svid_key),
        })
    });
    json!({
        "crl": response.crl.iter().map(|crl| output::bytes(crl)).collect::<Vec<_>>(),
        "federated_bundles": output::map_of_bytes(&response.federated_bundles),
        "svids": svids.collect::<Vec<_>>(),
    })
}

/// Where `-write` puts what (SR-1).
enum Files {
    /// An existing directory: as upstream.
    Directory(PathBuf),
    /// The beginning of the names.
    Prefix(String),
}

impl Files {
    fn named_by(to: &str) -> Result<Self, Failure> {
        if Path::new(to).is_dir() {
            // As Go joins paths: `.` is left out.
            let named = Path::new(to).components();
            let named = named.filter(|part| *part != Component::CurDir);
            return Ok(Self::Directory(named.collect()));
        }
        let folder = if to.ends_with('/') {
            Some(Path::new(to))
        } else {
            let parent = Path::new(to).parent();
            parent.filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir())
        };
        match folder {
            None => Ok(Self::Prefix(to.to_owned())),
            Some(folder) => Err(Failure::new(format!(
                "error: no such directory: {}\n  hint: create it, or give -write an existing directory or the \
                 beginning of a file's name in one",
                folder.display()
            ))),
        }
    }

    /// `name` is what follows `svid.`, such as `0.pem`.
    fn svid(&self, name: &str) -> PathBuf {
        match self {
            Self::Directory(folder) => folder.join(format!("svid.{name}")),
            Self::Prefix(prefix) => format!("{prefix}.{name}").into(),
        }
    }

    fn bundle(&self, name: &str) -> PathBuf {
        match self {
            Self::Directory(folder) => folder.join(name),
            Self::Prefix(prefix) => format!("{prefix}.{name}").into(),
        }
    }
}

fn write(svids: &Svids, files: &Files) -> Result<(), Failure> {
    for (at, svid) in svids.svids.iter().enumerate() {
        let path = files.svid(&format!("{at}.pem"));
        told("SVID", at, &path)?;
        write_file(&path, pem(&svid.chain).as_bytes(), PUBLIC)?;

        let path = files.svid(&format!("{at}.key"));
        told("key", at, &path)?;
        write_file(&path, key_pem(&svid.key).as_bytes(), PRIVATE)?;

        let path = files.bundle(&format!("bundle.{at}.pem"));
        told("bundle", at, &path)?;
        write_file(&path, pem(&svid.bundle).as_bytes(), PUBLIC)?;

        for (nth, (domain, bundle)) in svids.federated.iter().enumerate() {
            let path = files.bundle(&format!("federated_bundle.{at}.{nth}.pem"));
            output::print(&format!(
                "Writing federated bundle #{nth} for trust domain {domain} to file {}.\n",
                path.display()
            ))?;
            write_file(&path, pem(bundle).as_bytes(), PUBLIC)?;
        }
    }
    Ok(())
}

fn told(what: &str, at: usize, path: &Path) -> Result<(), Failure> {
    output::print(&format!(
        "Writing {what} #{at} to file {}.\n",
        path.display()
    ))
}

fn pem(certificates: &[Certificate]) -> String {
    let pems = certificates.iter();
    pems.map(|certificate| certificate_pem(&certificate.der))
        .collect()
}

fn key_pem(key: &[u8]) -> Zeroizing<String> {
    let encoded = Zeroizing::new(STANDARD.encode(key));
    let mut pem = Zeroizing::new(String::with_capacity(encoded.len() * 2 + 64));
    pem.push_str("-----BEGIN PRIVATE KEY-----\n");
    for (at, letter) in encoded.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            pem.push('\n');
        }
        pem.push(letter);
    }
    pem.push_str("\n-----END PRIVATE KEY-----\n");
    pem
}

/// In one step: nobody reads half a file, and the key never is in a file that somebody else had there before.
fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let written = tempfile::Builder::new()
        .prefix(".svid")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .and_then(|mut file| {
            file.write_all(content)?;
            // Whatever the umask, as far as it is not stricter for the key.
            file.as_file()
                .set_permissions(Permissions::from_mode(mode))?;
            file.persist(path).map_err(|error| error.error)
        });
    match written {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(format!(
            "error: cannot write {}: {error}\n  hint: give -write a directory that this user can write to",
            path.display()
        ))),
    }
}
