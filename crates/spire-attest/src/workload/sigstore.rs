//! Whether somebody who is known signed the image that a workload runs in, as sigstore's `cosign` does it.
//!
//! Signatures lie beside the image in its registry, each with the signer's certificate and an entry of Rekor's log. All
//! of that is verified here: the signature, who the certificate is of and who issued it, that it was valid when the log
//! took the entry in, that the log of certificates has it, and that what is signed is this image.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::AttestError;
use crate::remember::Remember;

mod certificate;
mod dsse;
mod image;
mod key;
mod registry;
mod rekor;
mod roots;
mod rules;

pub use roots::RootFiles;

use image::Image;
use registry::{Layer, Registries, Repository};
use roots::{Needed, Roots};
use rules::{Rules, right};

/// How long registries may take, beside what an attestor needs otherwise.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// How many images are remembered, and how long.
const IMAGES: usize = 10_000;
const REMEMBERED: Duration = Duration::from_hours(24 * 365);

/// How many statements about an image are looked at.
const STATEMENTS: usize = 1000;

/// How large all of them may be together, in bytes.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// The settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SigstoreConfig {
    /// By issuer the subjects that count; everybody's signatures do where it is empty. What has one of `*+?^${}[]|()`
    /// is a regular expression, which may match anywhere.
    pub allowed_identities: BTreeMap<String, Vec<String>>,
    /// Of these nothing is verified, and nothing told.
    pub skipped_images: BTreeSet<String>,
    /// Whether the certificate is in the log of certificates is not looked at.
    pub ignore_sct: bool,
    /// Nor whether the signature is in Rekor: the certificate has to be valid now.
    pub ignore_tlog: bool,
    /// Attestations are not looked for.
    pub ignore_attestations: bool,
    /// What registries are shown, by host.
    pub registry_credentials: BTreeMap<String, Credential>,
    /// What signatures are believed by.
    pub roots: RootFiles,
}

/// Of a user of a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The name.
    pub username: String,
    /// The secret.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Verifies images.
pub(super) struct Sigstore {
    registries: Registries,
    roots: Roots,
    rules: Rules,
    ignore_attestations: bool,
    skipped: BTreeSet<String>,
    verified: Remember<String, Vec<String>>,
}

impl Sigstore {
    /// Reads the roots.
    ///
    /// # Errors
    /// Names what is missing, or cannot be used.
    pub(super) async fn configure(config: &SigstoreConfig) -> Result<Self, AttestError> {
        let rules = Rules::new(config)?;
        let needed = Needed {
            rekor: !config.ignore_tlog,
            ct_logs: !config.ignore_sct,
        };
        let registries = Registries::new(&config.registry_credentials).map_err(|error| {
            AttestError::invalid(
                error,
                "install the machine's list of authorities (ca-certificates): registries are reached over TLS",
            )
        })?;
        Ok(Self {
            registries,
            roots: Roots::load(&config.roots, needed).await?,
            rules,
            ignore_attestations: config.ignore_attestations,
            skipped: config.skipped_images.clone(),
            verified: Remember::new(IMAGES, REMEMBERED),
        })
    }

    /// Values of selectors of the image `id`, `registry/repository@sha256:…`; none of one that is skipped.
    ///
    /// # Errors
    /// Says why the image is not verified.
    pub(super) async fn verify(&self, id: &str) -> Result<Vec<String>, String> {
        if self.skipped.contains(id) {
            return Ok(Vec::new());
        }
        let search = self.search(id, OffsetDateTime::now_utc());
        self.verified.answer(&id.to_owned(), search).await
    }

    async fn search(&self, id: &str, now: OffsetDateTime) -> Result<Vec<String>, String> {
        let image = Image::parse(id)?;
        let mut repository = self.registries.repository(&image);
        let signatures = self.statements(&mut repository, &image, "sig").await;
        let signatures = signatures.map_err(|why| format!("failed to verify signatures: {why}"))?;
        if signatures.is_empty() {
            return Err("failed to verify signatures: no signatures found".into());
        }
        let signed = right(&signatures, |statement| {
            self.rules
                .signature(statement, &image, &self.roots, now)
                .map(|signed| signed.values())
        });
        let signed = signed
            .map_err(|why| format!("failed to verify signatures: no matching signatures: {why}"))?;
        let mut values = vec!["image-signature:verified".to_owned()];
        if !self.ignore_attestations {
            let statements = self.statements(&mut repository, &image, "att").await;
            let statements =
                statements.map_err(|why| format!("failed to verify image attestations: {why}"))?;
            let attested = right(&statements, |statement| {
                self.rules.attestation(statement, &image, &self.roots, now)
            });
            attested.map_err(|why| {
                format!("failed to verify image attestations: no matching attestations: {why}")
            })?;
            values.push("image-attestations:verified".to_owned());
        }
        values.extend(signed.into_iter().flatten());
        Ok(values)
    }

    /// What is said of `image` under its tag with `suffix`.
    async fn statements(
        &self,
        repository: &mut Repository<'_>,
        image: &Image,
        suffix: &str,
    ) -> Result<Vec<Statement>, String> {
        let Some(manifest) = repository.manifest(&image.tag(suffix)).await? else {
            return Ok(Vec::new());
        };
        if manifest.layers.len() > STATEMENTS {
            return Err(format!("there are more than {STATEMENTS}"));
        }
        let mut statements = Vec::new();
        let mut bytes = 0_usize;
        for layer in manifest.layers {
            let payload = repository.blob(&layer).await?.to_vec();
            bytes = bytes.saturating_add(payload.len());
            if bytes > MAX_BYTES {
                return Err(format!("they have more than {MAX_BYTES} bytes together"));
            }
            statements.push(Statement { payload, layer });
        }
        Ok(statements)
    }
}

/// A layer, and its content.
struct Statement {
    payload: Vec<u8>,
    layer: Layer,
}

impl Statement {
    /// Empty where there is none.
    fn annotation(&self, key: &str) -> &str {
        self.layer.annotations.get(key).map_or("", String::as_str)
    }
}
