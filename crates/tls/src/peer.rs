//! Who the other side is, once it was proved.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ah_identity_provider::CertificateFacts;
use rustls_pki_types::CertificateDer;
use spiffe::SpiffeId;

use crate::verify::{self, Trust, VerifyError};
use crate::{Policy, SvidFault};

/// The name a verified certificate stands for: what the contract calls executor id.
///
/// The SPIFFE ID of the URI SAN; without one, the first DNS SAN that matched a rule, then the first IP SAN.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PeerName {
    /// SPIFFE ID.
    Spiffe(SpiffeId),
    /// DNS name, lower case.
    Dns(String),
    /// IP address.
    Ip(IpAddr),
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe(id) => id.fmt(f),
            Self::Dns(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

/// A peer whose certificate was verified: only the verifier makes one.
///
/// Cheap to clone.
#[derive(Clone)]
pub struct PeerIdentity(Arc<Verified>);

struct Verified {
    name: PeerName,
    leaf: Arc<CertificateFacts>,
    chain: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
    issuer_faults: Vec<SvidFault>,
}

impl PeerIdentity {
    pub(crate) fn new(
        name: PeerName,
        leaf: CertificateFacts,
        chain: Vec<CertificateDer<'static>>,
        not_after: SystemTime,
        issuer_faults: Vec<SvidFault>,
    ) -> Self {
        Self(Arc::new(Verified {
            name,
            leaf: Arc::new(leaf),
            chain,
            not_after,
            issuer_faults,
        }))
    }

    /// The executor id, or the access point's name.
    pub fn name(&self) -> &PeerName {
        &self.0.name
    }

    /// What the leaf says.
    pub fn leaf(&self) -> &CertificateFacts {
        &self.0.leaf
    }

    /// As [`Self::leaf`], for who keeps it.
    pub fn shared_leaf(&self) -> Arc<CertificateFacts> {
        Arc::clone(&self.0.leaf)
    }

    /// The certificates as the peer sent them, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }

    /// When the first certificate of the verified path ends: a session ends then (EN-14).
    pub fn not_after(&self) -> SystemTime {
        self.0.not_after
    }

    /// What the SPIFFE standards ask of the issuer and this certificate lacks (`I` rows).
    pub fn issuer_faults(&self) -> &[SvidFault] {
        &self.0.issuer_faults
    }

    /// Whether `policy` still admits this executor: rules, revocation, strictness. Does no arithmetic on keys;
    /// meant for every live session after each change of the policy.
    pub fn still_admitted(&self, policy: &Policy) -> Result<(), VerifyError> {
        let id = match &self.0.name {
            PeerName::Spiffe(id) => Some(id),
            PeerName::Dns(_) | PeerName::Ip(_) => None,
        };
        verify::readmit(&self.0.leaf, id, &self.0.issuer_faults, policy)
    }

    /// Whether this executor's certificate would pass a new handshake: for live sessions after a change of
    /// the trust bundles.
    pub fn still_trusted(
        &self,
        trust: &Trust,
        policy: &Policy,
        now: SystemTime,
    ) -> Result<(), VerifyError> {
        verify::verify_executor(&self.0.chain, trust, policy, now).map(|_| ())
    }

    /// Whether this access point's certificate still chains to a trusted root: for a live session after a change
    /// of the trust bundles. Its name was judged when the session began.
    pub fn still_trusted_as_server(
        &self,
        trust: &Trust,
        now: SystemTime,
    ) -> Result<(), VerifyError> {
        verify::retrust_access_point(&self.0.chain, trust, now)
    }
}

impl fmt::Debug for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerIdentity")
            .field("name", &self.0.name)
            .field("sha256", &self.0.leaf.sha256)
            .finish_non_exhaustive()
    }
}

/// Why a peer's valid certificate is turned away all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No rule admits it (ER-7).
    #[error("certificate SAN does not match expected pattern")]
    NoRuleMatches,
    /// An operator revoked it (ER-21).
    #[error("certificate revoked")]
    Revoked,
}
