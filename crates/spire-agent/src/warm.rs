//! What was got from the server, kept for the next start: an agent that comes back while its server is away serves at
//! once what is still valid.
//!
//! The file is sealed with AES-256-GCM. Its key is derived (HKDF-SHA256) from a private key that the key manager
//! keeps for this alone, so that renewals of the agent's own SVID leave the file as it is, and a key manager that
//! keeps nothing has no file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ah_spire_wire::bundle::{bundle_from_wire, bundle_to_wire};
use ah_spire_wire::model::Bundle;
use ah_spire_wire::{entry_from_wire, entry_to_wire, types};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use prost::Message;
use spiffe::TrustDomain;
use zeroize::{Zeroize, Zeroizing};

use crate::agent::AgentSettings;
use crate::cache::{Cache, Held, Snapshot};
use crate::data::DataDirectory;
use crate::files;
use crate::health::one_line;
use crate::identities::X509Identity;
use crate::keys::{KeyKind, KeyManager, SEAL_SLOT};
use crate::server_client::SyncedEntries;

/// The first bytes of the file, and what ties the seal to its use.
const MAGIC: &[u8; 8] = b"AHWARM01";

/// The file, its key, and what was last written.
pub(crate) struct WarmStart {
    path: PathBuf,
    key: Arc<LessSafeKey>,
    trust_domain: TrustDomain,
    /// [`Cache::changes`] of what was last written.
    written: Mutex<Option<u64>>,
}

/// What a process before had got.
pub(crate) struct Kept {
    pub(crate) bundle: Bundle,
    pub(crate) federated: BTreeMap<TrustDomain, Bundle>,
    pub(crate) entries: SyncedEntries,
    pub(crate) svids: Vec<Held>,
}

/// Inside of the seal.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct WarmFile {
    #[prost(message, optional, tag = "1")]
    bundle: Option<types::Bundle>,
    #[prost(message, repeated, tag = "2")]
    federated: Vec<types::Bundle>,
    #[prost(message, repeated, tag = "3")]
    entries: Vec<WarmEntry>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct WarmEntry {
    #[prost(message, optional, tag = "1")]
    entry: Option<types::Entry>,
    /// Leaf first; empty without an SVID.
    #[prost(bytes = "vec", repeated, tag = "2")]
    chain: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    /// Unix seconds.
    #[prost(uint64, tag = "4")]
    not_after: u64,
    #[prost(uint64, tag = "5")]
    rotate_at: u64,
    /// The revision that the SVID was made for.
    #[prost(int64, tag = "6")]
    revision: i64,
}

impl Drop for WarmEntry {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl WarmStart {
    /// `None` when it is turned off, or when nothing can be kept; that is said in the log.
    pub(crate) fn open(
        settings: &AgentSettings,
        data: &DataDirectory,
        keys: &dyn KeyManager,
    ) -> Option<Self> {
        let path = data.path("warm-start");
        if !settings.warm_start || !keys.persists() || !keys.reveals() {
            // One of an earlier configuration is of no use any more.
            if let Err(error) = files::remove(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove the warm-start file");
            }
            return None;
        }
        let found = keys.keys().into_iter().find(|(slot, _)| slot == SEAL_SLOT);
        let sealing = match found {
            Some((_, key)) => key,
            None => match keys.generate(SEAL_SLOT, KeyKind::EcP256) {
                Ok(key) => key,
                Err(error) => {
                    tracing::warn!(
                        error = one_line(error.explained()),
                        "no warm start: there is no key to seal with"
                    );
                    return None;
                }
            },
        };
        let key = derive(sealing.pkcs8()?, &settings.trust_domain)?;
        Some(Self {
            path,
            key: Arc::new(key),
            trust_domain: settings.trust_domain.clone(),
            written: Mutex::new(None),
        })
    }

    /// What was kept. A file that does not open is passed over: it is of another key, or broken.
    pub(crate) fn load(&self) -> Option<Kept> {
        let sealed = match files::read(&self.path) {
            Ok(sealed) => sealed?,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot read the warm-start file");
                return None;
            }
        };
        let opened = self.unseal(sealed).and_then(|plain| self.parse(&plain));
        if opened.is_none() {
            tracing::warn!(path = %self.path.display(), "the warm-start file does not open; starting without");
        }
        opened
    }

    /// Keeps what `cache` holds, if it changed.
    pub(crate) fn keep(&self, cache: &Cache) {
        let changes = cache.changes();
        if *self.written.lock().unwrap_or_else(PoisonError::into_inner) == Some(changes) {
            return;
        }
        let Some(plain) = cache.snapshot().map(|snapshot| encode(&snapshot)) else {
            return;
        };
        let Some(sealed) = self.seal(plain) else {
            tracing::warn!("the warm-start file cannot be sealed");
            return;
        };
        // Here and not on another thread: an agent that was stopped writes nothing any more.
        match files::put(&self.path, &sealed) {
            Ok(()) => {
                *self.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(changes);
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot write the warm-start file");
            }
        }
    }

