//! Plugins that call AWS: publishers of the bundle and upstream authorities.

use std::sync::Arc;

use ah_identity_provider::pem;
use ah_spire_plugin::catalog::PluginConfig;
use ah_spire_plugin::config_block;
use ah_spire_wire::aws::{Caller, Environment, Service};
use ah_spire_wire::sigv4::Credentials;
use zeroize::Zeroizing;

use super::{data, path, required, wrong};
use crate::ca::{PcaAuthority, PcaSettings, SecretAuthority, SecretSettings};
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

config_block! {
    /// `UpstreamAuthority "awssecret"`
    struct SecretData {
        region: String = "region",
        cert_file_arn: String = "cert_file_arn",
        key_file_arn: String = "key_file_arn",
        bundle_file_arn: String = "bundle_file_arn",
        access_key_id: String = "access_key_id",
        secret_access_key: Zeroizing<String> = "secret_access_key",
        secret_token: Zeroizing<String> = "secret_token",
        assume_role_arn: String = "assume_role_arn",
    }
}

config_block! {
    /// `UpstreamAuthority "aws_pca"`
    struct PcaData {
        region: String = "region",
        endpoint: String = "endpoint",
        certificate_authority_arn: String = "certificate_authority_arn",
        signing_algorithm: String = "signing_algorithm",
        ca_signing_template_arn: String = "ca_signing_template_arn",
        assume_role_arn: String = "assume_role_arn",
        supplemental_bundle_path: String = "supplemental_bundle_path",
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

/// `assume_role_arn`: the role that is taken on first.
fn in_role(caller: Caller, arn: String) -> Caller {
    match arn.as_str() {
        "" => caller,
        _ => caller.assuming(arn),
    }
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

pub(super) fn secret(
    plugin: &PluginConfig,
    environment: Environment,
) -> Result<SecretSettings, String> {
    let data = data(plugin, |it: &SecretData| &it.unknown)?;
    for (key, arn) in [
        ("cert_file_arn", &data.cert_file_arn),
        ("key_file_arn", &data.key_file_arn),
    ] {
        required(plugin, key, arn)?;
    }
    // Upstream leaves the region to AWS's SDK.
    let variables = ["AWS_REGION", "AWS_DEFAULT_REGION"];
    let found = variables.iter().find_map(|name| environment.variable(name));
    let region = match data.region.as_str() {
        "" => found.unwrap_or_default().to_owned(),
        region => region.to_owned(),
    };
    if region.is_empty() {
        return Err(wrong(plugin, "set region, or AWS_REGION"));
    }
    let (id, secret) = (&data.access_key_id, &data.secret_access_key);
    let mut keys = keys(plugin, &environment, id, secret)?;
    if let Some(keys) = &mut keys {
        let token = match data.secret_token.as_str() {
            "" => environment.variable("AWS_SESSION_TOKEN"),
            token => Some(token),
        };
        keys.session_token = token.map(|token| Zeroizing::new(token.to_owned()));
    } else if !data.secret_token.is_empty() {
        let why = "secret_token belongs to access_key_id and secret_access_key: set them as well";
        return Err(wrong(plugin, why));
    }
    let service = SecretAuthority::SERVICE;
    let caller = caller(plugin, environment, service, &region, keys)?;
    Ok(SecretSettings {
        caller: Arc::new(in_role(caller, data.assume_role_arn)),
        certificate: data.cert_file_arn,
        key: data.key_file_arn,
        bundle: Some(data.bundle_file_arn).filter(|arn| !arn.is_empty()),
    })
}

pub(super) fn pca(plugin: &PluginConfig, environment: Environment) -> Result<PcaSettings, String> {
    let data = data(plugin, |it: &PcaData| &it.unknown)?;
    let ca = data.certificate_authority_arn;
    required(plugin, "certificate_authority_arn", &ca)?;
    let service = PcaAuthority::SERVICE;
    let caller = caller(plugin, environment, service, &data.region, None)?;
    let caller = at(plugin, caller, &data.endpoint)?;
    let mut supplement = Vec::new();
    if let Some(path) = path(&data.supplemental_bundle_path) {
        let told = |why: &dyn std::fmt::Display| {
            let path = path.display();
            let why = format!("supplemental_bundle_path {path}: {why}");
            wrong(plugin, why)
        };
        let read = std::fs::read(&path).map_err(|error| told(&error))?;
        let found = pem::certificates(&read).map_err(|error| told(&error))?;
        supplement = found.iter().map(|der| der.to_vec()).collect();
    }
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(PcaSettings {
        caller: Arc::new(in_role(caller, data.assume_role_arn)),
        ca,
        algorithm: given(data.signing_algorithm),
        template: given(data.ca_signing_template_arn),
        supplement,
    })
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

    const CERTIFICATE: &str = "cert_file_arn = \"c\" key_file_arn = \"k\"\n";

    // Inventory, UpstreamAuthority awssecret: every key is read, and no other.
    #[test]
    fn every_key_of_awssecret_is_read() {
        let read = |text: &str, variables: &[(&str, &str)]| {
            let text = format!("{CERTIFICATE}{text}");
            with(
                PluginType::UpstreamAuthority,
                "awssecret",
                &text,
                |plugin| {
                    let variables = variables.iter();
                    let variables =
                        variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
                    secret(plugin, variables.collect())
                },
            )
        };
        let own = "access_key_id = \"a\" secret_access_key = \"s\" secret_token = \"t\" bundle_file_arn = \"b\" assume_role_arn = \"r\" region = \"eu-west-1\"";
        let all = read(own, &[]).unwrap();
        assert_eq!(all.certificate, "c");
        assert_eq!(all.key, "k");
        assert_eq!(all.bundle.as_deref(), Some("b"));
        let of_sdk = read("", &[("AWS_REGION", "eu-west-2")]).unwrap();
        let (url, _) = of_sdk.caller.endpoint(SecretAuthority::SERVICE).unwrap();
        assert_eq!(url, "https://secretsmanager.eu-west-2.amazonaws.com");
        for (text, why) in [
            ("", "set region, or AWS_REGION"),
            ("cert_file_arn = \"\"", "cert_file_arn is required"),
            ("key_file_arn = \"\"", "key_file_arn is required"),
            (
                "region = \"eu-west-1\" secret_token = \"t\"",
                "secret_token belongs to",
            ),
            ("endpoint = \"x\"", "unknown keys: endpoint"),
        ] {
            let error = read(text, &[]).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    // Inventory, UpstreamAuthority aws_pca: every key is read, and no other.
    #[test]
    fn every_key_of_aws_pca_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("more.pem");
        let ca = ah_testkit::ca::TestCa::new("example.org");
        std::fs::write(&bundle, ca.pem()).unwrap();
        let read = |text: &str| {
            let text = format!("region = \"eu-west-1\" certificate_authority_arn = \"c\"\n{text}");
            with(PluginType::UpstreamAuthority, "aws_pca", &text, |plugin| {
                pca(plugin, Environment::default())
            })
        };
        let all = read(&format!(
            "endpoint = \"http://127.0.0.1:9\" signing_algorithm = \"SHA256WITHRSA\" ca_signing_template_arn = \"t\" assume_role_arn = \"r\" supplemental_bundle_path = {bundle:?}"
        ));
        let all = all.unwrap();
        let (url, _) = all.caller.endpoint(PcaAuthority::SERVICE).unwrap();
        assert_eq!(url, "http://127.0.0.1:9");
        assert_eq!(all.ca, "c");
        assert_eq!(all.algorithm.as_deref(), Some("SHA256WITHRSA"));
        assert_eq!(all.template.as_deref(), Some("t"));
        assert_eq!(all.supplement, [ca.root_der().to_vec()]);
        std::fs::write(&bundle, "none").unwrap();
        for (text, why) in [
            ("region = \"\"", "region is required"),
            (
                "certificate_authority_arn = \"\"",
                "certificate_authority_arn is required",
            ),
            ("access_key_id = \"a\"", "unknown keys: access_key_id"),
            (
                &*format!("supplemental_bundle_path = {bundle:?}"),
                "more.pem: ",
            ),
            (
                "supplemental_bundle_path = \"/no/file\"",
                "supplemental_bundle_path /no/file: No such file",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
