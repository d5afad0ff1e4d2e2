//! Signing with the authorities that are active.

mod token;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::Clock;
use ah_spire_telemetry::Metrics;
use ah_spire_wire::key_kind;
use arc_swap::ArcSwapOption;
use aws_lc_rs::rand;
use spiffe::{SpiffeId, TrustDomain};

use super::authority::{Token, TokenAuthority, X509Authority, from_unix, to_unix};
use super::certificate::{Issuer, Template};
use super::compose::{Composers, Holder, X509Attributes};
use super::metrics::Signed;
use super::name::Subject;
use super::{
    JwtSvid, JwtSvidRequest, SignError, Signer, WitSvid, WitSvidRequest, X509Svid, X509SvidRequest,
};
use crate::keys::KeyError;

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
    /// `wit_issuer`
    pub wit_issuer: Option<String>,
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
            wit_issuer: None,
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
    jwt: ArcSwapOption<TokenAuthority>,
    wit: ArcSwapOption<TokenAuthority>,
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
            wit: ArcSwapOption::empty(),
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

    pub(super) fn set_token(&self, of: Token, authority: Option<Arc<TokenAuthority>>) {
        self.token(of).store(authority);
    }

    fn token(&self, of: Token) -> &ArcSwapOption<TokenAuthority> {
        match of {
            Token::Jwt => &self.jwt,
            Token::Wit => &self.wit,
        }
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

    pub(super) fn active_token(
        &self,
        of: Token,
        now: SystemTime,
    ) -> Result<Arc<TokenAuthority>, SignError> {
        self.token(of)
            .load_full()
            .filter(|authority| authority.not_after > now)
            .ok_or(SignError::NotReady(of.key_name()))
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
        self.new_jwt_svid(request)
    }

    fn sign_wit_svid(&self, request: WitSvidRequest) -> Result<WitSvid, SignError> {
        self.new_wit_svid(&request)
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
