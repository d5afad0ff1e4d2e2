//! What has to be right about a signature or an attestation.

use ah_identity_provider::pem;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use regex::bytes::{Regex, RegexBuilder};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use time::OffsetDateTime;

use super::certificate::Signer;
use super::dsse::{enveloped, is_subject};
use super::image::Image;
use super::rekor::{self, Bundle};
use super::roots::Roots;
use super::{SigstoreConfig, Statement};
use crate::AttestError;

/// The rules of a configuration.
pub(super) struct Rules {
    identities: Vec<(Pattern, Pattern)>,
    ignore_sct: bool,
    ignore_tlog: bool,
}

enum Pattern {
    Exactly(String),
    Like(Regex),
}

/// What is told of a signature.
pub(super) struct Signed {
    subject: String,
    issuer: String,
    signature: String,
    entry: Option<Bundle>,
}

impl Signed {
    /// Values of selectors.
    pub(super) fn values(&self) -> Vec<String> {
        let mut values = vec![
            format!("image-signature-subject:{}", self.subject),
            format!("image-signature-issuer:{}", self.issuer),
            format!("image-signature-value:{}", self.signature),
        ];
        if let Some(Bundle {
            signed_entry_timestamp,
            payload,
        }) = &self.entry
        {
            values.extend([
                format!("image-signature-log-id:{}", payload.log_id),
                format!("image-signature-log-index:{}", payload.log_index),
                format!(
                    "image-signature-integrated-time:{}",
                    payload.integrated_time
                ),
                format!("image-signature-signed-entry-timestamp:{signed_entry_timestamp}"),
            ]);
        }
        values
    }
}

/// What `judge` makes of those of `statements` that it finds right, of which there is one at least.
pub(super) fn right<T>(
    statements: &[Statement],
    judge: impl Fn(&Statement) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let mut right = Vec::new();
    let mut wrong = Vec::new();
    for statement in statements {
        match judge(statement) {
            Ok(told) => right.push(told),
            Err(why) => wrong.push(why),
        }
    }
    match right.is_empty() {
        true => Err(wrong.join("; ")),
        false => Ok(right),
    }
}

impl Rules {
    /// # Errors
    /// Name what is no rule.
    pub(super) fn new(config: &SigstoreConfig) -> Result<Self, AttestError> {
        let mut identities = Vec::new();
        for (issuer, subjects) in &config.allowed_identities {
            for subject in subjects {
                identities.push((Pattern::new(issuer)?, Pattern::new(subject)?));
            }
        }
        if !config.allowed_identities.is_empty() && identities.is_empty() {
            return Err(AttestError::invalid(
                "allowed_identities has issuers without subjects, which would let everybody's signatures count",
                "name subjects: [\".*\"] for all of an issuer",
            ));
        }
        Ok(Self {
            identities,
            ignore_sct: config.ignore_sct,
            ignore_tlog: config.ignore_tlog,
        })
    }

    pub(super) fn signature(
        &self,
        statement: &Statement,
        image: &Image,
        roots: &Roots,
        now: OffsetDateTime,
    ) -> Result<Signed, String> {
        let signature = statement.annotation("dev.cosignproject.cosign/signature");
        if signature.is_empty() {
            return Err("the layer has no signature".into());
        }
        let certificates = certificates_of(statement)?;
        let signer = Signer::read(certificates.first().ok_or(NO_CERTIFICATE)?)?;
        let entry = self.trusted(
            statement,
            &signer,
            Some(signature),
            &certificates,
            roots,
            now,
        )?;
        let bytes = STANDARD
            .decode(signature)
            .map_err(|_| "the signature is not base64")?;
        if !signer.key.made(&bytes, &statement.payload) {
            return Err("the signature is not of the certificate's key".into());
        }
        claims(&statement.payload, image)?;
        let subject = signer.subjects.first().cloned();
        Ok(Signed {
            subject: subject.ok_or("no subject found in certificate")?,
            issuer: match signer.issuer.as_str() {
                "" => return Err("no OIDC issuer found in certificate extensions".into()),
                issuer => issuer.to_owned(),
            },
            signature: signature.to_owned(),
            entry,
        })
    }

