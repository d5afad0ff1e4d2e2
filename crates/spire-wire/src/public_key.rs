//! Public keys as bundles carry them: SubjectPublicKeyInfo (RFC 5280 §4.1.2.7) and JWK (RFC 7517, RFC 7518 §6).

use std::collections::BTreeMap;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as Parts;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::der::{self, Writer};

/// What kind of key a SubjectPublicKeyInfo holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA of 2048 to 8192 bits.
    Rsa,
    /// ECDSA on NIST P-256.
    EcP256,
    /// ECDSA on NIST P-384.
    EcP384,
    /// ECDSA on NIST P-521.
    EcP521,
    /// Ed25519, for certificates alone.
    Ed25519,
}

const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const ED25519_OID: &[u8] = &[0x2b, 0x65, 0x70];
const CURVES: [(KeyKind, &[u8], &str, usize); 3] = [
    (
        KeyKind::EcP256,
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        "P-256",
        32,
    ),
    (
        KeyKind::EcP384,
        &[0x2b, 0x81, 0x04, 0x00, 0x22],
        "P-384",
        48,
    ),
    (
        KeyKind::EcP521,
        &[0x2b, 0x81, 0x04, 0x00, 0x23],
        "P-521",
        66,
    ),
];

/// Bytes that are no public key of a kind that is served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Of another kind; who reads a bundle passes over it (SV-46).
    #[error("unknown key type{}", .0.as_deref().map(|name| format!(" \"{name}\"")).unwrap_or_default())]
    Unknown(Option<String>),
    /// Of a known kind, and damaged.
    #[error("{0}")]
    Malformed(&'static str),
}

/// The kind of a SubjectPublicKeyInfo. The key is whole and, on a curve, a point of it; nothing stands behind it.
pub fn key_kind(spki: &[u8]) -> Result<KeyKind, BadKey> {
    parse(spki).map(|(kind, _)| kind)
}

/// The SubjectPublicKeyInfo of an RSA key, of its numbers, big-endian.
///
/// # Errors
/// They are no key of 2048 to 8192 bits.
pub fn rsa_spki(modulus: &[u8], exponent: &[u8]) -> Result<Vec<u8>, BadKey> {
    let mut out = Writer::with_capacity(1100);
    out.sequence(|w| {
        w.sequence(|w| {
            w.primitive(der::OID, RSA_ENCRYPTION);
            w.null();
        });
        w.bit_string(|w| {
            w.sequence(|w| {
                w.unsigned(modulus);
                w.unsigned(exponent);
            });
        });
    });
    let spki = out.finish();
    key_kind(&spki)?;
    Ok(spki)
}

/// The SubjectPublicKeyInfo of an ECDSA key, of its uncompressed point (SEC 1 §2.3.3).
///
/// # Errors
/// The kind has no curve, or the point is not on it.
pub fn ec_spki(kind: KeyKind, point: &[u8]) -> Result<Vec<u8>, BadKey> {
    let oid = curve_oid(kind).ok_or(BadKey::Unknown(None))?;
    let mut out = Writer::with_capacity(180);
    out.sequence(|w| {
        w.sequence(|w| {
            w.primitive(der::OID, EC_PUBLIC_KEY);
            w.primitive(der::OID, oid);
        });
        w.bit_string(|w| w.raw(point));
    });
    let spki = out.finish();
    key_kind(&spki)?;
    Ok(spki)
}

/// The content of the OBJECT IDENTIFIER of a kind's curve; `None` where there is none.
pub fn curve_oid(kind: KeyKind) -> Option<&'static [u8]> {
    let found = CURVES.iter().find(|(curve, ..)| *curve == kind);
    found.map(|(_, oid, ..)| *oid)
}

fn parse(spki: &[u8]) -> Result<(KeyKind, SubjectPublicKeyInfo<'_>), BadKey> {
    let (rest, info) = SubjectPublicKeyInfo::from_der(spki)
        .map_err(|_| BadKey::Malformed("not a public key in DER"))?;
    if !rest.is_empty() {
        return Err(BadKey::Malformed("trailing data after the public key"));
    }
    let kind = match info.algorithm.algorithm.as_bytes() {
        RSA_ENCRYPTION => KeyKind::Rsa,
        ED25519_OID => KeyKind::Ed25519,
        EC_PUBLIC_KEY => info
            .algorithm
            .parameters
            .as_ref()
            .and_then(|curve| CURVES.iter().find(|(_, oid, ..)| *oid == curve.data))
            .map(|(kind, ..)| *kind)
            .ok_or(BadKey::Unknown(None))?,
        _ => return Err(BadKey::Unknown(None)),
    };
    let algorithm: &'static dyn VerificationAlgorithm = match kind {
        KeyKind::Rsa => &RSA_PKCS1_2048_8192_SHA256,
        KeyKind::EcP256 => &ECDSA_P256_SHA256_FIXED,
        KeyKind::EcP384 => &ECDSA_P384_SHA384_FIXED,
        KeyKind::EcP521 => &ECDSA_P521_SHA512_FIXED,
        KeyKind::Ed25519 => &ED25519,
    };
    ParsedPublicKey::new(algorithm, spki)
        .map_err(|_| BadKey::Malformed("the public key is not valid"))?;
    Ok((kind, info))
}

