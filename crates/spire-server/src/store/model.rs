//! What is stored.

use std::collections::BTreeSet;

use ah_spire_wire::model::Selector;
use spiffe::{SpiffeId, TrustDomain};

/// A node that proved who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// How it proved that: `join_token`, `x509pop`.
    pub attestation_type: String,
    /// Serial number of its certificate in decimal; empty when it is banned.
    pub serial_number: String,
    /// Unix seconds.
    pub expires_at: i64,
    /// Of the certificate that a renewal made and that was not yet seen in use; empty when there is none.
    pub new_serial_number: String,
    /// Unix seconds; 0 when there is none.
    pub new_expires_at: i64,
    /// What its attestor found out. Sorted, without duplicates.
    pub selectors: Vec<Selector>,
    /// It can prove itself again.
    pub can_reattest: bool,
    /// As it says.
    pub version: String,
}

impl Agent {
    /// Banned agents have no certificate and may not come back.
    pub fn is_banned(&self) -> bool {
        self.serial_number.is_empty() && self.new_serial_number.is_empty()
    }
}

/// What an agent told one of the servers that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToldHolding {
    pub(crate) agent: SpiffeId,
    /// Of the own trust domain's bundle.
    pub(crate) bundle_sequence: u64,
    /// X509-SVIDs of a tainted authority that are not replaced yet.
    pub(crate) tainted_svids: u32,
    /// Unix milliseconds, by that server's clock.
    pub(crate) told_at: i64,
}

/// Lets one agent in.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The secret.
    pub token: String,
    /// Unix seconds.
    pub expires_at: i64,
}

/// Who takes a join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spender {
    /// Digest of its public key, hexadecimal.
    pub key: String,
    /// Unix seconds.
    pub now: i64,
    /// How long it is remembered, Unix seconds.
    pub until: i64,
}

/// Where the bundle of a foreign trust domain comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relationship {
    /// Whose bundle.
    pub trust_domain: TrustDomain,
    /// URL of its bundle endpoint (SPIFFE Federation §5).
    pub endpoint_url: String,
    /// How that endpoint proves itself.
    pub profile: Profile,
}

/// How a bundle endpoint proves itself (SPIFFE Federation §5.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `https_web`: with a certificate of the web.
    HttpsWeb,
    /// `https_spiffe`: with the X509-SVID of this ID.
    HttpsSpiffe(SpiffeId),
}

/// How a set that is asked for and one that is stored have to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// They are equal.
    Exact,
    /// All that is stored is asked for.
    Subset,
    /// All that is asked for is stored.
    Superset,
    /// One at least is in both.
    Any,
}

/// Which entries. Every field that is set has to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryFilter {
    /// Its SPIFFE ID.
    pub spiffe_id: Option<SpiffeId>,
    /// Its parent.
    pub parent_id: Option<SpiffeId>,
    /// Its selectors.
    pub selectors: Option<(Match, BTreeSet<Selector>)>,
    /// The trust domains that it federates with.
    pub federates_with: Option<(Match, BTreeSet<TrustDomain>)>,
    /// Its hint.
    pub hint: Option<String>,
    /// Whether it is one of a downstream server.
    pub downstream: Option<bool>,
}

/// Which agents. Every field that is set has to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentFilter {
    /// How they proved themselves.
    pub attestation_type: Option<String>,
    /// What was found out.
    pub selectors: Option<(Match, BTreeSet<Selector>)>,
    /// Banned or not.
    pub banned: Option<bool>,
    /// Can prove themselves again or not.
    pub can_reattest: Option<bool>,
    /// Their certificate ends before this (Unix seconds).
    pub expires_before: Option<i64>,
}

/// Which part of a long answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Most rows; 0 is all.
    pub size: u32,
    /// As the page before gave it; empty for the first.
    pub token: String,
}

/// A part of a long answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paged<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Asks for the next part; empty after the last.
    pub next: String,
}

/// Which fields of an entry an update takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of `Entry`, by name")]
pub struct EntryMask {
    pub spiffe_id: bool,
    pub parent_id: bool,
    pub selectors: bool,
    pub x509_svid_ttl: bool,
    pub jwt_svid_ttl: bool,
    pub federates_with: bool,
    pub admin: bool,
    pub downstream: bool,
    pub expires_at: bool,
    pub dns_names: bool,
    pub store_svid: bool,
    pub hint: bool,
    pub additional_attributes: bool,
}

impl EntryMask {
    /// All fields.
    pub const ALL: Self = Self {
        spiffe_id: true,
        parent_id: true,
        selectors: true,
        x509_svid_ttl: true,
        jwt_svid_ttl: true,
        federates_with: true,
        admin: true,
        downstream: true,
        expires_at: true,
        dns_names: true,
        store_svid: true,
        hint: true,
        additional_attributes: true,
    };
}
