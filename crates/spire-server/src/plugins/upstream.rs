//! `UpstreamAuthority` plugins.

use std::path::PathBuf;
use std::sync::Arc;

use ah_identity_provider::Clock;
use ah_identity_provider::spiffe::Endpoint;
use ah_identity_provider::vault::Retry;
use ah_spire_attest::node::gcp_iit::{Account, Google};
use ah_spire_attest::node::k8s::{KubeApi, object_name};
use ah_spire_plugin::catalog::{PluginConfig, PluginType};
use ah_spire_plugin::config_block;
use ah_spire_plugin_host::upstream as external;
use ah_spire_wire::aws::Environment;
use spiffe::TrustDomain;

use super::external::Running;
use super::{all_known, aws, data, path, required, vault, wrong};
use crate::ca::{
    CertManagerAuthority, CertManagerSettings, DiskAuthority, EjbcaAuthority, EjbcaSettings,
    EndEntity, ExternalAuthority, Files, GcpCasAuthority, GcpCasSettings, NamePart, PcaAuthority,
    PcaSettings, SecretAuthority, SecretSettings, SpireAuthority, SpireSettings, UpstreamAuthority,
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
    /// `UpstreamAuthority "ejbca"`
    struct EjbcaData {
        hostname: String = "hostname",
        ca_cert_path: String = "ca_cert_path",
        client_cert_path: String = "client_cert_path",
        client_cert_key_path: String = "client_cert_key_path",
        ca_name: String = "ca_name",
        end_entity_profile_name: String = "end_entity_profile_name",
        certificate_profile_name: String = "certificate_profile_name",
        end_entity_name: String = "end_entity_name",
        account_binding_id: String = "account_binding_id",
    }
}

config_block! {
    /// `UpstreamAuthority "cert-manager"`
    struct CertManagerData {
        issuer_name: String = "issuer_name",
        issuer_kind: String = "issuer_kind",
        issuer_group: String = "issuer_group",
        namespace: String = "namespace",
        kube_config_file: String = "kube_config_file",
    }
}

config_block! {
    /// `UpstreamAuthority "gcp_cas"`
    struct GcpCasData {
        root_cert_spec: Option<RootSpec> = "root_cert_spec",
    }
}