    pub(super) fn attestation(
        &self,
        statement: &Statement,
        image: &Image,
        roots: &Roots,
        now: OffsetDateTime,
    ) -> Result<(), String> {
        let certificates = certificates_of(statement)?;
        let signer = Signer::read(certificates.first().ok_or(NO_CERTIFICATE)?)?;
        self.trusted(statement, &signer, None, &certificates, roots, now)?;
        let stated = enveloped(&statement.payload, &signer.key)?;
        is_subject(&stated, image)
    }

    /// Whether the certificate is one to believe, and of somebody who counts. Gives the entry in Rekor, unless that is
    /// not looked at.
    fn trusted(
        &self,
        statement: &Statement,
        signer: &Signer<'_>,
        signature: Option<&str>,
        certificates: &[CertificateDer<'static>],
        roots: &Roots,
        now: OffsetDateTime,
    ) -> Result<Option<Bundle>, String> {
        let (leaf, between) = certificates.split_first().ok_or(NO_CERTIFICATE)?;
        let mut entry = None;
        let mut time = now;
        if !self.ignore_tlog {
            let bundle = match statement.annotation("dev.sigstore.cosign/bundle") {
                "" => {
                    return Err(
                        "there is no bundle of a Rekor entry with it, and none is looked for elsewhere"
                            .into(),
                    );
                }
                json => Bundle::read(json)?,
            };
            let signed = rekor::Signed {
                payload: &statement.payload,
                signature,
                certificate: leaf,
            };
            let verified = bundle.verify(&signed, &roots.rekor);
            time = verified.map_err(|why| format!("error verifying bundle: {why}"))?;
            entry = Some(bundle);
        }
        signer.verify(between, roots, self.ignore_sct, time)?;
        self.counts(signer)?;
        Ok(entry)
    }

    fn counts(&self, signer: &Signer<'_>) -> Result<(), String> {
        let counts = |(issuer, subject): &(Pattern, Pattern)| {
            issuer.fits(&signer.issuer) && signer.subjects.iter().any(|it| subject.fits(it))
        };
        if self.identities.is_empty() || self.identities.iter().any(counts) {
            return Ok(());
        }
        Err(format!(
            "none of the expected identities matched what was in the certificate, got subjects [{}] with issuer {}",
            signer.subjects.join(", "),
            signer.issuer
        ))
    }
}

const NO_CERTIFICATE: &str = "no certificate found on signature";

/// The signer's, and those above it.
fn certificates_of(statement: &Statement) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = |key: &str| match statement.annotation(key) {
        "" => Ok(Vec::new()),
        text => pem::certificates(text.as_bytes()).map_err(|error| format!("{key}: {error}")),
    };
    let mut certificates = read("dev.sigstore.cosign/certificate")?;
    if certificates.is_empty() {
        return Err(NO_CERTIFICATE.into());
    }
    certificates.truncate(1);
    certificates.extend(read("dev.sigstore.cosign/chain")?);
    Ok(certificates)
}

/// Whether what is signed is about `image`. Whoever may write to the registry can put a signature of another image
/// beside it.
fn claims(payload: &[u8], image: &Image) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Simple {
        critical: Critical,
    }
    #[derive(Deserialize)]
    struct Critical {
        image: Named,
    }
    #[derive(Deserialize)]
    struct Named {
        #[serde(rename = "docker-manifest-digest")]
        digest: String,
    }

    let simple: Simple = serde_json::from_slice(payload)
        .map_err(|error| format!("what is signed is no statement about an image: {error}"))?;
    let digest = simple.critical.image.digest;
    if digest != format!("sha256:{}", image.sha256) {
        return Err(format!("the signature is of another image: {digest}"));
    }
    Ok(())
}

impl Pattern {
    fn new(text: &str) -> Result<Self, AttestError> {
        if !text.contains(['*', '+', '?', '^', '$', '{', '}', '[', ']', '|', '(', ')']) {
            return Ok(Self::Exactly(text.to_owned()));
        }
        // `\d` and the like are of ASCII, as where these were written for.
        let regex = RegexBuilder::new(text).unicode(false).build();
        regex.map(Self::Like).map_err(|error| {
            let why = error.to_string();
            AttestError::invalid(
                format!(
                    "allowed_identities: {text:?} is no regular expression: {}",
                    why.lines().last().unwrap_or_default()
                ),
                "what has one of *+?^${}[]|() in it is one: put a backslash before what is meant as it is",
            )
        })
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Exactly(wanted) => wanted == text,
            Self::Like(regex) => regex.is_match(text.as_bytes()),
        }
    }
}
