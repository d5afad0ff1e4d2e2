use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ah_spire_wire::azure::{self, Azure, Caller, Proof};
use ah_spire_wire::jwt::UnverifiedJwt;
use ah_spire_wire::spki_of_jwks;
use serde::Deserialize;
use serde_json::Value as Json;
use spiffe::TrustDomain;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::node::azure::{Instance, is_uuid};
use crate::node::azure_msi::{DEFAULT_RESOURCE, machine};
use crate::node::template::{self, Template};
use crate::node::token::{audience, in_time};
use crate::node::{AttestedAgent, Challenge, Claim, Secret, ServerHalf};
use crate::{AttestError, Builtin, Selector};

const MSI: Builtin = Builtin::AzureMsi;

/// How far the clocks of Azure and server may be apart. As upstream.
const LEEWAY: Duration = Duration::from_mins(5);

/// How long keys are kept. As upstream.
const KEYS_LAST: Duration = Duration::from_hours(1);

const DEFAULT_TEMPLATE: &str = "/{{ .PluginName }}/{{ .TenantID }}/{{ .PrincipalID }}";

/// A tenant, under the names of SPIRE's configuration files.
#[derive(Clone, Default)]
pub struct MsiTenantConfig {
    /// Who tokens are for; `https://management.azure.com/` if empty.
    pub resource_id: String,
    /// The subscription of the machines; the server's own if empty.
    pub subscription_id: String,
    /// The application that Azure is asked as; the environment's credentials if empty.
    pub app_id: String,
    /// Its secret.
    pub app_secret: Zeroizing<String>,
}

/// The server's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Default)]
pub struct AzureMsiServerConfig {
    /// The tenants whose machines may attest, by id. Required.
    pub tenants: BTreeMap<String, MsiTenantConfig>,
    /// The agent's path below `/spire/agent`; `/{{ .PluginName }}/{{ .TenantID }}/{{ .PrincipalID }}` if empty.
    pub agent_path_template: String,
}

/// The server's half.
pub struct AzureMsiServer {
    trust_domain: TrustDomain,
    azure: Azure,
    tenants: BTreeMap<String, Tenant>,
    template: Template<Value>,
    keys: Mutex<Option<Keys>>,
}

/// The keys of Azure's tokens.
struct Keys {
    until: SystemTime,
    by_id: BTreeMap<String, Vec<u8>>,
}

struct Tenant {
    resource: String,
    subscription: String,
    caller: Caller,
}

/// What `agent_path_template` can ask for.
#[derive(Clone, Copy, Debug)]
enum Value {
    PluginName,
    TenantId,
    PrincipalId,
}

impl template::Value for Value {
    const KNOWN: &str = ".PluginName, .TenantID and .PrincipalID";

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            ".PluginName" => Self::PluginName,
            ".TenantID" => Self::TenantId,
            ".PrincipalID" => Self::PrincipalId,
            _ => return None,
        })
    }
}

/// What a token says, once it is believed.
struct Identity {
    tenant: String,
    principal: String,
    claims: serde_json::Map<String, Json>,
}

impl AzureMsiServer {
    /// The half that lets machines into `trust_domain`. Where a tenant has no application, the server is a virtual machine
    /// of Azure itself, and asks for its subscription.
    pub async fn configure(
        config: AzureMsiServerConfig,
        trust_domain: TrustDomain,
        azure: Azure,
    ) -> Result<Self, AttestError> {
        let wrong = |text: String, hint: &str| AttestError::invalid(text, hint).of_builtin(MSI);
        if config.tenants.is_empty() {
            return Err(wrong(
                "configuration must have at least one tenant".into(),
                "name the tenants of the agents' machines by their ids",
            ));
        }
        let template = Template::configured(
            &config.agent_path_template,
            DEFAULT_TEMPLATE,
            "agent path template",
        )
        .map_err(|error| error.of_builtin(MSI))?;
        let mut tenants = BTreeMap::new();
        for (id, tenant) in config.tenants {
            let parts = [
                (tenant.subscription_id.is_empty(), "subscription id"),
                (tenant.app_id.is_empty(), "app id"),
                (tenant.app_secret.is_empty(), "app secret"),
            ];
            let missing = parts.iter().find(|(missing, _)| *missing);
            let (subscription, proof) = match missing {
                None => {
                    let proof = Proof::Secret {
                        app_id: tenant.app_id,
                        secret: tenant.app_secret,
                    };
                    (tenant.subscription_id, proof)
                }
                Some(_) if parts.iter().all(|(missing, _)| *missing) => {
                    let own = Box::pin(Instance::own(&azure)).await.map_err(|error| {
                        AttestError::unavailable(
                            format!("tenant {id:?} has no application, and this server's own subscription is not known: {error}"),
                            "set subscription_id, app_id and app_secret, or let the server run on a virtual machine of Azure",
                        )
                        .of_builtin(MSI)
                    })?;
                    (own.compute.subscription_id, Proof::Default)
                }
                Some((_, what)) => {
                    return Err(wrong(
                        format!("misconfigured tenant {id:?}: missing {what}"),
                        "subscription_id, app_id and app_secret go together",
                    ));
                }
            };
            let resource = match tenant.resource_id.as_str() {
                "" => DEFAULT_RESOURCE.to_owned(),
                _ => tenant.resource_id,
            };
            let tenant = Tenant {
                resource,
                subscription,
                caller: Caller::new(azure.clone(), &id, proof),
            };
            tenants.insert(id, tenant);
        }
        Ok(Self {
            trust_domain,
            azure,
            tenants,
            template,
            keys: Mutex::new(None),
        })
    }

