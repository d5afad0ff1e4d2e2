use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ah_identity_provider::{CertificateFacts, pem};
use ah_spire_wire::azure::{self, Azure, Caller, Proof};
use ah_spire_wire::sigv4::percent_encoded;
use aws_lc_rs::rand;
use base64::Engine as _;
use serde::Deserialize;
use serde_json::Value as Json;
use spiffe::TrustDomain;

use crate::node::azure::is_uuid;
use crate::node::azure_imds::Shown;
use crate::node::azure_imds::document::{Document, ROOTS};
use crate::node::azure_imds::machine::{self, Machine};
use crate::node::template::{self, Template};
use crate::node::x509pop::chain::Root;
use crate::node::{AttestedAgent, Challenge, Claim, ServerHalf};
use crate::{AttestError, Builtin, Selector};

const IMDS: Builtin = Builtin::AzureImds;

const DEFAULT_DOMAIN: &str = "metadata.azure.com";
const DEFAULT_TEMPLATE: &str =
    "/{{ .PluginName }}/{{ .TenantID }}/{{ .SubscriptionID }}/{{ .VMID }}";

/// A tenant, under the names of SPIRE's configuration files.
#[derive(Clone)]
pub struct ImdsTenantConfig {
    /// `secret_auth`, `token_auth`, or neither.
    pub proof: Proof,
    /// Tags that become selectors.
    pub allowed_vm_tags: Vec<String>,
    /// The subscriptions whose machines may attest; all if there are none.
    pub restrict_to_subscriptions: Vec<String>,
}

/// The server's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Default)]
pub struct AzureImdsServerConfig {
    /// The tenants whose machines may attest, by domain. Required.
    pub tenants: BTreeMap<String, ImdsTenantConfig>,
    /// The agent's path below `/spire/agent`;
    /// `/{{ .PluginName }}/{{ .TenantID }}/{{ .SubscriptionID }}/{{ .VMID }}` if empty.
    pub agent_path_template: String,
    /// Whose names signers of documents have; `metadata.azure.com` if empty.
    pub allowed_metadata_domains: Vec<String>,
    /// More roots that their certificates may end in, in PEM.
    pub trust_bundle_path: PathBuf,
}

/// The server's half.
pub struct AzureImdsServer {
    trust_domain: TrustDomain,
    azure: Azure,
    tenants: BTreeMap<String, Tenant>,
    template: Template<Value>,
    domains: Vec<String>,
    roots: Vec<Root>,
}

struct Tenant {
    id: String,
    caller: Caller,
    tags: BTreeSet<String>,
    subscriptions: BTreeSet<String>,
}

/// What `agent_path_template` can ask for.
#[derive(Clone, Copy, Debug)]
enum Value {
    PluginName,
    TenantId,
    SubscriptionId,
    VmId,
}

impl template::Value for Value {
    const KNOWN: &str = ".PluginName, .TenantID, .SubscriptionID and .VMID";

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            ".PluginName" => Self::PluginName,
            ".TenantID" => Self::TenantId,
            ".SubscriptionID" => Self::SubscriptionId,
            ".VMID" => Self::VmId,
            _ => return None,
        })
    }
}

