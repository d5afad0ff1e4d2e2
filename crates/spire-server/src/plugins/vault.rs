//! How plugins reach HashiCorp Vault or OpenBao: what `UpstreamAuthority "vault"` and `KeyManager "hashicorp_vault"` have
//! in common.

use std::path::PathBuf;

use ah_identity_provider::vault::{
    CertificateRequest, LoginMethod, Material, Retry, Secret, Share, VaultConfig, VaultLogin,
    VaultTls, api_path,
};
use ah_spire_plugin::catalog::PluginConfig;
use ah_spire_plugin::config_block;
use ah_spire_plugin::decode::{Decode, UnknownKeys};

use super::{all_known, decoded, path, required, wrong};

config_block! {
    /// Where Vault is, and how to log in.
    pub(super) struct AccessData {
        vault_addr: String = "vault_addr",
        namespace: String = "namespace",
        ca_cert_path: String = "ca_cert_path",
        insecure_skip_verify: bool = "insecure_skip_verify",
        token_auth: Option<TokenAuth> = "token_auth",
        cert_auth: Option<CertAuth> = "cert_auth",
        approle_auth: Option<AppRoleAuth> = "approle_auth",
        k8s_auth: Option<K8sAuth> = "k8s_auth",
    }
}

config_block! {
    /// `token_auth { }`
    struct TokenAuth {
        token: String = "token",
    }
}

config_block! {
    /// `cert_auth { }`
    struct CertAuth {
        mount: String = "cert_auth_mount_point",
        role: String = "cert_auth_role_name",
        certificate: String = "client_cert_path",
        key: String = "client_key_path",
    }
}

config_block! {
    /// `approle_auth { }`
    struct AppRoleAuth {
        mount: String = "approle_auth_mount_point",
        role_id: String = "approle_id",
        secret_id: String = "approle_secret_id",
    }
}

config_block! {
    /// `k8s_auth { }`
    struct K8sAuth {
        mount: String = "k8s_auth_mount_point",
        role: String = "k8s_auth_role_name",
        token_path: String = "token_path",
    }
}

/// The plugin's data: the access, and what it has besides.
pub(super) fn data<T: Decode>(
    plugin: &PluginConfig,
    unknown: impl Fn(&T) -> &UnknownKeys,
) -> Result<(AccessData, T), String> {
    let (access, other): (AccessData, T) = (decoded(plugin)?, decoded(plugin)?);
    // What one of them does not know may be the other's.
    let known_to_other = |key: &str| unknown(&other).iter().all(|(unknown, _)| unknown != key);
    let keys = access.unknown.iter().map(|(key, _)| key);
    let keys: Vec<&str> = keys.filter(|key| !known_to_other(key)).collect();
    if keys.is_empty() {
        return Ok((access, other));
    }
    Err(wrong(plugin, format!("unknown keys: {}", keys.join(", "))))
}

/// The path of an engine.
pub(super) fn mount(
    plugin: &PluginConfig,
    key: &str,
    given: &str,
    default: &str,
) -> Result<String, String> {
    match given {
        "" => Ok(default.to_owned()),
        given => api_path(given).map_err(|error| wrong(plugin, format!("{key}: {error}"))),
    }
}

/// What is said of the access, for the engine at `mount`. With upstream's plugins a variable that is set wins over the
/// file.
pub(super) fn access(
    plugin: &PluginConfig,
    data: &AccessData,
    mount: &str,
    retry: Retry,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<VaultConfig, String> {
    let or = |name: &str, given: &str| variable(name).unwrap_or_else(|| given.to_owned());
    let needed = |key: &str, name: &str, given: &str| match or(name, given) {
        value if value.is_empty() => Err(wrong(plugin, format!("set {key}, or {name}"))),
        value => Ok(value),
    };
    if data.insecure_skip_verify {
        return Err(wrong(
            plugin,
            "insecure_skip_verify is not supported: whoever is between would have the server's login; name Vault's authority in ca_cert_path",
        ));
    }
    let mut client = None;
    let mut methods = Vec::new();
    if let Some(token) = &data.token_auth {
        all_known(plugin, "token_auth", &token.unknown)?;
        let token = needed("token", "VAULT_TOKEN", &token.token)?;
        let token = Material::Given(Secret::new(token));
        methods.push((LoginMethod::Token(token), String::new()));
    }
    if let Some(cert) = &data.cert_auth {
        all_known(plugin, "cert_auth", &cert.unknown)?;
        let certificate = needed("client_cert_path", "VAULT_CLIENT_CERT", &cert.certificate)?;
        let key = needed("client_key_path", "VAULT_CLIENT_KEY", &cert.key)?;
        client = Some((certificate.into(), key.into()));
        let role = Some(cert.role.clone()).filter(|role| !role.is_empty());
        methods.push((LoginMethod::Cert { role }, cert.mount.clone()));
    }
    if let Some(role) = &data.approle_auth {
        all_known(plugin, "approle_auth", &role.unknown)?;
        let role_id = needed("approle_id", "VAULT_APPROLE_ID", &role.role_id)?;
        let secret_id = or("VAULT_APPROLE_SECRET_ID", &role.secret_id);
        let given = |text| Material::Given(Secret::new(text));
        let method = LoginMethod::AppRole {
            role_id: given(role_id),
            secret_id: Some(secret_id).filter(|text| !text.is_empty()).map(given),
            wrapped: false,
        };
        methods.push((method, role.mount.clone()));
    }
    if let Some(k8s) = &data.k8s_auth {
        all_known(plugin, "k8s_auth", &k8s.unknown)?;
        let _: PathBuf = required(plugin, "k8s_auth_role_name", &k8s.role)?;
        let method = LoginMethod::Kubernetes {
            role: k8s.role.clone(),
            jwt: required(plugin, "token_path", &k8s.token_path)?,
        };
        methods.push((method, k8s.mount.clone()));
    }
    let Ok([(method, login)]) = <[_; 1]>::try_from(methods) else {
        return Err(wrong(
            plugin,
            "configure one of token_auth, cert_auth, approle_auth and k8s_auth, and no more",
        ));
    };
    let login = match login.as_str() {
        "" => method.as_str().to_owned(),
        mount => api_path(mount).map_err(|error| wrong(plugin, error))?,
    };
    let address = needed("vault_addr", "VAULT_ADDR", &data.vault_addr)?;
    let address = address.parse();
    let address = address.map_err(|error| wrong(plugin, format!("vault_addr: {error}")))?;
    // A provider's path, which is not asked for anything here.
    let pki = format!("{mount}/sign/intermediate").parse();
    Ok(VaultConfig {
        addresses: vec![address],
        namespace: Some(or("VAULT_NAMESPACE", &data.namespace))
            .filter(|namespace| !namespace.is_empty()),
        tls: VaultTls {
            ca: path(&or("VAULT_CACERT", &data.ca_cert_path)),
            client,
        },
        pki: pki.map_err(|error| wrong(plugin, error))?,
        login: VaultLogin {
            method,
            mount: login,
        },
        request: CertificateRequest::default(),
        renewal_threshold: Share::TWO_THIRDS,
        retry,
        token_cache: None,
    })
}
