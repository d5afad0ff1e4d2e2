use std::collections::BTreeSet;
use std::time::SystemTime;

use spiffe::TrustDomain;
use zeroize::Zeroizing;

use crate::node::aws_iid::Amazon;
use crate::node::aws_iid::account::{Callers, EksConfig, OrganizationConfig};
use crate::node::aws_iid::document::{Document, Regions};
use crate::node::aws_iid::ec2::{self, Instance};
use crate::node::aws_iid::membership::{Clusters, Organization};
use crate::node::template::{self, Template};
use crate::node::{AttestedAgent, Challenge, Claim, ServerHalf};
use crate::{AttestError, Builtin, Selector};

const AWS: Builtin = Builtin::AwsIid;

const PARTITIONS: [&str; 3] = ["aws", "aws-cn", "aws-us-gov"];

const DEFAULT_TEMPLATE: &str =
    "/{{ .PluginName }}/{{ .AccountID }}/{{ .Region }}/{{ .InstanceID }}";

/// The server's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Default)]
pub struct AwsIidServerConfig {
    /// An access key; the environment's credentials if empty.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: Zeroizing<String>,
    /// The role in each account that AWS is asked in.
    pub assume_role: String,
    /// `aws`, `aws-cn` or `aws-us-gov`, for the names of roles; `aws` if empty.
    pub partition: String,
    /// Whether the root volume may have come from elsewhere.
    pub skip_block_device: bool,
    /// Whether IAM is not asked for the roles of an instance.
    pub disable_instance_profile_selectors: bool,
    /// Accounts whose root volumes may have come from elsewhere.
    pub account_ids_for_local_validation: Vec<String>,
    /// The agent's path below `/spire/agent`;
    /// `/{{ .PluginName }}/{{ .AccountID }}/{{ .Region }}/{{ .InstanceID }}` if empty.
    pub agent_path_template: String,
    /// The organization that accounts have to belong to.
    pub verify_organization: Option<OrganizationConfig>,
    /// The clusters of EKS that instances have to belong to.
    pub validate_eks_cluster_membership: Option<EksConfig>,
}

/// The server's half.
pub struct AwsIidServer {
    trust_domain: TrustDomain,
    regions: Regions,
    callers: Callers,
    template: Template<Value>,
    skip_block_device: bool,
    skip_block_device_of: BTreeSet<String>,
    asks_iam: bool,
    organization: Option<Organization>,
    clusters: Option<Clusters>,
}

/// What `agent_path_template` can ask for.
#[derive(Clone, Debug)]
enum Value {
    PluginName,
    AccountId,
    Region,
    InstanceId,
    Tag(String),
}

impl template::Value for Value {
    const KNOWN: &str = ".PluginName, .AccountID, .Region, .InstanceID and .Tags.<key>";

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            ".PluginName" => Self::PluginName,
            ".AccountID" => Self::AccountId,
            ".Region" => Self::Region,
            ".InstanceID" => Self::InstanceId,
            other => {
                let key = other.strip_prefix(".Tags.")?;
                if key.is_empty() || key.contains('.') {
                    return None;
                }
                Self::Tag(key.to_owned())
            }
        })
    }
}

impl Value {
    fn of(&self, document: &Document, instance: &Instance) -> Result<String, String> {
        let value = match self {
            Self::PluginName => Some(AWS.name()),
            Self::AccountId => Some(document.account_id.as_str()),
            Self::Region => Some(document.region.as_str()),
            Self::InstanceId => Some(document.instance_id.as_str()),
            Self::Tag(key) => instance.tags.get(key).map(String::as_str),
        };
        let value = value.map(ToOwned::to_owned);
        value.ok_or_else(|| format!("the instance has no tag for {self:?}"))
    }
}

impl AwsIidServer {
    /// The half that lets instances into `trust_domain`.
    pub fn configure(
        config: AwsIidServerConfig,
        trust_domain: TrustDomain,
        amazon: Amazon,
    ) -> Result<Self, AttestError> {
        let wrong = |text: String, hint: &str| AttestError::invalid(text, hint).of_builtin(AWS);
        let regions = Regions::read(&amazon.certificates);
        let regions = regions.map_err(|error| {
            AttestError::internal(error, "the list of AWS's certificates is broken").of_builtin(AWS)
        })?;
        let template = Template::configured(
            &config.agent_path_template,
            DEFAULT_TEMPLATE,
            "agent svid template",
        )
        .map_err(|error| error.of_builtin(AWS))?;
        let partition = match config.partition.as_str() {
            "" => "aws",
            partition => partition,
        };
        if !PARTITIONS.contains(&partition) {
            return Err(wrong(
                format!(
                    "invalid partition {partition:?}, must be one of: [{}]",
                    PARTITIONS.join(" ")
                ),
                "aws-cn is China's, aws-us-gov that of the GovCloud; leave it out elsewhere",
            ));
        }
        let (id, secret) = (&config.access_key_id, &config.secret_access_key);
        let callers = Callers::new(
            amazon.environment,
            id,
            secret,
            partition,
            config.assume_role,
        );
        let callers = callers.map_err(|error| {
            wrong(
                error,
                "set both access_key_id and secret_access_key, or neither",
            )
        })?;
        let organization = config
            .verify_organization
            .map(Organization::configure)
            .transpose();
        let organization = organization
            .map_err(|error| wrong(error, "see docs/plugins/aws_iid.md for the two forms"))?;
        let clusters = config
            .validate_eks_cluster_membership
            .map(Clusters::configure)
            .transpose();
        let clusters =
            clusters.map_err(|error| wrong(error, "list the clusters, or remove the block"))?;
        Ok(Self {
            trust_domain,
            regions,
            callers,
            template,
            skip_block_device: config.skip_block_device,
            skip_block_device_of: config
                .account_ids_for_local_validation
                .into_iter()
                .collect(),
            asks_iam: !config.disable_instance_profile_selectors,
            organization,
            clusters,
        })
    }

