//! Plugins in processes of their own (`plugin_cmd`), and what this server offers to them.

use std::sync::{Arc, OnceLock};

use agentstore::agent_store_server::AgentStoreServer;
use ah_identity_provider::Explained;
use ah_spire_plugin::catalog::{PluginConfig, PluginType};
use ah_spire_plugin::server::ServerConfig;
use ah_spire_plugin_host::host_service::{agentstore, identityprovider};
use ah_spire_plugin_host::{
    HostServices, Limits, Plugin, Settings, compose, keys, launch, node, publish, upstream,
};
use ah_spire_telemetry::Metrics;
use identityprovider::identity_provider_server::IdentityProviderServer;
use spiffe::TrustDomain;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::endpoints::ServerSvid;
use crate::ids;
use crate::store::{Agents, Bundles, SqlStore};

/// The plugins that run, in the order of their start.
#[derive(Clone, Default)]
pub(crate) struct Running(Vec<(PluginType, Plugin)>);

impl Running {
    /// Starts all that `wanted` names. When one fails, those before it are ended.
    pub(crate) async fn start(
        wanted: &[PluginConfig],
        config: &ServerConfig,
        metrics: &Metrics,
        offered: &Offered,
    ) -> Result<Self, String> {
        let mut running = Self::default();
        for plugin in wanted {
            let services = offered.services(metrics);
            match Plugin::start(settings(plugin, config, services)).await {
                Ok(started) => running.0.push((plugin.plugin_type, started)),
                Err(error) => {
                    running.stop().await;
                    return Err(told(&error));
                }
            }
        }
        Ok(running)
    }

    /// Those of a type.
    pub(crate) fn of(&self, kind: PluginType) -> impl Iterator<Item = &Plugin> {
        let all = self.0.iter().filter(move |(other, _)| *other == kind);
        all.map(|(_, plugin)| plugin)
    }

    /// The key manager called `name`.
    pub(crate) fn keys(&self, name: &str) -> Result<keys::Keys, String> {
        let plugin = self.named(PluginType::KeyManager, name)?;
        Ok(keys::Keys::new(plugin, keys::Side::Server))
    }

    /// The composer called `name`.
    pub(super) fn composer(&self, name: &str) -> Result<compose::Composer, String> {
        let plugin = self.named(PluginType::CredentialComposer, name)?;
        Ok(compose::Composer::new(plugin))
    }

    /// The one of this type and name.
    pub(super) fn named(&self, kind: PluginType, name: &str) -> Result<Plugin, String> {
        let found = self.of(kind).find(|plugin| plugin.name() == name).cloned();
        found.ok_or_else(|| format!("{kind} \"{name}\" does not run"))
    }

    /// The process of `plugin`, if it has one.
    pub(crate) fn plugin(&self, plugin: &PluginConfig) -> Option<&Plugin> {
        let external = plugin.command.is_some();
        let mut all = self.of(plugin.plugin_type);
        all.find(|running| external && running.name() == plugin.name)
    }

    /// Ends them all, the last one first.
    pub(crate) async fn stop(&self) {
        for (_, plugin) in self.0.iter().rev() {
            plugin.stop().await;
        }
    }
}

/// Asks each plugin what it thinks of its configuration.
pub(crate) async fn check(wanted: &[PluginConfig], config: &ServerConfig) -> Result<(), String> {
    for plugin in wanted {
        let services = Offered::nothing(config.trust_domain.clone()).services(&Metrics::off());
        let notes = Plugin::validate(settings(plugin, config, services)).await;
        let notes = notes.map_err(|error| told(&error))?;
        if !notes.is_empty() {
            let (kind, name) = (plugin.plugin_type, &plugin.name);
            return Err(format!("{kind} \"{name}\": {}", notes.join("; ")));
        }
    }
    Ok(())
}

