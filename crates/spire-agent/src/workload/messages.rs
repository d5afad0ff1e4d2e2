//! The messages of a set, encoded once for all streams that send it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use ah_spire_wire::model::Bundle;
use ah_spire_wire::workload::{JwtBundlesResponse, X509BundlesResponse};
use bytes::Bytes;
use prost::Message;
use spiffe::TrustDomain;

use crate::bundles::{concatenated, document, id_of};
use crate::identities::{WorkloadUpdate, X509Identity};
use crate::wire::{Fields, framed};

/// One set and its messages, each made when somebody first wants it. With the frame's header, ready to be sent.
pub(super) struct Messages {
    update: Arc<WorkloadUpdate>,
    svids: OnceLock<Bytes>,
    x509_bundles: OnceLock<Bytes>,
    jwt_bundles: OnceLock<Bytes>,
}

impl Messages {
    fn of(update: Arc<WorkloadUpdate>) -> Self {
        Self {
            update,
            svids: OnceLock::new(),
            x509_bundles: OnceLock::new(),
            jwt_bundles: OnceLock::new(),
        }
    }

    pub(super) fn has_identity(&self) -> bool {
        !self.update.identities.is_empty()
    }

    /// `X509SVIDResponse`: wiped when the last stream is done with it.
    pub(super) fn svids(&self) -> Bytes {
        self.svids
            .get_or_init(|| encode_svids(&self.update))
            .clone()
    }

    /// `X509BundlesResponse`
    pub(super) fn x509_bundles(&self) -> Bytes {
        self.x509_bundles
            .get_or_init(|| {
                let bundles = self
                    .bundles()
                    .map(|(id, bundle)| (id, concatenated(bundle)));
                let message = X509BundlesResponse {
                    crl: Vec::new(),
                    bundles: bundles.collect(),
                };
                framed(&message.encode_to_vec())
            })
            .clone()
    }

    /// `JWTBundlesResponse`: documents without X.509 keys (SV-79).
    pub(super) fn jwt_bundles(&self) -> Bytes {
        self.jwt_bundles
            .get_or_init(|| {
                let bundles = self.bundles().filter_map(|(id, bundle)| {
                    let document = document(&id, bundle)?;
                    Some((id, document))
                });
                let message = JwtBundlesResponse {
                    bundles: bundles.collect(),
                };
                framed(&message.encode_to_vec())
            })
            .clone()
    }

    /// By trust domain and never merged (SV-52). Federated ones are part of an identity: without one there are none.
    fn bundles(&self) -> impl Iterator<Item = (String, &Bundle)> {
        let update = &self.update;
        let federated = self.has_identity().then_some(&update.federated);
        let federated = federated.into_iter().flatten();
        std::iter::once((&update.bundle.trust_domain, &*update.bundle))
            .chain(federated.map(|(domain, bundle)| (domain, &**bundle)))
            .map(|(domain, bundle)| (id_of(domain), bundle))
    }
}

/// The identities that a workload is shown: of those with one hint, the oldest (SV-77).
fn shown(identities: &[Arc<X509Identity>]) -> impl Iterator<Item = &X509Identity> {
    let mut oldest: HashMap<&str, &X509Identity> = HashMap::new();
    for identity in identities {
        let age = |identity: &X509Identity| (identity.entry.created_at, identity.entry.id.clone());
        let kept = oldest.entry(&identity.entry.hint).or_insert(identity);
        if age(identity) < age(kept) {
            *kept = identity;
        }
    }
    let shown = move |identity: &&Arc<X509Identity>| {
        let hint = identity.entry.hint.as_str();
        let kept = oldest.get(hint);
        let shown = hint.is_empty() || kept.is_some_and(|kept| kept.entry.id == identity.entry.id);
        if !shown {
            tracing::warn!(
                hint,
                entry = identity.entry.id,
                "ignoring an entry with a duplicate hint"
            );
        }
        shown
    };
    identities.iter().filter(shown).map(|identity| &**identity)
}

/// Written by hand, field by field into buffers that never grow: a growing buffer leaves copies of the keys behind.
fn encode_svids(update: &WorkloadUpdate) -> Bytes {
    let bundle = concatenated(&update.bundle);
    let svids: Vec<_> = shown(&update.identities)
        .map(|identity| encode_svid(identity, &bundle))
        .collect();
    let federated: Vec<_> = update
        .federated
        .iter()
        .map(|(domain, bundle)| {
            let (id, bundle) = (id_of(domain), concatenated(bundle));
            Fields::of(&[(1, id.as_bytes()), (2, &bundle)])
        })
        .collect();
    let svids = svids.iter().map(|svid| (1, svid.bytes()));
    let federated = federated.iter().map(|entry| (3, entry.bytes()));
    let parts: Vec<_> = svids.chain(federated).collect();
    framed(Fields::of(&parts).bytes())
}

/// `X509SVID`: leaf first (SV-78), the key as PKCS#8.
fn encode_svid(identity: &X509Identity, bundle: &[u8]) -> Fields {
    let id = identity.entry.spiffe_id.to_string();
    let chain = identity.chain.concat();
    let hint = identity.entry.hint.as_bytes();
    Fields::without_empty(&[
        (1, id.as_bytes()),
        (2, &chain),
        (3, &identity.key),
        (4, bundle),
        (5, hint),
    ])
}

/// Finds the messages of a set that some stream has already.
#[derive(Default)]
pub(super) struct MessageCache {
    known: Mutex<HashMap<SetKey, Weak<Messages>>>,
}

/// A set by the addresses of its parts, which [`Messages`] keeps alive for as long as the key is good.
#[derive(PartialEq, Eq, Hash)]
struct SetKey {
    identities: Vec<usize>,
    bundle: usize,
    federated: BTreeMap<TrustDomain, usize>,
}

impl SetKey {
    fn of(update: &WorkloadUpdate) -> Self {
        Self {
            identities: update.identities.iter().map(address).collect(),
            bundle: address(&update.bundle),
            federated: update
                .federated
                .iter()
                .map(|(domain, bundle)| (domain.clone(), address(bundle)))
                .collect(),
        }
    }
}

fn address<T>(of: &Arc<T>) -> usize {
    Arc::as_ptr(of) as usize
}

impl MessageCache {
    /// The messages of `update`, shared with every stream that has an equal set.
    pub(super) fn messages(&self, update: &Arc<WorkloadUpdate>) -> Arc<Messages> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = SetKey::of(update);
        if let Some(messages) = known.get(&key).and_then(Weak::upgrade) {
            return messages;
        }
        // Growing is the time to look for what nobody sends any more.
        if known.len() == known.capacity() {
            known.retain(|_, messages| messages.strong_count() > 0);
        }
        let messages = Arc::new(Messages::of(Arc::clone(update)));
        known.insert(key, Arc::downgrade(&messages));
        messages
    }
}

/// Of JWT-SVIDs with one hint, the first, which is the oldest entry's (SV-77).
pub(super) fn first_of_each_hint<T>(svids: Vec<T>, hint: impl Fn(&T) -> &str) -> Vec<T> {
    let mut seen = HashSet::new();
    let mut svids = svids;
    svids.retain(|svid| hint(svid).is_empty() || seen.insert(hint(svid).to_owned()));
    svids
}
