//! The `plugins { }` of the server's file as what they stand for.

pub(crate) mod external;
mod reload;
mod upstream;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use ah_identity_provider::Clock;
use ah_spire_attest::AttestError;
use ah_spire_attest::node::x509pop::{Authorities, X509PopServer, X509PopServerConfig};
use ah_spire_attest::node::{Challenge, Claim, ServerHalf};
use ah_spire_plugin::catalog::{PluginConfig, PluginType};
use ah_spire_plugin::config_block;
use ah_spire_plugin::decode::{Decode, UnknownKeys, from_object};
use ah_spire_plugin::server::ServerConfig;
use ah_spire_plugin_host::node::ServerNode;
use arc_swap::ArcSwapOption;
use rustls_pki_types::CertificateDer;
use spiffe::TrustDomain;
use tonic::{Code, Status};

use self::external::Running;
pub(crate) use self::reload::Reload;
use self::upstream::Upstream;
use crate::api::{Ask, Attested, Attestors};
use crate::ca::UpstreamAuthority;
use crate::store::{Bundles, SqlStore, StoreConfig, StoreError};

config_block! {
    /// `DataStore "sql"`
    struct SqlData {
        database_type: String = "database_type",
        connection_string: String = "connection_string",
        ro_connection_string: String = "ro_connection_string",
        root_ca_path: String = "root_ca_path",
        client_cert_path: String = "client_cert_path",
        client_key_path: String = "client_key_path",
        conn_max_lifetime: Option<String> = "conn_max_lifetime",
        max_open_conns: Option<i64> = "max_open_conns",
        max_idle_conns: Option<i64> = "max_idle_conns",
        disable_migration: bool = "disable_migration",
        log_sql: bool = "log_sql",
    }
}

config_block! {
    /// `KeyManager "disk"`
    struct DiskKeysData {
        keys_path: String = "keys_path",
    }
}

config_block! {
    /// `NodeAttestor "x509pop"`
    struct X509PopData {
        mode: String = "mode",
        spiffe_prefix: Option<String> = "spiffe_prefix",
        svid_prefix: Option<String> = "svid_prefix",
        ca_bundle_path: String = "ca_bundle_path",
        ca_bundle_paths: Vec<String> = "ca_bundle_paths",
        agent_path_template: String = "agent_path_template",
        max_intermediates: Option<i64> = "max_intermediates",
        max_rsa_key_size: Option<i64> = "max_rsa_key_size",
        verify_client_ip: bool = "verify_client_ip",
    }
}

/// What a configuration asks for, before anything is opened.
pub(crate) struct Wanted {
    pub(crate) store: StoreConfig,
    pub(crate) keys: KeysWanted,
    pub(crate) upstream: Option<Upstream>,
    pub(crate) unique_id: bool,
    pub(crate) x509pop: Option<X509PopServerConfig>,
    /// What has a `plugin_cmd`, in the order of the file.
    pub(crate) external: Vec<PluginConfig>,
}

/// Where the keys of the authorities are to be.
#[derive(Clone)]
pub(crate) enum KeysWanted {
    Memory,
    /// The file.
    Disk(PathBuf),
    /// The name of the plugin.
    External(String),
}