config_block! {
    /// `root_cert_spec { }` of `UpstreamAuthority "gcp_cas"`
    struct RootSpec {
        project_name: String = "project_name",
        region_name: String = "region_name",
        ca_pool: String = "ca_pool",
        label_key: String = "label_key",
        label_value: String = "label_value",
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
    /// What `UpstreamAuthority "vault"` has besides the access.
    struct VaultData {
        pki_mount_point: String = "pki_mount_point",
    }
}

/// The upstream authority that is configured.
pub(crate) enum Upstream {
    AwsPca(Box<PcaSettings>),
    AwsSecret(Box<SecretSettings>),
    CertManager(Box<CertManagerSettings>),
    Disk(Files),
    Ejbca(Box<EjbcaSettings>),
    GcpCas(Box<GcpCasSettings>),
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
            "aws_pca" => {
                let settings = aws::pca(plugin, Environment::of_process())?;
                Self::AwsPca(Box::new(settings))
            }
            "awssecret" => {
                let settings = aws::secret(plugin, Environment::of_process())?;
                Self::AwsSecret(Box::new(settings))
            }
            "cert-manager" => Self::CertManager(Box::new(cert_manager(plugin, of)?)),
            "disk" => Self::Disk(disk(plugin)?),
            "ejbca" => Self::Ejbca(Box::new(ejbca(plugin, variable)?)),
            "gcp_cas" => Self::GcpCas(Box::new(gcp_cas(plugin)?)),
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
            Self::AwsPca(settings) => Arc::new(PcaAuthority::new((**settings).clone(), clock)),
            Self::AwsSecret(settings) => {
                let settings = (**settings).clone();
                Arc::new(SecretAuthority::new(settings, of.clone(), clock))
            }
            Self::CertManager(settings) => {
                Arc::new(CertManagerAuthority::new((**settings).clone()))
            }
            Self::GcpCas(settings) => Arc::new(GcpCasAuthority::new((**settings).clone())),
            Self::Disk(files) => {
                let opened = DiskAuthority::open(files.clone(), of.clone(), clock);
                Arc::new(opened.map_err(|error| format!("UpstreamAuthority \"disk\": {error}"))?)
            }
            Self::Ejbca(settings) => {
                let opened = EjbcaAuthority::open((**settings).clone());
                Arc::new(opened.map_err(|error| format!("UpstreamAuthority \"ejbca\": {error}"))?)
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

/// Upstream's plugin looks at the environment for what the file has not.
fn ejbca(
    plugin: &PluginConfig,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<EjbcaSettings, String> {
    let data = data(plugin, |it: &EjbcaData| &it.unknown)?;
    let or = |given: String, name: &str| {
        let given = Some(given).filter(|given| !given.is_empty());
        given.or_else(|| variable(name)).unwrap_or_default()
    };
    let needed = |key: &str, given: String, name: &str| {
        path(&or(given, name)).ok_or_else(|| wrong(plugin, format!("set {key}, or {name}")))
    };
    for (key, value) in [
        ("hostname", &data.hostname),
        ("ca_name", &data.ca_name),
        ("end_entity_profile_name", &data.end_entity_profile_name),
        ("certificate_profile_name", &data.certificate_profile_name),
    ] {
        let _: PathBuf = required(plugin, key, value)?;
    }
    let whole = format!("https://{}/", data.hostname);
    let is_host = url::Url::parse(&whole).is_ok_and(|url| {
        url.path() == "/" && url.username().is_empty() && !data.hostname.contains(['/', '?', '#'])
    });
    if !is_host {
        let why = format!(
            "hostname \"{}\" is no host, or host and port",
            data.hostname
        );
        return Err(wrong(plugin, why));
    }
    let all = [
        NamePart::CommonName,
        NamePart::Dns,
        NamePart::Uri,
        NamePart::Ip,
    ];
    Ok(EjbcaSettings {
        ca: path(&or(data.ca_cert_path, "EJBCA_CA_CERT_PATH")),
        certificate: needed(
            "client_cert_path",
            data.client_cert_path,
            "EJBCA_CLIENT_CERT_PATH",
        )?,
        key: needed(
            "client_cert_key_path",
            data.client_cert_key_path,
            "EJBCA_CLIENT_CERT_KEY_PATH",
        )?,
        host: data.hostname,
        ca_name: data.ca_name,
        end_entity_profile: data.end_entity_profile_name,
        certificate_profile: data.certificate_profile_name,
        end_entity: match data.end_entity_name.as_str() {
            "" => EndEntity::From(all.to_vec()),
            "cn" => EndEntity::From(vec![NamePart::CommonName]),
            "dns" => EndEntity::From(vec![NamePart::Dns]),
            "uri" => EndEntity::From(vec![NamePart::Uri]),
            "ip" => EndEntity::From(vec![NamePart::Ip]),
            _ => EndEntity::Named(data.end_entity_name),
        },
        account_binding: Some(data.account_binding_id).filter(|id| !id.is_empty()),
    })
}

fn cert_manager(plugin: &PluginConfig, of: &TrustDomain) -> Result<CertManagerSettings, String> {
    let data = data(plugin, |it: &CertManagerData| &it.unknown)?;
    let _: PathBuf = required(plugin, "issuer_name", &data.issuer_name)?;
    let _: PathBuf = required(plugin, "namespace", &data.namespace)?;
    let namespace = object_name(&data.namespace);
    let namespace = namespace.map_err(|why| wrong(plugin, format!("namespace: {why}")))?;
    let or = |given: &str, default: &str| match given {
        "" => default.to_owned(),
        given => given.to_owned(),
    };
    Ok(CertManagerSettings {
        api: KubeApi::new(data.kube_config_file.into(), "spire-server"),
        namespace: namespace.to_owned(),
        issuer_name: data.issuer_name,
        issuer_kind: or(&data.issuer_kind, "Issuer"),
        issuer_group: or(&data.issuer_group, "cert-manager.io"),
        trust_domain: of.clone(),
    })
}

fn gcp_cas(plugin: &PluginConfig) -> Result<GcpCasSettings, String> {
    let data = data(plugin, |it: &GcpCasData| &it.unknown)?;
    let spec = data.root_cert_spec.unwrap_or_default();
    all_known(plugin, "root_cert_spec", &spec.unknown)?;
    for (key, value) in [
        ("root_cert_spec.project_name", &spec.project_name),
        ("root_cert_spec.region_name", &spec.region_name),
        ("root_cert_spec.label_key", &spec.label_key),
        ("root_cert_spec.label_value", &spec.label_value),
    ] {
        let _: PathBuf = required(plugin, key, value)?;
    }
    Ok(GcpCasSettings {
        api: "https://privateca.googleapis.com".into(),
        account: Account::new(None, Google::default().metadata),
        project: spec.project_name,
        region: spec.region_name,
        pool: Some(spec.ca_pool).filter(|pool| !pool.is_empty()),
        label: (spec.label_key, spec.label_value),
    })
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

fn vault(
    plugin: &PluginConfig,
    of: &TrustDomain,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<VaultSettings, String> {
    let (access, data) = vault::data(plugin, |it: &VaultData| &it.unknown)?;
    let pki_mount = vault::mount(plugin, "pki_mount_point", &data.pki_mount_point, "pki")?;
    Ok(VaultSettings {
        access: vault::access(plugin, &access, &pki_mount, Retry::default(), variable)?,
        pki_mount,
        trust_domain: of.clone(),
    })
}
