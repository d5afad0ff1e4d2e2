//! Keys of a plugin in a process of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use ah_identity_provider::{Code, Explained};
use ah_spire_plugin::settings::KeyType;
use ah_spire_plugin_host::keys::{Key, Keys, Padding, blocking};
use ah_spire_wire::KeyKind as Kind;
use rcgen::{PublicKeyData, SignatureAlgorithm};
use rustls::SignatureScheme;
use rustls::sign::{Signer, SigningKey};
use spiffe::SpiffeId;
use tonic::Status;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{KeyError, KeyKind, KeyManager, NodeKey};

/// A plugin's keys. Which there are is asked at the start, and known after that: nobody else makes any.
pub struct ExternalKeys {
    keys: Keys,
    known: Mutex<BTreeMap<String, Arc<Key>>>,
}

impl ExternalKeys {
    /// The keys that `keys` has.
    pub async fn open(keys: Keys) -> Result<Self, KeyError> {
        let found = keys.keys().await.map_err(|status| failed(&status))?;
        let found = found.into_iter();
        let known = found.map(|key| (key.id().to_owned(), Arc::new(key)));
        Ok(Self {
            known: Mutex::new(known.collect()),
            keys,
        })
    }
}

impl KeyManager for ExternalKeys {
    fn name(&self) -> &str {
        self.keys.name()
    }

    /// If it does not, the node attests again after a restart.
    fn persists(&self) -> bool {
        true
    }

    fn reveals(&self) -> bool {
        false
    }

    fn generate(&self, id: &str, kind: KeyKind) -> Result<NodeKey, KeyError> {
        let kind = match kind {
            KeyKind::EcP256 => KeyType::EcP256,
            KeyKind::EcP384 => KeyType::EcP384,
            KeyKind::Rsa2048 => KeyType::Rsa2048,
        };
        let made = blocking(self.keys.generate(id, kind)).map_err(|status| failed(&status))?;
        let made = Arc::new(made);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(id.to_owned(), made.clone());
        Ok(NodeKey::Plugin(made))
    }

    fn keys(&self) -> Vec<(String, NodeKey)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.iter();
        known
            .map(|(id, key)| (id.clone(), NodeKey::Plugin(key.clone())))
            .collect()
    }
}

fn failed(status: &Status) -> KeyError {
    KeyError(
        Explained::new(Code::Other, "the key manager's plugin failed")
            .cause(status.message())
            .hint("look into the log for what the plugin says"),
    )
}

/// As `PrivateKey::request`.
pub(super) fn request(key: &Key, id: Option<&SpiffeId>) -> Result<Vec<u8>, KeyError> {
    let unreadable = || {
        failed(&Status::internal(format!(
            "the public half of key {:?} cannot be used",
            key.id()
        )))
    };
    let (_, info) = SubjectPublicKeyInfo::from_der(key.spki()).map_err(|_| unreadable())?;
    let subject = Subject {
        algorithm: match key.kind() {
            Kind::EcP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Kind::EcP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Kind::Rsa => &rcgen::PKCS_RSA_SHA256,
            Kind::EcP521 | Kind::Ed25519 => return Err(unreadable()),
        },
        public: info.subject_public_key.data.to_vec(),
        key,
        refused: Mutex::default(),
    };
    super::key::request(&subject, id).map_err(|error| {
        let refused = subject
            .refused
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        failed(&refused.unwrap_or_else(|| Status::internal(error.to_string())))
    })
}

/// Who asks for a certificate.
struct Subject<'a> {
    key: &'a Key,
    algorithm: &'static SignatureAlgorithm,
    public: Vec<u8>,
    /// Why there is no signature, which the library's error has no place for.
    refused: Mutex<Option<Status>>,
}

impl PublicKeyData for Subject<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl rcgen::SigningKey for Subject<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key
            .sign_blocking(message, Padding::Pkcs1)
            .map_err(|status| {
                let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                *refused = Some(status);
                rcgen::Error::RemoteKeyError
            })
    }
}

/// What a connection signs with.
pub(super) fn for_tls(key: Arc<Key>) -> Arc<dyn SigningKey> {
    Arc::new(TlsKey(key))
}

#[derive(Clone)]
struct TlsKey(Arc<Key>);

impl TlsKey {
    /// Of TLS 1.3 (RFC 8446 §4.2.3).
    fn scheme_of_kind(&self) -> Option<SignatureScheme> {
        match self.0.kind() {
            Kind::EcP256 => Some(SignatureScheme::ECDSA_NISTP256_SHA256),
            Kind::EcP384 => Some(SignatureScheme::ECDSA_NISTP384_SHA384),
            Kind::Rsa => Some(SignatureScheme::RSA_PSS_SHA256),
            Kind::EcP521 | Kind::Ed25519 => None,
        }
    }
}

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = self.scheme_of_kind()?;
        offered.contains(&scheme).then(|| {
            Box::new(TlsSigner {
                key: self.clone(),
                scheme,
            }) as Box<dyn Signer>
        })
    }

    fn algorithm(&self) -> rustls::SignatureAlgorithm {
        match self.0.kind() {
            Kind::Rsa => rustls::SignatureAlgorithm::RSA,
            Kind::Ed25519 => rustls::SignatureAlgorithm::ED25519,
            Kind::EcP256 | Kind::EcP384 | Kind::EcP521 => rustls::SignatureAlgorithm::ECDSA,
        }
    }
}

#[derive(Debug)]
struct TlsSigner {
    key: TlsKey,
    scheme: SignatureScheme,
}

impl Signer for TlsSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let signed = self.key.0.sign_blocking(message, Padding::Pss);
        signed.map_err(|status| rustls::Error::General(status.message().to_owned()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsKey").finish_non_exhaustive()
    }
}
