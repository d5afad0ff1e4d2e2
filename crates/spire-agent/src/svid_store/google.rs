//! SVIDStore `gcp_secretmanager`: secrets of Google Cloud Secret Manager.

use std::collections::BTreeMap;
use std::time::SystemTime;

use ah_spire_attest::node::gcp_iit::{Account, refusal};
use ah_spire_plugin_host::svids::StoredSvid;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use spiffe::TrustDomain;
use zeroize::Zeroizing;

use super::secret::document;
use super::{StoreFault, SvidStore, parse_metadata};

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// What a secret has that is ours.
const LABEL: &str = "spire-svid";

/// Secrets of any project that the account may write to.
pub(crate) struct GoogleSecrets {
    /// Before `/v1/…`: `https://secretmanager.googleapis.com`, but in tests.
    api: String,
    account: Account,
    /// The value of the label: a name of a trust domain would not be allowed there.
    of: String,
}

/// Where an entry's selectors say that its SVID goes.
struct Place {
    project: String,
    name: String,
    replication: Value,
    /// A role, and who alone has it.
    grant: Option<(String, String)>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Found {
    labels: BTreeMap<String, String>,
    etag: String,
}

#[derive(Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct Binding {
    role: String,
    members: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Policy {
    bindings: Vec<Binding>,
}

impl Place {
    fn read(metadata: &[String]) -> Result<Self, StoreFault> {
        let malformed = |why: String| StoreFault::Malformed(why);
        let told = parse_metadata(metadata)?;
        let name = |key: &str| {
            let name = told.get(key).copied().unwrap_or_default();
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:.".contains(&byte);
            if name.is_empty() {
                return Err(malformed(format!("{key} is required")));
            }
            if name.starts_with('.') || !name.bytes().all(fits) {
                return Err(malformed(format!(
                    "{key} {name:?} is no name of Google Cloud"
                )));
            }
            Ok(name.to_owned())
        };
        let grant = match (told.get("role"), told.get("serviceaccount")) {
            (None, None) => None,
            (Some(role), Some(account)) => {
                Some(((*role).to_owned(), format!("serviceAccount:{account}")))
            }
            (None, Some(_)) => {
                let why = "role is required when service account is set";
                return Err(malformed(why.to_owned()));
            }
            (Some(_), None) => {
                let why = "service account is required when role is set";
                return Err(malformed(why.to_owned()));
            }
        };
        let replication = match told.get("regions") {
            None => json!({"automatic": {}}),
            Some(regions) => {
                let regions = regions.split(',').filter(|region| !region.is_empty());
                let replicas: Vec<_> = regions.map(|it| json!({"location": it})).collect();
                if replicas.is_empty() {
                    let why = "need to specify at least one region";
                    return Err(malformed(why.to_owned()));
                }
                json!({"userManaged": {"replicas": replicas}})
            }
        };
        Ok(Self {
            project: name("projectid")?,
            name: name("name")?,
            replication,
            grant,
        })
    }

