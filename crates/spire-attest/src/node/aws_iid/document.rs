//! The identity document, and why it is believed.

use std::collections::BTreeMap;

use ah_identity_provider::pem;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::AttestError;
use crate::node::cms::Signed;

const HINT: &str = "the payload of aws_iid is the identity document of an instance with its signatures; use an agent with \
                    the aws_iid attestor";

/// The payload, with the names of its JSON.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Shown {
    pub(super) document: String,
    pub(super) signature: String,
    pub(super) rsa2048: String,
}

/// What of the document counts here.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) account_id: String,
    pub(super) region: String,
    pub(super) availability_zone: String,
    pub(super) instance_id: String,
    pub(super) image_id: String,
}

/// The certificates of the regions, DER.
pub(super) struct Regions(BTreeMap<String, Vec<u8>>);

impl Regions {
    /// Reads certificates in PEM, each after a line with the names of its regions.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let mut regions = BTreeMap::new();
        for block in text.split("\n\n").filter(|block| !block.trim().is_empty()) {
            let (names, certificate) = block.trim().split_once('\n').unwrap_or((block, ""));
            let read = pem::certificates(certificate.as_bytes());
            let read = read.map_err(|error| format!("the certificate of {names}: {error}"))?;
            let [der] = read.as_slice() else {
                return Err(format!("{names}: there has to be one certificate"));
            };
            for name in names.split_whitespace() {
                regions.insert(name.to_owned(), der.to_vec());
            }
        }
        Ok(Self(regions))
    }
}

impl Document {
    /// What `payload` shows, if AWS signed it for the region that it names.
    pub(super) fn believed(payload: &[u8], regions: &Regions) -> Result<Self, AttestError> {
        let invalid = |text: String| AttestError::invalid(text, HINT);
        let shown: Shown = serde_json::from_slice(payload).map_err(|error| {
            invalid(format!("failed to unmarshal the attestation data: {error}"))
        })?;
        let document: Self = serde_json::from_str(&shown.document)
            .map_err(|error| invalid(format!("failed to unmarshal the IID: {error}")))?;
        if shown.rsa2048.is_empty() {
            return Err(AttestError::invalid(
                "instance identity cryptographic signature is required: there is none with RSA-2048",
                "RSA-1024 alone is not believed; use an agent that sends `rsa2048` as well",
            ));
        }
        let certificate = regions.0.get(&document.region).ok_or_else(|| {
            AttestError::internal(
                format!(
                    "failed to load the AWS CA certificate for region {:?}: unsupported region",
                    document.region
                ),
                "this version knows no certificate of that region; use a later one",
            )
        })?;
        let text: String = shown.rsa2048.split_whitespace().collect();
        let unreadable = |error: String| {
            invalid(format!(
                "failed to parse the instance identity cryptographic signature: {error}"
            ))
        };
        let signed = STANDARD.decode(text);
        let signed = signed.map_err(|error| unreadable(error.to_string()))?;
        let signed = Signed::parse(&signed).map_err(unreadable)?;
        let content = signed.verified(certificate).map_err(|error| {
            AttestError::refused(
                format!(
                    "failed verification of instance identity cryptographic signature: {error} (region {:?})",
                    document.region
                ),
                "the document was not made by AWS for this instance",
            )
        })?;
        if content != shown.document.as_bytes() {
            return Err(AttestError::refused(
                "instance identity document does not match the verified PKCS7 content",
                "the signature is of another document",
            ));
        }
        let named = [
            ("accountId", &document.account_id),
            ("instanceId", &document.instance_id),
        ];
        for (name, value) in named {
            if value.is_empty()
                || !value
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            {
                return Err(invalid(format!(
                    "the IID has no {name} that can be used: {value:?}"
                )));
            }
        }
        Ok(document)
    }
}
