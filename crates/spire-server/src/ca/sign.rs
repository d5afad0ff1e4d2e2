//! Signing with the authorities that are active.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::Clock;
use ah_spire_telemetry::Metrics;
use ah_spire_wire::{der, key_kind};
use arc_swap::ArcSwapOption;
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::{Map, Value};
use spiffe::{SpiffeId, TrustDomain};

use super::authority::{JwtAuthority, X509Authority, from_unix, to_unix};
use super::certificate::{Issuer, Template};
use super::compose::{Composers, Holder, X509Attributes};
use super::metrics::Signed;
use super::name::Subject;
use super::{JwtSvid, JwtSvidRequest, SignError, Signer, X509Svid, X509SvidRequest};
use crate::keys::{KeyError, KeyType};

/// How far before now certificates begin, for clocks that are behind.
pub const BACKDATE: Duration = Duration::from_secs(10);

/// How far the clock of an upstream authority may be ahead.
const SKEW: Duration = Duration::from_secs(60);

/// What is signed, as the server's configuration says.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Whose SVIDs.
    pub trust_domain: TrustDomain,
    /// `ca_ttl`
    pub ca_ttl: Duration,
    /// `ca_subject`; `C=US, O=SPIFFE` when empty.
    pub ca_subject: Subject,
    /// `default_x509_svid_ttl`
    pub x509_svid_ttl: Duration,
    /// `agent_ttl`, or that of other X509-SVIDs.
    pub agent_ttl: Duration,
    /// `default_jwt_svid_ttl`
    pub jwt_svid_ttl: Duration,
    /// `jwt_issuer`
    pub jwt_issuer: Option<String>,
    /// What changes certificates and tokens before they are signed.
    pub composers: Composers,
}

impl Profile {
    /// The defaults of a trust domain: a day, an hour, an hour and five minutes.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            ca_ttl: Duration::from_secs(24 * 3600),
            ca_subject: Subject::default(),
            x509_svid_ttl: Duration::from_secs(3600),
            agent_ttl: Duration::from_secs(3600),
            jwt_svid_ttl: Duration::from_secs(300),
            jwt_issuer: None,
            composers: Composers::default(),
        }
    }

    /// The subject of a new CA, whose own serial number is in it unless the configuration has one.
    pub(super) fn new_ca_subject(&self, serial: u128) -> Subject {
        let mut subject = if self.ca_subject.is_empty() {
            Subject::us("SPIFFE")
        } else {
            self.ca_subject.clone()
        };
        if subject.serial_number.is_empty() {
            subject.serial_number = serial.to_string();
        }
        subject
    }
}

/// Signs with whichever authorities are active at the moment. Takes no lock.
#[derive(Debug)]
pub struct Authorities {
    profile: Profile,
    svid_subject: Subject,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    signed: Signed,
    pub(super) x509: ArcSwapOption<X509Authority>,
    pub(super) jwt: ArcSwapOption<JwtAuthority>,
}

impl Authorities {
    /// Without an active authority yet, and counting nothing.
    pub fn new(profile: Profile, clock: Arc<dyn Clock>) -> Self {
        Self::counted(profile, clock, Metrics::off())
    }

    /// As [`Self::new`]. What is signed is counted in `metrics`, and so is what the manager and the server's own SVID
    /// do with these authorities.
    pub fn counted(profile: Profile, clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        Self {
            profile,
            svid_subject: Subject::us("SPIRE"),
            clock,
            signed: Signed::new(&metrics),
            metrics,
            x509: ArcSwapOption::empty(),
            jwt: ArcSwapOption::empty(),
        }
    }

    /// What the configuration says.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The active X.509 authority.
    pub fn x509_authority(&self) -> Option<Arc<X509Authority>> {
        self.x509.load_full()
    }

    pub(super) fn set_x509(&self, authority: Option<Arc<X509Authority>>) {
        self.x509.store(authority);
    }

    pub(super) fn set_jwt(&self, authority: Option<Arc<JwtAuthority>>) {
        self.jwt.store(authority);
    }

    /// One from the future, after the clock was set back, signs nothing until the next rotation replaces it: nobody
    /// would take it.
    pub(super) fn active_x509(&self, now: SystemTime) -> Result<Arc<X509Authority>, SignError> {
        let soon = now.checked_add(SKEW).unwrap_or(now);
        self.x509
            .load_full()
            .filter(|authority| {
                authority.certificate.not_before <= soon && authority.not_after() > now
            })
            .ok_or(SignError::NotReady("X509 CA"))
    }