impl Wanted {
    /// Reads the plugins. The error names the plugin and the remedy.
    pub(crate) fn read(config: &ServerConfig) -> Result<Self, String> {
        let (mut store, mut keys) = (None, None);
        let mut wanted = Self {
            store: StoreConfig::default(),
            keys: KeysWanted::Memory,
            upstream: None,
            unique_id: false,
            x509pop: None,
            external: Vec::new(),
        };
        for plugin in config.plugins.iter().filter(|plugin| plugin.enabled) {
            let external = plugin.command.is_some();
            match (plugin.plugin_type, plugin.name.as_str()) {
                (PluginType::NodeAttestor, _) if external => {
                    wanted.external.push(plugin.clone());
                }
                (PluginType::KeyManager, name) if external => {
                    keys = Some(KeysWanted::External(name.to_owned()));
                    wanted.external.push(plugin.clone());
                }
                _ if external => {
                    return Err(unsupported(
                        plugin,
                        "plugins of this type cannot be processes of their own (plugin_cmd) yet",
                    ));
                }
                (PluginType::DataStore, "sql") => store = Some(sql(plugin)?),
                (PluginType::KeyManager, "memory") => keys = Some(KeysWanted::Memory),
                (PluginType::KeyManager, "disk") => {
                    let data = data(plugin, |it: &DiskKeysData| &it.unknown)?;
                    let path = required(plugin, "keys_path", &data.keys_path)?;
                    keys = Some(KeysWanted::Disk(path));
                }
                (PluginType::UpstreamAuthority, _) => {
                    let variable = |name: &str| std::env::var(name).ok();
                    let read = Upstream::read(plugin, &config.trust_domain, variable)?;
                    let unknown = || unsupported(plugin, "this server has no such plugin");
                    wanted.upstream = Some(read.ok_or_else(unknown)?);
                }
                (PluginType::CredentialComposer, "uniqueid") => wanted.unique_id = true,
                // Tokens are judged by the API itself, as with upstream also without this plugin.
                (PluginType::NodeAttestor, "join_token") => {}
                (PluginType::NodeAttestor, "x509pop") => wanted.x509pop = Some(x509pop(plugin)?),
                _ => return Err(unsupported(plugin, "this server has no such plugin")),
            }
        }
        wanted.store = store.ok_or("plugins: there is no DataStore \"sql\"")?;
        wanted.keys = keys.ok_or("plugins: there is no KeyManager; use \"disk\" or \"memory\"")?;
        Ok(wanted)
    }

    /// The upstream authority.
    pub(crate) fn upstream(
        &self,
        of: &TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<Arc<dyn UpstreamAuthority>>, String> {
        let upstream = self.upstream.as_ref();
        upstream
            .map(|upstream| upstream.open(of, clock))
            .transpose()
    }
}

fn unsupported(plugin: &PluginConfig, why: &str) -> String {
    format!(
        "{} \"{}\" cannot be used: {why}; remove it or set enabled = false",
        plugin.plugin_type, plugin.name
    )
}

fn data<T: Decode>(
    plugin: &PluginConfig,
    unknown: impl Fn(&T) -> &UnknownKeys,
) -> Result<T, String> {
    let what =
        |why: &dyn std::fmt::Display| format!("{} \"{}\": {why}", plugin.plugin_type, plugin.name);
    let object = plugin.data.load().map_err(|error| what(&error))?;
    let data = from_object(&object).map_err(|error| what(&error))?;
    let keys: Vec<&str> = unknown(&data).iter().map(|(key, _)| key).collect();
    if keys.is_empty() {
        return Ok(data);
    }
    Err(what(&format!("unknown keys: {}", keys.join(", "))))
}

fn path(text: &str) -> Option<PathBuf> {
    Some(text)
        .filter(|text| !text.is_empty())
        .map(PathBuf::from)
}

fn required(plugin: &PluginConfig, key: &str, value: &str) -> Result<PathBuf, String> {
    path(value).ok_or_else(|| {
        format!(
            "{} \"{}\": {key} is required",
            plugin.plugin_type, plugin.name
        )
    })
}

fn sql(plugin: &PluginConfig) -> Result<StoreConfig, String> {
    let data = data(plugin, |it: &SqlData| &it.unknown)?;
    let number = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
    let config = StoreConfig {
        database_type: data.database_type,
        connection_string: data.connection_string,
        ro_connection_string: data.ro_connection_string,
        root_ca_path: path(&data.root_ca_path),
        client_cert_path: path(&data.client_cert_path),
        client_key_path: path(&data.client_key_path),
        conn_max_lifetime: data.conn_max_lifetime,
        max_open_conns: number(data.max_open_conns),
        max_idle_conns: number(data.max_idle_conns),
        disable_migration: data.disable_migration,
        log_sql: data.log_sql,
    };
    let valid = config.validate();
    valid.map_err(|error| format!("DataStore \"sql\": {error}"))?;
    Ok(config)
}

fn x509pop(plugin: &PluginConfig) -> Result<X509PopServerConfig, String> {
    let data = data(plugin, |it: &X509PopData| &it.unknown)?;
    Ok(X509PopServerConfig {
        mode: data.mode,
        spiffe_prefix: data.spiffe_prefix.or(data.svid_prefix),
        ca_bundle_path: data.ca_bundle_path.into(),
        ca_bundle_paths: data
            .ca_bundle_paths
            .into_iter()
            .map(PathBuf::from)
            .collect(),
        agent_path_template: data.agent_path_template,
        max_intermediates: data.max_intermediates,
        max_rsa_key_size: data.max_rsa_key_size,
        verify_client_ip: data.verify_client_ip,
    })
}

/// The own X.509 authorities, for attestors that take the server's SVIDs.
#[derive(Clone)]
pub(crate) struct OwnAuthorities {
    pub(crate) store: SqlStore,
    pub(crate) trust_domain: TrustDomain,
}

impl Authorities for OwnAuthorities {
    type Error = StoreError;

