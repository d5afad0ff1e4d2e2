//! What KMS and the tagging API answer, and what they are told.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Described {
    pub(super) key_metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Metadata {
    pub(super) arn: String,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) key_spec: String,
    #[serde(default)]
    pub(super) enabled: bool,
    /// Seconds since 1970.
    #[serde(default)]
    pub(super) creation_date: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Public {
    pub(super) public_key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Signed {
    pub(super) signature: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Aliases {
    #[serde(default)]
    pub(super) aliases: Vec<Alias>,
    #[serde(default)]
    pub(super) truncated: bool,
    pub(super) next_marker: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Alias {
    pub(super) alias_name: String,
    pub(super) alias_arn: String,
    pub(super) target_key_id: Option<String>,
    /// Seconds since 1970.
    pub(super) last_updated_date: Option<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Keys {
    #[serde(default)]
    pub(super) keys: Vec<Key>,
    #[serde(default)]
    pub(super) truncated: bool,
    pub(super) next_marker: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Key {
    pub(super) key_arn: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Resources {
    #[serde(default)]
    pub(super) resource_tag_mapping_list: Vec<Resource>,
    #[serde(default)]
    pub(super) pagination_token: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Resource {
    #[serde(rename = "ResourceARN")]
    pub(super) resource_arn: String,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tag {
    key: String,
    value: String,
}

impl Resource {
    pub(super) fn tag(&self, key: &str) -> Option<&str> {
        let tag = self.tags.iter().find(|tag| tag.key == key);
        tag.map(|tag| tag.value.as_str())
    }
}

/// The fields of a call: those that have a value.
pub(super) fn fields<const N: usize>(all: [(&str, Option<Value>); N]) -> Value {
    all.into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

pub(super) fn tags(tags: &[(&str, String)]) -> Value {
    let tags = tags.iter();
    tags.map(|(key, value)| json!({"TagKey": key, "TagValue": value}))
        .collect()
}

/// The time so many seconds after 1970.
pub(super) fn time(seconds: f64) -> SystemTime {
    let since = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let time = SystemTime::UNIX_EPOCH.checked_add(since);
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The whole seconds from 1970 to `time`, as tags have them.
pub(super) fn seconds(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs().to_string()
}

/// A key's policy that lets the role of `arn` do all with it, and the account look at it. `None` where `arn` is of no role.
pub(super) fn policy(arn: &str, account: &str) -> Option<String> {
    let mut parts = arn.splitn(6, ':');
    let partition = parts.nth(1)?;
    let role = parts.nth(3)?.strip_prefix("assumed-role/")?;
    let role = role.split('/').next()?;
    let iam = format!("arn:{partition}:iam::{account}");
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "Allow full access to the SPIRE Server role",
                "Effect": "Allow",
                "Principal": {"AWS": format!("{iam}:role/{role}")},
                "Action": "kms:*",
                "Resource": "*",
            },
            {
                "Sid": "Allow KMS console to display the key and policy",
                "Effect": "Allow",
                "Principal": {"AWS": format!("{iam}:root")},
                "Action": ["kms:Describe*", "kms:List*", "kms:Get*"],
                "Resource": "*",
            },
        ],
    });
    Some(policy.to_string())
}
