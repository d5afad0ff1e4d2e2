//! The authorities: a key each, and what it stands for.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_spire_wire::model::{Bundle, JwtKey};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use super::name::Subject;
use crate::keys::SigningKey;

/// A CA certificate with its key.
#[derive(Debug)]
pub struct X509Authority {
    pub(super) key: Arc<dyn SigningKey>,
    pub(super) certificate: Certificate,
    /// DER. Empty for a CA that signs itself; else this CA's certificate and its issuers up to the bundle.
    pub(super) upstream_chain: Vec<Vec<u8>>,
}

impl X509Authority {
    /// Its name in the journal and in the localauthority API: the subject key identifier in hexadecimal.
    pub fn id(&self) -> String {
        hex(&self.certificate.key_id)
    }

    /// Of the CA that signed it; empty when it signed itself.
    pub fn upstream_id(&self) -> String {
        hex(&self.certificate.issuer_key_id)
    }

    /// Its certificate, DER.
    pub fn der(&self) -> &[u8] {
        &self.certificate.der
    }

    /// Its end.
    pub fn not_after(&self) -> SystemTime {
        self.certificate.not_after
    }
}

/// What is signed with a key alone, without a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// JWT-SVIDs
    Jwt,
    /// WIT-SVIDs
    Wit,
}

impl Token {
    /// What people call its keys.
    pub(super) fn key_name(self) -> &'static str {
        match self {
            Self::Jwt => "JWT key",
            Self::Wit => "WIT key",
        }
    }

    /// Its keys in a bundle.
    pub(super) fn keys(self, bundle: &mut Bundle) -> &mut Vec<JwtKey> {
        match self {
            Self::Jwt => &mut bundle.jwt,
            Self::Wit => &mut bundle.wit,
        }
    }
}

/// A key that signs JWT-SVIDs or WIT-SVIDs.
#[derive(Debug)]
pub struct TokenAuthority {
    pub(super) key: Arc<dyn SigningKey>,
    /// `kid`
    pub(super) id: String,
    /// Its end, in whole seconds.
    pub(super) not_after: SystemTime,
}

/// What is read once of a CA certificate.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) der: Vec<u8>,
    /// Its subject, DER.
    pub(super) name: Vec<u8>,
    pub(super) subject: Subject,
    pub(super) spki: Vec<u8>,
    pub(super) key_id: Vec<u8>,
    pub(super) issuer_key_id: Vec<u8>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Certificate {
    pub(super) fn read(der: Vec<u8>) -> Result<Self, String> {
        let (rest, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err("trailing data after the certificate".into());
        }
        let (mut key_id, mut issuer_key_id) = (Vec::new(), Vec::new());
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => key_id = id.0.to_vec(),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    issuer_key_id = id
                        .key_identifier
                        .as_ref()
                        .map(|id| id.0.to_vec())
                        .unwrap_or_default();
                }
                _ => {}
            }
        }
        Ok(Self {
            name: parsed.subject().as_raw().to_vec(),
            subject: Subject::read(parsed.subject()),
            spki: parsed.public_key().raw.to_vec(),
            key_id,
            issuer_key_id,
            not_before: system_time(parsed.validity().not_before),
            not_after: system_time(parsed.validity().not_after),
            der,
        })
    }
}

pub(super) fn system_time(at: ASN1Time) -> SystemTime {
    from_unix(at.timestamp())
}

/// Dates before 1970 are 1970.
pub(super) fn from_unix(seconds: i64) -> SystemTime {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    SystemTime::UNIX_EPOCH
        .checked_add(since)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Whole seconds since 1970.
pub(super) fn to_unix(at: SystemTime) -> i64 {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
