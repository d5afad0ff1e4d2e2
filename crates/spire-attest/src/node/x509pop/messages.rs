//! What the two halves say.

use serde::{Deserialize, Serialize};

use crate::node::messages::Bytes;

/// The payload.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AttestationData {
    /// DER, leaf first.
    #[serde(default)]
    pub(super) certificates: Option<Vec<Bytes>>,
}

/// What the server sends: one of both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Challenge {
    #[serde(default)]
    pub(super) rsa_signature: Option<Nonce>,
    #[serde(default)]
    pub(super) ecdsa_signature: Option<Nonce>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Nonce {
    #[serde(default)]
    pub(super) nonce: Bytes,
}

/// What the agent answers: one of both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Response {
    #[serde(default)]
    pub(super) rsa_signature: Option<RsaSignature>,
    #[serde(default)]
    pub(super) ecdsa_signature: Option<EcdsaSignature>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RsaSignature {
    /// The agent's nonce.
    #[serde(default)]
    pub(super) nonce: Bytes,
    #[serde(default)]
    pub(super) signature: Bytes,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EcdsaSignature {
    /// The agent's nonce.
    #[serde(default)]
    pub(super) nonce: Bytes,
    /// Big-endian, without leading zeros.
    #[serde(default)]
    pub(super) r: Bytes,
    /// Big-endian, without leading zeros.
    #[serde(default)]
    pub(super) s: Bytes,
}