impl AzureImdsServer {
    /// The half that lets machines into `trust_domain`. It asks Azure for the ids of the tenants.
    pub async fn configure(
        config: AzureImdsServerConfig,
        trust_domain: TrustDomain,
        azure: Azure,
    ) -> Result<Self, AttestError> {
        let wrong = |text: String, hint: &str| AttestError::invalid(text, hint).of_builtin(IMDS);
        if config.tenants.is_empty() {
            return Err(wrong(
                "configuration must have at least one tenant".into(),
                "name the tenants of the agents' machines by their domains",
            ));
        }
        let template = Template::configured(
            &config.agent_path_template,
            DEFAULT_TEMPLATE,
            "agent path template",
        )
        .map_err(|error| error.of_builtin(IMDS))?;
        let roots = roots(&config.trust_bundle_path).map_err(|error| {
            wrong(
                error,
                "let trust_bundle_path be a file with CA certificates in PEM",
            )
        })?;
        let domains = match config.allowed_metadata_domains {
            domains if domains.is_empty() => vec![DEFAULT_DOMAIN.to_owned()],
            domains => domains,
        };
        if domains.iter().any(String::is_empty) {
            return Err(wrong(
                "allowed_metadata_domains has an empty domain".into(),
                "name domains such as \"metadata.azure.us\"",
            ));
        }
        let mut tenants = BTreeMap::new();
        for (domain, tenant) in config.tenants {
            let id = Box::pin(tenant_id(&azure, &domain)).await;
            let id = id.map_err(|error| {
                AttestError::unavailable(
                    format!("unable to lookup tenant ID of {domain:?}: {error}"),
                    "the server needs the way to login.microsoftonline.com, and the domain has to be one of a tenant",
                )
                .of_builtin(IMDS)
            })?;
            let subscriptions = tenant.restrict_to_subscriptions.iter();
            let subscriptions: BTreeSet<_> = subscriptions.map(|it| it.trim().to_owned()).collect();
            let misconfigured = match &tenant.proof {
                Proof::Secret { app_id, .. } | Proof::Token { app_id, .. } if app_id.is_empty() => {
                    Some("missing app id")
                }
                Proof::Secret { secret, .. } if secret.is_empty() => Some("missing app secret"),
                Proof::Token { path, .. } if path.as_os_str().is_empty() => {
                    Some("missing token file path")
                }
                _ if subscriptions.contains("") => {
                    Some("restrict_to_subscriptions entries must be non-empty")
                }
                _ => None,
            };
            if let Some(why) = misconfigured {
                return Err(wrong(
                    format!("misconfigured tenant {domain:?}: {why}"),
                    "see docs/plugins/azure_imds.md for what a tenant has",
                ));
            }
            let tenant = Tenant {
                caller: Caller::new(azure.clone(), &id, tenant.proof),
                id,
                tags: tenant.allowed_vm_tags.into_iter().collect(),
                subscriptions,
            };
            tenants.insert(domain, tenant);
        }
        Ok(Self {
            trust_domain,
            azure,
            tenants,
            template,
            domains,
            roots,
        })
    }

    async fn judge(
        &self,
        claim: Claim<'_>,
        nonce: &str,
        answer: &[u8],
    ) -> Result<AttestedAgent, AttestError> {
        const HINT: &str =
            "use an agent with the azure_imds attestor, on a virtual machine of Azure";
        let invalid = |text: String| AttestError::invalid(text, HINT);
        let shown: Shown = serde_json::from_slice(answer)
            .map_err(|error| invalid(format!("failed to unmarshal data payload: {error}")))?;
        let document = Document::believed(
            &shown.document.signature,
            &self.domains,
            &self.roots,
            &self.azure,
            claim.now,
        );
        let document = Box::pin(document).await.map_err(|error| {
            AttestError::refused(
                format!("failed to validate attested document: {error}"),
                "allowed_metadata_domains names the clouds that are believed, and trust_bundle_path more roots; the \
                 server needs the way to www.microsoft.com",
            )
        })?;
        if document.nonce != nonce {
            return Err(AttestError::refused(
                "nonce mismatch",
                "the document was made for another occasion",
            ));
        }
        for (value, what) in [
            (&document.vm_id, "VM ID"),
            (&document.subscription_id, "subscription ID"),
        ] {
            if value.is_empty() {
                return Err(invalid(format!("missing {what} in attested document")));
            }
            if !is_uuid(value) {
                return Err(invalid(format!("invalid {what}: {value:?} is no UUID")));
            }
        }
        let domain = &shown.metadata.agent_domain;
        let tenant = self.tenants.get(domain).ok_or_else(|| {
            AttestError::refused(
                format!("tenant {domain:?} is not authorized"),
                "let tenant_domain of the agent's plugin be one of the tenants of the server's",
            )
        })?;
        let subscription = &document.subscription_id;
        if !tenant.subscriptions.is_empty() && !tenant.subscriptions.contains(subscription) {
            return Err(AttestError::refused(
                format!("subscription {subscription:?} is not authorized"),
                "add it to restrict_to_subscriptions if its machines are to run agents",
            ));
        }
        let id = self.template.agent_id(&self.trust_domain, |value| {
            Ok(match value {
                Value::PluginName => IMDS.name().to_owned(),
                Value::TenantId => tenant.id.clone(),
                Value::SubscriptionId => subscription.clone(),
                Value::VmId => document.vm_id.clone(),
            })
        });
        let id = id.map_err(|error| {
            AttestError::internal(
                format!("unable to make agent ID: {error}"),
                "let agent_path_template make a path of letters, digits, '.', '-' and '_'",
            )
        })?;
        let scale_set = shown.metadata.vmss_name.as_deref();
        let found = async {
            let (caller, vm) = (&tenant.caller, &document.vm_id);
            let machine = match scale_set {
                Some(name) => {
                    machine::of_scale_set(caller, vm, subscription, name, claim.now).await?
                }
                None => machine::alone(caller, vm, subscription, claim.now).await?,
            };
            values(tenant, subscription, scale_set, &machine)
        };
        let values = Box::pin(found).await.map_err(|error| {
            AttestError::internal(
                error,
                "the server's identity in Azure needs the role Reader in that subscription of the tenant",
            )
        })?;
        let selectors = values.into_iter();
        Ok(AttestedAgent {
            id,
            selectors: selectors
                .map(|value| Selector::new(IMDS.name(), value))
                .collect(),
            can_reattest: false,
        })
    }
}

