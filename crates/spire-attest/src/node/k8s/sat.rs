use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use ah_spire_wire::der::{self, Writer};
use ah_spire_wire::jwt::UnverifiedJwt;
use ah_spire_wire::{KeyKind, key_kind};
use serde_json::{Map, Value};
use spiffe::TrustDomain;
use uuid::Uuid;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::node::k8s::api::Api;
use crate::node::k8s::server::accounts;
use crate::node::k8s::{AttestationData, agent_id, no_such_cluster, not_allowed, selector};
use crate::node::token::in_time;
use crate::node::{AttestedAgent, Challenge, Claim, ServerHalf};
use crate::{AttestError, Builtin};

const SAT: Builtin = Builtin::K8sSat;

/// How far the clocks of cluster and server may be apart, where a token has an end.
const LEEWAY: Duration = Duration::from_mins(5);

/// One cluster of the server's settings, under the names of SPIRE's configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SatClusterConfig {
    /// `<namespace>:<name>` of those that may attest. Required.
    pub service_account_allow_list: Vec<String>,
    /// Whether the cluster is asked about a token. Otherwise the keys of `service_account_key_file` say.
    pub use_token_review_api_validation: bool,
    /// PEM of the cluster's public keys for service accounts (`CERTIFICATE`, `PUBLIC KEY`, `RSA PUBLIC KEY`).
    pub service_account_key_file: PathBuf,
    /// The kubeconfig that leads to the cluster. This process's own cluster, if empty.
    pub kube_config_file: PathBuf,
}

/// The server's half of `k8s_sat`.
pub struct SatServer {
    trust_domain: TrustDomain,
    clusters: BTreeMap<String, Cluster>,
}

struct Cluster {
    accounts: BTreeSet<String>,
    by: By,
}

enum By {
    Review(Api),
    /// SubjectPublicKeyInfo.
    Keys(Vec<Vec<u8>>),
}

impl SatServer {
    /// The half that lets pods of `clusters`, by their names, into `trust_domain`. Key files are read now.
    pub async fn configure(
        trust_domain: TrustDomain,
        clusters: BTreeMap<String, SatClusterConfig>,
    ) -> Result<Self, AttestError> {
        if clusters.is_empty() {
            return Err(AttestError::invalid(
                "configuration must have at least one cluster",
                "name the cluster of the agents in `clusters`",
            )
            .of_builtin(SAT));
        }
        let mut opened = BTreeMap::new();
        for (name, config) in clusters {
            let by = if config.use_token_review_api_validation {
                By::Review(Api::new(config.kube_config_file, "spire-server"))
            } else {
                By::Keys(keys(&name, &config.service_account_key_file).await?)
            };
            let accounts = accounts(SAT, &name, config.service_account_allow_list)?;
            opened.insert(name, Cluster { accounts, by });
        }
        Ok(Self {
            trust_domain,
            clusters: opened,
        })
    }

    async fn judge(
        &self,
        data: &AttestationData,
        now: SystemTime,
    ) -> Result<AttestedAgent, AttestError> {
        let name = data.cluster.as_str();
        let cluster = self.clusters.get(name);
        let cluster = cluster.ok_or_else(|| no_such_cluster(name))?;
        let (namespace, account) = match &cluster.by {
            By::Review(api) => reviewed(api, &data.token.0).await?,
            By::Keys(keys) => signed(keys, &data.token.0, now)?,
        };
        let full = format!("{namespace}:{account}");
        if !cluster.accounts.contains(&full) {
            return Err(not_allowed(&full, ""));
        }
        let id = Uuid::new_v4().to_string();
        Ok(AttestedAgent {
            id: agent_id(&self.trust_domain, SAT, name, &id)?,
            selectors: vec![
                selector(SAT, &["cluster", name]),
                selector(SAT, &["agent_ns", &namespace]),
                selector(SAT, &["agent_sa", &account]),
            ],
            can_reattest: false,
        })
    }
}

impl ServerHalf for SatServer {
    fn name(&self) -> &str {
        SAT.name()
    }

    async fn attest(
        &self,
        claim: Claim<'_>,
        _agent: &mut impl Challenge,
    ) -> Result<AttestedAgent, AttestError> {
        let data = AttestationData::read(claim.payload);
        let judged = match data {
            Ok(data) => Box::pin(self.judge(&data, claim.now)).await,
            Err(error) => Err(error),
        };
        judged.map_err(|error| error.of_builtin(SAT))
    }
}

/// Namespace and name of the account that the cluster says the token is of.
async fn reviewed(api: &Api, token: &str) -> Result<(String, String), AttestError> {
    let hint = "look at kube_config_file and at what the API server allows: the SPIRE server's account needs \
                `create tokenreviews`";
    let broken = |what: &str, error| AttestError::internal(format!("{what}: {error}"), hint);
    // Plain tokens have no audience of ours.
    let status = api.review(token, &[]).await;
    let status =
        status.map_err(|error| broken("unable to validate token with TokenReview API", error))?;
    if !status.authenticated {
        return Err(AttestError::refused(
            "token not authenticated according to TokenReview API",
            "give the agent's pod a token of this cluster that has not ended",
        ));
    }
    let names = status.names();
    let (namespace, name) =
        names.map_err(|error| broken("fail to parse username from token review status", error))?;
    Ok((namespace.to_owned(), name.to_owned()))
}

