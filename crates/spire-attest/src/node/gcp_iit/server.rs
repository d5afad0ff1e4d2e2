use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ah_spire_wire::jwt::UnverifiedJwt;
use serde::Deserialize;
use spiffe::TrustDomain;

use crate::node::gcp_iit::compute::Compute;
use crate::node::gcp_iit::keys::GoogleKeys;
use crate::node::gcp_iit::{AUDIENCE, Google};
use crate::node::template::{self, Template};
use crate::node::token::{audience, in_time};
use crate::node::{AttestedAgent, Challenge, Claim, ServerHalf};
use crate::{AttestError, Builtin, Selector};

const GCP: Builtin = Builtin::GcpIit;

/// How far the clocks of Google and server may be apart. As upstream.
const LEEWAY: Duration = Duration::from_mins(1);

/// The largest value of a metadata item that becomes a selector, in bytes, unless told otherwise.
const MAX_METADATA_VALUE: usize = 128;

/// The server's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcpIitServerConfig {
    /// The projects whose instances may attest. Required.
    pub projectid_allow_list: Vec<String>,
    /// The agent's path below `/spire/agent`; `/{{ .PluginName }}/{{ .ProjectID }}/{{ .InstanceID }}` if empty.
    pub agent_path_template: String,
    /// Whether the Compute Engine API is asked for tags, labels and metadata.
    pub use_instance_metadata: bool,
    /// Labels that become selectors.
    pub allowed_label_keys: Vec<String>,
    /// Metadata that become selectors.
    pub allowed_metadata_keys: Vec<String>,
    /// The largest of their values, in bytes; 128 if zero.
    pub max_metadata_value_size: i64,
    /// The key file of the service account that the API is asked with; the machine's own account if empty.
    pub service_account_file: PathBuf,
}

/// The server's half.
pub struct GcpIitServer {
    trust_domain: TrustDomain,
    projects: BTreeSet<String>,
    template: Template<Value>,
    keys: GoogleKeys,
    compute: Option<Compute>,
    labels: BTreeSet<String>,
    metadata: BTreeSet<String>,
    max_metadata_value: usize,
}

/// The claims of an identity token that count here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Identity {
    email: String,
    google: Platform,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Platform {
    compute_engine: Machine,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Machine {
    project_id: String,
    project_number: i64,
    zone: String,
    instance_id: String,
    instance_name: String,
    instance_creation_timestamp: i64,
}

/// What `agent_path_template` can ask for.
#[derive(Clone, Copy, Debug)]
enum Value {
    PluginName,
    ProjectId,
    ProjectNumber,
    Zone,
    InstanceId,
    InstanceName,
    InstanceCreationTimestamp,
    ServiceAccount,
}

impl template::Value for Value {
    const KNOWN: &str = ".PluginName, .ProjectID, .ProjectNumber, .Zone, .InstanceID, .InstanceName, .InstanceCreationTimestamp and .ServiceAccount";

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            ".PluginName" => Self::PluginName,
            ".ProjectID" => Self::ProjectId,
            ".ProjectNumber" => Self::ProjectNumber,
            ".Zone" => Self::Zone,
            ".InstanceID" => Self::InstanceId,
            ".InstanceName" => Self::InstanceName,
            ".InstanceCreationTimestamp" => Self::InstanceCreationTimestamp,
            ".ServiceAccount" => Self::ServiceAccount,
            _ => return None,
        })
    }
}

impl Value {
    fn of(self, identity: &Identity) -> String {
        let machine = &identity.google.compute_engine;
        match self {
            Self::PluginName => GCP.name().to_owned(),
            Self::ProjectId => machine.project_id.clone(),
            Self::ProjectNumber => machine.project_number.to_string(),
            Self::Zone => machine.zone.clone(),
            Self::InstanceId => machine.instance_id.clone(),
            Self::InstanceName => machine.instance_name.clone(),
            Self::InstanceCreationTimestamp => machine.instance_creation_timestamp.to_string(),
            // A path has no '@'.
            Self::ServiceAccount => identity.email.replace('@', "_"),
        }
    }
}

impl GcpIitServer {
    /// The half that lets instances into `trust_domain`.
    pub fn configure(
        config: GcpIitServerConfig,
        trust_domain: TrustDomain,
        google: Google,
    ) -> Result<Self, AttestError> {
        let wrong = |text: String, hint: &str| AttestError::invalid(text, hint).of_builtin(GCP);
        if config.projectid_allow_list.is_empty() {
            return Err(wrong(
                "projectid_allow_list is required".into(),
                "list the projects of the agents' instances",
            ));
        }
        let template = Template::configured(
            &config.agent_path_template,
            "/{{ .PluginName }}/{{ .ProjectID }}/{{ .InstanceID }}",
            "agent path template",
        )
        .map_err(|error| error.of_builtin(GCP))?;
        let max_metadata_value = match config.max_metadata_value_size {
            0 => MAX_METADATA_VALUE,
            size => usize::try_from(size).map_err(|_| {
                wrong(
                    format!("max_metadata_value_size is {size}"),
                    "it is a number of bytes",
                )
            })?,
        };
        let file = config.service_account_file;
        let file = Some(file).filter(|file| !file.as_os_str().is_empty());
        Ok(Self {
            trust_domain,
            projects: config.projectid_allow_list.into_iter().collect(),
            template,
            keys: GoogleKeys::new(google.certificates.clone()),
            compute: config
                .use_instance_metadata
                .then(|| Compute::new(google, file)),
            labels: config.allowed_label_keys.into_iter().collect(),
            metadata: config.allowed_metadata_keys.into_iter().collect(),
            max_metadata_value,
        })
    }

