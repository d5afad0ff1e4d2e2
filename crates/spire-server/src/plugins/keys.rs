//! `KeyManager` plugins.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::vault::Retry;
use ah_spire_attest::node::gcp_iit::{Account, Google};
use ah_spire_plugin::catalog::PluginConfig;
use ah_spire_plugin::config_block;
use ah_spire_wire::aws::Environment;
use ah_spire_wire::azure::{Azure, Proof};
use spiffe::TrustDomain;
use zeroize::Zeroizing;

use super::{aws, data, path, required, vault, wrong};
use crate::keys::{
    AwsKms, GcpKmsSettings, Identifier, KeyVaultSettings, KmsSettings, Pin, Pkcs11Settings,
    TokenName, TransitSettings,
};

/// The most tags that AWS takes for a key.
const MOST_TAGS: usize = 50;

/// Who asks for a signature waits: what is tried again is tried soon.
const RETRY: Retry = Retry {
    max: 2,
    delay: Duration::from_millis(500),
};

config_block! {
    /// `KeyManager "disk"`
    struct DiskData {
        keys_path: String = "keys_path",
    }
}

config_block! {
    /// `KeyManager "aws_kms"`
    struct KmsData {
        access_key_id: String = "access_key_id",
        secret_access_key: Zeroizing<String> = "secret_access_key",
        region: String = "region",
        key_identifier_file: String = "key_identifier_file",
        key_identifier_value: String = "key_identifier_value",
        key_policy_file: String = "key_policy_file",
        key_tags: BTreeMap<String, String> = "key_tags",
        enable_tag_based_key_discovery: bool = "enable_tag_based_key_discovery",
    }
}

config_block! {
    /// What `KeyManager "hashicorp_vault"` has besides the access.
    struct TransitData {
        key_identifier_file: String = "key_identifier_file",
        key_identifier_value: String = "key_identifier_value",
        transit_engine_path: String = "transit_engine_path",
    }
}

config_block! {
    /// `KeyManager "pkcs11"`
    struct Pkcs11Data {
        module_path: String = "module_path",
        token_label: String = "token_label",
        slot: Option<i64> = "slot",
        pin_file: String = "pin_file",
        pin_env: String = "pin_env",
        key_identifier_file: String = "key_identifier_file",
        key_identifier_value: String = "key_identifier_value",
    }
}

config_block! {
    /// `KeyManager "gcp_kms"`
    struct GcpKmsData {
        key_ring: String = "key_ring",
        key_policy_file: String = "key_policy_file",
        key_identifier_file: String = "key_identifier_file",
        key_identifier_value: String = "key_identifier_value",
        service_account_file: String = "service_account_file",
    }
}

config_block! {
    /// `KeyManager "azure_key_vault"`
    struct KeyVaultData {
        key_vault_uri: String = "key_vault_uri",
        key_identifier_file: String = "key_identifier_file",
        key_identifier_value: String = "key_identifier_value",
        tenant_id: String = "tenant_id",
        subscription_id: String = "subscription_id",
        app_id: String = "app_id",
        app_secret: String = "app_secret",
    }
}

/// Where the keys of the authorities are to be.
#[derive(Clone)]
pub(crate) enum KeysWanted {
    Memory,
    /// The file.
    Disk(PathBuf),
    /// The name of the plugin.
    External(String),
    /// `aws_kms`
    Kms(Box<KmsSettings>),
    /// `hashicorp_vault`
    Transit(Box<TransitSettings>),
    /// `pkcs11`
    Pkcs11(Pkcs11Settings),
    /// `gcp_kms`
    GcpKms(Box<GcpKmsSettings>),
    /// `azure_key_vault`
    KeyVault(Box<KeyVaultSettings>),
}

