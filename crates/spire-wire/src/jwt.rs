//! JWT-SVIDs as a validator sees them (JWT-SVID §2 to §5).

use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};
use spiffe::{SpiffeId, TrustDomain};

use crate::model::Bundle;
use crate::public_key::{KeyKind, key_kind};

/// How far the clocks of issuer and validator may be apart. As upstream.
pub const LEEWAY: Duration = Duration::from_secs(60);

/// The largest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// What a JWT-SVID says, once it is believed.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// `sub`
    pub spiffe_id: SpiffeId,
    /// `aud`
    pub audience: Vec<String>,
    /// `exp`
    pub expires_at: SystemTime,
    /// All claims, those above among them.
    pub all: Map<String, Value>,
}

impl Claims {
    /// All claims as the Workload API answers them.
    pub fn to_struct(&self) -> prost_types::Struct {
        object(&self.all)
    }
}

fn object(map: &Map<String, Value>) -> prost_types::Struct {
    prost_types::Struct {
        fields: map
            .iter()
            .map(|(name, member)| (name.clone(), value(member)))
            .collect(),
    }
}

fn value(json: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match json {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(*truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => Kind::ListValue(prost_types::ListValue {
            values: items.iter().map(value).collect(),
        }),
        Value::Object(members) => Kind::StructValue(object(members)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// Why a token is not believed. The texts are those that clients of upstream know, where upstream has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJwtSvid {
    /// Not a JWT in compact form, or with a header that a JWT-SVID may not have.
    #[error("unable to parse JWT token: {0}")]
    Malformed(String),
    /// No `kid`.
    #[error("token header missing key id")]
    NoKeyId,
    /// No `sub`.
    #[error("token missing subject claim")]
    NoSubject,
    /// No `exp`.
    #[error("token missing exp claim")]
    NoExpiry,
    /// `sub` is no SPIFFE ID.
    #[error("token has in invalid subject claim: {0}")]
    Subject(String),
    /// No bundle of the subject's trust domain, or one without JWT keys.
    #[error("no keys found for trust domain \"{0}\"")]
    UnknownDomain(TrustDomain),
    /// The bundle has no such key.
    #[error("public key \"{id}\" not found in trust domain \"{of}\"")]
    UnknownKey {
        /// `kid` of the token.
        id: String,
        /// Of the subject.
        of: TrustDomain,
    },
    /// The key does not verify it.
    #[error("token signature is not valid: {0}")]
    Signature(&'static str),
    /// `exp` has passed.
    #[error("token has expired")]
    Expired,
    /// `nbf` or `iat` is yet to come.
    #[error("token not valid yet ({0} is in the future)")]
    NotYet(&'static str),
    /// The audience that was asked for is not in `aud`.
    #[error("expected audience in {expected:?} (audience={found:?})")]
    Audience {
        /// What was asked for.
        expected: Vec<String>,
        /// `aud`
        found: Vec<String>,
    },
}

// A header with any other member is refused (SV-58).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
}

/// Believes `token` for `audience` if a JWT key of its subject's own trust domain signed it (SV-68). `bundle_of`
/// finds the bundle of a trust domain.
pub fn validate_jwt_svid<'a>(
    token: &str,
    audience: &str,
    bundle_of: impl FnOnce(&TrustDomain) -> Option<&'a Bundle>,
    now: SystemTime,
) -> Result<Claims, InvalidJwtSvid> {
    let Compact {
        signed,
        header,
        payload,
        signature,
    } = Compact::split(token)?;
    let header: Header = serde_json::from_slice(&part(header, "header")?)
        .map_err(|error| malformed(&format!("header: {error}")))?;
    let algorithm = Algorithm::named(&header.alg).ok_or_else(|| {
        malformed(&format!(
            "unexpected signature algorithm \"{}\"",
            header.alg
        ))
    })?;
    if let Some(typ) = &header.typ
        && typ != "JWT"
        && typ != "JOSE"
    {
        return Err(malformed(&format!("unexpected token type \"{typ}\"")));
    }
    let kid = header
        .kid
        .filter(|kid| !kid.is_empty())
        .ok_or(InvalidJwtSvid::NoKeyId)?;
    let payload = part(payload, "payload")?;
    let all: Map<String, Value> = serde_json::from_slice(&payload)
        .map_err(|error| malformed(&format!("payload: {error}")))?;
    let claims = claims(all)?;

    let of = claims.spiffe_id.trust_domain();
    let bundle = bundle_of(of)
        .filter(|bundle| bundle.trust_domain == *of && !bundle.jwt.is_empty())
        .ok_or_else(|| InvalidJwtSvid::UnknownDomain(of.clone()))?;
    let key =
        bundle
            .jwt
            .iter()
            .find(|key| key.id == kid)
            .ok_or_else(|| InvalidJwtSvid::UnknownKey {
                id: kid,
                of: of.clone(),
            })?;
    let signature = part(signature, "signature")?;
    algorithm.verify(&key.spki, signed.as_bytes(), &signature)?;

    if claims
        .expires_at
        .checked_add(LEEWAY)
        .is_some_and(|end| now > end)
    {
        return Err(InvalidJwtSvid::Expired);
    }
    for name in ["nbf", "iat"] {
        if let Some(at) = date(&claims.all, name)?
            && now.checked_add(LEEWAY).is_some_and(|soon| at > soon)
        {
            return Err(InvalidJwtSvid::NotYet(name));
        }
    }
    if !claims.audience.iter().any(|found| found == audience) {
        return Err(InvalidJwtSvid::Audience {
            expected: vec![audience.to_owned()],
            found: claims.audience,
        });
    }
    Ok(claims)
}

/// A JWT that is no JWT-SVID, such as the token of a platform, and that is not believed yet.
#[derive(Clone, Debug)]
pub struct UnverifiedJwt<'a> {
    /// `kid`
    pub key_id: Option<String>,
    /// `alg`
    pub algorithm: String,
    signed: &'a str,
    signature: Vec<u8>,
    claims: Map<String, Value>,
}

impl<'a> UnverifiedJwt<'a> {
    /// Reads a token in compact form (RFC 7519 §3).
    pub fn parse(token: &'a str) -> Result<Self, InvalidJwtSvid> {
        #[derive(Deserialize)]
        struct Header {
            alg: String,
            kid: Option<String>,
        }

        let compact = Compact::split(token)?;
        let header: Header = serde_json::from_slice(&part(compact.header, "header")?)
            .map_err(|error| malformed(&format!("header: {error}")))?;
        let claims = serde_json::from_slice(&part(compact.payload, "payload")?)
            .map_err(|error| malformed(&format!("payload: {error}")))?;
        Ok(Self {
            key_id: header.kid,
            algorithm: header.alg,
            signed: compact.signed,
            signature: part(compact.signature, "signature")?,
            claims,
        })
    }

    /// Its claims, if the holder of `spki` signed it with an algorithm that a JWT-SVID may have as well.
    ///
    /// # Errors
    /// [`InvalidJwtSvid::Signature`], and [`InvalidJwtSvid::Malformed`] for another algorithm.
    pub fn verify(&self, spki: &[u8]) -> Result<&Map<String, Value>, InvalidJwtSvid> {
        let algorithm = Algorithm::named(&self.algorithm).ok_or_else(|| {
            malformed(&format!(
                "unexpected signature algorithm \"{}\"",
                self.algorithm
            ))
        })?;
        algorithm.verify(spki, self.signed.as_bytes(), &self.signature)?;
        Ok(&self.claims)
    }
}

/// The three parts of a token in compact form (RFC 7515 §7.1), still encoded.
struct Compact<'a> {
    signed: &'a str,
    header: &'a str,
    payload: &'a str,
    signature: &'a str,
}

impl<'a> Compact<'a> {
    fn split(token: &'a str) -> Result<Self, InvalidJwtSvid> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(malformed("larger than 64 KiB"));
        }
        let three = || malformed("compact JWS format must have three parts");
        let (signed, signature) = token.rsplit_once('.').ok_or_else(three)?;
        let (header, payload) = signed
            .split_once('.')
            .filter(|(_, payload)| !payload.contains('.'))
            .ok_or_else(three)?;
        Ok(Self {
            signed,
            header,
            payload,
            signature,
        })
    }
}

