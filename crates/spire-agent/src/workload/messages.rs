//! The messages of a set, encoded once for all streams that send it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use ah_spire_wire::model::Bundle;
use ah_spire_wire::workload::{JwtBundlesResponse, X509BundlesResponse};
use bytes::Bytes;
use prost::Message;
use spiffe::TrustDomain;

use super::encoded::x509_svids;
use crate::bundles::{concatenated, document, id_of};
use crate::identities::WorkloadUpdate;
use crate::wire::framed;

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
            .get_or_init(|| x509_svids(&self.update, |_| true))
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
