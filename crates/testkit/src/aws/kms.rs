//! AWS Key Management Service with real keys, the tagging API, and who calls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Digest, SHA256, SHA384};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair as RsaKey, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PKCS1_SHA256,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{OWN, REGION, operation, refusal, serve, signed};
use crate::web::{Asked, Web};

/// How many aliases, keys or resources there are on a page.
const PAGE: usize = 2;

/// The keys of an account.
#[derive(Clone)]
pub struct Kms(Arc<Mutex<State>>);

struct State {
    /// By ARN.
    keys: BTreeMap<String, Key>,
    /// By name: the key's ARN, and when it was set.
    aliases: BTreeMap<String, (String, SystemTime)>,
    made: u32,
    ahead: Duration,
    asked: Vec<(String, Value)>,
    refused: Option<&'static str>,
    meanwhile: Option<Meanwhile>,
}

/// What happens when an operation is asked for.
struct Meanwhile {
    operation: &'static str,
    happens: Box<dyn FnOnce() + Send>,
}

/// A key.
#[derive(Clone)]
pub struct Key {
    private: Private,
    spec: String,
    /// What its maker said of it.
    pub description: String,
    /// As JSON; empty for KMS's own.
    pub policy: String,
    /// Names and values.
    pub tags: BTreeMap<String, String>,
    /// Whether it signs, and is not about to be deleted.
    pub enabled: bool,
    created: SystemTime,
}

#[derive(Clone)]
enum Private {
    Ec(Arc<EcdsaKeyPair>),
    Rsa(Arc<RsaKey>),
}

impl Kms {
    /// That on `web`, which [`OWN`](super::OWN) may use, and who is told to have the role of `arn`.
    pub fn start(web: &Web, arn: &str) -> Self {
        let kms = Self(Arc::new(Mutex::new(State {
            keys: BTreeMap::new(),
            aliases: BTreeMap::new(),
            made: 0,
            ahead: Duration::ZERO,
            asked: Vec::new(),
            refused: None,
            meanwhile: None,
        })));
        let state = kms.clone();
        let answer = move |asked: &Asked| state.state().answer(asked);
        serve(web, "/kms", signed(OWN, "kms", answer));
        let state = kms.clone();
        let answer = move |asked: &Asked| state.state().resources(asked);
        let place = "/resource_groups_tagging_api";
        serve(web, place, signed(OWN, "tagging", answer));
        let identity = format!(
            "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>{arn}</Arn><UserId>A</UserId><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"
        );
        let answer = move |asked: &Asked| {
            assert_eq!(asked.body, "Action=GetCallerIdentity&Version=2011-06-15");
            Response::new(identity.clone().into())
        };
        serve(web, "/sts", signed(OWN, "sts", answer));
        kms
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Lets time go by.
    pub fn advance(&self, by: Duration) {
        self.state().ahead += by;
    }

    /// Its time.
    pub fn now(&self) -> SystemTime {
        self.state().now()
    }

    /// What the alias means: the ARN of a key.
    pub fn alias(&self, name: &str) -> Option<String> {
        let state = self.state();
        state.aliases.get(name).map(|(arn, _)| arn.clone())
    }

    /// Points an alias somewhere, or takes it away.
    pub fn set_alias(&self, name: &str, key: Option<&str>) {
        let mut state = self.state();
        let now = state.now();
        match key {
            Some(key) => state.aliases.insert(name.to_owned(), (key.to_owned(), now)),
            None => state.aliases.remove(name),
        };
    }

    /// All aliases.
    pub fn aliases(&self) -> Vec<String> {
        self.state().aliases.keys().cloned().collect()
    }

    /// All keys that are enabled, by ARN.
    pub fn keys(&self) -> BTreeMap<String, Key> {
        let state = self.state();
        let keys = state.keys.iter().filter(|(_, key)| key.enabled);
        keys.map(|(arn, key)| (arn.clone(), key.clone())).collect()
    }

    /// Makes a key that nobody asked for.
    pub fn make(&self, spec: &str, description: &str, tags: &[(&str, &str)]) -> String {
        let tags = tags.iter();
        let tags = tags.map(|(key, value)| json!({"TagKey": key, "TagValue": value}));
        let tags: Vec<Value> = tags.collect();
        self.state()
            .create(&json!({"KeySpec": spec, "Description": description, "Tags": tags}))
    }

    /// Has a key sign no more, or again.
    pub fn enable(&self, arn: &str, enabled: bool) {
        self.state().keys.get_mut(arn).unwrap().enabled = enabled;
    }

    /// Has it say no to an operation from now on, or to none.
    pub fn refuse(&self, operation: Option<&'static str>) {
        self.state().refused = operation;
    }

    /// Has something happen when `operation` is asked for the next time, before it is done.
    pub fn meanwhile(&self, operation: &'static str, happens: impl FnOnce() + Send + 'static) {
        self.state().meanwhile = Some(Meanwhile {
            operation,
            happens: Box::new(happens),
        });
    }

    /// What was asked since this was called before: operations and their fields.
    pub fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.state().asked)
    }
}

