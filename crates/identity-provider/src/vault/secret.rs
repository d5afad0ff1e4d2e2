//! A text that nobody may read by accident.

use std::fmt;

use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::cert::hex;

/// A secret text: wiped when dropped, and without any form that can be printed (VA-14).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// `text` as a secret, which takes over its memory.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The first line of a file's bytes, as tools and editors write a secret. The bytes are wiped.
    pub(super) fn of_file(mut bytes: Vec<u8>) -> Option<Self> {
        let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or(&[]);
        let text = std::str::from_utf8(first).ok().map(str::trim);
        let secret = text.filter(|text| !text.is_empty()).map(str::to_owned);
        bytes.zeroize();
        secret.map(Self::new)
    }

    /// The text itself, to be sent and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// SHA-256 in hex of `parts` and this: tells secrets apart without holding one. Secrets of Vault are random and
    /// long, so that this cannot be reversed.
    pub(super) fn fingerprint(&self, parts: &[&str]) -> String {
        fingerprint(parts.iter().copied().chain([self.expose()]))
    }
}

/// SHA-256 in hex of `parts`, each with its length, so that no two lists share one.
pub(super) fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_be_bytes());
        hash.update(part.as_bytes());
    }
    hex(&hash.finalize())
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Self::new)
    }
}