    async fn judge(&self, claim: Claim<'_>) -> Result<AttestedAgent, AttestError> {
        let identity = self.identity(claim).await?;
        let machine = &identity.google.compute_engine;
        if !self.projects.contains(&machine.project_id) {
            return Err(AttestError::refused(
                format!(
                    "identity token project ID {:?} is not in the allow list",
                    machine.project_id
                ),
                "add it to projectid_allow_list if its instances are to run agents",
            ));
        }
        let id = self
            .template
            .agent_id(&self.trust_domain, |value| Ok(value.of(&identity)));
        let id = id.map_err(|error| {
            AttestError::internal(
                format!("failed to create agent ID: {error}"),
                "let agent_path_template make a path of letters, digits, '.', '-' and '_'",
            )
        })?;
        let mut values = vec![
            format!("project-id:{}", machine.project_id),
            format!("zone:{}", machine.zone),
            format!("instance-name:{}", machine.instance_name),
            format!("sa:{}", identity.email),
        ];
        if let Some(compute) = &self.compute {
            values.extend(self.instance_values(compute, machine, claim.now).await?);
        }
        let selectors = values.into_iter();
        Ok(AttestedAgent {
            id,
            selectors: selectors
                .map(|value| Selector::new(GCP.name(), value))
                .collect(),
            can_reattest: false,
        })
    }

    /// What the payload says, once Google's signature and the claims are believed.
    async fn identity(&self, claim: Claim<'_>) -> Result<Identity, AttestError> {
        const HINT: &str = "the payload of gcp_iit is the identity token of an instance, in full format; use an agent \
                            with the gcp_iit attestor";
        let invalid = |text: String| AttestError::invalid(text, HINT);
        let unreadable = |why: &str| invalid(format!("unable to parse the identity token: {why}"));
        let token = std::str::from_utf8(claim.payload).map_err(|_| unreadable("it is not text"))?;
        let token = UnverifiedJwt::parse(token.trim())
            .map_err(|_| unreadable("it is no JWT in compact form"))?;
        if token.algorithm != "RS256" {
            return Err(unreadable("it is not signed with RS256"));
        }
        let key = self.keys.find(token.key_id.as_deref(), claim.now).await;
        let key = key.map_err(|error| {
            AttestError::unavailable(
                format!("Google's certificates cannot be had: {error}"),
                "the server needs the way to www.googleapis.com",
            )
        })?;
        let failed = |why: String| {
            invalid(format!(
                "failed to validate the identity token signature: {why}"
            ))
        };
        let key = key.ok_or_else(|| failed("Google has no key of that name".into()))?;
        let claims = token
            .verify(&key)
            .map_err(|error| failed(error.to_string()))?;
        let refused = |why: String| {
            AttestError::refused(
                format!("failed to validate the identity token claims: {why}"),
                "compare the clocks, and let the agent fetch a new token",
            )
        };
        in_time(claims, claim.now, LEEWAY).map_err(refused)?;
        if !audience(claims).contains(&AUDIENCE) {
            return Err(refused(format!("the token is not for {AUDIENCE}")));
        }
        serde_json::from_value(serde_json::Value::Object(claims.clone()))
            .map_err(|error| unreadable(&error.to_string()))
    }

    async fn instance_values(
        &self,
        compute: &Compute,
        machine: &Machine,
        now: SystemTime,
    ) -> Result<Vec<String>, AttestError> {
        let asked = compute.instance(
            &machine.project_id,
            &machine.zone,
            &machine.instance_name,
            now,
        );
        let instance = Box::pin(asked).await.map_err(|error| {
            AttestError::internal(
                format!("failed to fetch instance metadata: {error}"),
                "the server's service account needs compute.instances.get in that project",
            )
        })?;
        let mut values: Vec<_> = instance
            .tags()
            .iter()
            .map(|tag| format!("tag:{tag}"))
            .collect();
        for (key, value) in &instance.labels {
            if self.labels.contains(key) {
                values.push(format!("label:{key}:{value}"));
            }
        }
        for member in instance.metadata() {
            if !self.metadata.contains(&member.key) {
                continue;
            }
            let size = member.value.len();
            if size > self.max_metadata_value {
                return Err(AttestError::internal(
                    format!(
                        "metadata {:?} exceeded value limit ({size} > {})",
                        member.key, self.max_metadata_value
                    ),
                    "raise max_metadata_value_size, or take the key out of allowed_metadata_keys",
                ));
            }
            values.push(format!("metadata:{}:{}", member.key, member.value));
        }
        Ok(values)
    }
}

impl ServerHalf for GcpIitServer {
    fn name(&self) -> &str {
        GCP.name()
    }

    async fn attest(
        &self,
        claim: Claim<'_>,
        _agent: &mut impl Challenge,
    ) -> Result<AttestedAgent, AttestError> {
        let judged = Box::pin(self.judge(claim)).await;
        judged.map_err(|error| error.of_builtin(GCP))
    }
}