fn told(value: &Value) -> Response<Bytes> {
    Response::new(value.to_string().into())
}

fn refused(code: &str, why: &str) -> Response<Bytes> {
    refusal(StatusCode::BAD_REQUEST, code, why)
}

fn seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs_f64()
}

fn tags(fields: &Value) -> BTreeMap<String, String> {
    let all = fields["Tags"].as_array().cloned().unwrap_or_default();
    let of = |tag: &Value, name: &str| tag[name].as_str().unwrap().to_owned();
    all.iter()
        .map(|tag| (of(tag, "TagKey"), of(tag, "TagValue")))
        .collect()
}

/// The page of `all` that begins at the marker, and the next one's marker.
fn page<T: Clone>(all: &[T], marker: &Value) -> (Vec<T>, Option<String>) {
    let marker = marker.as_str().filter(|marker| !marker.is_empty());
    let start: usize = marker.map_or(0, |marker| marker.parse().unwrap());
    let page = all.iter().skip(start).take(PAGE).cloned().collect();
    let next = start + PAGE;
    (page, (next < all.len()).then(|| next.to_string()))
}

impl State {
    fn now(&self) -> SystemTime {
        SystemTime::now() + self.ahead
    }

    fn create(&mut self, fields: &Value) -> String {
        let spec = fields["KeySpec"].as_str().unwrap();
        let ec = |algorithm| Private::Ec(Arc::new(EcdsaKeyPair::generate(algorithm).unwrap()));
        let rsa = |size| Private::Rsa(Arc::new(RsaKey::generate(size).unwrap()));
        let private = match spec {
            "ECC_NIST_P256" => ec(&ECDSA_P256_SHA256_ASN1_SIGNING),
            "ECC_NIST_P384" => ec(&ECDSA_P384_SHA384_ASN1_SIGNING),
            "RSA_2048" => rsa(KeySize::Rsa2048),
            "RSA_4096" => rsa(KeySize::Rsa4096),
            other => panic!("{other}"),
        };
        self.made += 1;
        let arn = format!(
            "arn:aws:kms:{REGION}:123456789012:key/00000000-0000-4000-8000-{:012}",
            self.made
        );
        let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
        let key = Key {
            private,
            spec: spec.to_owned(),
            description: text("Description"),
            policy: text("Policy"),
            tags: tags(fields),
            enabled: true,
            created: self.now(),
        };
        self.keys.insert(arn.clone(), key);
        arn
    }

    /// The ARN of a key that is called by this, by its alias, or by that one's ARN.
    fn find(&self, id: &str) -> Option<String> {
        let name = id.split_once(":alias/");
        let name = name.map_or_else(|| id.to_owned(), |(_, name)| format!("alias/{name}"));
        let by_alias = self.aliases.get(&name).map(|(arn, _)| arn.as_str());
        let arn = by_alias.unwrap_or(id);
        self.keys.contains_key(arn).then(|| arn.to_owned())
    }

    fn answer(&mut self, asked: &Asked) -> Response<Bytes> {
        let (operation, fields) = operation(asked, "TrentService");
        self.asked.push((operation.clone(), fields.clone()));
        if self.refused == Some(operation.as_str()) {
            return refused("AccessDeniedException", "not you");
        }
        let next = self.meanwhile.take_if(|it| it.operation == operation);
        if let Some(Meanwhile { happens, .. }) = next {
            happens();
        }
        let now = self.now();
        let text = |name: &str| fields[name].as_str().unwrap_or_default().to_owned();
        match operation.as_str() {
            "CreateKey" => {
                assert_eq!(fields["KeyUsage"], "SIGN_VERIFY");
                let arn = self.create(&fields);
                return told(&self.described(&arn));
            }
            "ListKeys" => {
                let all: Vec<Value> = self.keys.keys().map(|arn| json!({"KeyArn": arn})).collect();
                let (keys, next) = page(&all, &fields["Marker"]);
                return told(
                    &json!({"Keys": keys, "Truncated": next.is_some(), "NextMarker": next}),
                );
            }
            "ListAliases" => return self.list_aliases(&fields),
            "CreateAlias" | "UpdateAlias" => {
                let name = text("AliasName");
                let is_there = self.aliases.contains_key(&name);
                match (operation.as_str(), is_there) {
                    ("CreateAlias", true) => return refused("AlreadyExistsException", &name),
                    ("UpdateAlias", false) => return refused("NotFoundException", &name),
                    _ => {}
                }
                let Some(arn) = self.find(&text("TargetKeyId")) else {
                    return refused("NotFoundException", "no such key");
                };
                self.aliases.insert(name, (arn, now));
                return Response::new(Bytes::new());
            }
            "DeleteAlias" => {
                self.aliases.remove(&text("AliasName"));
                return Response::new(Bytes::new());
            }
            _ => {}
        }
        let Some(arn) = self.find(&text("KeyId")) else {
            return refused("NotFoundException", "no such key");
        };
        if operation == "DescribeKey" {
            return told(&self.described(&arn));
        }
        let key = self.keys.get_mut(&arn).unwrap();
        if !key.enabled {
            return refused("KMSInvalidStateException", "it is pending deletion");
        }
        match operation.as_str() {
            "GetPublicKey" => {
                let spki = STANDARD.encode(key.spki());
                told(&json!({"KeyId": arn, "KeySpec": key.spec, "PublicKey": spki}))
            }
            "Sign" => match key.sign(&fields) {
                Ok(signature) => told(&json!({"KeyId": arn, "Signature": signature})),
                Err(why) => refused("ValidationException", &why),
            },
            "ScheduleKeyDeletion" => {
                assert_eq!(fields["PendingWindowInDays"], 7);
                key.enabled = false;
                told(&json!({"KeyId": arn, "KeyState": "PendingDeletion"}))
            }
            "TagResource" => {
                key.tags.extend(tags(&fields));
                Response::new(Bytes::new())
            }
            _ => refused("UnknownOperationException", &operation),
        }
    }

