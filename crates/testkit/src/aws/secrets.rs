//! AWS Secrets Manager.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Key, REGION, operation, refusal, serve, signed};
use crate::web::{Asked, Web};

/// The secrets of an account.
#[derive(Clone, Default)]
pub struct Secrets(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// By name.
    secrets: BTreeMap<String, Secret>,
    tokens: Vec<String>,
    asked: Vec<(String, Value)>,
}

/// A secret.
#[derive(Clone, Default)]
pub struct Secret {
    /// Text.
    pub string: Option<String>,
    /// Bytes.
    pub binary: Option<Vec<u8>>,
    /// Names and values.
    pub tags: BTreeMap<String, String>,
    /// What it is encrypted with.
    pub kms_key: Option<String>,
    /// Whether it is deleted at the end of some days.
    pub deleted: bool,
}

/// The ARN of the secret `name`.
pub fn arn(name: &str) -> String {
    format!("arn:aws:secretsmanager:{REGION}:123456789012:secret:{name}-AbCdEf")
}

impl Secrets {
    /// Those on `web`, which `key` may use.
    pub fn start(web: &Web, key: Key) -> Self {
        let secrets = Self::default();
        let state = secrets.clone();
        let answer = move |asked: &Asked| state.state().answer(asked);
        serve(
            web,
            "/secrets_manager",
            signed(key, "secretsmanager", answer),
        );
        secrets
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Makes a secret, or another one of it.
    pub fn set(&self, name: &str, secret: Secret) {
        self.state().secrets.insert(name.to_owned(), secret);
    }

    /// The secret of this name.
    pub fn secret(&self, name: &str) -> Option<Secret> {
        self.state().secrets.get(name).cloned()
    }

    /// What was asked since this was called before: operations and their fields.
    pub fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.state().asked)
    }
}

impl State {
    fn answer(&mut self, asked: &Asked) -> Response<Bytes> {
        let (operation, fields) = operation(asked, "secretsmanager");
        self.asked.push((operation.clone(), fields.clone()));
        let told = |value: Value| Response::new(value.to_string().into());
        let refused = |code, why: &str| refusal(StatusCode::BAD_REQUEST, code, why);
        let text = |name: &str| fields[name].as_str().map(str::to_owned);
        if ["CreateSecret", "PutSecretValue"].contains(&operation.as_str()) {
            // Whoever calls without an SDK has to make one; one that was used belongs to that call.
            let token = text("ClientRequestToken").unwrap_or_default();
            if !(32..=64).contains(&token.len()) {
                return refused("InvalidParameterException", "ClientRequestToken");
            }
            if self.tokens.contains(&token) {
                return refused("ResourceExistsException", "this token was used");
            }
            self.tokens.push(token);
        }
        let binary = text("SecretBinary").map(|value| STANDARD.decode(value).unwrap());
        if operation == "CreateSecret" {
            let name = text("Name").unwrap();
            if self.secrets.contains_key(&name) {
                return refused("ResourceExistsException", "it is there");
            }
            let tags = fields["Tags"].as_array().cloned().unwrap_or_default();
            let of = |tag: &Value, key: &str| tag[key].as_str().unwrap().to_owned();
            let secret = Secret {
                string: text("SecretString"),
                binary,
                tags: tags
                    .iter()
                    .map(|tag| (of(tag, "Key"), of(tag, "Value")))
                    .collect(),
                kms_key: text("KmsKeyId"),
                deleted: false,
            };
            self.secrets.insert(name.clone(), secret);
            return told(json!({"ARN": arn(&name), "Name": name, "VersionId": "1"}));
        }
        let id = text("SecretId").unwrap();
        let found = self.secrets.iter_mut();
        let found = found
            .map(|(name, secret)| (name.clone(), secret))
            .find(|(name, _)| *name == id || arn(name) == id);
        let Some((name, secret)) = found else {
            let why = "Secrets Manager can't find the specified secret.";
            return refused("ResourceNotFoundException", why);
        };
        let mut answer = json!({"ARN": arn(&name), "Name": name});
        let needs_life = ["GetSecretValue", "PutSecretValue"].contains(&operation.as_str());
        if secret.deleted && needs_life {
            return refused("InvalidRequestException", "it is marked for deletion");
        }
        match operation.as_str() {
            "GetSecretValue" => match (&secret.string, &secret.binary) {
                (Some(text), _) => answer["SecretString"] = json!(text),
                (None, bytes) => {
                    let bytes = bytes.as_deref().unwrap_or_default();
                    answer["SecretBinary"] = json!(STANDARD.encode(bytes));
                }
            },
            "DescribeSecret" => {
                let tags = secret.tags.iter();
                let tags = tags.map(|(key, value)| json!({"Key": key, "Value": value}));
                answer["Tags"] = tags.collect();
                if secret.deleted {
                    answer["DeletedDate"] = json!(1.7e9);
                }
            }
            "PutSecretValue" => {
                secret.binary = binary;
                secret.string = text("SecretString");
            }
            "RestoreSecret" => secret.deleted = false,
            "DeleteSecret" => {
                if !(7..=30).contains(&fields["RecoveryWindowInDays"].as_i64().unwrap_or(30)) {
                    return refused("InvalidParameterException", "RecoveryWindowInDays");
                }
                secret.deleted = true;
                answer["DeletionDate"] = json!(1.9e9);
            }
            _ => return refused("UnknownOperationException", &operation),
        }
        told(answer)
    }
}
