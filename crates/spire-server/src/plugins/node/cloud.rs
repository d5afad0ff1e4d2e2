//! What the file says of the attestors of clouds.

use std::collections::BTreeMap;

use ah_spire_attest::node::aws_iid::{AwsIidServerConfig, EksConfig, OrganizationConfig};
use ah_spire_attest::node::azure_imds::{AzureImdsServerConfig, ImdsTenantConfig};
use ah_spire_attest::node::azure_msi::{AzureMsiServerConfig, MsiTenantConfig};
use ah_spire_plugin::catalog::PluginConfig;
use ah_spire_plugin::decode::UnknownKeys;
use ah_spire_plugin::{config_block, duration};
use ah_spire_wire::azure::Proof;
use zeroize::Zeroizing;

use crate::plugins::data;

config_block! {
    /// `NodeAttestor "aws_iid"`
    struct AwsIidData {
        access_key_id: String = "access_key_id",
        secret_access_key: Zeroizing<String> = "secret_access_key",
        assume_role: String = "assume_role",
        partition: String = "partition",
        skip_block_device: bool = "skip_block_device",
        disable_instance_profile_selectors: bool = "disable_instance_profile_selectors",
        account_ids_for_local_validation: Vec<String> = "account_ids_for_local_validation",
        agent_path_template: String = "agent_path_template",
        verify_organization: Option<OrganizationData> = "verify_organization",
        validate_eks_cluster_membership: Option<EksData> = "validate_eks_cluster_membership",
    }
}

config_block! {
    /// `verify_organization` of `aws_iid`
    struct OrganizationData {
        management_account_id: String = "management_account_id",
        assume_org_role: String = "assume_org_role",
        management_account_region: String = "management_account_region",
        org_account_map_ttl: String = "org_account_map_ttl",
        account_list_file: String = "account_list_file",
    }
}

config_block! {
    /// `validate_eks_cluster_membership` of `aws_iid`
    struct EksData {
        eks_cluster_names: Vec<String> = "eks_cluster_names",
    }
}

config_block! {
    /// `NodeAttestor "azure_imds"`
    struct ImdsData {
        tenants: BTreeMap<String, ImdsTenant> = "tenants",
        agent_path_template: String = "agent_path_template",
        allowed_metadata_domains: Vec<String> = "allowed_metadata_domains",
        trust_bundle_path: String = "trust_bundle_path",
    }
}

config_block! {
    /// A tenant of `azure_imds`.
    struct ImdsTenant {
        auth_type: String = "auth_type",
        secret_auth: Option<SecretAuth> = "secret_auth",
        token_auth: Option<TokenAuth> = "token_auth",
        allowed_vm_tags: Vec<String> = "allowed_vm_tags",
        restrict_to_subscriptions: Vec<String> = "restrict_to_subscriptions",
    }
}

config_block! {
    /// `secret_auth` of a tenant.
    struct SecretAuth {
        app_id: String = "app_id",
        app_secret: Zeroizing<String> = "app_secret",
    }
}

config_block! {
    /// `token_auth` of a tenant.
    struct TokenAuth {
        app_id: String = "app_id",
        token_path: String = "token_path",
    }
}

config_block! {
    /// `NodeAttestor "azure_msi"`
    struct MsiData {
        tenants: BTreeMap<String, MsiTenant> = "tenants",
        agent_path_template: String = "agent_path_template",
    }
}

config_block! {
    /// A tenant of `azure_msi`.
    struct MsiTenant {
        resource_id: String = "resource_id",
        subscription_id: String = "subscription_id",
        app_id: String = "app_id",
        app_secret: Zeroizing<String> = "app_secret",
    }
}

pub(super) fn azure_imds(plugin: &PluginConfig) -> Result<AzureImdsServerConfig, String> {
    let data = data(plugin, |it: &ImdsData| &it.unknown)?;
    let tenants = data.tenants.into_iter().map(|(domain, tenant)| {
        let within = format!("tenant \"{domain}\"");
        known_alone(plugin, &within, &tenant.unknown)?;
        if !tenant.auth_type.is_empty() {
            // Upstream reads this key and does nothing with it.
            tracing::warn!(
                tenant = domain,
                "auth_type has no effect: the block secret_auth or token_auth says how the server authenticates"
            );
        }
        let proof = match (tenant.secret_auth, tenant.token_auth) {
            (Some(_), Some(_)) => {
                return Err(format!(
                    "{} \"{}\": misconfigured {within}: only one of secret_auth or token_auth may be specified in the config",
                    plugin.plugin_type, plugin.name
                ));
            }
            (Some(secret), None) => {
                known_alone(plugin, &format!("{within}: secret_auth"), &secret.unknown)?;
                Proof::Secret {
                    app_id: secret.app_id,
                    secret: secret.app_secret,
                }
            }
            (None, Some(token)) => {
                known_alone(plugin, &format!("{within}: token_auth"), &token.unknown)?;
                Proof::Token {
                    app_id: token.app_id,
                    path: token.token_path.into(),
                }
            }
            (None, None) => Proof::Default,
        };
        let config = ImdsTenantConfig {
            proof,
            allowed_vm_tags: tenant.allowed_vm_tags,
            restrict_to_subscriptions: tenant.restrict_to_subscriptions,
        };
        Ok((domain, config))
    });
    Ok(AzureImdsServerConfig {
        tenants: tenants.collect::<Result<_, String>>()?,
        agent_path_template: data.agent_path_template,
        allowed_metadata_domains: data.allowed_metadata_domains,
        trust_bundle_path: data.trust_bundle_path.into(),
    })
}