    fn described(&self, arn: &str) -> Value {
        let key = &self.keys[arn];
        json!({"KeyMetadata": {
            "Arn": arn,
            "KeyId": arn.rsplit('/').next(),
            "CreationDate": seconds(key.created),
            "Enabled": key.enabled,
            "Description": key.description,
            "KeySpec": key.spec,
            "KeyUsage": "SIGN_VERIFY",
        }})
    }

    fn list_aliases(&self, fields: &Value) -> Response<Bytes> {
        let of = &fields["KeyId"];
        let all = self.aliases.iter();
        let all = all.filter(|(_, (arn, _))| of.is_null() || *of == **arn);
        let all: Vec<Value> = all
            .map(|(name, (arn, updated))| {
                json!({
                    "AliasName": name,
                    "AliasArn": format!("arn:aws:kms:{REGION}:123456789012:{name}"),
                    "TargetKeyId": arn.rsplit('/').next(),
                    "LastUpdatedDate": seconds(*updated),
                })
            })
            .collect();
        let (aliases, next) = page(&all, &fields["Marker"]);
        told(&json!({"Aliases": aliases, "Truncated": next.is_some(), "NextMarker": next}))
    }

    fn resources(&mut self, asked: &Asked) -> Response<Bytes> {
        let (operation, fields) = operation(asked, "ResourceGroupsTaggingAPI_20170126");
        self.asked.push((operation.clone(), fields.clone()));
        if self.refused == Some(operation.as_str()) {
            return refused("AccessDeniedException", "not you");
        }
        assert_eq!(fields["ResourceTypeFilters"], json!(["kms:key"]));
        let filters = fields["TagFilters"].as_array().unwrap();
        let fits = |key: &Key| {
            filters.iter().all(|filter| {
                let value = key.tags.get(filter["Key"].as_str().unwrap());
                value.is_some_and(|value| filter["Values"] == json!([value]))
            })
        };
        let all = self.keys.iter().filter(|(_, key)| fits(key));
        let all: Vec<Value> = all
            .map(|(arn, key)| {
                let tags = key.tags.iter();
                let tags: Vec<Value> = tags
                    .map(|(key, value)| json!({"Key": key, "Value": value}))
                    .collect();
                json!({"ResourceARN": arn, "Tags": tags})
            })
            .collect();
        let (found, next) = page(&all, &fields["PaginationToken"]);
        let next = next.unwrap_or_default();
        told(&json!({"ResourceTagMappingList": found, "PaginationToken": next}))
    }
}

impl Key {
    fn spki(&self) -> Vec<u8> {
        let der =
            |key: &dyn AsDer<PublicKeyX509Der<'static>>| key.as_der().unwrap().as_ref().to_vec();
        match &self.private {
            Private::Ec(key) => der(key.public_key()),
            Private::Rsa(key) => der(key.public_key()),
        }
    }

    fn sign(&self, fields: &Value) -> Result<String, String> {
        assert_eq!(fields["MessageType"], "DIGEST");
        let digest = STANDARD
            .decode(fields["Message"].as_str().unwrap())
            .unwrap();
        let algorithm = fields["SigningAlgorithm"].as_str().unwrap();
        let by = match (self.spec.as_str(), algorithm) {
            ("ECC_NIST_P256", "ECDSA_SHA_256")
            | ("RSA_2048" | "RSA_4096", "RSASSA_PKCS1_V1_5_SHA_256") => &SHA256,
            ("ECC_NIST_P384", "ECDSA_SHA_384") => &SHA384,
            (spec, _) => return Err(format!("{algorithm} is not for {spec}")),
        };
        let digest = Digest::import_less_safe(&digest, by).map_err(|error| error.to_string())?;
        let signature = match &self.private {
            Private::Ec(key) => key.sign_digest(&digest).unwrap().as_ref().to_vec(),
            Private::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                let signed = key.sign_digest(&RSA_PKCS1_SHA256, &digest, &mut signature);
                signed.unwrap();
                signature
            }
        };
        Ok(STANDARD.encode(signature))
    }
}
