//! The authorities of a trust domain: what they sign, and their rotation.

mod authority;
mod certificate;
mod compose;
mod holder_key;
mod journal;
mod manager;
mod metrics;
mod name;
mod prepare;
mod rehearse;
mod server_svid;
mod sign;
mod slots;
mod upstream;

use std::time::{Duration, SystemTime};

use spiffe::SpiffeId;

pub use authority::{TokenAuthority, X509Authority};
pub use compose::{
    Composer, Composers, Extension, Holder, NotAnOid, ObjectId, UniqueId, X509Attributes,
};
pub use holder_key::{BadHolderKey, HolderKey};
pub use manager::{
    AuthorityStates, CaError, LocalAuthorities, Manager, PRUNE_BUNDLE_INTERVAL,
    PRUNE_JOURNALS_INTERVAL, ROTATE_INTERVAL, Settings,
};
pub use name::Subject;
pub use server_svid::{SVID_INTERVAL, ServerSvids};
pub use sign::{Authorities, BACKDATE, Profile};
pub use slots::{AuthorityState, Status};
pub use upstream::{
    Answer, CertManagerAuthority, CertManagerSettings, DiskAuthority, EjbcaAuthority,
    EjbcaSettings, EndEntity, ExternalAuthority, Files, GcpCasAuthority, GcpCasSettings, MintedCa,
    NamePart, PcaAuthority, PcaSettings, SecretAuthority, SecretSettings, SpireAuthority,
    SpireSettings, UpstreamAuthority, UpstreamBundle, UpstreamError, VaultAuthority, VaultSettings,
};

/// An X509-SVID to be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509SvidRequest {
    /// The URI SAN.
    pub spiffe_id: SpiffeId,
    /// SubjectPublicKeyInfo of the holder's key, DER.
    pub spki: Vec<u8>,
    /// DNS SANs; the first one becomes the common name.
    pub dns_names: Vec<String>,
    /// The server's default when `None`. Capped by the end of the CA.
    pub ttl: Option<Duration>,
}

/// A signed X509-SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509Svid {
    /// DER, leaf first, with the intermediates up to the bundle.
    pub chain: Vec<Vec<u8>>,
    /// Decimal serial number of the leaf.
    pub serial_number: String,
    /// End of the leaf.
    pub not_after: SystemTime,
}

/// A JWT-SVID to be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtSvidRequest {
    /// `sub`
    pub spiffe_id: SpiffeId,
    /// `aud`; at least one.
    pub audience: Vec<String>,
    /// The server's default when `None`. Capped by the end of the key.
    pub ttl: Option<Duration>,
    /// Whether a unique `jti` goes in.
    pub include_jti: bool,
}

/// A signed JWT-SVID.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtSvid {
    /// Compact serialization.
    pub token: String,
    /// `iat`
    pub issued_at: SystemTime,
    /// `exp`
    pub expires_at: SystemTime,
}

/// A WIT-SVID to be signed.
#[derive(Clone, Debug)]
pub struct WitSvidRequest {
    /// `sub`
    pub spiffe_id: SpiffeId,
    /// `cnf`
    pub holder: HolderKey,
    /// An hour when `None`. Capped by the end of the key.
    pub ttl: Option<Duration>,
}

/// A signed WIT-SVID.
#[derive(Clone, PartialEq, Eq)]
pub struct WitSvid {
    /// Compact serialization.
    pub token: String,
    /// `iat`
    pub issued_at: SystemTime,
    /// `exp`
    pub expires_at: SystemTime,
}

/// Why nothing was signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// No authority is active: the server has just started, or the key manager lost its keys.
    #[error("{0} is not available for signing")]
    NotReady(&'static str),
    /// What is asked for cannot be signed: a malformed key or name.
    #[error("{0}")]
    Invalid(String),
    /// The key manager failed.
    #[error("signing failed: {0}")]
    Failed(String),
}

/// What the APIs ask of the authorities. Signing is arithmetic of some 100 µs; nothing in it waits for the store.
pub trait Signer: Send + Sync + 'static {
    /// For a workload.
    fn sign_x509_svid(&self, request: X509SvidRequest) -> Result<X509Svid, SignError>;
    /// For an agent; `agent_ttl` of the configuration applies.
    fn sign_agent_svid(&self, request: X509SvidRequest) -> Result<X509Svid, SignError>;
    /// For a workload or an operator.
    fn sign_jwt_svid(&self, request: JwtSvidRequest) -> Result<JwtSvid, SignError>;
    /// For a workload or an operator, bound to a key of theirs.
    fn sign_wit_svid(&self, request: WitSvidRequest) -> Result<WitSvid, SignError>;
}

#[cfg(test)]
mod tests;
