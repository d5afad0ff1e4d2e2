//! What an account or an instance has to belong to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_spire_wire::aws::{Caller, Service};
use ah_spire_wire::sigv4::percent_encoded;
use bytes::Bytes;
use http::Request;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::Mutex;

use crate::node::aws_iid::account::{Callers, EksConfig, OrganizationConfig};
use crate::node::aws_iid::document::Document;
use crate::node::aws_iid::ec2::{below, parsed, text};

const ORGANIZATIONS: Service = Service::global("ORGANIZATIONS", "organizations");
const EKS: Service = Service::regional("EKS", "eks");
const AUTO_SCALING: Service = Service::regional("AUTO_SCALING", "autoscaling");

const ORGANIZATION_TTL: Duration = Duration::from_mins(3);
const MIN_ORGANIZATION_TTL: Duration = Duration::from_mins(1);
const EKS_TTL: Duration = Duration::from_secs(30);

/// How often an unknown name makes a list be fetched again before it ends.
const MISSES: u8 = 5;

/// How many lists of nodes are kept.
const MAX_LISTS: usize = 1024;

/// A list of names that AWS gives, kept for a while.
struct Kept {
    ttl: Duration,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    names: BTreeSet<String>,
    until: Option<SystemTime>,
    misses: u8,
}

impl Kept {
    fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            list: Mutex::default(),
        }
    }

    /// Whether `name` is in the list, which `fetch` gets.
    async fn has<F>(&self, name: &str, now: SystemTime, fetch: F) -> Result<bool, String>
    where
        F: Future<Output = Result<BTreeSet<String>, String>>,
    {
        let mut list = self.list.lock().await;
        let stale = list.until.is_none_or(|until| now > until);
        if !stale && (list.names.contains(name) || list.misses == 0) {
            return Ok(list.names.contains(name));
        }
        list.names = fetch.await?;
        if stale {
            list.until = now.checked_add(self.ttl);
            list.misses = MISSES;
        } else {
            list.misses = list.misses.saturating_sub(1);
        }
        Ok(list.names.contains(name))
    }
}

/// An organization's accounts.
pub(super) struct Organization {
    from: Accounts,
    kept: Kept,
}

enum Accounts {
    Aws(OrganizationConfig),
    File(PathBuf),
}

impl Organization {
    pub(super) fn configure(config: OrganizationConfig) -> Result<Self, String> {
        let ttl = config.org_account_map_ttl.unwrap_or(ORGANIZATION_TTL);
        if ttl < MIN_ORGANIZATION_TTL {
            return Err("please ensure that \"org_account_map_ttl\" if configured, it should be greater than or equal to \"1m\". Otherwise remove the: \"org_account_map_ttl\", in the block: \"verify_organization\". Default TTL will be: \"3m\"".into());
        }
        let named = [&config.management_account_id, &config.assume_org_role];
        let from = if config.account_list_file.as_os_str().is_empty() {
            if named.iter().any(|name| name.is_empty()) {
                return Err("please ensure that \"management_account_id\" & \"assume_org_role\" are present inside block or remove the block: \"verify_organization\" for feature node attestation using account id verification".into());
            }
            Accounts::Aws(config)
        } else {
            if named.iter().any(|name| !name.is_empty()) {
                return Err("\"account_list_file\" is mutually exclusive with \"management_account_id\" and \"assume_org_role\" in the block: \"verify_organization\"".into());
            }
            let file = config.account_list_file;
            let read = std::fs::read(&file).map_err(|error| error.to_string());
            let read = read.and_then(|bytes| listed(&bytes));
            read.map_err(|error| {
                format!(
                    "invalid \"account_list_file\" in the block: \"verify_organization\": {}: {error}",
                    file.display()
                )
            })?;
            Accounts::File(file)
        };
        Ok(Self {
            from,
            kept: Kept::new(ttl),
        })
    }

