//! Trust bundles outside: SPIFFE bundle documents, PEM, the wire and the datastore.
//!
//! The documents are those of *SPIFFE Trust Domain and Bundle* §4 and §5.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use spiffe::TrustDomain;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Invalid;
use crate::model::{Bundle, JwtKey, X509Authority};
use crate::public_key::{BadKey, Jwk, KeyKind, key_kind};
use crate::stored::common as stored;
use crate::types;

const X509_SVID: &str = "x509-svid";
const JWT_SVID: &str = "jwt-svid";

/// What a document is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// A SPIFFE bundle: all keys, sequence number and refresh hint.
    Spiffe,
    /// A SPIFFE bundle with CA certificates alone.
    SpiffeX509,
    /// All keys, as a plain JWK set: without what SPIFFE adds to one.
    Jwks,
    /// JWT keys alone, as a plain JWK set: what the Workload API's JWT bundles are (SV-79). As upstream, `use` is
    /// left out, which JWT libraries take for `sig` or nothing.
    JwtKeys,
}

#[derive(Serialize)]
struct Document {
    keys: Vec<Jwk>,
    #[serde(skip_serializing_if = "is_zero_sequence")]
    spiffe_sequence: u64,
    #[serde(skip_serializing_if = "is_zero_hint")]
    spiffe_refresh_hint: i64,
}

fn is_zero_sequence(sequence: &u64) -> bool {
    *sequence == 0
}

fn is_zero_hint(hint: &i64) -> bool {
    *hint == 0
}

/// A bundle as a JWK set. Fails when a key in it is of no kind that a JWK can hold.
pub fn to_document(bundle: &Bundle, contents: Contents) -> Result<String, Invalid> {
    let mut keys = Vec::with_capacity(bundle.x509.len().saturating_add(bundle.jwt.len()));
    if contents != Contents::JwtKeys {
        for (at, authority) in bundle.x509.iter().enumerate() {
            let (_, certificate) = X509Certificate::from_der(&authority.der)
                .map_err(|error| Invalid(format!("x509-svid entry {at}: {error}")))?;
            let mut jwk = Jwk::from_spki(certificate.public_key().raw)
                .map_err(|error| Invalid(format!("x509-svid entry {at}: {error}")))?;
            jwk.usage = (contents != Contents::Jwks).then(|| X509_SVID.into());
            jwk.x5c = Some(vec![STANDARD.encode(&authority.der)]);
            keys.push(jwk);
        }
    }
    if contents != Contents::SpiffeX509 {
        for (at, key) in bundle.jwt.iter().enumerate() {
            let mut jwk = Jwk::from_spki(&key.spki)
                .map_err(|error| Invalid(format!("jwt-svid entry {at}: {error}")))?;
            jwk.usage = (contents == Contents::Spiffe).then(|| JWT_SVID.into());
            jwk.kid = Some(key.id.clone());
            keys.push(jwk);
        }
    }
    let spiffe = matches!(contents, Contents::Spiffe | Contents::SpiffeX509);
    let document = Document {
        keys,
        spiffe_sequence: if spiffe { bundle.sequence } else { 0 },
        spiffe_refresh_hint: if spiffe { bundle.refresh_hint } else { 0 },
    };
    let mut out = Vec::with_capacity(2048);
    let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, indented);
    document
        .serialize(&mut serializer)
        .map_err(|error| Invalid(error.to_string()))?;
    String::from_utf8(out).map_err(|error| Invalid(error.to_string()))
}

#[derive(Deserialize)]
struct Read {
    // Elements of another shape are passed over like those of an unknown kind.
    keys: Vec<serde_json::Value>,
    #[serde(default)]
    spiffe_sequence: u64,
    #[serde(default)]
    spiffe_refresh_hint: i64,
}

impl Read {
    fn into_bundle(self, of: &TrustDomain) -> Result<Bundle, Invalid> {
        if self.spiffe_refresh_hint < 0 {
            return Err(Invalid("spiffe_refresh_hint is negative".into()));
        }
        let mut bundle = Bundle {
            trust_domain: of.clone(),
            x509: Vec::new(),
            jwt: Vec::new(),
            wit: Vec::new(),
            refresh_hint: self.spiffe_refresh_hint,
            sequence: self.spiffe_sequence,
        };
        for (at, key) in self.keys.into_iter().enumerate() {
            add(&mut bundle, at, key)?;
        }
        Ok(bundle)
    }
}

