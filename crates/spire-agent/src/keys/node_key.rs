use std::fmt;
use std::sync::Arc;

use ah_identity_provider::PrivateKey as TlsKey;
use ah_spire_plugin_host::keys::Key;
use ah_tls::OwnKey;
use spiffe::SpiffeId;
use zeroize::Zeroizing;

use super::{KeyError, PrivateKey, external};

/// A key of the agent itself, wherever its private half is.
#[derive(Clone)]
pub enum NodeKey {
    /// In this process.
    Here(Arc<PrivateKey>),
    /// In a plugin, which signs.
    Plugin(Arc<Key>),
}

impl NodeKey {
    /// SubjectPublicKeyInfo of the public half, DER.
    pub fn spki(&self) -> &[u8] {
        match self {
            Self::Here(key) => key.spki(),
            Self::Plugin(key) => key.spki(),
        }
    }

    /// As [`PrivateKey::request`].
    pub fn request(&self, id: Option<&SpiffeId>) -> Result<Vec<u8>, KeyError> {
        match self {
            Self::Here(key) => key.request(id),
            Self::Plugin(key) => external::request(key, id),
        }
    }

    /// PKCS#8 DER, where it is here.
    pub(crate) fn pkcs8(&self) -> Option<&Zeroizing<Vec<u8>>> {
        match self {
            Self::Here(key) => Some(key.pkcs8()),
            Self::Plugin(_) => None,
        }
    }

    /// What a connection signs with.
    pub(crate) fn for_tls(&self) -> OwnKey {
        match self {
            Self::Here(key) => OwnKey::Here(TlsKey::pkcs8(key.pkcs8().to_vec())),
            Self::Plugin(key) => OwnKey::Elsewhere(external::for_tls(key.clone())),
        }
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(…)")
    }
}