fn malformed(why: &str) -> InvalidJwtSvid {
    InvalidJwtSvid::Malformed(why.to_owned())
}

fn part(text: &str, name: &str) -> Result<Vec<u8>, InvalidJwtSvid> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|error| malformed(&format!("{name}: {error}")))
}

fn claims(all: Map<String, Value>) -> Result<Claims, InvalidJwtSvid> {
    let subject = match all.get("sub") {
        None => return Err(InvalidJwtSvid::NoSubject),
        Some(Value::String(subject)) if subject.is_empty() => {
            return Err(InvalidJwtSvid::NoSubject);
        }
        Some(Value::String(subject)) => subject,
        Some(_) => return Err(malformed("sub is not a string")),
    };
    let spiffe_id = SpiffeId::new(subject.as_str())
        .map_err(|error| InvalidJwtSvid::Subject(error.to_string()))?;
    let expires_at = date(&all, "exp")?.ok_or(InvalidJwtSvid::NoExpiry)?;
    let audience = match all.get("aud") {
        None => Vec::new(),
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(several)) => several
            .iter()
            .map(|one| one.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| malformed("aud holds something that is not a string"))?,
        Some(_) => return Err(malformed("aud is neither a string nor an array of strings")),
    };
    Ok(Claims {
        spiffe_id,
        audience,
        expires_at,
        all,
    })
}

