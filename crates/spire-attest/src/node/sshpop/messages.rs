//! What the two halves say.

use serde::{Deserialize, Serialize};

use crate::node::messages::Bytes;

/// The payload.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct AttestationData {
    /// As it stands, base64 undone, in the file that `ssh-keygen` writes.
    pub(super) certificate: Bytes,
}

/// What the server sends.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Challenge {
    pub(super) nonce: Bytes,
}

/// What the agent answers.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Response {
    /// The agent's nonce.
    pub(super) nonce: Bytes,
    pub(super) signature: Option<Signature>,
}

/// A signature as SSH has it (RFC 4253 §6.6).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Signature {
    /// The algorithm, such as `ssh-ed25519`.
    pub(super) format: String,
    pub(super) blob: Bytes,
    /// What follows, with keys on security tokens alone.
    pub(super) rest: Option<Bytes>,
}