/// The public keys of a JWK set (RFC 7517 §5) by `kid`, each as SubjectPublicKeyInfo. Keys without a `kid` and kinds that
/// are not served are passed over.
pub fn spki_of_jwks(set: &serde_json::Value) -> BTreeMap<String, Vec<u8>> {
    let keys = set.get("keys").and_then(serde_json::Value::as_array);
    let keys = keys.into_iter().flatten();
    let keys = keys.filter_map(|key| Jwk::deserialize(key).ok());
    keys.filter_map(|key| {
        let spki = key.to_spki().ok()?;
        Some((key.kid?, spki))
    })
    .collect()
}

/// A JWK set for clients of OpenID Connect (OpenID Connect Core §10.1): each key, of its `kid` and its
/// SubjectPublicKeyInfo, with the `alg` that a JWT-SVID has of it, and with `use` where `signing` asks for it.
///
/// # Errors
/// A key is of no kind that a JWK can hold.
pub fn openid_jwks<'a>(
    keys: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    signing: bool,
) -> Result<String, BadKey> {
    #[derive(Serialize)]
    struct Set {
        keys: Vec<Jwk>,
    }
    let keys = keys.into_iter().map(|(kid, spki)| {
        let algorithm = match key_kind(spki)? {
            KeyKind::Rsa => Some("RS256"),
            KeyKind::EcP256 => Some("ES256"),
            KeyKind::EcP384 => Some("ES384"),
            KeyKind::EcP521 | KeyKind::Ed25519 => None,
        };
        let mut jwk = Jwk::new(spki, algorithm)?;
        jwk.usage = signing.then(|| "sig".into());
        jwk.kid = Some(kid.into());
        Ok(jwk)
    });
    let keys = keys.collect::<Result<_, _>>()?;
    serde_json::to_string_pretty(&Set { keys }).map_err(|_| BadKey::Malformed("no JSON"))
}

/// A JSON Web Key, with what a SPIFFE bundle uses of it. Members stand in the order in which upstream writes them.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Jwk {
    #[serde(rename = "use", default, skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kty: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    /// Written, and never read: a bundle's keys are judged by their kind.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    e: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) x5c: Option<Vec<String>>,
}

impl Jwk {
    /// A SubjectPublicKeyInfo, for signatures by `algorithm` alone where one is named.
    pub fn new(spki: &[u8], algorithm: Option<&str>) -> Result<Self, BadKey> {
        Ok(Self {
            alg: algorithm.map(Into::into),
            ..Self::from_spki(spki)?
        })
    }

    /// The key alone; `use`, `kid` and `x5c` are for the caller.
    pub(crate) fn from_spki(spki: &[u8]) -> Result<Self, BadKey> {
        let (kind, info) = parse(spki)?;
        let mut jwk = Self::default();
        let bits = info.subject_public_key.data.as_ref();
        match kind {
            KeyKind::Rsa => {
                let Ok(Parts::RSA(rsa)) = info.parsed() else {
                    return Err(BadKey::Malformed("not an RSA public key"));
                };
                jwk.kty = Some("RSA".into());
                jwk.n = Some(encode(unsigned(rsa.modulus)));
                jwk.e = Some(encode(unsigned(rsa.exponent)));
            }
            KeyKind::Ed25519 => {
                jwk.kty = Some("OKP".into());
                jwk.crv = Some("Ed25519".into());
                jwk.x = Some(encode(bits));
            }
            KeyKind::EcP256 | KeyKind::EcP384 | KeyKind::EcP521 => {
                let (_, _, name, size) = CURVES
                    .iter()
                    .find(|(curve, ..)| *curve == kind)
                    .ok_or(BadKey::Unknown(None))?;
                let (x, y) = bits
                    .strip_prefix(&[4])
                    .filter(|point| point.len() == size.saturating_mul(2))
                    .and_then(|point| point.split_at_checked(*size))
                    .ok_or(BadKey::Malformed("not an uncompressed point"))?;
                jwk.kty = Some("EC".into());
                jwk.crv = Some((*name).into());
                jwk.x = Some(encode(x));
                jwk.y = Some(encode(y));
            }
        }
        Ok(jwk)
    }

    /// Whether `kty` is one that is known (SV-46, SV-48).
    pub(crate) fn has_known_type(&self) -> bool {
        matches!(self.kty.as_deref(), Some("RSA" | "EC" | "OKP"))
    }

    /// SubjectPublicKeyInfo, DER.
    pub(crate) fn to_spki(&self) -> Result<Vec<u8>, BadKey> {
        match self.kty.as_deref() {
            Some("RSA") => {
                let n = decode(self.n.as_deref(), "n is not a base64url number")?;
                let e = decode(self.e.as_deref(), "e is not a base64url number")?;
                rsa_spki(&n, &e)
            }
            Some("EC") => {
                let (kind, _, _, size) = CURVES
                    .iter()
                    .find(|(_, _, name, _)| self.crv.as_deref() == Some(name))
                    .ok_or_else(|| BadKey::Unknown(self.crv.clone()))?;
                let x = decode(self.x.as_deref(), "x is not a base64url number")?;
                let y = decode(self.y.as_deref(), "y is not a base64url number")?;
                if x.len() != *size || y.len() != *size {
                    return Err(BadKey::Malformed("x or y has the wrong length"));
                }
                ec_spki(*kind, &[&[4], x.as_slice(), y.as_slice()].concat())
            }
            other => Err(BadKey::Unknown(other.map(Into::into))),
        }
    }
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decode(text: Option<&str>, fault: &'static str) -> Result<Vec<u8>, BadKey> {
    text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
        .filter(|bytes| !bytes.is_empty())
        .ok_or(BadKey::Malformed(fault))
}

/// DER puts a zero before a number whose first bit is set; JWK does not.
fn unsigned(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}
