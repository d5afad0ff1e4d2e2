//! Federation with other trust domains: the own bundle for them (SPIFFE Federation §5), theirs for this server's
//! workloads.

mod certificate;
mod client;
mod endpoint;
mod interval;
mod manager;
mod url;

use std::collections::BTreeMap;

use ah_spire_plugin::server::{BundleEndpointProfile, FederationProfile, ServerConfig};
use ah_spire_web::FileCertificate;
use spiffe::TrustDomain;

pub use self::endpoint::Endpoint;
pub use self::manager::Manager;
pub use self::url::endpoint_url;
use crate::store::{Profile, Relationship};

/// The relationships of `federates_with`, which go before those of the same trust domain in the store.
///
/// # Errors
/// One that cannot be polled, by the key of its mistake.
pub fn configured(config: &ServerConfig) -> Result<BTreeMap<TrustDomain, Relationship>, String> {
    let mut relationships = BTreeMap::new();
    for (domain, with) in &config.federation.federates_with {
        let key = format!("federation.federates_with[\"{domain}\"]");
        if *domain == config.trust_domain {
            return Err(format!(
                "{key} is the trust domain of this server: it knows its own bundle; remove the block"
            ));
        }
        let url = endpoint_url(&with.bundle_endpoint_url)
            .map_err(|why| format!("{key}.bundle_endpoint_url: {why}"))?;
        let profile = match &with.profile {
            FederationProfile::HttpsWeb => Profile::HttpsWeb,
            FederationProfile::HttpsSpiffe(id) => Profile::HttpsSpiffe(id.clone()),
        };
        let relationship = Relationship {
            trust_domain: domain.clone(),
            endpoint_url: url,
            profile,
        };
        relationships.insert(domain.clone(), relationship);
    }
    Ok(relationships)
}

/// Looks at all that `federation { }` names, and makes nothing.
///
/// # Errors
/// What an operator has to change.
pub fn check(config: &ServerConfig) -> Result<(), String> {
    configured(config)?;
    let endpoint = config.federation.bundle_endpoint.as_ref();
    match endpoint.map(|endpoint| &endpoint.profile) {
        // Without that no ACME server issues anything.
        Some(BundleEndpointProfile::Acme(acme)) if !acme.tos_accepted => Err(
            "federation.bundle_endpoint: ACME Terms of Service have not been accepted. See the `tos_accepted` configurable"
                .to_owned(),
        ),
        Some(BundleEndpointProfile::Acme(_)) => Ok(()),
        Some(BundleEndpointProfile::ServingCertFile { cert, key, .. }) => {
            FileCertificate::load(cert, key).map(|_| ())
        }
        Some(BundleEndpointProfile::HttpsSpiffe) | None => Ok(()),
    }
}