    /// Takes the file away.
    pub(crate) fn forget(&self) {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Err(error) = files::remove(&self.path) {
            tracing::error!(path = %self.path.display(), %error, "cannot remove the warm-start file");
        }
    }

    fn seal(&self, mut plain: Zeroizing<Vec<u8>>) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).ok()?;
        let sealing = Nonce::assume_unique_for_key(nonce);
        // In place, so that no copy of the plain text is left.
        self.key
            .seal_in_place_append_tag(sealing, Aad::from(MAGIC), &mut *plain)
            .ok()?;
        Some([MAGIC.as_slice(), &nonce, &plain].concat())
    }

    fn unseal(&self, sealed: Vec<u8>) -> Option<Zeroizing<Vec<u8>>> {
        let rest = sealed.strip_prefix(MAGIC.as_slice())?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>()?;
        let mut text = Zeroizing::new(text.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self
            .key
            .open_in_place(nonce, Aad::from(MAGIC), &mut text)
            .ok()?
            .len();
        text.truncate(length);
        Some(text)
    }

    fn parse(&self, plain: &[u8]) -> Option<Kept> {
        let file = WarmFile::decode(plain).ok()?;
        let bundle = bundle_from_wire(&file.bundle?).ok()?;
        if bundle.trust_domain != self.trust_domain {
            return None;
        }
        let federated = file
            .federated
            .iter()
            .filter_map(|bundle| bundle_from_wire(bundle).ok())
            .map(|bundle| (bundle.trust_domain.clone(), bundle));
        let federated = federated.collect();
        let mut entries = SyncedEntries::new();
        let mut svids = Vec::new();
        for mut warm in file.entries {
            let Ok(entry) = entry_from_wire(warm.entry.as_ref()?) else {
                continue;
            };
            let entry = Arc::new(entry);
            if !warm.chain.is_empty() {
                let mut made_for = entry.clone();
                if made_for.revision != warm.revision {
                    // It is replaced as soon as there is a server.
                    Arc::make_mut(&mut made_for).revision = warm.revision;
                }
                svids.push(Held {
                    identity: Arc::new(X509Identity {
                        entry: made_for,
                        chain: std::mem::take(&mut warm.chain),
                        key: Zeroizing::new(std::mem::take(&mut warm.key)),
                        not_after: moment(warm.not_after),
                    }),
                    rotate_at: moment(warm.rotate_at),
                });
            }
            entries.insert(entry.id.clone(), entry);
        }
        Some(Kept {
            bundle,
            federated,
            entries,
            svids,
        })
    }
}

fn derive(secret: &[u8], domain: &TrustDomain) -> Option<LessSafeKey> {
    let domain = domain.to_string();
    let info = [MAGIC.as_slice(), domain.as_bytes()];
    let pseudorandom = Salt::new(HKDF_SHA256, MAGIC).extract(secret);
    let key = UnboundKey::from(pseudorandom.expand(&info, &AES_256_GCM).ok()?);
    Some(LessSafeKey::new(key))
}

fn encode(snapshot: &Snapshot) -> Zeroizing<Vec<u8>> {
    let mut entries: Vec<WarmEntry> = snapshot
        .entries
        .iter()
        .map(|(entry, held)| {
            let identity = held.as_ref().map(|held| &held.identity);
            WarmEntry {
                entry: Some(entry_to_wire(entry)),
                chain: identity.map(|held| held.chain.clone()).unwrap_or_default(),
                key: identity.map(|held| held.key.to_vec()).unwrap_or_default(),
                not_after: identity.map_or(0, |held| seconds(held.not_after)),
                rotate_at: held.as_ref().map_or(0, |held| seconds(held.rotate_at)),
                revision: identity.map_or(0, |held| held.entry.revision),
            }
        })
        .collect();
    // In one order, so that what did not change is seen not to have.
    entries.sort_by(|a, b| id(a).cmp(id(b)));
    let file = WarmFile {
        bundle: Some(bundle_to_wire(&snapshot.bundle)),
        federated: snapshot
            .federated
            .iter()
            .map(|bundle| bundle_to_wire(bundle))
            .collect(),
        entries,
    };
    // Room for the tag too: a buffer that grows leaves copies behind.
    let mut plain = Zeroizing::new(Vec::with_capacity(file.encoded_len() + 64));
    file.encode_raw(&mut *plain);
    plain
}

fn id(entry: &WarmEntry) -> &str {
    entry.entry.as_ref().map_or("", |entry| &entry.id)
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn moment(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