    pub(super) fn active_jwt(&self, now: SystemTime) -> Result<Arc<JwtAuthority>, SignError> {
        self.jwt
            .load_full()
            .filter(|authority| authority.not_after > now)
            .ok_or(SignError::NotReady("JWT key"))
    }

    /// The server's own X509-SVID, `spiffe://TRUST-DOMAIN/spire/server`.
    pub fn sign_server_svid(&self, spki: &[u8]) -> Result<X509Svid, SignError> {
        let id = format!("spiffe://{}/spire/server", self.profile.trust_domain);
        let id = SpiffeId::new(id).map_err(|error| SignError::Invalid(error.to_string()))?;
        let request = X509SvidRequest {
            spiffe_id: id,
            spki: spki.to_vec(),
            dns_names: Vec::new(),
            ttl: None,
        };
        let attributes = X509Attributes::of(self.svid_subject.clone());
        let ttl = self.profile.x509_svid_ttl;
        self.sign(&request, Holder::Server, attributes, ttl)
    }

    /// A CA below the active one, for a downstream server. `ttl` is the server's `ca_ttl` when `None`.
    pub fn sign_downstream_ca(
        &self,
        spki: &[u8],
        ttl: Option<Duration>,
    ) -> Result<X509Svid, SignError> {
        check_key(spki)?;
        let now = self.clock.now();
        let ca = self.active_x509(now)?;
        let parents = ca.upstream_chain.len().max(1);
        let mut subject = ca.certificate.subject.clone();
        subject.organizational_unit = vec![format!("DOWNSTREAM-{parents}")];
        let attributes = X509Attributes::of(subject);
        let template = Template {
            serial: new_serial()?,
            not_before: backdated(now),
            not_after: capped(now, ttl, self.profile.ca_ttl, ca.not_after()),
            spki,
            uri: &self.profile.trust_domain.id_string(),
            attributes: &self.profile.composers.x509_ca(attributes)?,
            is_ca: true,
        };
        let issued = issue(&template, &ca)?;
        self.signed.x509_ca_svid.increment();
        Ok(issued)
    }

    fn sign(
        &self,
        request: &X509SvidRequest,
        of: Holder<'_>,
        attributes: X509Attributes,
        default_ttl: Duration,
    ) -> Result<X509Svid, SignError> {
        self.check_member(&request.spiffe_id, "X509-SVID")?;
        check_key(&request.spki)?;
        let now = self.clock.now();
        let ca = self.active_x509(now)?;
        let template = Template {
            serial: new_serial()?,
            not_before: backdated(now),
            not_after: capped(now, request.ttl, default_ttl, ca.not_after()),
            spki: &request.spki,
            uri: &request.spiffe_id.to_string(),
            attributes: &self.profile.composers.x509_svid(of, attributes)?,
            is_ca: false,
        };
        let issued = issue(&template, &ca)?;
        self.signed.x509_svid.increment();
        Ok(issued)
    }

    fn check_member(&self, id: &SpiffeId, what: &str) -> Result<(), SignError> {
        let of = &self.profile.trust_domain;
        if !id.is_member_of(of) {
            return Err(SignError::Invalid(format!(
                "invalid {what} ID: \"{id}\" is not a member of trust domain \"{of}\""
            )));
        }
        if id.path().is_empty() {
            return Err(SignError::Invalid(format!(
                "invalid {what} ID: \"{id}\" is not a member of trust domain \"{of}\"; path is empty"
            )));
        }
        Ok(())
    }
}

impl Signer for Authorities {
    fn sign_x509_svid(&self, mut request: X509SvidRequest) -> Result<X509Svid, SignError> {
        let mut attributes = X509Attributes::of(self.svid_subject.clone());
        attributes.dns_names = std::mem::take(&mut request.dns_names);
        if let Some(first) = attributes.dns_names.first() {
            attributes.subject.common_name.clone_from(first);
        }
        let of = Holder::Workload(&request.spiffe_id, &request.spki);
        self.sign(&request, of, attributes, self.profile.x509_svid_ttl)
    }

