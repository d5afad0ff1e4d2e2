//! Where the agent's own private keys are made and kept (the KeyManager plugins).

mod disk;
mod external;
mod key;
mod memory;
mod metered;
mod node_key;

use std::fmt;

use ah_identity_provider::{Code, Explained, hex};
use aws_lc_rs::digest::{SHA256, digest};

pub use disk::DiskKeys;
pub use external::ExternalKeys;
pub(crate) use key::spki_of_certificate;
pub use key::{KeyKind, PrivateKey};
pub use memory::MemoryKeys;
pub use metered::MeteredKeys;
pub use node_key::NodeKey;

/// The slots that the agent's SVID alternates between. Upstream uses the same, so that either finds the other's key.
const SVID_SLOTS: [&str; 2] = ["agent-svid-A", "agent-svid-B"];

/// The slot of the key that seals the warm-start file.
pub(crate) const SEAL_SLOT: &str = "agent-warm-start";

/// Keys by name.
pub trait KeyManager: Send + Sync + 'static {
    /// The name of the plugin.
    fn name(&self) -> &str;

    /// Whether keys outlive the process.
    fn persists(&self) -> bool;

    /// Whether private keys are in this process, where other keys can be made of them.
    fn reveals(&self) -> bool {
        true
    }

    /// Makes a key in the slot `id`; the one before it is forgotten. When this returns, the key is where it will be
    /// found after a crash, or there is an error and the one before stays.
    fn generate(&self, id: &str, kind: KeyKind) -> Result<NodeKey, KeyError>;

    /// All keys with their slots, in the order of the slots.
    fn keys(&self) -> Vec<(String, NodeKey)>;
}

/// A key could not be made or kept.
#[derive(Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(Explained);

impl KeyError {
    fn new(text: impl Into<String>, cause: impl fmt::Display, hint: &str) -> Self {
        Self(Explained::new(Code::Other, text).cause(cause).hint(hint))
    }

    /// What to tell.
    pub fn explained(&self) -> &Explained {
        &self.0
    }
}

impl fmt::Debug for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The key that `leaf` (DER) was issued for, and its slot.
pub fn key_of_svid(keys: &dyn KeyManager, leaf: &[u8]) -> Option<(String, NodeKey)> {
    let spki = spki_of_certificate(leaf)?;
    keys.keys().into_iter().find(|(_, key)| key.spki() == spki)
}

/// SHA-256 of a public key, hexadecimal.
pub(crate) fn digest_of(key: &NodeKey) -> String {
    hex(digest(&SHA256, key.spki()).as_ref())
}

/// The key that an attestation was begun with, unless it is the one that `in_use` names.
pub(crate) fn pending_key(
    keys: &dyn KeyManager,
    in_use: Option<&str>,
    digest: &str,
) -> Option<NodeKey> {
    let pending =
        |(slot, key): &(String, NodeKey)| in_use != Some(slot.as_str()) && digest_of(key) == digest;
    keys.keys().into_iter().find(pending).map(|(_, key)| key)
}

/// Makes the key of the next SVID, in the slot that `in_use` leaves free.
pub fn next_svid_key(keys: &dyn KeyManager, in_use: Option<&str>) -> Result<NodeKey, KeyError> {
    let [first, second] = SVID_SLOTS;
    let slot = if in_use == Some(first) { second } else { first };
    keys.generate(slot, KeyKind::EcP256)
}
