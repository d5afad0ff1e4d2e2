//! `federation { }`

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use spiffe::{SpiffeId, TrustDomain};

use super::file::{
    AcmeBlock, BundleEndpointBlock, EndpointProfileBlock, FederatesWithBlock, FederationBlock,
    FederationProfileBlock, ServingCertFileBlock,
};
use super::{
    Acme, BundleEndpoint, BundleEndpointProfile, FederatesWith, Federation, FederationProfile,
};
use crate::check::{self, nonempty};
use crate::decode::{Decode, from_object};
use crate::error::ConfigError;
use crate::hcl::Object;

const DEFAULT_REFRESH_HINT: Duration = Duration::from_secs(5 * 60);
const LONG_REFRESH_HINT: Duration = Duration::from_secs(24 * 60 * 60);
const SHORT_REFRESH_HINT: Duration = Duration::from_secs(60);
const DEFAULT_FILE_SYNC_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// What errors need and what comes out besides.
pub(super) struct Context<'a> {
    pub(super) path: &'a Path,
    pub(super) data_dir: &'a Path,
    pub(super) warnings: &'a mut Vec<String>,
}

pub(super) fn from(
    block: FederationBlock,
    context: &mut Context<'_>,
) -> Result<Federation, ConfigError> {
    let bundle_endpoint = block
        .bundle_endpoint
        .map(|endpoint| bundle_endpoint(endpoint, context))
        .transpose()?;
    let mut federates_with = BTreeMap::new();
    for (name, block) in block.federates_with {
        let key = format!("federation.federates_with[{name:?}]");
        let trust_domain = TrustDomain::new(&name).map_err(|why| {
            ConfigError::Rule(format!("{key} is not named by a trust domain: {why}"))
        })?;
        let relation = self::federates_with(&key, block, context)?;
        if federates_with.insert(trust_domain, relation).is_some() {
            return ConfigError::rule(format!("{key} is given twice"));
        }
    }
    Ok(Federation {
        bundle_endpoint,
        federates_with,
    })
}

fn bundle_endpoint(
    block: BundleEndpointBlock,
    context: &mut Context<'_>,
) -> Result<BundleEndpoint, ConfigError> {
    let address = block.address.parse().ok();
    if address.is_none() {
        context.warnings.push(format!(
            "federation.bundle_endpoint.address {:?} is not an IP address; the endpoint listens on all of them",
            block.address
        ));
    }
    let refresh_hint = check::duration(
        "federation.bundle_endpoint.refresh_hint",
        &block.refresh_hint,
    )?;
    let refresh_hint = refresh_hint.unwrap_or(DEFAULT_REFRESH_HINT);
    if refresh_hint >= LONG_REFRESH_HINT {
        context.warnings.push(
            "federation.bundle_endpoint.refresh_hint is high: others see an unplanned change of the bundle late; \
             5m is a good value"
                .to_owned(),
        );
    } else if refresh_hint < SHORT_REFRESH_HINT {
        context.warnings.push(
            "federation.bundle_endpoint.refresh_hint is low: nobody refreshes more than once a minute".to_owned(),
        );
    }
    let profile = match (block.acme, block.profile.0) {
        (Some(_), Some(_)) => {
            return ConfigError::rule(
                "only one of acme and profile can be set in federation.bundle_endpoint",
            );
        }
        (Some(block), None) => {
            context.warnings.push(
                "federation.bundle_endpoint.acme is deprecated; put it into profile \"https_web\" { }".to_owned(),
            );
            BundleEndpointProfile::Acme(acme(block, context)?)
        }
        (None, None) => {
            context.warnings.push(
                "federation.bundle_endpoint has no profile, so that https_spiffe is used; set one"
                    .to_owned(),
            );
            BundleEndpointProfile::HttpsSpiffe
        }
        (None, Some(section)) => endpoint_profile(&section, context)?,
    };
    Ok(BundleEndpoint {
        address,
        port: check::port("federation.bundle_endpoint.port", block.port)?,
        refresh_hint,
        profile,
    })
}