/// Namespace and name of the account that the token itself names, if one of `keys` signed it.
fn signed(keys: &[Vec<u8>], token: &str, now: SystemTime) -> Result<(String, String), AttestError> {
    let hint = "give the agent's pod a token of this cluster; service_account_key_file has the keys that the API \
                server's --service-account-key-file names";
    let invalid = |text: String| AttestError::invalid(text, hint);
    let unverified = UnverifiedJwt::parse(token)
        .map_err(|_| invalid("unable to parse token: it is no JWT in compact form".into()))?;
    let mut last = None;
    let verified = keys.iter().find_map(|key| match unverified.verify(key) {
        Ok(claims) => Some(claims),
        Err(error) => {
            last = Some(error);
            None
        }
    });
    let claims = verified.ok_or_else(|| {
        invalid(match last {
            Some(error) => format!("unable to verify token: {error}"),
            None => "token signed by unknown authority".into(),
        })
    })?;
    // Plain tokens of old clusters never end; where there is an end, it counts.
    let timed = claims.contains_key("exp");
    let timely = if timed {
        in_time(claims, now, LEEWAY)
    } else {
        Ok(())
    };
    timely.map_err(|why| {
        AttestError::refused(
            format!("unable to validate token claims: {why}"),
            "restart the agent's pod for a new token, and compare the clocks",
        )
    })?;
    let account = |plain: &str, nested: &[&str], what: &str| {
        one_claim(claims, plain, nested, what)
            .map_err(|error| invalid(format!("error parsing token claims: {error}")))
    };
    Ok((
        account(
            "kubernetes.io/serviceaccount/namespace",
            &["namespace"],
            "namespace",
        )?,
        account(
            "kubernetes.io/serviceaccount/service-account.name",
            &["serviceaccount", "name"],
            "service account name",
        )?,
    ))
}

/// A claim that plain tokens have under one name, and projected ones within `kubernetes.io`.
fn one_claim(
    claims: &Map<String, Value>,
    plain: &str,
    nested: &[&str],
    what: &str,
) -> Result<String, String> {
    let text = |value: Option<&Value>| {
        let text = value.and_then(Value::as_str).unwrap_or_default();
        Some(text.to_owned()).filter(|text| !text.is_empty())
    };
    let inner = nested
        .iter()
        .try_fold(claims.get("kubernetes.io"), |value, name| {
            value.map(|value| value.get(name))
        });
    match (text(claims.get(plain)), text(inner.flatten())) {
        (Some(_), Some(_)) => Err(format!("malformed token: {what} found in two claims")),
        (Some(one), None) | (None, Some(one)) => Ok(one),
        (None, None) => Err(format!("token missing {what} claim")),
    }
}

/// The public keys in the file `path` as SubjectPublicKeyInfo.
async fn keys(cluster: &str, path: &Path) -> Result<Vec<Vec<u8>>, AttestError> {
    let hint = "let service_account_key_file be the file that the API server's --service-account-key-file names, or \
                set use_token_review_api_validation = true";
    let wrong = |text: String| AttestError::invalid(text, hint).of_builtin(SAT);
    if path.as_os_str().is_empty() {
        return Err(wrong(format!(
            "cluster {cluster:?} configuration missing service account key file"
        )));
    }
    let shown = path.display();
    let failed = |why: String| {
        wrong(format!(
            "failed to load cluster {cluster:?} service account keys from \"{shown}\": {why}"
        ))
    };
    let pem = tokio::fs::read(path).await;
    let pem = pem.map_err(|error| failed(error.to_string()))?;
    let mut keys = Vec::new();
    for section in Pem::iter_from_buffer(&pem) {
        let section = section.map_err(|error| failed(error.to_string()))?;
        let key = match section.label.as_str() {
            "CERTIFICATE" => {
                let certificate = X509Certificate::from_der(&section.contents);
                let (_, certificate) = certificate.map_err(|error| failed(error.to_string()))?;
                certificate.public_key().raw.to_vec()
            }
            "PUBLIC KEY" => section.contents,
            "RSA PUBLIC KEY" => of_rsa(&section.contents),
            _ => continue,
        };
        match key_kind(&key) {
            Ok(KeyKind::Ed25519) => return Err(failed("unsupported Ed25519 key".into())),
            Ok(_) => keys.push(key),
            Err(error) => return Err(failed(error.to_string())),
        }
    }
    if keys.is_empty() {
        return Err(wrong(format!(
            "cluster {cluster:?} has no service account keys in \"{shown}\""
        )));
    }
    Ok(keys)
}

/// SubjectPublicKeyInfo of a PKCS #1 public key (RFC 8017 §A.1).
fn of_rsa(key: &[u8]) -> Vec<u8> {
    const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let mut spki = Writer::with_capacity(key.len().saturating_add(32));
    spki.sequence(|w| {
        w.sequence(|w| {
            w.primitive(der::OID, RSA_ENCRYPTION);
            w.null();
        });
        w.bit_string(|w| w.raw(key));
    });
    spki.finish()
}
