//! An X509-SVID as text.

use std::collections::BTreeMap;

use ah_spire_plugin_host::svids::StoredSvid;
use ah_spire_wire::bundle::{pem, pem_block};
use serde::Serialize;
use zeroize::Zeroizing;

use super::StoreFault;

/// All certificates as PEM, in their order.
pub(super) fn certificates(chain: &[Vec<u8>]) -> String {
    chain.iter().map(|der| pem(der)).collect()
}

/// The key as PEM (PKCS #8).
pub(super) fn private_key(svid: &StoredSvid) -> Zeroizing<String> {
    Zeroizing::new(pem_block("PRIVATE KEY", &svid.key))
}

/// The JSON that secrets of clouds hold, under upstream's names.
pub(super) fn document(svid: &StoredSvid) -> Result<Zeroizing<String>, StoreFault> {
    #[derive(Serialize)]
    struct Document<'a> {
        #[serde(rename = "spiffeID")]
        spiffe_id: &'a str,
        #[serde(rename = "x509SVID")]
        svid: String,
        #[serde(rename = "x509SVIDKey")]
        key: &'a str,
        bundle: String,
        #[serde(
            rename = "federatedBundles",
            skip_serializing_if = "BTreeMap::is_empty"
        )]
        federated: BTreeMap<&'a str, String>,
    }

    let key = private_key(svid);
    let federated = svid.federated.iter();
    let document = Document {
        spiffe_id: &svid.spiffe_id,
        svid: certificates(&svid.chain),
        key: &key,
        bundle: certificates(&svid.bundle),
        federated: federated
            .map(|(domain, roots)| (domain.as_str(), certificates(roots)))
            .collect(),
    };
    serde_json::to_string(&document)
        .map(Zeroizing::new)
        .map_err(|error| StoreFault::Failed(error.to_string()))
}
