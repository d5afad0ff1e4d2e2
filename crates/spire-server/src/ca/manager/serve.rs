//! The authorities as the APIs ask for them.

use std::time::Duration;

use ah_spire_wire::model::JwtKey;

use super::{CaError, Manager};
use crate::api::Authority;
use crate::ca::{
    JwtSvid, JwtSvidRequest, SignError, Signer, WitSvid, WitSvidRequest, X509Svid, X509SvidRequest,
};
use crate::keys::KeyManager;
use crate::store::{Bundles, Journals};

impl<S: Bundles + Journals + 'static, K: KeyManager> Signer for Manager<S, K> {
    fn sign_x509_svid(&self, request: X509SvidRequest) -> Result<X509Svid, SignError> {
        self.authorities.sign_x509_svid(request)
    }

    fn sign_agent_svid(&self, request: X509SvidRequest) -> Result<X509Svid, SignError> {
        self.authorities.sign_agent_svid(request)
    }

    fn sign_jwt_svid(&self, request: JwtSvidRequest) -> Result<JwtSvid, SignError> {
        self.authorities.sign_jwt_svid(request)
    }

    fn sign_wit_svid(&self, request: WitSvidRequest) -> Result<WitSvid, SignError> {
        self.authorities.sign_wit_svid(request)
    }
}

#[tonic::async_trait]
impl<S: Bundles + Journals + 'static, K: KeyManager> Authority for Manager<S, K> {
    fn sign_downstream_ca(
        &self,
        spki: &[u8],
        ttl: Option<Duration>,
    ) -> Result<Vec<Vec<u8>>, SignError> {
        let signed = self.authorities.sign_downstream_ca(spki, ttl)?;
        Ok(signed.chain)
    }

    fn jwt_disabled(&self) -> bool {
        self.settings.disable_jwt
    }

    fn wit_disabled(&self) -> bool {
        self.settings.wit_key_type.is_none()
    }

    async fn publish_jwt_key(&self, key: JwtKey) -> Result<Vec<JwtKey>, SignError> {
        self.publish_jwt(key).await.map_err(|error| match error {
            CaError::Sign(error) => error,
            error => SignError::Failed(error.to_string()),
        })
    }
}