fn add(bundle: &mut Bundle, at: usize, key: serde_json::Value) -> Result<(), Invalid> {
    // Kind and use are read first: what they do not let through may have members of any shape.
    let member = |name| key.get(name).and_then(serde_json::Value::as_str);
    let usage = match member("use") {
        Some(X509_SVID) => X509_SVID,
        Some(JWT_SVID) => JWT_SVID,
        _ => return Ok(()),
    };
    if member("kty").is_none() {
        return Ok(());
    }
    let jwk: Jwk = serde_json::from_value(key)
        .map_err(|error| Invalid(format!("{usage} entry {at}: {error}")))?;
    if !jwk.has_known_type() {
        return Ok(());
    }
    if usage == X509_SVID {
        let Some(first) = jwk.x5c.as_deref().and_then(<[String]>::first) else {
            return Ok(());
        };
        let der = STANDARD
            .decode(first)
            .map_err(|error| Invalid(format!("{usage} entry {at}: x5c: {error}")))?;
        is_certificate(&der).map_err(|why| Invalid(format!("{usage} entry {at}: x5c: {why}")))?;
        bundle.x509.push(X509Authority {
            der,
            tainted: false,
        });
        return Ok(());
    }
    let spki = match jwk.to_spki() {
        Ok(spki) => spki,
        Err(BadKey::Unknown(_)) => return Ok(()),
        Err(error) => return Err(Invalid(format!("{usage} entry {at}: {error}"))),
    };
    let id = jwk
        .kid
        .filter(|kid| !kid.is_empty())
        .ok_or_else(|| Invalid(format!("missing key ID in jwt-svid entry {at}")))?;
    if bundle.jwt.iter().any(|other| other.id == id) {
        return Err(Invalid(format!(
            "{usage} entry {at}: duplicate key ID \"{id}\""
        )));
    }
    bundle.jwt.push(JwtKey {
        spki,
        id,
        expires_at: 0,
        tainted: false,
    });
    Ok(())
}

/// Reads a SPIFFE bundle document of a trust domain. An element without a known `kty` and `use`, and an `x509-svid`
/// element without `x5c`, is passed over; one that is known and damaged fails the whole document, so that a bundle
/// never silently lacks a key. No keys at all is a valid document: the domain is not to be trusted (SV-47).
pub fn from_document(of: &TrustDomain, document: &[u8]) -> Result<Bundle, Invalid> {
    let read: Read =
        serde_json::from_slice(document).map_err(|error| Invalid(error.to_string()))?;
    read.into_bundle(of)
}

/// Reads a SPIFFE bundle map. Refresh hints of its bundles are not taken over (SV-51).
pub fn map_from_document(document: &[u8]) -> Result<BTreeMap<TrustDomain, Bundle>, Invalid> {
    #[derive(Deserialize)]
    struct Map {
        trust_domains: Unique,
    }
    let map: Map = serde_json::from_slice(document).map_err(|error| Invalid(error.to_string()))?;
    let mut bundles = BTreeMap::new();
    for (name, mut read) in map.trust_domains.0 {
        let of = TrustDomain::new(&name)
            .map_err(|error| Invalid(format!("trust domain \"{name}\": {error}")))?;
        read.spiffe_refresh_hint = 0;
        let bundle = read
            .into_bundle(&of)
            .map_err(|error| Invalid(format!("trust domain \"{name}\": {error}")))?;
        // `spiffe://example.org` and `example.org` are the same domain under two names.
        if bundles.insert(of, bundle).is_some() {
            return Err(Invalid(format!("duplicate trust domain \"{name}\"")));
        }
    }
    Ok(bundles)
}

/// An object none of whose names may come twice.
struct Unique(BTreeMap<String, Read>);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Domains;
        impl<'de> Visitor<'de> for Domains {
            type Value = Unique;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of SPIFFE bundles by trust domain")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                let mut found = BTreeMap::new();
                while let Some((name, bundle)) = map.next_entry::<String, Read>()? {
                    if found.contains_key(&name) {
                        let text = format!("duplicate trust domain \"{name}\"");
                        return Err(serde::de::Error::custom(text));
                    }
                    found.insert(name, bundle);
                }
                Ok(Unique(found))
            }
        }
        deserializer.deserialize_map(Domains)
    }
}