    async fn judge(&self, claim: Claim<'_>) -> Result<AttestedAgent, AttestError> {
        let identity = self.identity(claim).await?;
        let (id, principal) = (&identity.tenant, &identity.principal);
        let tenant = self.tenants.get(id).ok_or_else(|| {
            AttestError::refused(
                format!("tenant {id:?} is not authorized"),
                "add it to tenants if its machines are to run agents",
            )
        })?;
        let refused = |why: String| {
            AttestError::refused(
                format!("unable to validate token claims: {why}"),
                "compare the clocks, and resource_id of the agent's plugin with the tenant's on the server",
            )
        };
        in_time(&identity.claims, claim.now, LEEWAY).map_err(refused)?;
        if !audience(&identity.claims).contains(&tenant.resource.as_str()) {
            return Err(refused(format!("the token is not for {}", tenant.resource)));
        }
        let agent = self.template.agent_id(&self.trust_domain, |value| {
            Ok(match value {
                Value::PluginName => MSI.name().to_owned(),
                Value::TenantId => id.clone(),
                Value::PrincipalId => principal.clone(),
            })
        });
        let agent = agent.map_err(|error| {
            AttestError::internal(
                format!("unable to make agent ID: {error}"),
                "let agent_path_template make a path of letters, digits, '.', '-' and '_'",
            )
        })?;
        let (caller, subscription) = (&tenant.caller, &tenant.subscription);
        let values = machine::values(caller, subscription, principal, claim.now);
        let values = Box::pin(values).await.map_err(|error| {
            AttestError::internal(
                error,
                "the server's identity in Azure needs the role Reader in the tenant's subscription",
            )
        })?;
        let selectors = values.into_iter();
        Ok(AttestedAgent {
            id: agent,
            selectors: selectors
                .map(|value| Selector::new(MSI.name(), value))
                .collect(),
            can_reattest: false,
        })
    }

    /// What the payload says, once Azure's signature is believed.
    async fn identity(&self, claim: Claim<'_>) -> Result<Identity, AttestError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Data {
            token: Secret,
        }
        let invalid = |text: String| {
            AttestError::invalid(
                text,
                "the payload of azure_msi is {\"token\":…}, with the token of a managed identity; use an agent with the \
                 azure_msi attestor",
            )
        };
        // What stands in the payload may be a token: only the place of the fault is told.
        let data: Data = serde_json::from_slice(claim.payload).map_err(|error| {
            invalid(format!(
                "failed to unmarshal data payload: line {}, column {}",
                error.line(),
                error.column()
            ))
        })?;
        if data.token.0.is_empty() {
            return Err(invalid("missing token from attestation data".into()));
        }
        let token = UnverifiedJwt::parse(&data.token.0)
            .map_err(|_| invalid("unable to parse token: it is no JWT in compact form".into()))?;
        let key = token.key_id.as_deref().unwrap_or_default();
        if key.is_empty() {
            return Err(invalid("token missing key id".into()));
        }
        let spki = self.key(key, claim.now).await.map_err(|error| {
            AttestError::unavailable(
                format!("unable to obtain JWKS: {error}"),
                "the server needs the way to login.microsoftonline.com",
            )
        })?;
        let spki = spki.ok_or_else(|| invalid(format!("key id {key:?} not found")))?;
        let claims = token
            .verify(&spki)
            .map_err(|error| invalid(format!("unable to verify token: {error}")))?;
        let text = |name| claims.get(name).and_then(Json::as_str).unwrap_or_default();
        let (tenant, principal) = (text("tid").to_owned(), text("sub").to_owned());
        for (value, missing) in [(&tenant, "tenant ID"), (&principal, "subject")] {
            if value.is_empty() {
                return Err(invalid(format!("token missing {missing} claim")));
            }
            if !is_uuid(value) {
                return Err(invalid(format!(
                    "the {missing} claim is no UUID: {value:?}"
                )));
            }
        }
        Ok(Identity {
            tenant,
            principal,
            claims: claims.clone(),
        })
    }

    /// The key `id` of Azure's tokens.
    async fn key(&self, id: &str, now: SystemTime) -> Result<Option<Vec<u8>>, String> {
        #[derive(Deserialize)]
        struct Metadata {
            jwks_uri: String,
        }
        let mut keys = self.keys.lock().await;
        if keys.as_ref().is_none_or(|keys| now > keys.until) {
            let url = format!(
                "{}/common/.well-known/openid-configuration",
                self.azure.authority
            );
            let metadata: Metadata = azure::public(&url).await?;
            let set: Json = azure::public(&metadata.jwks_uri).await?;
            let until = now.checked_add(KEYS_LAST).unwrap_or(now);
            let by_id = spki_of_jwks(&set);
            *keys = Some(Keys { until, by_id });
        }
        let key = keys.as_ref().and_then(|keys| keys.by_id.get(id));
        Ok(key.cloned())
    }
}

impl ServerHalf for AzureMsiServer {
    fn name(&self) -> &str {
        MSI.name()
    }

    async fn attest(
        &self,
        claim: Claim<'_>,
        _agent: &mut impl Challenge,
    ) -> Result<AttestedAgent, AttestError> {
        let judged = Box::pin(self.judge(claim)).await;
        judged.map_err(|error| error.of_builtin(MSI))
    }
}
