//! SVIDStore `aws_secretsmanager`: secrets of AWS Secrets Manager.

use std::time::SystemTime;

use ah_spire_plugin_host::svids::StoredSvid;
use ah_spire_wire::aws::{Caller, Fault, Service};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::secret::document;
use super::{StoreFault, SvidStore, parse_metadata};

/// What a secret has that is ours: a tag, and its value.
const TAG: (&str, &str) = ("spire-svid", "true");

/// How long a secret that was deleted can be had back. It is the shortest that AWS takes.
const KEPT_FOR: u32 = 7;

/// The secrets of a region.
pub(crate) struct AwsSecrets {
    caller: Caller,
}

/// Where an entry's selectors say that its SVID goes.
struct Place<'a> {
    /// ARN, or else the name.
    id: &'a str,
    name: Option<&'a str>,
    kms_key: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    #[serde(rename = "ARN")]
    arn: String,
    #[serde(default)]
    tags: Vec<Tag>,
    /// Of a secret that was deleted.
    deleted_date: Option<f64>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Tag {
    key: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Created<'a> {
    name: &'a str,
    client_request_token: String,
    secret_binary: &'a str,
    tags: [Tag; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    kms_key_id: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NewValue<'a> {
    secret_id: &'a str,
    client_request_token: String,
    secret_binary: &'a str,
}

impl<'a> Place<'a> {
    fn read(metadata: &'a [String]) -> Result<Self, StoreFault> {
        let told = parse_metadata(metadata)?;
        let of = |key: &str| told.get(key).copied().filter(|value| !value.is_empty());
        let name = of("secretname");
        let id = of("arn").or(name).ok_or_else(|| {
            StoreFault::Malformed("either the secret name or ARN is required".into())
        })?;
        Ok(Self {
            id,
            name,
            kms_key: of("kmskeyid"),
        })
    }
}

fn failed(what: &str, fault: &Fault) -> StoreFault {
    StoreFault::Failed(format!("failed to {what}: {fault}"))
}

/// What a call is known by when it is made again.
fn token() -> String {
    Uuid::new_v4().to_string()
}

impl AwsSecrets {
    pub(crate) const SERVICE: Service = Service::regional("SECRETS_MANAGER", "secretsmanager");

    pub(crate) fn new(caller: Caller) -> Self {
        Self { caller }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        operation: &str,
        fields: &impl Serialize,
    ) -> Result<T, Fault> {
        let operation = format!("secretsmanager.{operation}");
        let now = SystemTime::now();
        let asked = self.caller.ask(Self::SERVICE, &operation, fields, now);
        asked.await
    }

    /// `None` where there is no such secret; an error where it is somebody else's.
    async fn find(&self, place: &Place<'_>) -> Result<Option<Found>, StoreFault> {
        let fields = json!({"SecretId": place.id});
        let found: Found = match self.ask("DescribeSecret", &fields).await {
            Ok(found) => found,
            Err(fault) if fault.is("ResourceNotFoundException") => return Ok(None),
            Err(fault) => return Err(failed("describe secret", &fault)),
        };
        let ours = |tag: &Tag| (tag.key.as_str(), tag.value.as_str()) == TAG;
        if !found.tags.iter().any(ours) {
            let why = "secret does not contain the 'spire-svid' tag";
            return Err(StoreFault::Malformed(why.into()));
        }
        Ok(Some(found))
    }

    async fn create(&self, place: &Place<'_>, data: &str) -> Result<(), StoreFault> {
        let name = place.name.ok_or_else(|| {
            StoreFault::Malformed("failed to create secret: name selector is required".into())
        })?;
        let (key, value) = TAG;
        let fields = Created {
            name,
            client_request_token: token(),
            secret_binary: data,
            tags: [Tag {
                key: key.into(),
                value: value.into(),
            }],
            kms_key_id: place.kms_key,
        };
        let created = self.ask("CreateSecret", &fields).await;
        let _: serde::de::IgnoredAny = created.map_err(|fault| failed("create secret", &fault))?;
        Ok(())
    }
}

#[tonic::async_trait]
impl SvidStore for AwsSecrets {
    fn name(&self) -> &str {
        "aws_secretsmanager"
    }

    async fn put(&self, svid: &StoredSvid, metadata: &[String]) -> Result<(), StoreFault> {
        let place = Place::read(metadata)?;
        let data = Zeroizing::new(STANDARD.encode(document(svid)?.as_bytes()));
        let Some(found) = self.find(&place).await? else {
            return self.create(&place, &data).await;
        };
        if found.deleted_date.is_some() {
            let fields = json!({"SecretId": found.arn});
            let restored = self.ask("RestoreSecret", &fields).await;
            let what = format!("restore secret {:?}", place.id);
            let _: serde::de::IgnoredAny = restored.map_err(|fault| failed(&what, &fault))?;
            tracing::debug!(
                arn = found.arn,
                "Secret was scheduled for deletion and has been restored"
            );
        }
        let fields = NewValue {
            secret_id: &found.arn,
            client_request_token: token(),
            secret_binary: &data,
        };
        let put = self.ask("PutSecretValue", &fields).await;
        let _: serde::de::IgnoredAny = put.map_err(|fault| failed("put secret value", &fault))?;
        Ok(())
    }

    async fn delete(&self, metadata: &[String]) -> Result<(), StoreFault> {
        let place = Place::read(metadata)?;
        let Some(found) = self.find(&place).await? else {
            return Ok(());
        };
        if found.deleted_date.is_some() {
            return Ok(());
        }
        let fields = json!({"SecretId": found.arn, "RecoveryWindowInDays": KEPT_FOR});
        let deleted = self.ask("DeleteSecret", &fields).await;
        let what = format!("delete secret {:?}", place.id);
        let _: serde::de::IgnoredAny = deleted.map_err(|fault| failed(&what, &fault))?;
        Ok(())
    }
}
