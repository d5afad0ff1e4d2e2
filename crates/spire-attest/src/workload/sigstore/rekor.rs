//! Entries of Rekor, sigstore's transparency log, as signatures carry them along.

use std::collections::HashMap;

use ah_identity_provider::hex;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::key::{LogKey, sha256};

/// The annotation `dev.sigstore.cosign/bundle`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Bundle {
    /// Base64.
    pub(super) signed_entry_timestamp: String,
    pub(super) payload: Payload,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Payload {
    /// The entry, in base64.
    body: String,
    /// Seconds since 1970.
    pub(super) integrated_time: i64,
    pub(super) log_index: i64,
    #[serde(rename = "logID")]
    pub(super) log_id: String,
}

/// What an entry is of.
pub(super) struct Signed<'a> {
    /// The bytes that are signed, or of an attestation the envelope.
    pub(super) payload: &'a [u8],
    /// In base64; `None` of an attestation, which has its own.
    pub(super) signature: Option<&'a str>,
    /// The signer's, in DER.
    pub(super) certificate: &'a [u8],
}

impl Bundle {
    pub(super) fn read(json: &str) -> Result<Self, String> {
        serde_json::from_str(json).map_err(|error| format!("unmarshaling bundle: {error}"))
    }

    /// When the log took the entry in, if one of `keys` says that it did and the entry is of `signed`.
    pub(super) fn verify(
        &self,
        signed: &Signed<'_>,
        keys: &HashMap<[u8; 32], LogKey>,
    ) -> Result<OffsetDateTime, String> {
        let Payload {
            body,
            integrated_time,
            log_index,
            log_id,
        } = &self.payload;
        let json = STANDARD
            .decode(body)
            .map_err(|_| "the body of the bundle is not base64")?;
        Entry::read(&json)?.is_of(signed)?;

        let time = OffsetDateTime::from_unix_timestamp(*integrated_time)
            .map_err(|_| "the integrated time of the bundle is none")?;
        let key = keys
            .iter()
            .find(|(id, _)| hex(id.as_slice()) == *log_id)
            .map(|(_, key)| key)
            .ok_or("rekor log public key not found for payload")?;
        if !key.life.includes(time) {
            return Err(format!("the log's key was not in use at {time}"));
        }
        // RFC 8785; body and logID are base64 and hexadecimal by now.
        let canonical = format!(
            "{{\"body\":\"{body}\",\"integratedTime\":{integrated_time},\"logID\":\"{log_id}\",\"logIndex\":{log_index}}}"
        );
        let timestamp = STANDARD
            .decode(&self.signed_entry_timestamp)
            .map_err(|_| "the signed entry timestamp is not base64")?;
        if !key.key.made(&timestamp, canonical.as_bytes()) {
            return Err("unable to verify SET: it is not of the log's key".into());
        }
        Ok(time)
    }
}

/// What counts of an entry: whose it is, of what.
struct Entry {
    /// SHA-256, hexadecimal.
    hash: String,
    /// In base64.
    signature: Option<String>,
    /// PEM in base64.
    certificate: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Typed {
    kind: String,
    api_version: String,
    spec: Value,
}

impl Entry {
    fn read(json: &[u8]) -> Result<Self, String> {
        let bad = |error: serde_json::Error| format!("the entry in the bundle: {error}");
        let typed: Typed = serde_json::from_slice(json).map_err(bad)?;
        let text = |pointer: &str| {
            let value = typed.spec.pointer(pointer).and_then(Value::as_str);
            let value = value.map(ToOwned::to_owned);
            value.ok_or_else(|| format!("the entry in the bundle has no {pointer}"))
        };
        let hash = |at: &str| {
            let algorithm = text(&format!("{at}/algorithm"))?;
            if algorithm != "sha256" {
                return Err(format!("unexpected algorithm: {algorithm:?}"));
            }
            text(&format!("{at}/value"))
        };
        Ok(match (typed.kind.as_str(), typed.api_version.as_str()) {
            ("hashedrekord" | "rekord", "0.0.1") => Self {
                hash: hash("/data/hash")?,
                signature: Some(text("/signature/content")?),
                certificate: text("/signature/publicKey/content")?,
            },
            ("intoto", "0.0.1") => Self {
                hash: hash("/content/hash")?,
                signature: None,
                certificate: text("/publicKey")?,
            },
            ("intoto", "0.0.2") => Self {
                hash: hash("/content/hash")?,
                signature: None,
                certificate: text("/content/envelope/signatures/0/publicKey")?,
            },
            ("dsse", "0.0.1") => Self {
                hash: hash("/envelopeHash")?,
                signature: None,
                certificate: text("/signatures/0/verifier")?,
            },
            (kind, version) => {
                return Err(format!("unsupported type of entry: {kind} {version}"));
            }
        })
    }

    fn is_of(&self, signed: &Signed<'_>) -> Result<(), String> {
        if let Some(signature) = signed.signature {
            // An entry that says nothing of the signature is of no signature.
            if self.signature.as_deref() != Some(signature) {
                return Err("signature in bundle does not match signature being verified".into());
            }
        }
        let pem = STANDARD.decode(&self.certificate);
        let pem = pem.map_err(|_| "the certificate in the bundle is not base64")?;
        let certificates = ah_identity_provider::pem::certificates(&pem);
        let certificates =
            certificates.map_err(|error| format!("the certificate in the bundle: {error}"))?;
        match certificates.as_slice() {
            [one] if one.as_ref() == signed.certificate => {}
            _ => return Err("the bundle is of another certificate".into()),
        }
        let payload = hex(&sha256(signed.payload));
        if self.hash != payload {
            return Err(format!(
                "matching bundle to payload: bundle={:?}, payload={payload:?}",
                self.hash
            ));
        }
        Ok(())
    }
}
