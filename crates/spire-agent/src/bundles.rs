//! The bundles of all trust domains that an agent has, as those are told that act for more than one workload.

use std::collections::BTreeMap;
use std::sync::Arc;

use ah_identity_provider::TrustBundles;
use ah_spire_wire::bundle::{Contents, to_document};
use ah_spire_wire::model::Bundle;
use bytes::Bytes;
use spiffe::TrustDomain;

use crate::server_client::roots_of;
use crate::wire::{Fields, framed};

/// By trust domain, our own among them; empty before the server said anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bundles(pub(crate) BTreeMap<TrustDomain, Arc<Bundle>>);

impl Bundles {
    /// As certificates of all those trust domains are judged by them.
    pub(crate) fn trust(&self) -> TrustBundles {
        let domains = { self.0.iter() }.map(|(domain, bundle)| (domain.clone(), roots_of(bundle)));
        TrustBundles {
            unscoped: Vec::new(),
            domains: domains.collect(),
        }
    }
}

/// As APIs name a trust domain: by its SPIFFE ID.
pub(crate) fn id_of(domain: &TrustDomain) -> String {
    format!("spiffe://{domain}")
}

/// DER, one certificate after the other.
pub(crate) fn concatenated(bundle: &Bundle) -> Vec<u8> {
    let ders = bundle.x509.iter().map(|authority| authority.der.as_slice());
    ders.collect::<Vec<_>>().concat()
}

/// A message with the CA certificates in a map of number `field`, for each change of them.
pub(crate) fn x509(field: u8) -> impl FnMut(&Bundles) -> Option<Bytes> + Send + 'static {
    changes_of(field, |_, bundle| Some(concatenated(bundle)))
}

/// As [`x509`], of the JWT keys: documents without X.509 keys (SV-79), in a map of number 1.
pub(crate) fn jwt() -> impl FnMut(&Bundles) -> Option<Bytes> + Send + 'static {
    changes_of(1, document)
}

/// The JWT keys of `bundle` as a JWK set. `None` for one that cannot be told, which the log names.
pub(crate) fn document(id: &str, bundle: &Bundle) -> Option<Vec<u8>> {
    to_document(bundle, Contents::JwtKeys)
        .map(String::into_bytes)
        .inspect_err(|error| {
            tracing::error!(trust_domain = id, %error, "a bundle cannot be told to workloads");
        })
        .ok()
}

fn changes_of(
    field: u8,
    content: impl Fn(&str, &Bundle) -> Option<Vec<u8>> + Send + 'static,
) -> impl FnMut(&Bundles) -> Option<Bytes> + Send + 'static {
    let mut sent = None;
    move |bundles| {
        if bundles.0.is_empty() {
            return None;
        }
        let entries: Vec<_> = bundles
            .0
            .iter()
            .filter_map(|(domain, bundle)| {
                let id = id_of(domain);
                let content = content(&id, bundle)?;
                Some(Fields::of(&[(1, id.as_bytes()), (2, &content)]))
            })
            .collect();
        let entries: Vec<_> = entries.iter().map(|entry| (field, entry.bytes())).collect();
        let message = framed(Fields::of(&entries).bytes());
        // The other half of the bundles may have changed.
        if sent.as_ref() == Some(&message) {
            return None;
        }
        sent = Some(message.clone());
        Some(message)
    }
}
