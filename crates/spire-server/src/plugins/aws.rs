//! What plugins that call AWS have in common, and the bundle publishers among them.

use ah_spire_plugin::catalog::PluginConfig;
use ah_spire_plugin::config_block;
use ah_spire_wire::aws::{Caller, Environment, Service};
use ah_spire_wire::sigv4::Credentials;
use zeroize::Zeroizing;

use super::{data, required, wrong};
use crate::publish::{Formatted, S3Publisher, TrustAnchor};

config_block! {
    /// `BundlePublisher "aws_s3"`
    struct S3Data {
        access_key_id: String = "access_key_id",
        secret_access_key: Zeroizing<String> = "secret_access_key",
        region: String = "region",
        bucket: String = "bucket",
        object_key: String = "object_key",
        format: String = "format",
        endpoint: String = "endpoint",
        refresh_hint: String = "refresh_hint",
    }
}

config_block! {
    /// `BundlePublisher "aws_rolesanywhere_trustanchor"`
    struct TrustAnchorData {
        access_key_id: String = "access_key_id",
        secret_access_key: Zeroizing<String> = "secret_access_key",
        region: String = "region",
        trust_anchor_id: String = "trust_anchor_id",
    }
}

/// Who calls `service` in `region` with `keys`, or as whom the environment says.
pub(super) fn caller(
    plugin: &PluginConfig,
    environment: Environment,
    service: Service,
    region: &str,
    keys: Option<Credentials>,
) -> Result<Caller, String> {
    required(plugin, "region", region)?;
    let caller = Caller::new(environment, region, keys);
    caller
        .endpoint(service)
        .map_err(|error| wrong(plugin, error))?;
    Ok(caller)
}

/// The access key of the configuration, if it has one.
pub(super) fn keys(
    plugin: &PluginConfig,
    environment: &Environment,
    id: &str,
    secret: &Zeroizing<String>,
) -> Result<Option<Credentials>, String> {
    environment
        .keys(id, secret)
        .map_err(|why| wrong(plugin, why))
}

/// `endpoint`: where the service is instead.
pub(super) fn at(plugin: &PluginConfig, caller: Caller, endpoint: &str) -> Result<Caller, String> {
    if endpoint.is_empty() {
        return Ok(caller);
    }
    let usable = url::Url::parse(endpoint).is_ok_and(|url| {
        ["http", "https"].contains(&url.scheme())
            && url.query().is_none()
            && url.fragment().is_none()
    });
    if usable {
        return Ok(caller.at(endpoint));
    }
    let why = format!("endpoint {endpoint:?} is no URL of a service; use https://HOST[:PORT]");
    Err(wrong(plugin, why))
}

pub(super) fn s3(plugin: &PluginConfig, environment: Environment) -> Result<S3Publisher, String> {
    let data = data(plugin, |it: &S3Data| &it.unknown)?;
    let formatted = Formatted::read(&data.format, &data.refresh_hint);
    let formatted = formatted.map_err(|why| wrong(plugin, why))?;
    required(plugin, "bucket", &data.bucket)?;
    required(plugin, "object_key", &data.object_key)?;
    if data.bucket.contains([':', '/']) {
        let bucket = &data.bucket;
        let why =
            format!("bucket {bucket:?} is no bucket's name: ARNs and access points are not served");
        return Err(wrong(plugin, why));
    }
    let keys = keys(
        plugin,
        &environment,
        &data.access_key_id,
        &data.secret_access_key,
    )?;
    let caller = caller(
        plugin,
        environment,
        S3Publisher::SERVICE,
        &data.region,
        keys,
    )?;
    let caller = at(plugin, caller, &data.endpoint)?;
    let place = (data.bucket, data.object_key);
    let in_path = !data.endpoint.is_empty();
    Ok(S3Publisher::new(caller, place, in_path, formatted))
}

pub(super) fn trust_anchor(
    plugin: &PluginConfig,
    environment: Environment,
) -> Result<TrustAnchor, String> {
    let data = data(plugin, |it: &TrustAnchorData| &it.unknown)?;
    required(plugin, "trust_anchor_id", &data.trust_anchor_id)?;
    let id = data.trust_anchor_id;
    if uuid::Uuid::try_parse(&id).is_err() {
        let why = format!(
            "trust_anchor_id {id:?} is no id: it is the UUID at the end of the trust anchor's ARN"
        );
        return Err(wrong(plugin, why));
    }
    let keys = keys(
        plugin,
        &environment,
        &data.access_key_id,
        &data.secret_access_key,
    )?;
    let service = TrustAnchor::SERVICE;
    let caller = caller(plugin, environment, service, &data.region, keys)?;
    Ok(TrustAnchor::new(caller, id))
}

#[cfg(test)]
mod tests {
    use ah_spire_plugin::catalog::PluginType;

    use super::super::kit::with;
    use super::*;

    const ANCHOR: &str = "12345678-90ab-4def-8234-567890abcdef";

    fn publisher(name: &str, text: &str) -> Result<(), String> {
        with(PluginType::BundlePublisher, name, text, |plugin| {
            let environment = Environment::default();
            match name {
                "aws_s3" => s3(plugin, environment).map(|_| ()),
                _ => trust_anchor(plugin, environment).map(|_| ()),
            }
        })
    }

    // Inventory, BundlePublisher: every key is read, and no other.
    #[test]
    fn every_key_of_the_publishers_is_read() {
        let s3 = |more: &str| {
            let text = format!(
                "region = \"eu-central-1\" bucket = \"b\" object_key = \"k\" format = \"pem\"\n{more}"
            );
            publisher("aws_s3", &text)
        };
        s3("").unwrap();
        s3("access_key_id = \"a\" secret_access_key = \"s\" endpoint = \"http://127.0.0.1:9\" refresh_hint = \"1h\"").unwrap();
        for (text, why) in [
            ("region = \"\"", "region is required"),
            ("region = \"Mars\"", "\"Mars\" is no region of AWS"),
            ("bucket = \"\"", "bucket is required"),
            (
                "bucket = \"arn:aws:s3:::b\"",
                "ARNs and access points are not served",
            ),
            ("object_key = \"\"", "object_key is required"),
            ("format = \"\"", "format is required"),
            ("refresh_hint = \"soon\"", "could not parse refresh_hint"),
            (
                "endpoint = \"minio:9000\"",
                "endpoint \"minio:9000\" is no URL",
            ),
            (
                "access_key_id = \"a\"",
                "missing secret access key, but has access key id",
            ),
            ("prefix = \"a\"", "unknown keys: prefix"),
        ] {
            let error = s3(text).unwrap_err();
            assert!(error.starts_with("BundlePublisher \"aws_s3\": "), "{error}");
            assert!(error.contains(why), "{error}");
        }
        let anchor = |more: &str| {
            let text = format!("region = \"eu-central-1\" trust_anchor_id = \"{ANCHOR}\"\n{more}");
            publisher("aws_rolesanywhere_trustanchor", &text)
        };
        anchor("access_key_id = \"a\" secret_access_key = \"s\"").unwrap();
        for (text, why) in [
            ("region = \"\"", "region is required"),
            ("trust_anchor_id = \"\"", "trust_anchor_id is required"),
            (
                "trust_anchor_id = \"arn:aws:x\"",
                "is the UUID at the end of",
            ),
            ("format = \"pem\"", "unknown keys: format"),
        ] {
            let error = anchor(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
