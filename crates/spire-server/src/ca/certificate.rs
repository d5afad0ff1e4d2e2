//! Certificates, written straight to DER.
//!
//! The profile is that of X509-SVID §2 to §4 and of upstream: the same extensions in the same order, with the same
//! critical flags.

use std::time::SystemTime;

use ah_spire_wire::der::{self, Writer};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use time::OffsetDateTime;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::compose::X509Attributes;
use crate::keys::{KeyError, KeyType, SigningKey};

const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const SUBJECT_KEY_ID: &[u8] = &[0x55, 0x1d, 0x0e];
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const CERTIFICATE_POLICIES: &[u8] = &[0x55, 0x1d, 0x20];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e];
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ECDSA_WITH_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
const RSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];

/// What a certificate is to say.
pub(super) struct Template<'a> {
    pub(super) serial: u128,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    pub(super) spki: &'a [u8],
    pub(super) uri: &'a str,
    pub(super) attributes: &'a X509Attributes,
    pub(super) is_ca: bool,
}

/// Who signs it.
pub(super) struct Issuer<'a> {
    /// Its subject, DER; `None` for a certificate that signs itself.
    pub(super) name: Option<&'a [u8]>,
    /// Its subject key identifier.
    pub(super) key_id: Option<&'a [u8]>,
    pub(super) key: &'a dyn SigningKey,
}

impl Template<'_> {
    /// The certificate, DER.
    pub(super) fn sign(&self, issuer: &Issuer<'_>) -> Result<Vec<u8>, KeyError> {
        let key_id = subject_key_id(self.spki)?;
        let mut tbs = Writer::with_capacity(1024);
        tbs.sequence(|w| {
            w.nested(der::CONTEXT_CONSTRUCTED, |w| w.unsigned(&[2]));
            w.unsigned(&self.serial.to_be_bytes());
            signature_algorithm(w, issuer.key.key_type());
            match issuer.name {
                Some(name) => w.raw(name),
                None => self.attributes.subject.write(w),
            }
            w.sequence(|w| {
                date(w, self.not_before);
                date(w, self.not_after);
            });
            self.attributes.subject.write(w);
            w.raw(self.spki);
            w.nested(der::CONTEXT_CONSTRUCTED | 3, |w| {
                w.sequence(|w| self.extensions(w, &key_id, issuer.key_id));
            });
        });
        signed(tbs.as_slice(), issuer.key)
    }

    fn extensions(&self, w: &mut Writer, key_id: &[u8], issuer_key_id: Option<&[u8]>) {
        extension(w, KEY_USAGE, true, |w| {
            // Unused bits, then: keyCertSign and cRLSign, or digitalSignature, keyEncipherment and keyAgreement.
            let bits: &[u8] = if self.is_ca { &[1, 0x06] } else { &[3, 0xa8] };
            w.primitive(der::BIT_STRING, bits);
        });
        if !self.is_ca {
            extension(w, EXTENDED_KEY_USAGE, false, |w| {
                w.sequence(|w| {
                    w.primitive(der::OID, SERVER_AUTH);
                    w.primitive(der::OID, CLIENT_AUTH);
                });
            });
        }
        extension(w, BASIC_CONSTRAINTS, true, |w| {
            w.sequence(|w| {
                if self.is_ca {
                    w.boolean(true);
                }
            });
        });
        extension(w, SUBJECT_KEY_ID, false, |w| {
            w.primitive(der::OCTET_STRING, key_id);
        });
        if let Some(issuer_key_id) = issuer_key_id {
            extension(w, AUTHORITY_KEY_ID, false, |w| {
                w.sequence(|w| w.primitive(der::CONTEXT, issuer_key_id));
            });
        }
        alternative_names(w, &self.attributes.dns_names, self.uri);
        if !self.attributes.policies.is_empty() {
            extension(w, CERTIFICATE_POLICIES, false, |w| {
                w.sequence(|w| {
                    for policy in &self.attributes.policies {
                        w.sequence(|w| w.primitive(der::OID, policy.as_der()));
                    }
                });
            });
        }
        more_extensions(w, self.attributes);
    }
}