    fn sign_agent_svid(&self, request: X509SvidRequest) -> Result<X509Svid, SignError> {
        let attributes = X509Attributes::of(self.svid_subject.clone());
        let of = Holder::Agent(&request.spiffe_id, &request.spki);
        self.sign(&request, of, attributes, self.profile.agent_ttl)
    }

    fn sign_jwt_svid(&self, request: JwtSvidRequest) -> Result<JwtSvid, SignError> {
        #[derive(Serialize)]
        struct Header<'a> {
            alg: &'a str,
            kid: &'a str,
            typ: &'a str,
        }
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
        let authority = self.active_jwt(now)?;
        let end = capped(
            now,
            request.ttl,
            self.profile.jwt_svid_ttl,
            authority.not_after,
        );
        let (mut issued_at, mut expires_at) = (to_unix(now), to_unix(end));
        let header = Header {
            alg: match authority.key.key_type() {
                KeyType::EcP256 => "ES256",
                KeyType::EcP384 => "ES384",
                KeyType::Rsa2048 | KeyType::Rsa4096 => "RS256",
            },
            kid: &authority.id,
            typ: "JWT",
        };
        let claims = Claims {
            aud: &audience,
            exp: expires_at,
            iat: issued_at,
            iss: self.profile.jwt_issuer.as_deref(),
            jti: request.include_jti.then(new_jti).transpose()?,
            sub: &request.spiffe_id.to_string(),
        };
        let mut token = String::with_capacity(512);
        append_json(&mut token, &header)?;
        token.push('.');
        if self.profile.composers.is_empty() {
            append_json(&mut token, &claims)?;
        } else {
            let of = &request.spiffe_id;
            let claims = self.profile.composers.jwt_svid(of, as_map(&claims)?, now)?;
            let time = |name| claims.get(name).and_then(Value::as_i64);
            issued_at = time("iat").unwrap_or(issued_at);
            expires_at = time("exp").unwrap_or(expires_at);
            append_json(&mut token, &claims)?;
        }
        let signature = authority.key.sign(token.as_bytes()).map_err(failed)?;
        let signature = jws_signature(authority.key.key_type(), signature)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        self.signed.jwt_svid.increment();
        Ok(JwtSvid {
            token,
            issued_at: from_unix(issued_at),
            expires_at: from_unix(expires_at),
        })
    }
}

fn issue(template: &Template<'_>, ca: &X509Authority) -> Result<X509Svid, SignError> {
    let leaf = template
        .sign(&Issuer {
            name: Some(&ca.certificate.name),
            key_id: Some(&ca.certificate.key_id),
            key: ca.key.as_ref(),
        })
        .map_err(failed)?;
    let mut chain = Vec::with_capacity(ca.upstream_chain.len().saturating_add(1));
    chain.push(leaf);
    chain.extend(ca.upstream_chain.iter().cloned());
    Ok(X509Svid {
        chain,
        serial_number: template.serial.to_string(),
        not_after: from_unix(to_unix(template.not_after)),
    })
}

fn failed(error: KeyError) -> SignError {
    SignError::Failed(error.to_string())
}

fn check_key(spki: &[u8]) -> Result<(), SignError> {
    match key_kind(spki) {
        Ok(_) => Ok(()),
        Err(error) => Err(SignError::Invalid(format!("invalid public key: {error}"))),
    }
}

/// Of 128 random bits, not zero (CA/Browser Forum baseline requirements §7.1).
pub(super) fn new_serial() -> Result<u128, SignError> {
    loop {
        let serial = u128::from_be_bytes(random()?);
        if serial != 0 {
            return Ok(serial);
        }
    }
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

pub(super) fn random<const N: usize>() -> Result<[u8; N], SignError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| SignError::Failed("no random numbers".into()))?;
    Ok(bytes)
}

pub(super) fn backdated(now: SystemTime) -> SystemTime {
    now.checked_sub(BACKDATE).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// `ttl` from now, or the default, but no later than `cap`.
fn capped(
    now: SystemTime,
    ttl: Option<Duration>,
    default: Duration,
    cap: SystemTime,
) -> SystemTime {
    let ttl = ttl.filter(|ttl| !ttl.is_zero()).unwrap_or(default);
    now.checked_add(ttl).map_or(cap, |end| end.min(cap))
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
