//! Tokens: JWT-SVIDs, and WIT-SVIDs, which are bound to a key of their holder.

use std::time::Duration;

use ah_spire_wire::{Jwk, der};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Authorities, capped, failed, random};
use crate::ca::authority::{Token, TokenAuthority, from_unix, to_unix};
use crate::ca::{JwtSvid, JwtSvidRequest, SignError, WitSvid, WitSvidRequest};
use crate::keys::KeyType;

/// How long a WIT-SVID is good for where nobody says. As upstream, which has no setting for it.
const WIT_SVID_TTL: Duration = Duration::from_secs(3600);

impl Authorities {
    pub(super) fn new_jwt_svid(&self, request: JwtSvidRequest) -> Result<JwtSvid, SignError> {
        #[derive(Serialize)]
        struct Claims<'a> {
            aud: &'a [String],
            exp: i64,
            iat: i64,
            #[serde(skip_serializing_if = "Option::is_none")]
            iss: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            jti: Option<String>,
            sub: &'a str,
        }

        self.check_member(&request.spiffe_id, "JWT-SVID")?;
        let mut audience = request.audience;
        audience.retain(|one| !one.is_empty());
        if audience.is_empty() {
            let text = "invalid JWT-SVID audience: cannot be empty";
            return Err(SignError::Invalid(text.into()));
        }
        let now = self.clock.now();
        let authority = self.active_token(Token::Jwt, now)?;
        let default = self.profile.jwt_svid_ttl;
        let end = capped(now, request.ttl, default, authority.not_after);
        let (mut issued_at, mut expires_at) = (to_unix(now), to_unix(end));
        let claims = Claims {
            aud: &audience,
            exp: expires_at,
            iat: issued_at,
            iss: self.profile.jwt_issuer.as_deref(),
            jti: request.include_jti.then(new_jti).transpose()?,
            sub: &request.spiffe_id.to_string(),
        };
        let token = if self.profile.composers.is_empty() {
            sign(&authority, "JWT", &claims)?
        } else {
            let of = &request.spiffe_id;
            let claims = self.profile.composers.jwt_svid(of, as_map(&claims)?, now)?;
            let time = |name| claims.get(name).and_then(Value::as_i64);
            issued_at = time("iat").unwrap_or(issued_at);
            expires_at = time("exp").unwrap_or(expires_at);
            sign(&authority, "JWT", &claims)?
        };
        self.signed.jwt_svid.increment();
        Ok(JwtSvid {
            token,
            issued_at: from_unix(issued_at),
            expires_at: from_unix(expires_at),
        })
    }

    /// The claims are upstream's, `cnf` as in RFC 7800 §3.2. Nobody composes them, and nothing counts them there.
    pub(super) fn new_wit_svid(&self, request: &WitSvidRequest) -> Result<WitSvid, SignError> {
        #[derive(Serialize)]
        struct Confirmation<'a> {
            jwk: &'a Jwk,
        }
        #[derive(Serialize)]
        struct Claims<'a> {
            cnf: Confirmation<'a>,
            exp: i64,
            iat: i64,
            #[serde(skip_serializing_if = "Option::is_none")]
            iss: Option<&'a str>,
            sub: &'a str,
        }

        self.check_member(&request.spiffe_id, "WIT-SVID")?;
        let now = self.clock.now();
        let authority = self.active_token(Token::Wit, now)?;
        let end = capped(now, request.ttl, WIT_SVID_TTL, authority.not_after);
        let (issued_at, expires_at) = (to_unix(now), to_unix(end));
        let claims = Claims {
            cnf: Confirmation {
                jwk: request.holder.jwk(),
            },
            exp: expires_at,
            iat: issued_at,
            iss: self.profile.wit_issuer.as_deref(),
            sub: &request.spiffe_id.to_string(),
        };
        Ok(WitSvid {
            token: sign(&authority, "wit+jwt", &claims)?,
            issued_at: from_unix(issued_at),
            expires_at: from_unix(expires_at),
        })
    }
}

/// In compact form (RFC 7515 §7.1).
fn sign(
    authority: &TokenAuthority,
    typ: &str,
    claims: &impl Serialize,
) -> Result<String, SignError> {
    #[derive(Serialize)]
    struct Header<'a> {
        alg: &'a str,
        kid: &'a str,
        typ: &'a str,
    }

    let kind = authority.key.key_type();
    let header = Header {
        alg: match kind {
            KeyType::EcP256 => "ES256",
            KeyType::EcP384 => "ES384",
            KeyType::Rsa2048 | KeyType::Rsa4096 => "RS256",
        },
        kid: &authority.id,
        typ,
    };
    let mut token = String::with_capacity(512);
    append_json(&mut token, &header)?;
    token.push('.');
    append_json(&mut token, claims)?;
    let signature = authority.key.sign(token.as_bytes()).map_err(failed)?;
    let signature = jws_signature(kind, signature)?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    Ok(token)
}

/// A random UUID (RFC 9562 §5.4) in base64url, as upstream makes it.
fn new_jti() -> Result<String, SignError> {
    let mut bytes: [u8; 16] = random()?;
    if let Some(version) = bytes.get_mut(6) {
        *version = *version & 0x0f | 0x40;
    }
    if let Some(variant) = bytes.get_mut(8) {
        *variant = *variant & 0x3f | 0x80;
    }
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn as_map(part: &impl Serialize) -> Result<Map<String, Value>, SignError> {
    match serde_json::to_value(part) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(SignError::Failed("the claims are no JSON object".into())),
        Err(error) => Err(SignError::Failed(error.to_string())),
    }
}

fn append_json(token: &mut String, part: &impl Serialize) -> Result<(), SignError> {
    let json = serde_json::to_vec(part).map_err(|error| SignError::Failed(error.to_string()))?;
    URL_SAFE_NO_PAD.encode_string(json, token);
    Ok(())
}

/// JWS has the two numbers of an ECDSA signature one after the other (RFC 7518 §3.4), X.509 has them in DER.
fn jws_signature(kind: KeyType, signature: Vec<u8>) -> Result<Vec<u8>, SignError> {
    let size: usize = match kind {
        KeyType::EcP256 => 32,
        KeyType::EcP384 => 48,
        KeyType::Rsa2048 | KeyType::Rsa4096 => return Ok(signature),
    };
    let malformed = || SignError::Failed("the key manager made a malformed signature".into());
    let mut rest = match signature.as_slice() {
        // Two numbers of at most 49 bytes each: the length takes one byte.
        [der::SEQUENCE, length, rest @ ..] if usize::from(*length) == rest.len() => rest,
        _ => return Err(malformed()),
    };
    let mut fixed = Vec::with_capacity(size.saturating_mul(2));
    for _ in 0..2 {
        let (number, after) = match rest {
            [der::INTEGER, length, rest @ ..] => rest
                .split_at_checked(usize::from(*length))
                .ok_or_else(malformed)?,
            _ => return Err(malformed()),
        };
        let digits = match number {
            [0, digits @ ..] => digits,
            digits => digits,
        };
        let zeros = size.checked_sub(digits.len()).ok_or_else(malformed)?;
        fixed.resize(fixed.len().saturating_add(zeros), 0);
        fixed.extend_from_slice(digits);
        rest = after;
    }
    if rest.is_empty() {
        Ok(fixed)
    } else {
        Err(malformed())
    }
}