    fn path(&self) -> String {
        format!("projects/{}/secrets/{}", self.project, self.name)
    }
}

impl GoogleSecrets {
    pub(crate) fn new(api: impl Into<String>, account: Account, of: &TrustDomain) -> Self {
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, of.as_str().as_bytes());
        let hash = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
        Self {
            api: api.into(),
            account,
            of: hash.collect(),
        }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Zeroizing<String>>,
    ) -> Result<Response<Bytes>, String> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}/v1/{path}", self.api))
            .header(header::CONTENT_TYPE, "application/json");
        let body = body.map(|body| Bytes::copy_from_slice(body.as_bytes()));
        let request = request.body(body.unwrap_or_default());
        let request = request.map_err(|error| error.to_string())?;
        self.account.send(request, SCOPE, SystemTime::now()).await
    }

    /// The answer if it is a success; `what` begins the error.
    async fn done(
        &self,
        what: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Bytes, StoreFault> {
        let failed = |why: String| StoreFault::Failed(format!("failed to {what}: {why}"));
        let body = body.map(|body| Zeroizing::new(body.to_string()));
        let answer = self.call(method, path, body).await.map_err(failed)?;
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        Err(failed(refusal(&answer)))
    }

    /// `None` where there is no such secret; an error where it is somebody else's.
    async fn find(&self, place: &Place) -> Result<Option<Found>, StoreFault> {
        let failed = |why: String| StoreFault::Failed(format!("failed to get secret: {why}"));
        let answer = self.call(Method::GET, &place.path(), None).await;
        let answer = answer.map_err(failed)?;
        match answer.status() {
            StatusCode::NOT_FOUND => return Ok(None),
            status if status.is_success() => {}
            _ => return Err(failed(refusal(&answer))),
        }
        let found: Found = serde_json::from_slice(answer.body())
            .map_err(|error| failed(format!("the answer is not what was asked for: {error}")))?;
        if found.labels.get(LABEL) != Some(&self.of) {
            let why = "secret is not managed by this SPIRE deployment";
            return Err(StoreFault::Malformed(why.to_owned()));
        }
        Ok(Some(found))
    }

    /// Lets the account of the selectors alone have its role.
    async fn grant(&self, place: &Place, is_new: bool) -> Result<(), StoreFault> {
        let Some((role, member)) = &place.grant else {
            return Ok(());
        };
        let path = place.path();
        if !is_new {
            let what = "get IAM policy";
            let path = format!("{path}:getIamPolicy");
            let told = self.done(what, Method::GET, &path, None).await?;
            let policy: Policy = serde_json::from_slice(&told).unwrap_or_default();
            let wanted = Binding {
                role: role.clone(),
                members: vec![member.clone()],
            };
            if policy.bindings == [wanted] {
                return Ok(());
            }
        }
        let policy = json!({"policy": {"bindings": [{"role": role, "members": [member]}]}});
        let what = "set IAM policy to secret";
        let path = format!("{path}:setIamPolicy");
        self.done(what, Method::POST, &path, Some(policy)).await?;
        Ok(())
    }
}

#[tonic::async_trait]
impl SvidStore for GoogleSecrets {
    fn name(&self) -> &str {
        "gcp_secretmanager"
    }

    async fn put(&self, svid: &StoredSvid, metadata: &[String]) -> Result<(), StoreFault> {
        let place = Place::read(metadata)?;
        let found = self.find(&place).await?;
        if found.is_none() {
            let secret = json!({
                "replication": place.replication,
                "labels": {LABEL: self.of},
            });
            let path = format!("projects/{}/secrets?secretId={}", place.project, place.name);
            let created = self.done("create secret", Method::POST, &path, Some(secret));
            created.await?;
        }
        self.grant(&place, found.is_none()).await?;
        let failed =
            |why: String| StoreFault::Failed(format!("failed to add secret version: {why}"));
        let data = Zeroizing::new(STANDARD.encode(document(svid)?.as_bytes()));
        let body = Zeroizing::new(format!("{{\"payload\":{{\"data\":\"{}\"}}}}", *data));
        let path = format!("{}:addVersion", place.path());
        let answer = self.call(Method::POST, &path, Some(body)).await;
        let answer = answer.map_err(failed)?;
        if answer.status().is_success() {
            return Ok(());
        }
        Err(failed(refusal(&answer)))
    }

    async fn delete(&self, metadata: &[String]) -> Result<(), StoreFault> {
        let place = Place::read(metadata)?;
        let Some(found) = self.find(&place).await? else {
            return Ok(());
        };
        let etag: String = url::form_urlencoded::byte_serialize(found.etag.as_bytes()).collect();
        let path = format!("{}?etag={etag}", place.path());
        let deleted = self.done("delete secret", Method::DELETE, &path, None);
        deleted.await.map(|_| ())
    }
}