pub(super) fn azure_msi(plugin: &PluginConfig) -> Result<AzureMsiServerConfig, String> {
    let data = data(plugin, |it: &MsiData| &it.unknown)?;
    let tenants = data.tenants.into_iter().map(|(id, tenant)| {
        known_alone(plugin, &format!("tenant \"{id}\""), &tenant.unknown)?;
        let config = MsiTenantConfig {
            resource_id: tenant.resource_id,
            subscription_id: tenant.subscription_id,
            app_id: tenant.app_id,
            app_secret: tenant.app_secret,
        };
        Ok((id, config))
    });
    Ok(AzureMsiServerConfig {
        tenants: tenants.collect::<Result<_, String>>()?,
        agent_path_template: data.agent_path_template,
    })
}

pub(super) fn aws_iid(plugin: &PluginConfig) -> Result<AwsIidServerConfig, String> {
    let data = data(plugin, |it: &AwsIidData| &it.unknown)?;
    let organization = data.verify_organization.map(|block| {
        known_alone(plugin, "verify_organization", &block.unknown)?;
        let ttl = match block.org_account_map_ttl.as_str() {
            "" => None,
            ttl => Some(duration::parse(ttl).map_err(|error| {
                format!(
                    "{} \"{}\": verify_organization: org_account_map_ttl: {error}",
                    plugin.plugin_type, plugin.name
                )
            })?),
        };
        Ok::<_, String>(OrganizationConfig {
            management_account_id: block.management_account_id,
            assume_org_role: block.assume_org_role,
            management_account_region: block.management_account_region,
            org_account_map_ttl: ttl,
            account_list_file: block.account_list_file.into(),
        })
    });
    let clusters = data.validate_eks_cluster_membership.map(|block| {
        known_alone(plugin, "validate_eks_cluster_membership", &block.unknown)?;
        Ok::<_, String>(EksConfig {
            eks_cluster_names: block.eks_cluster_names,
        })
    });
    Ok(AwsIidServerConfig {
        access_key_id: data.access_key_id,
        secret_access_key: data.secret_access_key,
        assume_role: data.assume_role,
        partition: data.partition,
        skip_block_device: data.skip_block_device,
        disable_instance_profile_selectors: data.disable_instance_profile_selectors,
        account_ids_for_local_validation: data.account_ids_for_local_validation,
        agent_path_template: data.agent_path_template,
        verify_organization: organization.transpose()?,
        validate_eks_cluster_membership: clusters.transpose()?,
    })
}