/// A date among the claims, such as `exp`: seconds, perhaps with a fraction (RFC 7519 §2).
pub fn date(claims: &Map<String, Value>, name: &str) -> Result<Option<SystemTime>, InvalidJwtSvid> {
    let Some(claim) = claims.get(name) else {
        return Ok(None);
    };
    claim
        .as_f64()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since))
        .map(Some)
        .ok_or_else(|| malformed(&format!("{name} is not a date")))
}

/// RFC 7518 §3.3 to §3.5 (SV-59).
struct Algorithm {
    verifier: &'static dyn VerificationAlgorithm,
    key: KeyKind,
}

impl Algorithm {
    fn named(name: &str) -> Option<Self> {
        let (verifier, key): (&'static dyn VerificationAlgorithm, _) = match name {
            "RS256" => (&RSA_PKCS1_2048_8192_SHA256, KeyKind::Rsa),
            "RS384" => (&RSA_PKCS1_2048_8192_SHA384, KeyKind::Rsa),
            "RS512" => (&RSA_PKCS1_2048_8192_SHA512, KeyKind::Rsa),
            "PS256" => (&RSA_PSS_2048_8192_SHA256, KeyKind::Rsa),
            "PS384" => (&RSA_PSS_2048_8192_SHA384, KeyKind::Rsa),
            "PS512" => (&RSA_PSS_2048_8192_SHA512, KeyKind::Rsa),
            "ES256" => (&ECDSA_P256_SHA256_FIXED, KeyKind::EcP256),
            "ES384" => (&ECDSA_P384_SHA384_FIXED, KeyKind::EcP384),
            "ES512" => (&ECDSA_P521_SHA512_FIXED, KeyKind::EcP521),
            _ => return None,
        };
        Some(Self { verifier, key })
    }

    fn verify(&self, spki: &[u8], signed: &[u8], signature: &[u8]) -> Result<(), InvalidJwtSvid> {
        if key_kind(spki) != Ok(self.key) {
            let why = "the key is not one for the token's algorithm";
            return Err(InvalidJwtSvid::Signature(why));
        }
        UnparsedPublicKey::new(self.verifier, spki)
            .verify(signed, signature)
            .map_err(|_| InvalidJwtSvid::Signature("the key did not sign it"))
    }
}

#[cfg(test)]
mod tests;
