//! What signatures are believed by: authorities, and keys of logs, from files.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::key::{Life, LogKey, PublicKey};
use crate::AttestError;
use crate::credentials::{certificates, read};
use crate::node::x509pop::chain::Root;

/// Where `cosign initialize` asks unless it is told otherwise.
const PUBLIC_MIRROR: &str = "https://tuf-repo-cdn.sigstore.dev";

/// The files, by the names of the environment variables that cosign knows them by. Empty is not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootFiles {
    /// `SIGSTORE_ROOT_FILE`: PEM of Fulcio's certificates, roots and those below.
    pub fulcio: PathBuf,
    /// `SIGSTORE_REKOR_PUBLIC_KEY`: PEM of the key of Rekor.
    pub rekor: PathBuf,
    /// `SIGSTORE_CT_LOG_PUBLIC_KEY_FILE`: PEM of the key of the log of certificates.
    pub ct_log: PathBuf,
    /// `TUF_ROOT`, or `.sigstore/root` at home: where `cosign initialize` puts `trusted_root.json`, which counts for
    /// what the others do not name.
    pub tuf_root: PathBuf,
}

/// What is in them.
pub(super) struct Roots {
    pub(super) authorities: Vec<Root>,
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    pub(super) rekor: HashMap<[u8; 32], LogKey>,
    pub(super) ct_logs: HashMap<[u8; 32], LogKey>,
}

/// What is needed of them.
#[derive(Clone, Copy)]
pub(super) struct Needed {
    pub(super) rekor: bool,
    pub(super) ct_logs: bool,
}

impl Roots {
    /// # Errors
    /// Name what is missing and how to get it.
    pub(super) async fn load(files: &RootFiles, needed: Needed) -> Result<Self, AttestError> {
        let is_set = |path: &Path| !path.as_os_str().is_empty();
        let from_cache = !is_set(&files.fulcio)
            || (needed.rekor && !is_set(&files.rekor))
            || (needed.ct_logs && !is_set(&files.ct_log));
        let mut roots = match from_cache {
            true => cached(&files.tuf_root).await?,
            false => Self::none(),
        };
        if is_set(&files.fulcio) {
            let what = "SIGSTORE_ROOT_FILE";
            let pem = read(&files.fulcio).await;
            let pem = pem.map_err(|error| unusable(what, &error))?;
            let found = certificates(&files.fulcio.display().to_string(), &pem);
            let found = found.map_err(|error| unusable(what, &error))?;
            (roots.authorities, roots.intermediates) = (Vec::new(), Vec::new());
            for certificate in found {
                roots
                    .add(certificate)
                    .map_err(|error| unusable(what, &error))?;
            }
        }
        for (what, path, keys) in [
            ("SIGSTORE_REKOR_PUBLIC_KEY", &files.rekor, &mut roots.rekor),
            (
                "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE",
                &files.ct_log,
                &mut roots.ct_logs,
            ),
        ] {
            if is_set(path) {
                let key = key_in(path).await;
                let key = key.map_err(|error| unusable(what, &error))?;
                let life = Life::default();
                *keys = HashMap::from([(key.log_id(), LogKey { key, life })]);
            }
        }
        let missing = match () {
            () if roots.authorities.is_empty() => "certificate of a Fulcio root",
            () if needed.rekor && roots.rekor.is_empty() => "key of Rekor",
            () if needed.ct_logs && roots.ct_logs.is_empty() => "key of a log of certificates",
            () => return Ok(roots),
        };
        Err(unusable(
            "trusted roots",
            &format!("they have no {missing}"),
        ))
    }

    fn none() -> Self {
        Self {
            authorities: Vec::new(),
            intermediates: Vec::new(),
            rekor: HashMap::new(),
            ct_logs: HashMap::new(),
        }
    }

    /// One whose issuer is itself is a root.
    fn add(&mut self, der: CertificateDer<'static>) -> Result<(), String> {
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        if certificate.subject().as_raw() == certificate.issuer().as_raw() {
            let root = Root::new(der).map_err(|error| error.to_string())?;
            self.authorities.push(root);
        } else {
            self.intermediates.push(der);
        }
        Ok(())
    }
}