/// Refuses keys of the block `within` that nobody knows.
pub(in crate::plugins) fn known_alone(
    plugin: &PluginConfig,
    within: &str,
    unknown: &UnknownKeys,
) -> Result<(), String> {
    let keys: Vec<&str> = unknown.iter().map(|(key, _)| key).collect();
    if keys.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{} \"{}\": {within}: unknown keys: {}",
        plugin.plugin_type,
        plugin.name,
        keys.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ah_spire_plugin::catalog::PluginType;

    use super::*;
    use crate::plugins::kit;

    fn with<T>(name: &str, text: &str, read: impl Fn(&PluginConfig) -> T) -> T {
        kit::with(PluginType::NodeAttestor, name, text, read)
    }

    // Inventory, NodeAttestor aws_iid: every key is read, and no other.
    #[test]
    fn every_key_of_aws_iid_is_read() {
        let read = |text: &str| with("aws_iid", text, aws_iid);
        let config = read(
            r#"
            access_key_id = "a"
            secret_access_key = "b"
            assume_role = "c"
            partition = "aws-cn"
            skip_block_device = true
            disable_instance_profile_selectors = true
            account_ids_for_local_validation = ["d"]
            agent_path_template = "/e"
            verify_organization = {
                management_account_id = "f"
                assume_org_role = "g"
                management_account_region = "h"
                org_account_map_ttl = "5m"
                account_list_file = "/i"
            }
            validate_eks_cluster_membership {
                eks_cluster_names = ["j", "k"]
            }
            "#,
        )
        .unwrap();
        assert_eq!(config.access_key_id, "a");
        assert_eq!(*config.secret_access_key, "b");
        assert_eq!(config.assume_role, "c");
        assert_eq!(config.partition, "aws-cn");
        assert!(config.skip_block_device && config.disable_instance_profile_selectors);
        assert_eq!(config.account_ids_for_local_validation, ["d"]);
        assert_eq!(config.agent_path_template, "/e");
        let organization = OrganizationConfig {
            management_account_id: "f".into(),
            assume_org_role: "g".into(),
            management_account_region: "h".into(),
            org_account_map_ttl: Some(Duration::from_mins(5)),
            account_list_file: "/i".into(),
        };
        assert_eq!(config.verify_organization, Some(organization));
        let clusters = config.validate_eks_cluster_membership.unwrap();
        assert_eq!(clusters.eks_cluster_names, ["j", "k"]);
        let none = read("").unwrap();
        assert!(none.verify_organization.is_none());
        assert!(none.validate_eks_cluster_membership.is_none());
        for (text, expected) in [
            ("role = \"a\"", "unknown keys: role"),
            (
                "verify_organization = { role = \"a\" }",
                "verify_organization: unknown keys: role",
            ),
            (
                "validate_eks_cluster_membership = { names = [] }",
                "validate_eks_cluster_membership: unknown keys: names",
            ),
            (
                "verify_organization = { org_account_map_ttl = \"5\" }",
                "org_account_map_ttl: missing unit in duration",
            ),
        ] {
            let error = read(text).err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
    }

    // Inventory, NodeAttestor azure_imds: every key is read, and no other.
    #[test]
    fn every_key_of_azure_imds_is_read() {
        let read = |text: &str| with("azure_imds", text, azure_imds);
        let config = read(
            r#"
            tenants = {
                "one.example" = {
                    auth_type = "secret"
                    secret_auth = {
                        app_id = "a"
                        app_secret = "b"
                    }
                    allowed_vm_tags = ["c"]
                    restrict_to_subscriptions = ["d"]
                }
                "two.example" = {
                    token_auth = {
                        app_id = "e"
                        token_path = "/f"
                    }
                }
                "three.example" = {}
            }
            agent_path_template = "/g"
            allowed_metadata_domains = ["h"]
            trust_bundle_path = "/i"
            "#,
        )
        .unwrap();
        let proof = |domain: &str| match &config.tenants[domain].proof {
            Proof::Secret { app_id, secret } => format!("secret {app_id} {}", **secret),
            Proof::Token { app_id, path } => format!("token {app_id} {}", path.display()),
            Proof::Default => "default".into(),
        };
        assert_eq!(proof("one.example"), "secret a b");
        assert_eq!(proof("two.example"), "token e /f");
        assert_eq!(proof("three.example"), "default");
        let one = &config.tenants["one.example"];
        assert_eq!(one.allowed_vm_tags, ["c"]);
        assert_eq!(one.restrict_to_subscriptions, ["d"]);
        assert_eq!(config.agent_path_template, "/g");
        assert_eq!(config.allowed_metadata_domains, ["h"]);
        assert_eq!(config.trust_bundle_path.to_str(), Some("/i"));
        for (text, expected) in [
            (
                "tenants = { \"a\" = { secret_auth = {} token_auth = {} } }",
                "misconfigured tenant \"a\": only one of secret_auth or token_auth",
            ),
            (
                "tenants = { \"a\" = { app_id = \"x\" } }",
                "tenant \"a\": unknown keys: app_id",
            ),
            (
                "tenants = { \"a\" = { secret_auth = { app = \"x\" } } }",
                "tenant \"a\": secret_auth: unknown keys: app",
            ),
            (
                "tenants = { \"a\" = { token_auth = { path = \"x\" } } }",
                "tenant \"a\": token_auth: unknown keys: path",
            ),
        ] {
            let error = read(text).err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
    }

    // Inventory, NodeAttestor azure_msi: every key is read, and no other.
    #[test]
    fn every_key_of_azure_msi_is_read() {
        let read = |text: &str| with("azure_msi", text, azure_msi);
        let config = read(
            r#"
            tenants = {
                "one" = {
                    resource_id = "a"
                    subscription_id = "b"
                    app_id = "c"
                    app_secret = "d"
                }
            }
            agent_path_template = "/e"
            "#,
        )
        .unwrap();
        let one = &config.tenants["one"];
        assert_eq!(one.resource_id, "a");
        assert_eq!(one.subscription_id, "b");
        assert_eq!(one.app_id, "c");
        assert_eq!(*one.app_secret, "d");
        assert_eq!(config.agent_path_template, "/e");
        let error = read("tenants = { \"one\" = { secret = \"x\" } }").err();
        assert!(
            error
                .unwrap()
                .contains("tenant \"one\": unknown keys: secret")
        );
    }
}
