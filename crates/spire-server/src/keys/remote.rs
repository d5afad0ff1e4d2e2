//! Keys that never are in this process: another service or a token makes them, keeps them and signs.
//!
//! What such managers have in common is here: which key is the one of a name, that a key in whose place another one
//! came is deleted, at once or after a restart, and that a signature is verified before anybody gets to see it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use ah_spire_plugin_host::keys::blocking;
use ah_spire_wire::der::Writer;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{KeyError, KeyManager, KeyType, SigningKey};

/// How long a signature may take: it holds a thread.
const SIGN_WITHIN: Duration = Duration::from_secs(20);

/// The first and the longest wait before a key that could not be deleted is tried again.
const DELETE_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// A key as its place has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The place's own name for it, which no other key ever has.
    pub handle: String,
    /// The key manager's name for it.
    pub id: String,
    /// What kind of key it is.
    pub kind: KeyType,
    /// SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// Of several of one name, the one that was made last counts.
    pub made: SystemTime,
}

/// Where keys are. It names the server that they belong to, and knows no others.
#[tonic::async_trait]
pub trait Place: Send + Sync + 'static {
    /// All keys of this server.
    async fn list(&self) -> Result<Vec<Held>, KeyError>;
    /// Makes a key beside those that are there.
    async fn create(&self, id: &str, kind: KeyType) -> Result<Held, KeyError>;
    /// As [`SigningKey::sign`]. The signature is verified by the caller.
    async fn sign(&self, key: &Held, message: &[u8]) -> Result<Vec<u8>, KeyError>;
    /// Deletes a key. One that is gone is deleted.
    async fn delete(&self, handle: &str) -> Result<(), KeyError>;
    /// How often [`Self::tend`] is called, if at all.
    fn tended_every(&self) -> Option<Duration> {
        None
    }
    /// What has to be done from time to time so that the place keeps `held`.
    async fn tend(&self, _held: &[Held]) -> Result<(), KeyError> {
        Ok(())
    }
}

/// The keys of a [`Place`].
pub struct RemoteKeys {
    place: Arc<dyn Place>,
    keys: Arc<RwLock<BTreeMap<String, Arc<RemoteKey>>>>,
    stale: mpsc::UnboundedSender<String>,
    /// Deletes and tends, as long as there are keys to be made.
    _work: AbortOnDropHandle<()>,
}

struct RemoteKey {
    place: Arc<dyn Place>,
    held: Held,
}

impl RemoteKeys {
    /// Finds the keys of an earlier process. Of several of one name the newest stays: a process that was killed between
    /// making a key and deleting its predecessor left the others.
    ///
    /// # Errors
    /// What the place says.
    pub async fn open(place: impl Place) -> Result<Self, KeyError> {
        let place: Arc<dyn Place> = Arc::new(place);
        let mut listed = place.list().await?;
        listed.sort_by(|one, other| (one.made, &one.handle).cmp(&(other.made, &other.handle)));
        let (stale, deletions) = mpsc::unbounded_channel();
        let mut keys = BTreeMap::new();
        for held in listed {
            let key = RemoteKey::new(place.clone(), held)?;
            let before: Option<Arc<RemoteKey>> = keys.insert(key.held.id.clone(), key);
            if let Some(before) = before {
                tracing::info!(
                    key = before.held.handle,
                    "Key of an earlier process that was replaced is deleted"
                );
                let _ = stale.send(before.held.handle.clone());
            }
        }
        let keys = Arc::new(RwLock::new(keys));
        let work = tokio::spawn(work(place.clone(), keys.clone(), deletions));
        Ok(Self {
            place,
            keys,
            stale,
            _work: AbortOnDropHandle::new(work),
        })
    }

    fn all(&self) -> Vec<Arc<RemoteKey>> {
        all(&self.keys)
    }
}

fn all(keys: &RwLock<BTreeMap<String, Arc<RemoteKey>>>) -> Vec<Arc<RemoteKey>> {
    let keys = keys.read().unwrap_or_else(PoisonError::into_inner);
    keys.values().cloned().collect()
}