    /// Whether `account` is an active one of the organization.
    pub(super) async fn has(
        &self,
        account: &str,
        callers: &Callers,
        now: SystemTime,
    ) -> Result<bool, String> {
        match &self.from {
            Accounts::File(file) => self.kept.has(account, now, from_file(file)).await,
            Accounts::Aws(config) => {
                let fetch = async {
                    let region = match config.management_account_region.as_str() {
                        "" => "us-west-2",
                        region => region,
                    };
                    let (id, role) = (&config.management_account_id, &config.assume_org_role);
                    let caller = callers.in_role(region, id, role).await;
                    active_accounts(&caller, now).await
                };
                self.kept.has(account, now, fetch).await
            }
        }
    }
}

async fn from_file(file: &Path) -> Result<BTreeSet<String>, String> {
    let told = |error: String| {
        format!(
            "failed to load org account list: {}: {error}",
            file.display()
        )
    };
    let bytes = tokio::fs::read(file).await;
    let bytes = bytes.map_err(|error| told(error.to_string()))?;
    let accounts = listed(&bytes).map_err(told)?;
    if accounts.is_empty() {
        tracing::warn!(account_list_file = %file.display(), "The list of the organization's accounts is empty: no account is let in");
    }
    Ok(accounts)
}

fn listed(bytes: &[u8]) -> Result<BTreeSet<String>, String> {
    let accounts: BTreeSet<String> = serde_json::from_slice(bytes)
        .map_err(|error| format!("expected a JSON array of account IDs: {error}"))?;
    let bad = accounts
        .iter()
        .find(|id| id.len() != 12 || !id.bytes().all(|byte| byte.is_ascii_digit()));
    match bad {
        None => Ok(accounts),
        Some(id) => Err(format!(
            "invalid account id {id:?}, expected a 12-digit AWS account id"
        )),
    }
}

async fn active_accounts(caller: &Caller, now: SystemTime) -> Result<BTreeSet<String>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Page {
        #[serde(default)]
        accounts: Vec<Account>,
        next_token: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Account {
        id: String,
        status: String,
    }

    let mut accounts = BTreeSet::new();
    let mut next = None;
    loop {
        let body = match &next {
            None => json!({}),
            Some(token) => json!({"NextToken": token}),
        };
        let operation = "AWSOrganizationsV20161128.ListAccounts";
        let page: Page = caller
            .ask(ORGANIZATIONS, operation, &body, now)
            .await
            .map_err(|error| format!("issue while getting list of accounts: {error}"))?;
        let active = page.accounts.into_iter().filter(|it| it.status == "ACTIVE");
        accounts.extend(active.map(|account| account.id));
        next = page.next_token.filter(|token| !token.is_empty());
        if next.is_none() {
            return Ok(accounts);
        }
    }
}

async fn json_of<T: DeserializeOwned>(
    caller: &Caller,
    service: Service,
    request: Request<Bytes>,
    now: SystemTime,
) -> Result<T, String> {
    let answer = caller.call(service, request, now).await?;
    serde_json::from_slice(&answer)
        .map_err(|error| format!("the answer of {} is another one: {error}", service.name))
}

/// The nodes of clusters of EKS.
pub(super) struct Clusters {
    names: Vec<String>,
    /// By region and account: clusters have the same names elsewhere.
    kept: Mutex<BTreeMap<(String, String), Arc<Kept>>>,
}

impl Clusters {
    pub(super) fn configure(config: EksConfig) -> Result<Self, String> {
        if config.eks_cluster_names.iter().all(String::is_empty) {
            return Err("eks_cluster_names is required in the block \"validate_eks_cluster_membership\"; without it no node could attest".into());
        }
        Ok(Self {
            names: config.eks_cluster_names,
            kept: Mutex::default(),
        })
    }