    async fn x509_authorities(&self) -> Result<Vec<CertificateDer<'static>>, StoreError> {
        let bundle = self.store.bundle(&self.trust_domain).await?;
        let authorities = bundle.into_iter().flat_map(|bundle| bundle.x509);
        Ok(authorities.map(|ca| CertificateDer::from(ca.der)).collect())
    }
}

/// The configured node attestors.
pub(crate) struct NodeAttestors {
    own: OwnAuthorities,
    x509pop: ArcSwapOption<X509PopServer<OwnAuthorities>>,
    external: HashMap<String, ServerNode>,
}

impl NodeAttestors {
    pub(crate) async fn open(
        wanted: Option<X509PopServerConfig>,
        own: OwnAuthorities,
        running: &Running,
    ) -> Result<Self, String> {
        let external = running.of(PluginType::NodeAttestor).map(|plugin| {
            let node = ServerNode::new(plugin.clone(), own.trust_domain.clone());
            (plugin.name().to_owned(), node)
        });
        let attestors = Self {
            external: external.collect(),
            own,
            x509pop: ArcSwapOption::empty(),
        };
        if let Some(config) = wanted {
            attestors.x509pop(config).await?;
        }
        Ok(attestors)
    }

    /// `x509pop` judges by `config` from now on.
    async fn x509pop(&self, config: X509PopServerConfig) -> Result<(), String> {
        let own = self.own.clone();
        let server = X509PopServer::configure(config, own.trust_domain.clone(), own).await;
        let server = server.map_err(|error| error.explained().report())?;
        self.x509pop.store(Some(Arc::new(server)));
        Ok(())
    }
}

#[tonic::async_trait]
impl Attestors for NodeAttestors {
    async fn attest(
        &self,
        name: &str,
        payload: &[u8],
        address: Option<IpAddr>,
        agent: &mut dyn Ask,
    ) -> Option<Result<Attested, Status>> {
        let claim = Claim {
            payload,
            client_ip: address,
            now: SystemTime::now(),
        };
        let mut asked = Asked {
            agent,
            refused: None,
        };
        let x509pop = self.x509pop.load_full();
        let built_in = x509pop.filter(|it| it.name() == name);
        let judged = match (self.external.get(name), built_in) {
            (Some(plugin), _) => plugin.attest(claim, &mut asked).await,
            (None, Some(built_in)) => built_in.attest(claim, &mut asked).await,
            (None, None) => return None,
        };
        Some(match (judged, asked.refused) {
            (Ok(agent), _) => Ok(Attested {
                id: agent.id,
                selectors: agent.selectors,
                can_reattest: agent.can_reattest,
            }),
            (Err(_), Some(status)) => Err(status),
            (Err(error), None) => Err(status(&error)),
        })
    }
}

/// The way back to the agent, with the status of a conversation that broke.
struct Asked<'a> {
    agent: &'a mut dyn Ask,
    refused: Option<Status>,
}

impl Challenge for Asked<'_> {
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        self.agent.ask(challenge).await.map_err(|status| {
            let error = ah_identity_provider::Explained::new(
                ah_identity_provider::Code::Other,
                status.message().to_owned(),
            );
            self.refused = Some(status);
            AttestError::Unavailable(error)
        })
    }
}

fn status(error: &AttestError) -> Status {
    let code = match error {
        AttestError::Invalid(_) => Code::InvalidArgument,
        AttestError::Refused(_) => Code::PermissionDenied,
        AttestError::Unavailable(_) => Code::Unavailable,
        _ => Code::Internal,
    };
    tracing::error!(error = %error.explained().report(), "Node attestation failed");
    Status::new(code, error.to_string())
}
