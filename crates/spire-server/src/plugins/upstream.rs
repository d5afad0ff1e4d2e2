//! `UpstreamAuthority` plugins.

use std::path::PathBuf;
use std::sync::Arc;

use ah_identity_provider::Clock;
use ah_identity_provider::spiffe::Endpoint;
use ah_identity_provider::vault::{
    CertificateRequest, LoginMethod, Material, Retry, Secret, Share, VaultConfig, VaultLogin,
    VaultTls, api_path,
};
use ah_spire_plugin::catalog::{PluginConfig, PluginType};
use ah_spire_plugin::config_block;
use ah_spire_plugin::decode::UnknownKeys;
use ah_spire_plugin_host::upstream as external;
use spiffe::TrustDomain;

use super::external::Running;
use super::{data, path, required, wrong};
use crate::ca::{
    DiskAuthority, ExternalAuthority, Files, SpireAuthority, SpireSettings, UpstreamAuthority,
    VaultAuthority, VaultSettings,
};

config_block! {
    /// `UpstreamAuthority "disk"`
    struct DiskData {
        cert_file_path: String = "cert_file_path",
        key_file_path: String = "key_file_path",
        bundle_file_path: String = "bundle_file_path",
    }
}

config_block! {
    /// `UpstreamAuthority "spire"`
    struct SpireData {
        server_address: String = "server_address",
        server_port: String = "server_port",
        workload_api_socket: String = "workload_api_socket",
        experimental: Option<SpireExperimental> = "experimental",
    }
}

config_block! {
    /// `experimental { }` of `UpstreamAuthority "spire"`
    struct SpireExperimental {
        workload_api_named_pipe_name: String = "workload_api_named_pipe_name",
        require_pq_kem: bool = "require_pq_kem",
    }
}