/// The CA certificates as PEM, one block each.
pub fn to_pem(bundle: &Bundle) -> String {
    bundle.x509.iter().map(|ca| pem(&ca.der)).collect()
}

/// One certificate as PEM.
pub fn pem(der: &[u8]) -> String {
    pem_block("CERTIFICATE", der)
}

/// `der` as a PEM block of its own (RFC 7468). The text never grows beyond what it was made for: whoever wipes it wipes
/// all there is of a key.
pub fn pem_block(label: &str, der: &[u8]) -> String {
    /// Bytes of a line, which are 64 characters.
    const LINE: usize = 48;
    let lines = der.len().div_ceil(LINE);
    let room = lines.saturating_mul(LINE / 3 * 4 + 1);
    let mut out = String::with_capacity(room.saturating_add(label.len().saturating_mul(2) + 32));
    for part in ["-----BEGIN ", label, "-----\n"] {
        out.push_str(part);
    }
    for line in der.chunks(LINE) {
        STANDARD.encode_string(line, &mut out);
        out.push('\n');
    }
    for part in ["-----END ", label, "-----\n"] {
        out.push_str(part);
    }
    out
}

/// A bundle of the certificates in a PEM text, which holds one at least.
pub fn from_pem(of: &TrustDomain, text: &[u8]) -> Result<Bundle, Invalid> {
    let mut x509 = Vec::new();
    for block in CertificateDer::pem_slice_iter(text) {
        let der = block.map_err(|error| Invalid(format!("PEM: {error}")))?;
        is_certificate(&der)
            .map_err(|why| Invalid(format!("certificate {}: {why}", x509.len())))?;
        x509.push(X509Authority {
            der: der.to_vec(),
            tainted: false,
        });
    }
    if x509.is_empty() {
        return Err(Invalid("no PEM blocks of certificates".into()));
    }
    Ok(Bundle {
        trust_domain: of.clone(),
        x509,
        jwt: Vec::new(),
        wit: Vec::new(),
        refresh_hint: 0,
        sequence: 0,
    })
}

/// Every certificate and JWT key of the message is looked at.
pub fn bundle_from_wire(wire: &types::Bundle) -> Result<Bundle, Invalid> {
    let trust_domain = TrustDomain::new(&wire.trust_domain)
        .map_err(|error| Invalid(format!("invalid trust domain: {error}")))?;
    let mut x509 = Vec::with_capacity(wire.x509_authorities.len());
    for authority in &wire.x509_authorities {
        push_certificates(&mut x509, &authority.asn1, authority.tainted)
            .map_err(|why| Invalid(format!("unable to parse X.509 authority: {why}")))?;
    }
    let mut jwt = Vec::with_capacity(wire.jwt_authorities.len());
    for key in &wire.jwt_authorities {
        jwt.push(jwt_key_from_wire(key)?);
    }
    Ok(Bundle {
        trust_domain,
        x509,
        jwt,
        wit: wire.wit_authorities.iter().map(wit_key_from_wire).collect(),
        refresh_hint: wire.refresh_hint,
        sequence: wire.sequence_number,
    })
}

/// One JWT key of a message.
pub fn jwt_key_from_wire(key: &types::JwtKey) -> Result<JwtKey, Invalid> {
    is_jwt_key(&key.public_key, &key.key_id)
        .map_err(|why| Invalid(format!("unable to parse JWT authority: {why}")))?;
    Ok(JwtKey {
        spki: key.public_key.to_vec(),
        id: key.key_id.clone(),
        expires_at: key.expires_at,
        tainted: key.tainted,
    })
}

/// All fields.
pub fn bundle_to_wire(bundle: &Bundle) -> types::Bundle {
    types::Bundle {
        trust_domain: bundle.trust_domain.to_string(),
        x509_authorities: bundle
            .x509
            .iter()
            .map(|ca| types::X509Certificate {
                asn1: ca.der.clone().into(),
                tainted: ca.tainted,
            })
            .collect(),
        jwt_authorities: bundle.jwt.iter().map(jwt_key_to_wire).collect(),
        refresh_hint: bundle.refresh_hint,
        sequence_number: bundle.sequence,
        wit_authorities: bundle.wit.iter().map(wit_key_to_wire).collect(),
    }
}

fn wit_key_from_wire(key: &types::WitKey) -> JwtKey {
    JwtKey {
        spki: key.public_key.to_vec(),
        id: key.key_id.clone(),
        expires_at: key.expires_at,
        tainted: key.tainted,
    }
}