impl KeysWanted {
    /// Reads the plugin; `None` when there is none of this name. `variable` is the environment, where the plugin looks.
    pub(super) fn read(
        plugin: &PluginConfig,
        of: &TrustDomain,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, String> {
        Ok(Some(match plugin.name.as_str() {
            "memory" => Self::Memory,
            "disk" => {
                let data = data(plugin, |it: &DiskData| &it.unknown)?;
                Self::Disk(required(plugin, "keys_path", &data.keys_path)?)
            }
            "aws_kms" => {
                let settings = kms(plugin, of, Environment::of_process())?;
                Self::Kms(Box::new(settings))
            }
            "hashicorp_vault" => Self::Transit(Box::new(transit(plugin, variable)?)),
            "pkcs11" => Self::Pkcs11(pkcs11(plugin)?),
            "gcp_kms" => Self::GcpKms(Box::new(gcp_kms(plugin, of)?)),
            "azure_key_vault" => Self::KeyVault(Box::new(key_vault(plugin, of)?)),
            _ => return Ok(None),
        }))
    }
}

fn kms(
    plugin: &PluginConfig,
    of: &TrustDomain,
    environment: Environment,
) -> Result<KmsSettings, String> {
    let data = data(plugin, |it: &KmsData| &it.unknown)?;
    let (id, secret) = (&data.access_key_id, &data.secret_access_key);
    let keys = aws::keys(plugin, &environment, id, secret)?;
    let caller = aws::caller(plugin, environment, AwsKms::SERVICE, &data.region, keys)?;
    let value = &data.key_identifier_value;
    if value.starts_with("alias/aws/") {
        let why = "key_identifier_value must not start with alias/aws/, which is AWS's own";
        return Err(wrong(plugin, why));
    }
    let server = identifier(plugin, &data.key_identifier_file, value, &IN_ALIASES)?;
    check_tags(&data.key_tags).map_err(|why| wrong(plugin, format!("key_tags: {why}")))?;
    Ok(KmsSettings {
        caller: Arc::new(caller),
        trust_domain: of.clone(),
        server,
        policy: path(&data.key_policy_file),
        tags: data.key_tags,
        by_tags: data.enable_tag_based_key_discovery,
    })
}

/// What AWS takes for tags, without those that the server sets itself.
fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), String> {
    if tags.len() > MOST_TAGS {
        return Err(format!("{} tags, and AWS takes {MOST_TAGS}", tags.len()));
    }
    let fits = |c: char| c.is_alphanumeric() || c.is_whitespace() || "+-=._:/@".contains(c);
    for (key, value) in tags {
        let low = key.to_ascii_lowercase();
        let reserved = ["aws:", "spire-"]
            .into_iter()
            .find(|it| low.starts_with(it));
        if let Some(reserved) = reserved {
            return Err(format!(
                "{key:?} begins with {reserved:?}, which is reserved"
            ));
        }
        if key.is_empty() || key.len() > 128 || value.len() > 256 {
            return Err(format!(
                "{key:?}: a key has 1 to 128 characters, and a value at most 256"
            ));
        }
        if !key.chars().chain(value.chars()).all(fits) {
            return Err(format!(
                "{key:?} = {value:?} has other characters than letters, digits, spaces and + - = . _ : / @"
            ));
        }
    }
    Ok(())
}