    /// Whether the instance of `document` is a node of one of them.
    pub(super) async fn have(
        &self,
        document: &Document,
        caller: &Caller,
        now: SystemTime,
    ) -> Result<bool, String> {
        let kept = {
            let mut kept = self.kept.lock().await;
            if kept.len() >= MAX_LISTS {
                kept.clear();
            }
            let place = (document.region.clone(), document.account_id.clone());
            let kept = kept.entry(place);
            Arc::clone(kept.or_insert_with(|| Arc::new(Kept::new(EKS_TTL))))
        };
        let id = &document.instance_id;
        kept.has(id, now, self.nodes(caller, now)).await
    }

    async fn nodes(&self, caller: &Caller, now: SystemTime) -> Result<BTreeSet<String>, String> {
        let mut nodes = BTreeSet::new();
        for name in &self.names {
            let cluster = format!("/clusters/{}/node-groups", percent_encoded(name));
            for group in groups(caller, &cluster, now).await? {
                for scaled in scaled_by(caller, &cluster, &group, now).await? {
                    nodes.extend(instances(caller, &scaled, now).await?);
                }
            }
        }
        Ok(nodes)
    }
}

fn get(path: String) -> Result<Request<Bytes>, String> {
    Request::get(path)
        .body(Bytes::new())
        .map_err(|error| error.to_string())
}

async fn groups(caller: &Caller, cluster: &str, now: SystemTime) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Page {
        #[serde(default)]
        nodegroups: Vec<String>,
        #[serde(rename = "nextToken")]
        next_token: Option<String>,
    }

    let mut groups = Vec::new();
    let mut query = String::new();
    loop {
        let page: Page = json_of(caller, EKS, get(format!("{cluster}{query}"))?, now)
            .await
            .map_err(|error| format!("issue while getting list of EKS Nodegroups: {error}"))?;
        groups.extend(page.nodegroups);
        match page.next_token.filter(|token| !token.is_empty()) {
            None => return Ok(groups),
            Some(token) => query = format!("?nextToken={}", percent_encoded(&token)),
        }
    }
}

/// The names of the Auto Scaling groups behind the node group `group`.
async fn scaled_by(
    caller: &Caller,
    cluster: &str,
    group: &str,
    now: SystemTime,
) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Answer {
        nodegroup: Group,
    }
    #[derive(Deserialize)]
    struct Group {
        #[serde(default)]
        resources: Resources,
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Resources {
        auto_scaling_groups: Vec<Named>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Named {
        name: String,
    }

    let request = get(format!("{cluster}/{}", percent_encoded(group)))?;
    let answer: Answer = json_of(caller, EKS, request, now)
        .await
        .map_err(|error| format!("issue while getting list of EKS Node Groups: {error}"))?;
    let groups = answer.nodegroup.resources.auto_scaling_groups.into_iter();
    Ok(groups
        .map(|group| group.name)
        .filter(|name| !name.is_empty())
        .collect())
}

async fn instances(caller: &Caller, group: &str, now: SystemTime) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    let mut next = String::new();
    loop {
        let mut form = vec![
            ("Action", "DescribeAutoScalingGroups"),
            ("Version", "2011-01-01"),
            ("AutoScalingGroupNames.member.1", group),
        ];
        if !next.is_empty() {
            form.push(("NextToken", &next));
        }
        let answer = caller.query(AUTO_SCALING, &form, now).await;
        let answer = answer.map_err(|error| {
            format!("issue while getting list of instances in AutoScalingGroup: {error}")
        })?;
        let document = parsed(&answer)?;
        let result = ["DescribeAutoScalingGroupsResult"];
        for result in below(document.root_element(), &result) {
            let path = ["AutoScalingGroups", "member", "Instances", "member"];
            let instances = below(result, &path).into_iter();
            all.extend(instances.map(|instance| text(instance, &["InstanceId"])));
        }
        next = text(
            document.root_element(),
            &["DescribeAutoScalingGroupsResult", "NextToken"],
        );
        if next.is_empty() {
            return Ok(all);
        }
    }
}