impl KeyManager for RemoteKeys {
    async fn generate_key(&self, id: &str, kind: KeyType) -> Result<Arc<dyn SigningKey>, KeyError> {
        let held = self.place.create(id, kind).await?;
        if held.kind != kind {
            let (wanted, made) = (kind.as_str(), held.kind.as_str());
            return Err(KeyError::Failed(format!(
                "key \"{id}\" was made as {made}, and not as {wanted}"
            )));
        }
        let key = RemoteKey::new(self.place.clone(), held)?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = keys.insert(id.to_owned(), key.clone()) {
            let _ = self.stale.send(before.held.handle.clone());
        }
        Ok(key)
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn SigningKey>>, KeyError> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        Ok(keys.get(id).map(|key| key.clone() as Arc<dyn SigningKey>))
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn SigningKey>>, KeyError> {
        let keys = self.all().into_iter();
        Ok(keys.map(|key| key as Arc<dyn SigningKey>).collect())
    }
}

/// Deletes what was replaced and tends what is in use, until nobody can replace anything any more.
async fn work(
    place: Arc<dyn Place>,
    keys: Arc<RwLock<BTreeMap<String, Arc<RemoteKey>>>>,
    mut stale: mpsc::UnboundedReceiver<String>,
) {
    let (first, longest) = DELETE_AGAIN;
    let mut wait = first;
    let mut left: Vec<String> = Vec::new();
    let mut again = Instant::now();
    let mut tend = place.tended_every().map(tokio::time::interval);
    loop {
        let tend_due = async {
            match &mut tend {
                Some(interval) => interval.tick().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            handle = stale.recv() => match handle {
                Some(handle) => left.push(handle),
                None => return,
            },
            () = sleep_until(again), if !left.is_empty() => {}
            _ = tend_due => {
                let held: Vec<Held> = all(&keys).iter().map(|key| key.held.clone()).collect();
                if let Err(error) = place.tend(&held).await {
                    tracing::warn!(%error, "Keys in use could not be marked as such, which is tried again");
                }
                continue;
            }
        }
        let mut failed = Vec::new();
        for handle in left.drain(..) {
            match place.delete(&handle).await {
                Ok(()) => tracing::debug!(key = handle, "Key deleted"),
                Err(error) => {
                    tracing::warn!(key = handle, %error, retry_in = ?wait, "Replaced key not deleted, which is tried again");
                    failed.push(handle);
                }
            }
        }
        left = failed;
        again = Instant::now() + wait;
        wait = if left.is_empty() {
            first
        } else {
            wait.saturating_mul(2).min(longest)
        };
    }
}

impl RemoteKey {
    fn new(place: Arc<dyn Place>, held: Held) -> Result<Arc<Self>, KeyError> {
        match kind_of(&held.spki) {
            Some(kind) if kind == held.kind => Ok(Arc::new(Self { place, held })),
            _ => Err(KeyError::Failed(format!(
                "the public half of key {} is none of {}",
                held.handle,
                held.kind.as_str()
            ))),
        }
    }
}

/// The type that keys of this public half have; `None` for all others.
pub(super) fn kind_of(spki: &[u8]) -> Option<KeyType> {
    use ah_spire_wire::KeyKind;
    match ah_spire_wire::key_kind(spki).ok()? {
        KeyKind::EcP256 => Some(KeyType::EcP256),
        KeyKind::EcP384 => Some(KeyType::EcP384),
        KeyKind::Rsa => match SubjectPublicKeyInfo::from_der(spki).ok()?.1.parsed().ok()? {
            PublicKey::RSA(key) if key.key_size() == 2048 => Some(KeyType::Rsa2048),
            PublicKey::RSA(key) if key.key_size() == 4096 => Some(KeyType::Rsa4096),
            _ => None,
        },
        KeyKind::EcP521 | KeyKind::Ed25519 => None,
    }
}

/// What a key of this type signs: a digest, by SHA-384 for P-384 and by SHA-256 for the others.
pub(super) fn digest_of(kind: KeyType, message: &[u8]) -> Vec<u8> {
    use aws_lc_rs::digest::{SHA256, SHA384, digest};
    let by = match kind {
        KeyType::EcP384 => &SHA384,
        KeyType::EcP256 | KeyType::Rsa2048 | KeyType::Rsa4096 => &SHA256,
    };
    digest(by, message).as_ref().to_vec()
}

/// Both halves of an ECDSA signature as RFC 3279 §2.2.3 has them.
pub(super) fn ecdsa_der(signature: &[u8]) -> Vec<u8> {
    let (r, s) = signature.split_at(signature.len() / 2);
    let mut out = Writer::default();
    out.sequence(|w| {
        w.unsigned(r);
        w.unsigned(s);
    });
    out.finish()
}

impl SigningKey for RemoteKey {
    fn id(&self) -> &str {
        &self.held.id
    }

    fn key_type(&self) -> KeyType {
        self.held.kind
    }

    fn spki(&self) -> &[u8] {
        &self.held.spki
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let signing = timeout(SIGN_WITHIN, self.place.sign(&self.held, message));
        let signed = blocking(async { Ok(signing.await) });
        let signed = signed.map_err(|status| KeyError::Failed(status.message().to_owned()))?;
        let late = |_| {
            let id = &self.held.id;
            KeyError::Failed(format!("key \"{id}\": no signature within {SIGN_WITHIN:?}"))
        };
        let signature = signed.map_err(late)??;
        let algorithm: &dyn VerificationAlgorithm = match self.held.kind {
            KeyType::EcP256 => &ECDSA_P256_SHA256_ASN1,
            KeyType::EcP384 => &ECDSA_P384_SHA384_ASN1,
            KeyType::Rsa2048 | KeyType::Rsa4096 => &RSA_PKCS1_2048_8192_SHA256,
        };
        let verified =
            UnparsedPublicKey::new(algorithm, &self.held.spki).verify(message, &signature);
        verified.map_err(|_| {
            let id = &self.held.id;
            KeyError::Failed(format!("the signature of key \"{id}\" is none"))
        })?;
        Ok(signature)
    }
}
