//! Whom AWS is asked as, for the instances of each account.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ah_spire_wire::aws::{Caller, Environment};
use ah_spire_wire::sigv4::Credentials;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

/// How many callers are kept, so that an AWS account of anybody's cannot fill the memory.
const MAX_CALLERS: usize = 1024;

/// `verify_organization`, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrganizationConfig {
    /// The account that the organization is managed with.
    pub management_account_id: String,
    /// The role there that may list the accounts.
    pub assume_org_role: String,
    /// The region that is asked; `us-west-2` if empty.
    pub management_account_region: String,
    /// How long a list counts, from a minute on; three minutes if not set.
    pub org_account_map_ttl: Option<Duration>,
    /// A JSON array of account ids that is read in place of asking AWS.
    pub account_list_file: PathBuf,
}

/// `validate_eks_cluster_membership`, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EksConfig {
    /// The clusters whose nodes may attest.
    pub eks_cluster_names: Vec<String>,
}

/// Those who ask.
pub(super) struct Callers {
    environment: Environment,
    keys: Option<Credentials>,
    partition: String,
    role: String,
    known: Mutex<BTreeMap<Place, Arc<Caller>>>,
}

/// Where somebody asks, and in which role.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    region: String,
    role: Option<String>,
}

impl Callers {
    /// With a key of the settings where there is one; the environment's counts for its missing half, as upstream.
    pub(super) fn new(
        environment: Environment,
        id: &str,
        secret: &Zeroizing<String>,
        partition: &str,
        role: String,
    ) -> Result<Self, String> {
        let keys = environment.keys(id, secret)?;
        Ok(Self {
            environment,
            keys,
            partition: partition.to_owned(),
            role,
            known: Mutex::default(),
        })
    }

    /// Who asks in `region` about what `account` has: with `assume_role`, in that role of the account.
    pub(super) async fn of(&self, region: &str, account: &str) -> Arc<Caller> {
        let role = match self.role.as_str() {
            "" => None,
            role => Some(self.arn(account, role)),
        };
        self.caller(region, role).await
    }

    /// Who asks in `region`, in the role `role` of `account`.
    pub(super) async fn in_role(&self, region: &str, account: &str, role: &str) -> Arc<Caller> {
        self.caller(region, Some(self.arn(account, role))).await
    }

    fn arn(&self, account: &str, role: &str) -> String {
        format!("arn:{}:iam::{account}:role/{role}", self.partition)
    }

    async fn caller(&self, region: &str, role: Option<String>) -> Arc<Caller> {
        let mut known = self.known.lock().await;
        if known.len() >= MAX_CALLERS {
            known.clear();
        }
        let place = Place {
            region: region.to_owned(),
            role: role.clone(),
        };
        let caller = known.entry(place).or_insert_with(|| {
            let caller = Caller::new(self.environment.clone(), region, self.keys.clone());
            Arc::new(match role {
                Some(arn) => caller.assuming(arn),
                None => caller,
            })
        });
        Arc::clone(caller)
    }
}