/// Whether every certificate of one kind or another has this extension from the server itself.
pub(super) fn is_own_extension(id: &[u8]) -> bool {
    [
        KEY_USAGE,
        EXTENDED_KEY_USAGE,
        BASIC_CONSTRAINTS,
        SUBJECT_KEY_ID,
        AUTHORITY_KEY_ID,
        SUBJECT_ALT_NAME,
        CERTIFICATE_POLICIES,
    ]
    .contains(&id)
}

/// A PKCS #10 request (RFC 2986) for a CA certificate. It has no place for policies, which whoever signs it adds.
pub(super) fn request(
    attributes: &X509Attributes,
    uri: &str,
    key: &dyn SigningKey,
) -> Result<Vec<u8>, KeyError> {
    let mut info = Writer::with_capacity(512);
    info.sequence(|w| {
        w.unsigned(&[0]);
        attributes.subject.write(w);
        w.raw(key.spki());
        w.nested(der::CONTEXT_CONSTRUCTED, |w| {
            w.sequence(|w| {
                w.primitive(der::OID, EXTENSION_REQUEST);
                w.nested(der::SET, |w| {
                    w.sequence(|w| {
                        alternative_names(w, &[], uri);
                        more_extensions(w, attributes);
                    });
                });
            });
        });
    });
    signed(info.as_slice(), key)
}

fn signed(content: &[u8], key: &dyn SigningKey) -> Result<Vec<u8>, KeyError> {
    let signature = key.sign(content)?;
    let room = content.len().saturating_add(signature.len());
    let mut out = Writer::with_capacity(room.saturating_add(32));
    out.sequence(|w| {
        w.raw(content);
        signature_algorithm(w, key.key_type());
        w.bit_string(|w| w.raw(&signature));
    });
    Ok(out.finish())
}

/// RFC 5280 §4.2.1.2, method 1: the SHA-1 of the key's bits.
pub(super) fn subject_key_id(spki: &[u8]) -> Result<Vec<u8>, KeyError> {
    let (_, info) = SubjectPublicKeyInfo::from_der(spki)
        .map_err(|_| KeyError::Failed("not a public key".into()))?;
    let hash = digest(
        &SHA1_FOR_LEGACY_USE_ONLY,
        info.subject_public_key.data.as_ref(),
    );
    Ok(hash.as_ref().to_vec())
}

fn signature_algorithm(w: &mut Writer, kind: KeyType) {
    w.sequence(|w| match kind {
        KeyType::EcP256 => w.primitive(der::OID, ECDSA_WITH_SHA256),
        KeyType::EcP384 => w.primitive(der::OID, ECDSA_WITH_SHA384),
        KeyType::Rsa2048 | KeyType::Rsa4096 => {
            w.primitive(der::OID, RSA_WITH_SHA256);
            w.null();
        }
    });
}

fn extension(w: &mut Writer, id: &[u8], critical: bool, value: impl FnOnce(&mut Writer)) {
    w.sequence(|w| {
        w.primitive(der::OID, id);
        if critical {
            w.boolean(true);
        }
        w.nested(der::OCTET_STRING, value);
    });
}

fn alternative_names(w: &mut Writer, dns_names: &[String], uri: &str) {
    extension(w, SUBJECT_ALT_NAME, false, |w| {
        w.sequence(|w| {
            for name in dns_names {
                w.primitive(der::CONTEXT | 2, name.as_bytes());
            }
            w.primitive(der::CONTEXT | 6, uri.as_bytes());
        });
    });
}

fn more_extensions(w: &mut Writer, attributes: &X509Attributes) {
    for more in &attributes.extensions {
        extension(w, more.id.as_der(), more.critical, |w| w.raw(&more.value));
    }
}

/// UTCTime until 2049, GeneralizedTime after that (RFC 5280 §4.1.2.5).
fn date(w: &mut Writer, at: SystemTime) {
    let at = OffsetDateTime::from(at);
    let (month, day) = (u8::from(at.month()), at.day());
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    let rest = format!("{month:02}{day:02}{hour:02}{minute:02}{second:02}Z");
    let year = at.year();
    if (1950..2050).contains(&year) {
        let text = format!("{:02}{rest}", year.rem_euclid(100));
        w.primitive(0x17, text.as_bytes());
    } else {
        w.primitive(0x18, format!("{year:04}{rest}").as_bytes());
    }
}