fn endpoint_profile(
    section: &Object,
    context: &Context<'_>,
) -> Result<BundleEndpointProfile, ConfigError> {
    let key = "federation.bundle_endpoint.profile";
    let profile: EndpointProfileBlock = only_profile(key, section, context)?;
    match (profile.https_spiffe, profile.https_web) {
        (_, Some(web)) => match (web.acme, web.serving_cert_file) {
            (Some(block), _) => Ok(BundleEndpointProfile::Acme(acme(block, context)?)),
            (None, Some(block)) => serving_cert_file(block),
            (None, None) => ConfigError::rule(format!(
                "{key} \"https_web\" needs acme {{ }} or serving_cert_file {{ }}"
            )),
        },
        (Some(_), None) => Ok(BundleEndpointProfile::HttpsSpiffe),
        (None, None) => unknown_profile(key),
    }
}

fn acme(block: AcmeBlock, context: &Context<'_>) -> Result<Acme, ConfigError> {
    for (key, value) in [("domain_name", &block.domain_name), ("email", &block.email)] {
        if value.is_empty() {
            return ConfigError::rule(format!(
                "federation.bundle_endpoint: {key} of acme must be configured"
            ));
        }
    }
    Ok(Acme {
        directory_url: nonempty(block.directory_url),
        domain_name: block.domain_name,
        email: block.email,
        tos_accepted: block.tos_accepted,
        cache_dir: context.data_dir.join("bundle-acme"),
    })
}

fn serving_cert_file(block: ServingCertFileBlock) -> Result<BundleEndpointProfile, ConfigError> {
    let interval = check::ttl("file_sync_interval", &block.file_sync_interval)?;
    Ok(BundleEndpointProfile::ServingCertFile {
        cert: block.cert_file_path.into(),
        key: block.key_file_path.into(),
        sync_interval: interval.unwrap_or(DEFAULT_FILE_SYNC_INTERVAL),
    })
}

fn federates_with(
    key: &str,
    block: FederatesWithBlock,
    context: &Context<'_>,
) -> Result<FederatesWith, ConfigError> {
    let url = block.bundle_endpoint_url;
    if url.is_empty() {
        return ConfigError::rule(format!("{key}.bundle_endpoint_url must be configured"));
    }
    if !url.to_ascii_lowercase().starts_with("https://") {
        return ConfigError::rule(format!(
            "{key}.bundle_endpoint_url must start with https://, unlike {url:?}"
        ));
    }
    let key = format!("{key}.bundle_endpoint_profile");
    let Some(section) = block.bundle_endpoint_profile.0 else {
        return ConfigError::rule(format!("{key} must be configured"));
    };
    let profile: FederationProfileBlock = only_profile(&key, &section, context)?;
    let profile = match (profile.https_web, profile.https_spiffe) {
        (Some(_), _) => FederationProfile::HttpsWeb,
        (None, Some(spiffe)) => {
            let id = SpiffeId::new(&spiffe.endpoint_spiffe_id).map_err(|why| {
                ConfigError::Rule(format!("{key}: could not parse endpoint_spiffe_id: {why}"))
            })?;
            FederationProfile::HttpsSpiffe(id)
        }
        (None, None) => return unknown_profile(&key),
    };
    Ok(FederatesWith {
        bundle_endpoint_url: url,
        profile,
    })
}

fn only_profile<T: Decode>(
    key: &str,
    section: &Object,
    context: &Context<'_>,
) -> Result<T, ConfigError> {
    if section.items.len() != 1 {
        return ConfigError::rule(format!(
            "{key}: exactly one profile is expected, not {}",
            section.items.len()
        ));
    }
    from_object(section).map_err(ConfigError::decode(context.path))
}

fn unknown_profile<T>(key: &str) -> Result<T, ConfigError> {
    ConfigError::rule(format!(
        "{key} is unknown; use \"https_spiffe\" or \"https_web\""
    ))
}
