//! What both the Workload API and the Broker API answer: their messages are alike, field by field.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ah_spire_wire::model::Entry;
use ah_spire_wire::workload::{Jwtsvid, JwtsvidResponse};
use bytes::Bytes;
use prost::Message;
use zeroize::Zeroizing;

use crate::bundles::{concatenated, id_of};
use crate::identities::{JwtIdentity, WorkloadUpdate, X509Identity};
use crate::wire::{Fields, framed};

/// `X509SVIDResponse`, with the SVIDs of those entries that are `told`.
///
/// Written by hand, field by field into buffers that never grow: a growing buffer leaves copies of the keys behind.
pub(crate) fn x509_svids(update: &WorkloadUpdate, told: impl Fn(&Entry) -> bool) -> Bytes {
    let bundle = concatenated(&update.bundle);
    let svids: Vec<_> = shown(&update.identities)
        .filter(|identity| told(&identity.entry))
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

/// `JWTSVIDResponse`
pub(crate) fn jwt_svids(svids: Vec<JwtIdentity>) -> Bytes {
    let svids = first_of_each_hint(svids, |svid| &svid.hint);
    let response = JwtsvidResponse {
        svids: svids
            .into_iter()
            .map(|svid| Jwtsvid {
                spiffe_id: svid.spiffe_id.to_string(),
                svid: svid.token,
                hint: svid.hint,
            })
            .collect(),
    };
    framed(&Zeroizing::new(response.encode_to_vec()))
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

/// Of JWT-SVIDs with one hint, the first, which is the oldest entry's (SV-77).
fn first_of_each_hint<T>(svids: Vec<T>, hint: impl Fn(&T) -> &str) -> Vec<T> {
    let mut seen = HashSet::new();
    let mut svids = svids;
    svids.retain(|svid| hint(svid).is_empty() || seen.insert(hint(svid).to_owned()));
    svids
}
