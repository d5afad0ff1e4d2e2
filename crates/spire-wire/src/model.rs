//! What server and agent think in: valid values, without the wire's optional fields.

use std::fmt;
use std::str::FromStr;

use spiffe::{SpiffeId, TrustDomain};

/// What an attestor found out about a node or a workload: `type:value`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Name of the attestor.
    pub kind: String,
    /// What it found; may hold colons.
    pub value: String,
}

impl Selector {
    /// `kind:value`
    pub fn new(kind: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            value: value.into(),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.value)
    }
}

/// A text that is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("selector \"{0}\" must be formatted as type:value")]
pub struct NotASelector(pub String);

impl FromStr for Selector {
    type Err = NotASelector;

    fn from_str(text: &str) -> Result<Self, NotASelector> {
        match text.split_once(':') {
            Some((kind, value)) if !kind.is_empty() && !value.is_empty() => {
                Ok(Self::new(kind, value))
            }
            _ => Err(NotASelector(text.to_owned())),
        }
    }
}

/// A registration entry: who with which selectors, below which parent, is which SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name in the datastore; a UUID unless the operator chose one.
    pub id: String,
    /// What is issued.
    pub spiffe_id: SpiffeId,
    /// The agent, or the entry of nodes, that may serve it.
    pub parent_id: SpiffeId,
    /// All of them must be found. Sorted, without duplicates.
    pub selectors: Vec<Selector>,
    /// Seconds; 0 is the server's default.
    pub x509_svid_ttl: i32,
    /// Seconds; 0 is the server's default.
    pub jwt_svid_ttl: i32,
    /// Trust domains whose bundles come with the SVID.
    pub federates_with: Vec<TrustDomain>,
    /// May call the server's administrative APIs.
    pub admin: bool,
    /// May ask for an intermediate CA.
    pub downstream: bool,
    /// Unix seconds; 0 is never.
    pub expires_at: i64,
    /// DNS SANs of the SVID; the first one becomes its common name.
    pub dns_names: Vec<String>,
    /// Counts the changes.
    pub revision: i64,
    /// For an SVIDStore plugin, not for the Workload API.
    pub store_svid: bool,
    /// For the workload, to tell several SVIDs apart.
    pub hint: String,
    /// Unix seconds.
    pub created_at: i64,
    /// The agent makes no X509-SVID before somebody asks.
    pub disable_x509_svid_prefetch: bool,
    /// JWT-SVIDs carry a unique `jti` and are not cached.
    pub jwt_svid_include_jti: bool,
}

impl Entry {
    /// One without a name yet, with nothing but what every entry has.
    pub fn new(spiffe_id: SpiffeId, parent_id: SpiffeId, selectors: Vec<Selector>) -> Self {
        Self {
            id: String::new(),
            spiffe_id,
            parent_id,
            selectors,
            x509_svid_ttl: 0,
            jwt_svid_ttl: 0,
            federates_with: Vec::new(),
            admin: false,
            downstream: false,
            expires_at: 0,
            dns_names: Vec::new(),
            revision: 0,
            store_svid: false,
            hint: String::new(),
            created_at: 0,
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: false,
        }
    }
}

/// The keys that speak for a trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Whose.
    pub trust_domain: TrustDomain,
    /// CA certificates.
    pub x509: Vec<X509Authority>,
    /// JWT signing keys.
    pub jwt: Vec<JwtKey>,
    /// WIT signing keys, which upstream's servers may have made. They are kept and told as they are, and never used.
    pub wit: Vec<JwtKey>,
    /// Seconds between two looks; 0 when nothing is said.
    pub refresh_hint: i64,
    /// Counts the changes.
    pub sequence: u64,
}

/// One CA certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Authority {
    /// DER.
    pub der: Vec<u8>,
    /// No longer to be relied upon: what it signed is to be replaced.
    pub tainted: bool,
}

/// One JWT or WIT signing key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtKey {
    /// SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// `kid`
    pub id: String,
    /// Unix seconds; 0 is never.
    pub expires_at: i64,
    /// As [`X509Authority::tainted`].
    pub tainted: bool,
}
