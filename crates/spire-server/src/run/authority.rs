//! The authorities, as the APIs ask for them.

use std::sync::Arc;
use std::time::Duration;

use ah_spire_wire::model::JwtKey;

use crate::api::Authority;
use crate::ca::{
    Authorities, JwtSvid, JwtSvidRequest, Manager, SignError, Signer, X509Svid, X509SvidRequest,
};
use crate::keys::{DiskKeys, KeyError, KeyManager, KeyType, MemoryKeys, SigningKey};
use crate::store::SqlStore;

/// Whichever key manager is configured.
pub(super) enum Keys {
    Disk(DiskKeys),
    Memory(MemoryKeys),
}

impl KeyManager for Keys {
    async fn generate_key(&self, id: &str, kind: KeyType) -> Result<Arc<dyn SigningKey>, KeyError> {
        match self {
            Self::Disk(keys) => keys.generate_key(id, kind).await,
            Self::Memory(keys) => keys.generate_key(id, kind).await,
        }
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn SigningKey>>, KeyError> {
        match self {
            Self::Disk(keys) => keys.key(id).await,
            Self::Memory(keys) => keys.key(id).await,
        }
    }

    async fn keys(&self) -> Result<Vec<Arc<dyn SigningKey>>, KeyError> {
        match self {
            Self::Disk(keys) => keys.keys().await,
            Self::Memory(keys) => keys.keys().await,
        }
    }
}

pub(super) struct Signing {
    pub(super) authorities: Arc<Authorities>,
    pub(super) manager: Arc<Manager<SqlStore, Keys>>,
    pub(super) disable_jwt: bool,
}

impl Signer for Signing {
    fn sign_x509_svid(&self, request: X509SvidRequest) -> Result<X509Svid, SignError> {
        self.authorities.sign_x509_svid(request)
    }

    fn sign_agent_svid(&self, request: X509SvidRequest) -> Result<X509Svid, SignError> {
        self.authorities.sign_agent_svid(request)
    }

    fn sign_jwt_svid(&self, request: JwtSvidRequest) -> Result<JwtSvid, SignError> {
        self.authorities.sign_jwt_svid(request)
    }
}

#[tonic::async_trait]
impl Authority for Signing {
    fn sign_downstream_ca(
        &self,
        spki: &[u8],
        ttl: Option<Duration>,
    ) -> Result<Vec<Vec<u8>>, SignError> {
        let signed = self.authorities.sign_downstream_ca(spki, ttl)?;
        Ok(signed.chain)
    }

    fn jwt_disabled(&self) -> bool {
        self.disable_jwt
    }

    async fn publish_jwt_key(&self, key: JwtKey) -> Result<Vec<JwtKey>, SignError> {
        let published = self.manager.publish_jwt_key(key).await;
        published.map_err(|error| SignError::Failed(error.to_string()))
    }
}