fn wit_key_to_wire(key: &JwtKey) -> types::WitKey {
    types::WitKey {
        public_key: key.spki.clone().into(),
        key_id: key.id.clone(),
        expires_at: key.expires_at,
        tainted: key.tainted,
    }
}

/// One JWT key.
pub fn jwt_key_to_wire(key: &JwtKey) -> types::JwtKey {
    types::JwtKey {
        public_key: key.spki.clone().into(),
        key_id: key.id.clone(),
        expires_at: key.expires_at,
        tainted: key.tainted,
    }
}

/// A bundle as the datastore keeps it; its domain is a SPIFFE ID there.
pub fn bundle_from_stored(bundle: &stored::Bundle) -> Result<Bundle, Invalid> {
    let trust_domain = TrustDomain::new(&bundle.trust_domain_id)
        .map_err(|error| Invalid(format!("invalid trust domain id: {error}")))?;
    let mut x509 = Vec::with_capacity(bundle.root_cas.len());
    for (at, ca) in bundle.root_cas.iter().enumerate() {
        push_certificates(&mut x509, &ca.der_bytes, ca.tainted_key)
            .map_err(|why| Invalid(format!("unable to parse root CA {at}: {why}")))?;
    }
    let mut jwt = Vec::with_capacity(bundle.jwt_signing_keys.len());
    for (at, key) in bundle.jwt_signing_keys.iter().enumerate() {
        is_jwt_key(&key.pkix_bytes, &key.kid)
            .map_err(|why| Invalid(format!("unable to parse JWT signing key {at}: {why}")))?;
        jwt.push(key_from_stored(key));
    }
    Ok(Bundle {
        trust_domain,
        x509,
        jwt,
        wit: bundle
            .wit_signing_keys
            .iter()
            .map(key_from_stored)
            .collect(),
        refresh_hint: bundle.refresh_hint,
        sequence: bundle.sequence_number,
    })
}

/// All fields.
pub fn bundle_to_stored(bundle: &Bundle) -> stored::Bundle {
    stored::Bundle {
        trust_domain_id: bundle.trust_domain.id_string(),
        root_cas: bundle
            .x509
            .iter()
            .map(|ca| stored::Certificate {
                der_bytes: ca.der.clone(),
                tainted_key: ca.tainted,
            })
            .collect(),
        jwt_signing_keys: bundle.jwt.iter().map(key_to_stored).collect(),
        refresh_hint: bundle.refresh_hint,
        sequence_number: bundle.sequence,
        wit_signing_keys: bundle.wit.iter().map(key_to_stored).collect(),
    }
}

/// One key of the datastore, as it is.
pub fn key_from_stored(key: &stored::PublicKey) -> JwtKey {
    JwtKey {
        spki: key.pkix_bytes.clone(),
        id: key.kid.clone(),
        expires_at: key.not_after,
        tainted: key.tainted_key,
    }
}

/// All fields.
pub fn key_to_stored(key: &JwtKey) -> stored::PublicKey {
    stored::PublicKey {
        pkix_bytes: key.spki.clone(),
        kid: key.id.clone(),
        not_after: key.expires_at,
        tainted_key: key.tainted,
    }
}

/// Several certificates may stand one after the other in what is called one authority.
fn push_certificates(
    to: &mut Vec<X509Authority>,
    mut der: &[u8],
    tainted: bool,
) -> Result<(), String> {
    if der.is_empty() {
        return Err("no certificate".into());
    }
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        let one = der.len().saturating_sub(rest.len());
        to.push(X509Authority {
            der: der.get(..one).unwrap_or_default().to_vec(),
            tainted,
        });
        der = rest;
    }
    Ok(())
}

/// Whether this is one certificate and nothing else. The error says what it is instead.
pub fn is_certificate(der: &[u8]) -> Result<(), String> {
    match X509Certificate::from_der(der) {
        Ok(([], _)) => Ok(()),
        Ok(_) => Err("trailing data after the certificate".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn is_jwt_key(spki: &[u8], id: &str) -> Result<(), String> {
    if id.is_empty() {
        return Err("missing key ID".into());
    }
    match key_kind(spki) {
        Ok(KeyKind::Ed25519) => Err("Ed25519 keys sign no JWT-SVIDs".into()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