    async fn judge(&self, claim: Claim<'_>) -> Result<AttestedAgent, AttestError> {
        let document = Document::believed(claim.payload, &self.regions)?;
        self.check_membership(&document, claim.now).await?;
        let (account, region) = (&document.account_id, &document.region);
        let caller = self.callers.of(region, account).await;
        let asked = |error: String| {
            AttestError::internal(
                error,
                "the server's identity in AWS needs ec2:DescribeInstances and iam:GetInstanceProfile in the instance's \
                 account (assume_role names a role there)",
            )
        };
        let instance = ec2::instance(&caller, &document.instance_id, claim.now).await;
        let instance = instance.map_err(asked)?;
        if !self.skip_block_device && !self.skip_block_device_of.contains(account) {
            instance.check_block_device().map_err(|error| {
                AttestError::refused(
                    format!("failed aws ec2 attestation: {error}"),
                    "skip_block_device = true leaves this check out, and account_ids_for_local_validation for one account",
                )
            })?;
        }
        let id = self
            .template
            .agent_id(&self.trust_domain, |value| value.of(&document, &instance));
        let id = id.map_err(|error| {
            AttestError::internal(
                format!("failed to create spiffe ID: {error}"),
                "let agent_path_template make a path of letters, digits, '.', '-' and '_', of tags that all instances have",
            )
        })?;
        let mut values = BTreeSet::from([
            format!("account_id:{account}"),
            format!("az:{}", document.availability_zone),
            format!("image:id:{}", document.image_id),
            format!("instance:id:{}", document.instance_id),
            format!("region:{region}"),
        ]);
        for (key, value) in &instance.tags {
            values.insert(format!("tag:{key}:{value}"));
        }
        for (id, name) in &instance.security_groups {
            values.insert(format!("sg:id:{id}"));
            values.insert(format!("sg:name:{name}"));
        }
        if let Some(arn) = instance.profile.as_ref().filter(|_| self.asks_iam) {
            let roles = ec2::roles(&caller, arn, claim.now).await.map_err(asked)?;
            values.extend(roles.into_iter().map(|role| format!("iamrole:{role}")));
        }
        let selectors = values.into_iter();
        Ok(AttestedAgent {
            id,
            selectors: selectors
                .map(|value| Selector::new(AWS.name(), value))
                .collect(),
            can_reattest: false,
        })
    }

    /// Whether account and instance belong where the settings say.
    async fn check_membership(
        &self,
        document: &Document,
        now: SystemTime,
    ) -> Result<(), AttestError> {
        let (account, instance) = (&document.account_id, &document.instance_id);
        if let Some(organization) = &self.organization {
            let member = organization.has(account, &self.callers, now).await;
            let member = member.map_err(|error| {
                AttestError::internal(
                    format!("failed aws ec2 attestation, issue while verifying if nodes account id: {account} belong to org: {error}"),
                    "assume_org_role needs organizations:ListAccounts in the management account",
                )
            })?;
            if !member {
                return Err(AttestError::refused(
                    format!(
                        "failed aws ec2 attestation, nodes account id: {account} is not part of configured organization or doesn't have ACTIVE status"
                    ),
                    "add the account to the organization of verify_organization if its instances are to run agents",
                ));
            }
        }
        if let Some(clusters) = &self.clusters {
            let caller = self.callers.of(&document.region, account).await;
            let member = clusters.have(document, &caller, now).await;
            let member = member.map_err(|error| {
                AttestError::internal(
                    format!("failed aws eks attestation, issue while verifying if nodes id: {instance} belong to cluster: {error}"),
                    "the server's identity in AWS needs eks:ListNodegroups, eks:DescribeNodegroup and \
                     autoscaling:DescribeAutoScalingGroups",
                )
            })?;
            if !member {
                return Err(AttestError::refused(
                    format!(
                        "failed aws eks attestation, nodes id: {instance} is not part of configured EKS cluster"
                    ),
                    "add its cluster to eks_cluster_names if its nodes are to run agents",
                ));
            }
        }
        Ok(())
    }
}

impl ServerHalf for AwsIidServer {
    fn name(&self) -> &str {
        AWS.name()
    }

    async fn attest(
        &self,
        claim: Claim<'_>,
        _agent: &mut impl Challenge,
    ) -> Result<AttestedAgent, AttestError> {
        let judged = Box::pin(self.judge(claim)).await;
        judged.map_err(|error| error.of_builtin(AWS))
    }
}