/// What `cosign initialize` left in `folder`.
async fn cached(folder: &Path) -> Result<Roots, AttestError> {
    #[derive(Deserialize)]
    struct Remote {
        mirror: String,
    }

    let what = "the trusted root of sigstore";
    if folder.as_os_str().is_empty() {
        return Err(unusable(what, "neither TUF_ROOT nor HOME is set"));
    }
    // The folder goes by the address of the repository.
    let remote = tokio::fs::read(folder.join("remote.json")).await.ok();
    let remote = remote.and_then(|json| serde_json::from_slice::<Remote>(&json).ok());
    let mirror = remote.map_or_else(|| PUBLIC_MIRROR.to_owned(), |remote| remote.mirror);
    let name = mirror
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .replace(['/', ':'], "-")
        .to_lowercase();
    let path = folder.join(name).join("targets/trusted_root.json");
    let json = read(&path).await.map_err(|error| unusable(what, &error))?;
    parse(&json).map_err(|error| unusable(what, &format!("{}: {error}", path.display())))
}

/// `TrustedRoot` of sigstore's protobufs, in JSON.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TrustedRoot {
    #[serde(default)]
    tlogs: Vec<Log>,
    #[serde(default)]
    certificate_authorities: Vec<Authority>,
    #[serde(default)]
    ctlogs: Vec<Log>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Log {
    public_key: Key,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    raw_bytes: String,
    #[serde(default)]
    valid_for: Period,
}

#[derive(Default, Deserialize)]
struct Period {
    start: Option<String>,
    end: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authority {
    cert_chain: Chain,
}

#[derive(Deserialize)]
struct Chain {
    certificates: Vec<Raw>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    raw_bytes: String,
}

fn parse(json: &[u8]) -> Result<Roots, String> {
    let trusted: TrustedRoot = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let bytes = |text: &str| {
        let bytes = STANDARD.decode(text);
        bytes.map_err(|_| "rawBytes is not base64".to_owned())
    };
    let mut roots = Roots::none();
    for authority in trusted.certificate_authorities {
        for certificate in authority.cert_chain.certificates {
            roots.add(bytes(&certificate.raw_bytes)?.into())?;
        }
    }
    let keys = |logs: Vec<Log>| {
        let mut keys = HashMap::new();
        for Log { public_key } in logs {
            let key = match PublicKey::new(&bytes(&public_key.raw_bytes)?) {
                Ok(key) => key,
                Err(error) => {
                    tracing::warn!(%error, "a key of a log in trusted_root.json cannot be used");
                    continue;
                }
            };
            let life = Life {
                start: moment(public_key.valid_for.start)?,
                end: moment(public_key.valid_for.end)?,
            };
            keys.insert(key.log_id(), LogKey { key, life });
        }
        Ok::<_, String>(keys)
    };
    roots.rekor = keys(trusted.tlogs)?;
    roots.ct_logs = keys(trusted.ctlogs)?;
    Ok(roots)
}

fn moment(text: Option<String>) -> Result<Option<OffsetDateTime>, String> {
    let moment = text.map(|text| {
        let moment = OffsetDateTime::parse(&text, &Rfc3339);
        moment.map_err(|error| format!("validFor: {text:?}: {error}"))
    });
    moment.transpose()
}

async fn key_in(path: &Path) -> Result<PublicKey, String> {
    let bytes = read(path).await?;
    let named = |error: String| format!("{}: {error}", path.display());
    match Pem::iter_from_buffer(&bytes).next() {
        Some(Ok(pem)) if pem.label == "PUBLIC KEY" => PublicKey::new(&pem.contents).map_err(named),
        _ => Err(named("it has no PEM of the type PUBLIC KEY".into())),
    }
}

fn unusable(what: &str, why: &str) -> AttestError {
    AttestError::invalid(
        format!("error initializing sigstore verifier: {what}: {why}"),
        "run `cosign initialize` as the agent's user, which puts trusted_root.json below TUF_ROOT (or \
         $HOME/.sigstore/root); or let SIGSTORE_ROOT_FILE, SIGSTORE_REKOR_PUBLIC_KEY and \
         SIGSTORE_CT_LOG_PUBLIC_KEY_FILE name PEM files",
    )
}
