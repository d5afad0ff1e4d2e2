//! What this attestor reads in a certificate.

use std::collections::BTreeMap;

use ah_identity_provider::{CertificateFacts, KeyKind, hex};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use crate::node::binary::without_zeros;
use crate::node::x509pop::proof::PublicKey;

/// A certificate that was read whole.
pub(in crate::node) struct Certificate {
    pub(in crate::node) facts: CertificateFacts,
    pub(in crate::node) fingerprint: String,
    pub(in crate::node) subject: Name,
    pub(in crate::node) issuer: Name,
    /// Lower-case hex with an even number of digits.
    pub(super) serial_hex: String,
    pub(super) serial_decimal: String,
    /// None where it is of a kind that cannot be proven.
    pub(in crate::node) key: Option<PublicKey>,
    /// digitalSignature of the key usage (RFC 5280 §4.2.1.3), which has to be there.
    pub(super) may_sign: bool,
}

/// The parts of a distinguished name that are asked for; empty where there is none.
#[derive(Default)]
pub(in crate::node) struct Name {
    pub(in crate::node) common_name: String,
    pub(super) serial_number: String,
}

impl Name {
    /// Of several attributes of a kind the last counts, as in Go's `pkix.Name`.
    fn read(name: &X509Name<'_>) -> Self {
        let common_name = name.iter_common_name().last();
        let serial_number = name.iter_by_oid(&OID_X509_SERIALNUMBER).last();
        let text = |attribute: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            let text = attribute.and_then(|attribute| attribute.as_str().ok());
            text.unwrap_or_default().to_owned()
        };
        Self {
            common_name: text(common_name),
            serial_number: text(serial_number),
        }
    }
}

impl Certificate {
    /// The error is a text.
    pub(in crate::node) fn read(der: &[u8]) -> Result<Self, String> {
        // Refuses what follows the certificate as well.
        let facts = CertificateFacts::from_der(der).map_err(|error| error.to_string())?;
        let (_, cert) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        let usage = cert.key_usage().ok().flatten();
        Ok(Self {
            fingerprint: fingerprint(der),
            subject: Name::read(cert.subject()),
            issuer: Name::read(cert.issuer()),
            serial_hex: serial_hex(cert.raw_serial()),
            serial_decimal: cert.tbs_certificate.serial.to_string(),
            key: PublicKey::new(&facts.key, &cert.public_key().subject_public_key.data),
            may_sign: usage.is_some_and(|usage| usage.value.digital_signature()),
            facts,
        })
    }

    /// Size of an RSA key in bits; 0 for other keys.
    pub(super) fn rsa_bits(&self) -> usize {
        match self.facts.key {
            KeyKind::Rsa(bits) => bits,
            _ => 0,
        }
    }

    /// What URIs of the form `x509pop://<trust domain>/<key>/<value>` say, by key.
    pub(super) fn uri_selectors(&self, trust_domain: &str) -> BTreeMap<String, String> {
        let start = format!("x509pop://{trust_domain}/");
        let mut selectors = BTreeMap::new();
        for uri in &self.facts.uris {
            let Some(path) = uri.strip_prefix(&start) else {
                continue;
            };
            let path = path.split(['?', '#']).next().unwrap_or_default();
            let path = unescaped(path);
            let path = path.as_deref().map(|path| path.trim_matches('/'));
            match path.and_then(|path| path.split_once('/')) {
                Some((key, value)) => {
                    selectors.insert(key.to_owned(), value.to_owned());
                }
                None => tracing::warn!(
                    uri,
                    "no selector made of this URI SAN: it is not x509pop://<trust domain>/<key>/<value>"
                ),
            }
        }
        selectors
    }
}

/// SHA-1 of the DER in lower-case hex, which names agents and CAs here. It protects nothing.
pub(in crate::node) fn fingerprint(der: &[u8]) -> String {
    hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, der).as_ref())
}

/// Without the zero bytes that DER puts in front of it.
fn serial_hex(raw: &[u8]) -> String {
    match without_zeros(raw) {
        [] => "00".to_owned(),
        number => hex(number),
    }
}

/// Percent-encoding undone (RFC 3986 §2.1); none where it is malformed or no UTF-8.
fn unescaped(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_have_an_even_number_of_digits() {
        assert_eq!(serial_hex(&[0x0a, 0x1b]), "0a1b");
        assert_eq!(serial_hex(&[0x00, 0x8a]), "8a");
        assert_eq!(serial_hex(&[0x00]), "00");
        assert_eq!(serial_hex(&[]), "00");
    }

    #[test]
    fn percent_signs_come_with_two_digits() {
        assert_eq!(unescaped("a%2Fb%c3%a4").as_deref(), Some("a/bä"));
        for malformed in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(unescaped(malformed), None, "{malformed}");
        }
    }
}