config_block! {
    /// `UpstreamAuthority "vault"`
    struct VaultData {
        vault_addr: String = "vault_addr",
        namespace: String = "namespace",
        pki_mount_point: String = "pki_mount_point",
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

/// The upstream authority that is configured.
pub(crate) enum Upstream {
    Disk(Files),
    Spire(SpireSettings),
    Vault(Box<VaultSettings>),
    /// The name of a plugin in a process of its own.
    External(String),
}

impl Upstream {
    /// Reads the plugin; `None` when there is none of this name. `variable` is the environment, where the plugin looks.
    pub(super) fn read(
        plugin: &PluginConfig,
        of: &TrustDomain,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, String> {
        Ok(Some(match plugin.name.as_str() {
            "disk" => Self::Disk(disk(plugin)?),
            "spire" => Self::Spire(spire(plugin, of)?),
            "vault" => Self::Vault(Box::new(vault(plugin, of, variable)?)),
            _ => return Ok(None),
        }))
    }

    /// Ready to sign. Files are read once, so that a fault is found at the start; nobody on the network is asked yet.
    pub(crate) fn open(
        &self,
        of: &TrustDomain,
        clock: Arc<dyn Clock>,
        running: &Running,
    ) -> Result<Arc<dyn UpstreamAuthority>, String> {
        Ok(match self {
            Self::Disk(files) => {
                let opened = DiskAuthority::open(files.clone(), of.clone(), clock);
                Arc::new(opened.map_err(|error| format!("UpstreamAuthority \"disk\": {error}"))?)
            }
            Self::Spire(settings) => Arc::new(SpireAuthority::new(settings.clone(), clock)),
            Self::External(name) => {
                let plugin = running.named(PluginType::UpstreamAuthority, name)?;
                Arc::new(ExternalAuthority::new(external::Upstream::new(plugin)))
            }
            Self::Vault(settings) => Arc::new(VaultAuthority::new((**settings).clone(), clock)),
        })
    }
}

fn disk(plugin: &PluginConfig) -> Result<Files, String> {
    let data = data(plugin, |it: &DiskData| &it.unknown)?;
    Ok(Files {
        certificate: required(plugin, "cert_file_path", &data.cert_file_path)?,
        key: required(plugin, "key_file_path", &data.key_file_path)?,
        bundle: path(&data.bundle_file_path),
    })
}

fn all_known(plugin: &PluginConfig, block: &str, unknown: &UnknownKeys) -> Result<(), String> {
    let keys: Vec<&str> = unknown.iter().map(|(key, _)| key).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let keys = keys.join(", ");
    Err(wrong(plugin, format!("unknown keys in {block}: {keys}")))
}

fn spire(plugin: &PluginConfig, of: &TrustDomain) -> Result<SpireSettings, String> {
    let data = data(plugin, |it: &SpireData| &it.unknown)?;
    let experimental = data.experimental.unwrap_or_default();
    all_known(plugin, "experimental", &experimental.unknown)?;
    if !experimental.workload_api_named_pipe_name.is_empty() {
        return Err(wrong(
            plugin,
            "workload_api_named_pipe_name is not supported on this platform; please use workload_api_socket instead",
        ));
    }
    let _: PathBuf = required(plugin, "server_address", &data.server_address)?;
    let _: PathBuf = required(plugin, "server_port", &data.server_port)?;
    let socket = required(plugin, "workload_api_socket", &data.workload_api_socket)?;
    let port = data.server_port.parse();
    let port = port.map_err(|_| {
        let port = &data.server_port;
        wrong(plugin, format!("server_port \"{port}\" is not a port"))
    })?;
    let socket = std::path::absolute(&socket)
        .map_err(|error| wrong(plugin, format!("workload_api_socket: {error}")))?;
    Ok(SpireSettings {
        host: data.server_address,
        port,
        workload_api: Endpoint::Unix(socket),
        trust_domain: of.clone(),
        post_quantum_only: experimental.require_pq_kem,
    })
}

/// With upstream's plugin a variable that is set wins over the file.
fn vault(
    plugin: &PluginConfig,
    of: &TrustDomain,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<VaultSettings, String> {
    let data = data(plugin, |it: &VaultData| &it.unknown)?;
    let or = |name: &str, given: &str| variable(name).unwrap_or_else(|| given.to_owned());
    let needed = |key: &str, name: &str, given: &str| match or(name, given) {
        value if value.is_empty() => Err(wrong(plugin, format!("set {key}, or {name}"))),
        value => Ok(value),
    };
    if data.insecure_skip_verify {
        return Err(wrong(
            plugin,
            "insecure_skip_verify is not supported: whoever is between would sign the CA; name Vault's authority in ca_cert_path",
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
        let method = LoginMethod::Kubernetes {
            role: {
                let _: PathBuf = required(plugin, "k8s_auth_role_name", &k8s.role)?;
                k8s.role.clone()
            },
            jwt: required(plugin, "token_path", &k8s.token_path)?,
        };
        methods.push((method, k8s.mount.clone()));
    }
    let Ok([(method, mount)]) = <[_; 1]>::try_from(methods) else {
        return Err(wrong(
            plugin,
            "configure one of token_auth, cert_auth, approle_auth and k8s_auth, and no more",
        ));
    };
    let mount = match mount.as_str() {
        "" => method.as_str().to_owned(),
        mount => api_path(mount).map_err(|error| wrong(plugin, error))?,
    };
    let address = needed("vault_addr", "VAULT_ADDR", &data.vault_addr)?;
    let address = address.parse();
    let address = address.map_err(|error| wrong(plugin, format!("vault_addr: {error}")))?;
    let pki_mount = match data.pki_mount_point.as_str() {
        "" => "pki".to_owned(),
        mount => {
            api_path(mount).map_err(|error| wrong(plugin, format!("pki_mount_point: {error}")))?
        }
    };
    // A provider's path, of which only the mount is used here.
    let pki = format!("{pki_mount}/sign/intermediate").parse();
    Ok(VaultSettings {
        access: VaultConfig {
            addresses: vec![address],
            namespace: Some(or("VAULT_NAMESPACE", &data.namespace))
                .filter(|namespace| !namespace.is_empty()),
            tls: VaultTls {
                ca: path(&or("VAULT_CACERT", &data.ca_cert_path)),
                client,
            },
            pki: pki.map_err(|error| wrong(plugin, error))?,
            login: VaultLogin { method, mount },
            request: CertificateRequest::default(),
            renewal_threshold: Share::TWO_THIRDS,
            retry: Retry::default(),
            token_cache: None,
        },
        pki_mount,
        trust_domain: of.clone(),
    })
}