fn transit(
    plugin: &PluginConfig,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<TransitSettings, String> {
    let (access, data) = vault::data(plugin, |it: &TransitData| &it.unknown)?;
    let path = variable("VAULT_TRANSIT_ENGINE_PATH").unwrap_or(data.transit_engine_path);
    let mount = vault::mount(plugin, "transit_engine_path", &path, "transit")?;
    let server = identifier(
        plugin,
        &data.key_identifier_file,
        &data.key_identifier_value,
        &IN_NAMES,
    )?;
    Ok(TransitSettings {
        access: vault::access(plugin, &access, &mount, RETRY, variable)?,
        mount,
        server,
    })
}

fn pkcs11(plugin: &PluginConfig) -> Result<Pkcs11Settings, String> {
    let data = data(plugin, |it: &Pkcs11Data| &it.unknown)?;
    let token = match (data.token_label, data.slot) {
        (label, None) if !label.is_empty() => TokenName::Label(label),
        (label, Some(slot)) if label.is_empty() => {
            let slot = u64::try_from(slot);
            TokenName::Slot(
                slot.map_err(|_| wrong(plugin, "slot is the number of a slot, from 0"))?,
            )
        }
        _ => {
            let why = "set one of token_label and slot, and no more";
            return Err(wrong(plugin, why));
        }
    };
    let pin = match (data.pin_file, data.pin_env) {
        (file, variable) if variable.is_empty() && !file.is_empty() => Pin::File(file.into()),
        (file, variable) if file.is_empty() && !variable.is_empty() => Pin::Variable(variable),
        _ => {
            let why = "set one of pin_file (a file with the PIN) and pin_env (the name of a variable of the environment that holds it), and no more";
            return Err(wrong(plugin, why));
        }
    };
    let server = identifier(
        plugin,
        &data.key_identifier_file,
        &data.key_identifier_value,
        &IN_NAMES,
    )?;
    Ok(Pkcs11Settings {
        module: required(plugin, "module_path", &data.module_path)?,
        token,
        pin,
        server,
    })
}

fn gcp_kms(plugin: &PluginConfig, of: &TrustDomain) -> Result<GcpKmsSettings, String> {
    let data = data(plugin, |it: &GcpKmsData| &it.unknown)?;
    required(plugin, "key_ring", &data.key_ring)?;
    let parts: Vec<&str> = data.key_ring.split('/').collect();
    let fits = |part: &&str| {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        !part.is_empty() && part.bytes().all(letter)
    };
    let is_ring = matches!(parts[..], ["projects", project, "locations", location, "keyRings", ring]
        if [project, location, ring].iter().all(fits));
    if !is_ring {
        let why = format!(
            "key_ring \"{}\" is none; write projects/PROJECT/locations/LOCATION/keyRings/RING",
            data.key_ring
        );
        return Err(wrong(plugin, why));
    }
    let server = identifier(
        plugin,
        &data.key_identifier_file,
        &data.key_identifier_value,
        &Allowed {
            part: "name",
            letters: |it| it.is_ascii_lowercase() || it.is_ascii_digit() || "_-".contains(it),
            most: 40,
            told: "small letters, digits, '_' and '-'",
        },
    )?;
    Ok(GcpKmsSettings {
        api: "https://cloudkms.googleapis.com".into(),
        account: Account::new(path(&data.service_account_file), Google::default().metadata),
        ring: data.key_ring,
        policy: path(&data.key_policy_file),
        server,
        trust_domain: of.clone(),
    })
}

fn key_vault(plugin: &PluginConfig, of: &TrustDomain) -> Result<KeyVaultSettings, String> {
    let data = data(plugin, |it: &KeyVaultData| &it.unknown)?;
    required(plugin, "key_vault_uri", &data.key_vault_uri)?;
    let vault = data.key_vault_uri.trim_end_matches('/');
    // Tokens are for all vaults of a cloud: `https://vault.azure.net` of `https://NAME.vault.azure.net`.
    let host = vault.strip_prefix("https://").filter(|host| {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        host.bytes().all(letter)
    });
    let cloud = host.and_then(|host| host.split_once('.'));
    let (_, cloud) = cloud.ok_or_else(|| {
        let why = format!("key_vault_uri \"{vault}\" is none; write https://NAME.vault.azure.net");
        wrong(plugin, why)
    })?;
    let server = identifier(
        plugin,
        &data.key_identifier_file,
        &data.key_identifier_value,
        &Allowed {
            part: "tags",
            letters: |it| !it.is_control(),
            most: 256,
            told: "characters on one line",
        },
    )?;
    let azure = Azure::of_process();
    let application = [
        ("tenant_id", &data.tenant_id),
        ("subscription_id", &data.subscription_id),
        ("app_id", &data.app_id),
        ("app_secret", &data.app_secret),
    ];
    let (tenant, proof) = if application.iter().any(|(_, value)| !value.is_empty()) {
        for (key, value) in application {
            required(plugin, key, value)?;
        }
        let proof = Proof::Secret {
            app_id: data.app_id,
            secret: Zeroizing::new(data.app_secret),
        };
        (data.tenant_id, proof)
    } else {
        let tenant = azure.tenant_id.clone().unwrap_or_default();
        (tenant, Proof::Default)
    };
    Ok(KeyVaultSettings {
        azure,
        vault: vault.to_owned(),
        resource: format!("https://{cloud}"),
        tenant,
        proof,
        server,
        trust_domain: of.clone(),
    })
}

/// What a `key_identifier_value` may be, letters and digits among it.
struct Allowed {
    /// Of a key.
    part: &'static str,
    letters: fn(char) -> bool,
    most: usize,
    told: &'static str,
}

/// It becomes part of names and paths.
const IN_NAMES: Allowed = Allowed {
    part: "name",
    letters: |it| it.is_ascii_alphanumeric() || "._-".contains(it),
    most: 63,
    told: "letters, digits, '.', '_' and '-'",
};

/// It becomes part of aliases.
const IN_ALIASES: Allowed = Allowed {
    part: "name",
    letters: |it| it.is_ascii_alphanumeric() || "/_-".contains(it),
    most: 256,
    told: "letters, digits, '/', '_' and '-'",
};

/// Whose keys they are.
fn identifier(
    plugin: &PluginConfig,
    file: &str,
    value: &str,
    allowed: &Allowed,
) -> Result<Identifier, String> {
    match (file, value) {
        ("", "") => Err(wrong(
            plugin,
            "one of 'key_identifier_file' or 'key_identifier_value' must be provided",
        )),
        (file, "") => Ok(Identifier::File(file.into())),
        ("", value) => {
            let is_some = value.contains(|c: char| c.is_ascii_alphanumeric());
            let short = value.chars().count() <= allowed.most;
            if is_some && short && value.chars().all(allowed.letters) {
                return Ok(Identifier::Value(value.to_owned()));
            }
            let (part, most, told) = (allowed.part, allowed.most, allowed.told);
            Err(wrong(
                plugin,
                format!(
                    "key_identifier_value \"{value}\" cannot be part of a key's {part}; use at most {most} {told}"
                ),
            ))
        }
        _ => Err(wrong(
            plugin,
            "only one of 'key_identifier_file' or 'key_identifier_value' should be provided",
        )),
    }
}

#[cfg(test)]
mod tests {
    use ah_spire_plugin::catalog::PluginType;

    use super::super::kit::with;
    use super::*;

    // Inventory, KeyManager aws_kms: every key is read, and no other.
    #[test]
    fn every_key_of_aws_kms_is_read() {
        let read = |text: &str| {
            let of = TrustDomain::new("example.org").unwrap();
            with(PluginType::KeyManager, "aws_kms", text, |plugin| {
                kms(plugin, &of, Environment::default())
            })
        };
        let all = read(
            r#"
            access_key_id = "a"
            secret_access_key = "s"
            region = "eu-west-1"
            key_identifier_value = "servers/one_1-a"
            key_policy_file = "/p"
            key_tags = { team = "blue" "cost centre" = "" }
            enable_tag_based_key_discovery = true
            "#,
        );
        let all = all.unwrap();
        assert_eq!(all.server, Identifier::Value("servers/one_1-a".into()));
        assert_eq!(all.policy, Some(PathBuf::from("/p")));
        assert_eq!(all.tags["team"], "blue");
        assert_eq!(all.tags.len(), 2);
        assert!(all.by_tags);
        let region = "region = \"eu-west-1\"\n";
        let file = read(&format!("{region}key_identifier_file = \"/f\"")).unwrap();
        assert_eq!(file.server, Identifier::File("/f".into()));
        assert!(!file.by_tags && file.tags.is_empty() && file.policy.is_none());
        let value = format!("{region}key_identifier_value = \"a\"\n");
        for (text, why) in [
            (
                "key_identifier_value = \"a\"".to_owned(),
                "region is required",
            ),
            (region.to_owned(), "one of 'key_identifier_file' or"),
            (
                format!("{value}key_identifier_file = \"/f\""),
                "only one of 'key_identifier_file' or",
            ),
            (
                format!("{region}key_identifier_value = \"a.b\""),
                "use at most 256 letters, digits, '/', '_' and '-'",
            ),
            (
                format!("{region}key_identifier_value = \"//\""),
                "cannot be part of a key's name",
            ),
            (
                format!("{region}key_identifier_value = \"alias/aws/a\""),
                "must not start with alias/aws/",
            ),
            (
                format!("{value}key_tags = {{ \"Spire-x\" = \"a\" }}"),
                "\"Spire-x\" begins with \"spire-\", which is reserved",
            ),
            (
                format!("{value}key_tags = {{ \"aws:x\" = \"a\" }}"),
                "which is reserved",
            ),
            (
                format!("{value}key_tags = {{ x = \"a;b\" }}"),
                "has other characters than",
            ),
            (
                format!("{value}key_tags = {{ x = \"{}\" }}", "a".repeat(257)),
                "a value at most 256",
            ),
            (
                format!("{value}key_metadata_file = \"/m\""),
                "unknown keys: key_metadata_file",
            ),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.starts_with("KeyManager \"aws_kms\": "), "{error}");
            assert!(error.contains(why), "{error}");
        }
    }
}