/// The values of the selectors.
fn values(
    tenant: &Tenant,
    subscription: &str,
    scale_set: Option<&str>,
    machine: &Machine,
) -> Result<BTreeSet<String>, String> {
    let mut values = BTreeSet::from([
        format!("subscription-id:{subscription}"),
        format!("vm-name:{}", machine.name),
        format!("vm-location:{}", machine.location),
        format!("resource-group:{}", machine.resource_group),
    ]);
    if let Some(name) = scale_set {
        values.insert(format!("vmss-name:{name}"));
    }
    for tag in &tenant.tags {
        if let Some(Json::String(value)) = machine.tags.get(tag) {
            values.insert(format!("vm-tag:{tag}:{value}"));
        }
    }
    for interface in &machine.interfaces {
        if let Some((group, name)) = interface.security_group()? {
            values.insert(format!("network-security-group:{group}:{name}"));
        }
        for subnet in interface.subnets()? {
            let network = &subnet.network;
            values.insert(format!("virtual-network:{network}"));
            values.insert(format!("virtual-network-subnet:{network}:{}", subnet.name));
        }
    }
    Ok(values)
}

/// Azure's roots, with those of the file `more`.
fn roots(more: &std::path::Path) -> Result<Vec<Root>, String> {
    let read = |text: &[u8]| pem::certificates(text).map_err(|error| error.to_string());
    let root = |der| Root::new(der).map_err(|error| error.to_string());
    let own = read(ROOTS.as_bytes())?.into_iter();
    let mut roots: Vec<_> = own.map(root).collect::<Result<_, _>>()?;
    if !more.as_os_str().is_empty() {
        let shown = more.display();
        let told = |error: String| format!("unable to load trust bundle {shown}: {error}");
        let text = std::fs::read(more).map_err(|error| told(error.to_string()))?;
        for der in read(&text).map_err(told)? {
            let facts =
                CertificateFacts::from_der(&der).map_err(|error| told(error.to_string()))?;
            if !facts.is_ca {
                return Err(format!(
                    "trust bundle {shown} contains a non-CA certificate"
                ));
            }
            roots.push(root(der).map_err(told)?);
        }
    }
    Ok(roots)
}

/// The id of the tenant that has `domain` (OpenID Connect Discovery 1.0 §4).
async fn tenant_id(azure: &Azure, domain: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    struct Metadata {
        issuer: String,
    }
    let url = format!(
        "{}/{}/.well-known/openid-configuration",
        azure.authority,
        percent_encoded(domain)
    );
    let metadata: Metadata = azure::public(&url).await?;
    let id = metadata.issuer.strip_prefix("https://sts.windows.net/");
    let id = id.and_then(|id| id.strip_suffix('/'));
    id.filter(|id| is_uuid(id))
        .map(ToOwned::to_owned)
        .ok_or_else(|| format!("malformed tenant ID: {:?}", metadata.issuer))
}

impl ServerHalf for AzureImdsServer {
    fn name(&self) -> &str {
        IMDS.name()
    }

    async fn attest(
        &self,
        claim: Claim<'_>,
        agent: &mut impl Challenge,
    ) -> Result<AttestedAgent, AttestError> {
        let mut bytes = [0; 24];
        rand::fill(&mut bytes).map_err(|_| {
            AttestError::internal(
                "unable to generate challenge: no random numbers",
                "see the system's log: getrandom(2) fails",
            )
            .of_builtin(IMDS)
        })?;
        // Azure takes 32 letters and digits at most.
        let nonce = base64::engine::general_purpose::STANDARD.encode(bytes);
        let nonce: String = nonce.replace('+', "a").replace('/', "b");
        let answer = agent.challenge(nonce.clone().into_bytes()).await?;
        let judged = Box::pin(self.judge(claim, &nonce, &answer)).await;
        judged.map_err(|error| error.of_builtin(IMDS))
    }
}
