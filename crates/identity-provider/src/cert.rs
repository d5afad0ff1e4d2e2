//! The facts of one certificate that people and policies ask for.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

/// The kind and size of a public key. In JSON it is the text that people read, such as `ECDSA P-256`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum KeyKind {
    /// RSA with this modulus size in bits.
    Rsa(usize),
    /// ECDSA on the NIST curve with this field size in bits (256, 384 or 521).
    Ecdsa(usize),
    /// Ed25519.
    Ed25519,
    /// Something else, by the object identifier of its algorithm or curve.
    Other(String),
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa(bits) => write!(f, "RSA-{bits}"),
            Self::Ecdsa(bits) => write!(f, "ECDSA P-{bits}"),
            Self::Ed25519 => f.write_str("Ed25519"),
            Self::Other(oid) => f.write_str(oid),
        }
    }
}

impl From<KeyKind> for String {
    fn from(kind: KeyKind) -> Self {
        kind.to_string()
    }
}

impl From<String> for KeyKind {
    fn from(text: String) -> Self {
        let size = |prefix| {
            let size: &str = text.strip_prefix(prefix)?;
            size.parse().ok()
        };
        if let Some(bits) = size("RSA-") {
            return Self::Rsa(bits);
        }
        if let Some(bits) = size("ECDSA P-") {
            return Self::Ecdsa(bits);
        }
        match text.as_str() {
            "Ed25519" => Self::Ed25519,
            _ => Self::Other(text),
        }
    }
}

/// Moments as RFC 3339, as in every other JSON of this product.
mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserializer, Serializer};
    use time::OffsetDateTime;

    pub(super) fn serialize<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        time::serde::rfc3339::serialize(&OffsetDateTime::from(*at), to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        time::serde::rfc3339::deserialize(from).map(SystemTime::from)
    }
}

/// A certificate that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an X.509 certificate: {0}")]
pub struct CertificateError(String);

impl CertificateError {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// What this product says about a certificate and decides by. Read once per certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFacts {
    /// Subject, RFC 4514 style.
    pub subject: String,
    /// Issuer, RFC 4514 style.
    pub issuer: String,
    /// Serial number, lower-case hex without separators.
    pub serial: String,
    /// SHA-256 of the DER, lower-case hex without separators.
    pub sha256: String,
    /// Start of validity (RFC 5280 §4.1.2.5).
    #[serde(with = "rfc3339")]
    pub not_before: SystemTime,
    /// End of validity (RFC 5280 §4.1.2.5).
    #[serde(with = "rfc3339")]
    pub not_after: SystemTime,
    /// URI subject alternative names, in order.
    pub uris: Vec<String>,
    /// DNS subject alternative names, in order, as printed in the certificate.
    pub dns: Vec<String>,
    /// IP subject alternative names, in order.
    pub ips: Vec<IpAddr>,
    /// Kind and size of the public key.
    pub key: KeyKind,
    /// `cA` of basicConstraints (RFC 5280 §4.2.1.9).
    pub is_ca: bool,
}

impl CertificateFacts {
    /// Reads the facts of a DER certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, cert) =
            X509Certificate::from_der(der).map_err(|e| CertificateError(e.to_string()))?;
        if !rest.is_empty() {
            return Err(CertificateError("bytes follow the certificate".into()));
        }
        Self::from_parsed(&cert, der)
    }

    /// Reads the facts of `cert`, which was parsed from the whole of `der`.
    pub fn from_parsed(cert: &X509Certificate<'_>, der: &[u8]) -> Result<Self, CertificateError> {
        let mut facts = Self {
            subject: cert.subject().to_string(),
            issuer: cert.issuer().to_string(),
            serial: hex(cert.raw_serial()),
            sha256: hex(&Sha256::digest(der)),
            not_before: system_time(cert.validity().not_before.timestamp()),
            not_after: system_time(cert.validity().not_after.timestamp()),
            uris: Vec::new(),
            dns: Vec::new(),
            ips: Vec::new(),
            key: key_kind(cert),
            is_ca: cert
                .basic_constraints()
                .ok()
                .flatten()
                .is_some_and(|bc| bc.value.ca),
        };
        let san = cert
            .subject_alternative_name()
            .map_err(|e| CertificateError(format!("subject alternative name: {e}")))?;
        for name in san.iter().flat_map(|san| &san.value.general_names) {
            match name {
                GeneralName::URI(uri) => facts.uris.push((*uri).to_owned()),
                GeneralName::DNSName(dns) => facts.dns.push((*dns).to_owned()),
                GeneralName::IPAddress(bytes) => facts.ips.extend(ip(bytes)),
                _ => {}
            }
        }
        // Kept for as long as a session lasts.
        facts.uris.shrink_to_fit();
        facts.dns.shrink_to_fit();
        facts.ips.shrink_to_fit();
        Ok(facts)
    }

    /// Every subject alternative name as people write them: `URI:…`, `DNS:…`, `IP:…`.
    pub fn sans(&self) -> Vec<String> {
        let uris = self.uris.iter().map(|uri| format!("URI:{uri}"));
        let dns = self.dns.iter().map(|dns| format!("DNS:{dns}"));
        let ips = self.ips.iter().map(|ip| format!("IP:{ip}"));
        uris.chain(dns).chain(ips).collect()
    }
}

fn key_kind(cert: &X509Certificate<'_>) -> KeyKind {
    match cert.public_key().parsed() {
        Ok(PublicKey::RSA(rsa)) => KeyKind::Rsa(rsa.key_size()),
        Ok(PublicKey::EC(_)) => ec_kind(cert),
        _ => {
            let oid = cert.public_key().algorithm.algorithm.to_id_string();
            if oid == "1.3.101.112" {
                KeyKind::Ed25519
            } else {
                KeyKind::Other(oid)
            }
        }
    }
}

/// The curve by its name (RFC 5480 §2.1.1.1): the size of a point does not tell one curve from another.
fn ec_kind(cert: &X509Certificate<'_>) -> KeyKind {
    let parameters = cert.public_key().algorithm.parameters.as_ref();
    let Some(curve) = parameters.and_then(|parameters| parameters.as_oid().ok()) else {
        return KeyKind::Other("EC without a named curve".into());
    };
    match curve.to_id_string().as_str() {
        "1.2.840.10045.3.1.7" => KeyKind::Ecdsa(256),
        "1.3.132.0.34" => KeyKind::Ecdsa(384),
        "1.3.132.0.35" => KeyKind::Ecdsa(521),
        other => KeyKind::Other(format!("EC curve {other}")),
    }
}

/// Dates before 1970 read as 1970: no certificate of use here is older.
fn system_time(timestamp: i64) -> SystemTime {
    let seconds = u64::try_from(timestamp).unwrap_or(0);
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// Lower-case hex without separators. On the path of every handshake, hence no formatting machinery.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0');
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 0xf));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_key_is_in_json_the_text_that_people_read() {
        // ST-1: what `status --json` says of a key.
        let kinds = [
            (KeyKind::Rsa(4096), "RSA-4096"),
            (KeyKind::Ecdsa(384), "ECDSA P-384"),
            (KeyKind::Ed25519, "Ed25519"),
            (KeyKind::Other("1.3.101.113".into()), "1.3.101.113"),
        ];
        for (kind, text) in kinds {
            assert_eq!(String::from(kind.clone()), text);
            assert_eq!(KeyKind::from(text.to_owned()), kind);
        }
    }
}