fn settings(plugin: &PluginConfig, config: &ServerConfig, services: HostServices) -> Settings {
    Settings {
        config: plugin.clone(),
        service: match plugin.plugin_type {
            PluginType::BundlePublisher => publish::PUBLISHER_SERVICE,
            PluginType::CredentialComposer => compose::SERVICE,
            PluginType::KeyManager => keys::SERVER_SERVICE,
            PluginType::Notifier => publish::NOTIFIER_SERVICE,
            PluginType::UpstreamAuthority => upstream::SERVICE,
            _ => node::SERVER_SERVICE,
        },
        trust_domain: config.trust_domain.clone(),
        services,
        launcher: Some(launch::own_program()),
        limits: Limits::default(),
    }
}

/// On one line, as this server tells what keeps it from starting.
pub(super) fn told(error: &Explained) -> String {
    let mut parts = vec![error.text.clone()];
    parts.extend(error.causes.iter().cloned());
    let text = parts.join(": ");
    match &error.hint {
        Some(hint) => format!("{text} ({hint})"),
        None => text,
    }
}

/// What plugins may ask this server for: its agents and its own identity.
#[derive(Clone)]
pub(crate) struct Offered {
    /// `None` in a process that only validates.
    store: Option<SqlStore>,
    trust_domain: TrustDomain,
    /// Not there before there is a CA.
    svids: Arc<OnceLock<watch::Receiver<Option<Arc<ServerSvid>>>>>,
}

impl Offered {
    pub(crate) fn new(store: SqlStore, trust_domain: TrustDomain) -> Self {
        Self {
            store: Some(store),
            ..Self::nothing(trust_domain)
        }
    }

    /// The services are there, and know nothing.
    fn nothing(trust_domain: TrustDomain) -> Self {
        Self {
            store: None,
            trust_domain,
            svids: Arc::default(),
        }
    }

    fn services(&self, metrics: &Metrics) -> HostServices {
        HostServices::new(metrics)
            .with(AgentStoreServer::new(self.clone()))
            .with(IdentityProviderServer::new(self.clone()))
    }

    fn store(&self, service: &str) -> Result<&SqlStore, Status> {
        self.store.as_ref().ok_or_else(|| not_there(service))
    }

    /// From now on the server has an identity.
    pub(crate) fn offer(&self, svids: watch::Receiver<Option<Arc<ServerSvid>>>) {
        // Said once.
        let _ = self.svids.set(svids);
    }
}

fn not_there(service: &str) -> Status {
    Status::failed_precondition(format!("{service} host service has not been initialized"))
}

#[tonic::async_trait]
impl agentstore::agent_store_server::AgentStore for Offered {
    async fn get_agent_info(
        &self,
        request: Request<agentstore::GetAgentInfoRequest>,
    ) -> Result<Response<agentstore::GetAgentInfoResponse>, Status> {
        let agent_id = request.into_inner().agent_id;
        let unknown = || Status::not_found("no such agent");
        let id = ids::parse(&agent_id).map_err(|_| unknown())?;
        let agent = self.store("AgentStore")?.agent(&id).await;
        let agent = agent.map_err(|error| Status::internal(error.to_string()))?;
        agent.ok_or_else(unknown)?;
        Ok(Response::new(agentstore::GetAgentInfoResponse {
            info: Some(agentstore::AgentInfo { agent_id }),
        }))
    }
}

#[tonic::async_trait]
impl identityprovider::identity_provider_server::IdentityProvider for Offered {
    async fn fetch_x509_identity(
        &self,
        _: Request<identityprovider::FetchX509IdentityRequest>,
    ) -> Result<Response<identityprovider::FetchX509IdentityResponse>, Status> {
        let svid = self.svids.get().and_then(|svids| svids.borrow().clone());
        let svid = svid.ok_or_else(|| not_there("IdentityProvider"))?;
        let store = self.store("IdentityProvider")?;
        let bundle = store.bundle(&self.trust_domain).await;
        let bundle = bundle.map_err(|error| Status::internal(error.to_string()))?;
        let bundle = bundle.ok_or_else(|| Status::internal("the server's bundle is missing"))?;
        Ok(Response::new(identityprovider::FetchX509IdentityResponse {
            identity: Some(identityprovider::X509Identity {
                cert_chain: svid.chain.clone(),
                private_key: svid.key.der().secret_der().to_vec(),
            }),
            bundle: Some(publish::to_wire(&bundle)),
        }))
    }
}
