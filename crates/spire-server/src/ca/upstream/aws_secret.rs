//! Upstream authority `awssecret`: a CA whose certificate and key are secrets of AWS Secrets Manager.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ah_identity_provider::Clock;
use ah_spire_wire::aws::{Caller, Service};
use ah_spire_wire::model::JwtKey;
use serde::Deserialize;
use serde_json::json;
use spiffe::TrustDomain;
use zeroize::Zeroizing;

use super::local::{LocalCa, Part};
use super::{Answer, MintedCa, UpstreamAuthority, UpstreamError};

/// Where the CA is.
#[derive(Clone)]
pub struct SecretSettings {
    /// Who reads the secrets.
    pub caller: Arc<Caller>,
    /// `cert_file_arn`: the CA, then its issuers.
    pub certificate: String,
    /// `key_file_arn`
    pub key: String,
    /// `bundle_file_arn`: the roots; `None` for a CA that signed itself.
    pub bundle: Option<String>,
}

impl fmt::Debug for SecretSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretSettings")
            .field("certificate", &self.certificate)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// Signs with a CA from secrets, which are read anew for each CA. When they cannot be read, what was read last serves.
pub struct SecretAuthority {
    settings: SecretSettings,
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    last: Mutex<Option<Arc<LocalCa>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Value {
    secret_string: Option<Zeroizing<String>>,
}

impl SecretAuthority {
    /// AWS Secrets Manager
    pub const SERVICE: Service = Service::regional("SECRETS_MANAGER", "secretsmanager");

    /// With the CA of `settings`. Nothing is asked before it is used.
    pub fn new(settings: SecretSettings, trust_domain: TrustDomain, clock: Arc<dyn Clock>) -> Self {
        Self {
            settings,
            trust_domain,
            clock,
            last: Mutex::default(),
        }
    }

    async fn secret(&self, arn: &str, now: SystemTime) -> Result<Zeroizing<String>, UpstreamError> {
        let told = |why: String| UpstreamError(format!("unable to read {arn}: {why}"));
        let operation = "secretsmanager.GetSecretValue";
        let fields = json!({"SecretId": arn});
        let asked = self
            .settings
            .caller
            .ask::<Value>(Self::SERVICE, operation, &fields, now);
        let value = asked.await.map_err(|fault| told(fault.into()))?;
        value
            .secret_string
            .ok_or_else(|| told("it is no text; keep the PEM as a secret string".into()))
    }

    async fn load(&self, now: SystemTime) -> Result<LocalCa, UpstreamError> {
        let SecretSettings {
            certificate,
            key,
            bundle,
            ..
        } = &self.settings;
        let key_pem = self.secret(key, now).await?;
        let certificate_pem = self.secret(certificate, now).await?;
        let bundle_pem = match bundle {
            Some(arn) => Some((arn, self.secret(arn, now).await?)),
            None => None,
        };
        let part = |place, pem| Part { place, pem };
        let bundle = bundle_pem.as_ref();
        LocalCa::read(
            &part(key, key_pem.as_bytes()),
            &part(certificate, certificate_pem.as_bytes()),
            bundle.map(|(arn, pem)| part(arn, pem.as_bytes())).as_ref(),
            "bundle_file_arn",
            &self.trust_domain,
            now,
        )
    }

    async fn ca(&self, now: SystemTime) -> Result<Arc<LocalCa>, UpstreamError> {
        let loaded = self.load(now).await;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (loaded, last.as_ref()) {
            (Ok(loaded), _) => Ok(last.insert(Arc::new(loaded)).clone()),
            (Err(error), Some(before)) => {
                tracing::warn!(%error, "the upstream CA read last is used on");
                Ok(before.clone())
            }
            (Err(error), None) => Err(error),
        }
    }
}

impl UpstreamAuthority for SecretAuthority {
    fn mint_x509_ca<'a>(&'a self, csr: &'a [u8], ttl: Duration) -> Answer<'a, MintedCa> {
        Box::pin(async move {
            let now = self.clock.now();
            let ca = self.ca(now).await?;
            ca.mint(csr, ttl, &self.trust_domain, now)
        })
    }

    fn publish_jwt_key<'a>(&'a self, _key: &'a JwtKey) -> Answer<'a, Option<Vec<JwtKey>>> {
        Box::pin(async { Ok(None) })
    }
}
