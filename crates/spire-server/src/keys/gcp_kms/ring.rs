//! A key ring, as the service's REST interface has it.

use std::collections::BTreeMap;

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::google::{GoogleApi, GoogleError};

/// `projects/…/locations/…/keyRings/…`
pub(super) struct Ring {
    pub(super) api: GoogleApi,
    pub(super) name: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CryptoKey {
    pub(super) name: String,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) version_template: Template,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Template {
    pub(super) algorithm: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Lists {
    crypto_keys: Vec<CryptoKey>,
    crypto_key_versions: Vec<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Version {
    pub(super) name: String,
    #[serde(default)]
    pub(super) state: String,
    #[serde(default)]
    pub(super) algorithm: String,
    #[serde(default)]
    pub(super) create_time: String,
}

impl Ring {
    /// Its keys that fit `filter`.
    pub(super) async fn keys(&self, filter: &str) -> Result<Vec<CryptoKey>, GoogleError> {
        let path = format!("{}/cryptoKeys", self.name);
        let pages = self.api.pages::<Lists>(&path, filter).await?;
        Ok(pages
            .into_iter()
            .flat_map(|page| page.crypto_keys)
            .collect())
    }

    /// The versions of a key that can sign.
    pub(super) async fn versions(&self, key: &CryptoKey) -> Result<Vec<Version>, GoogleError> {
        let path = format!("{}/cryptoKeyVersions", key.name);
        let pages = self.api.pages::<Lists>(&path, "state = ENABLED").await?;
        let all = pages.into_iter();
        Ok(all.flat_map(|page| page.crypto_key_versions).collect())
    }

    /// Changes what `mask` names of a key.
    pub(super) async fn update(
        &self,
        key: &CryptoKey,
        mask: &str,
        change: Value,
    ) -> Result<(), GoogleError> {
        let path = format!("{}?updateMask={mask}", key.name);
        let changed = self.api.call::<Value>(Method::PATCH, &path, Some(&change));
        changed.await.map(drop)
    }

    /// Destroys a version. One that is gone, or was destroyed by somebody else, is destroyed.
    pub(super) async fn destroy(&self, version: &str) -> Result<(), GoogleError> {
        let path = format!("{version}:destroy");
        let nothing = json!({});
        let destroyed = self.api.call::<Value>(Method::POST, &path, Some(&nothing));
        let Err(error) = destroyed.await else {
            return Ok(());
        };
        if error.is_not_found() {
            return Ok(());
        }
        match self.api.get::<Version>(version).await {
            Ok(now) if now.state != "ENABLED" => Ok(()),
            Err(gone) if gone.is_not_found() => Ok(()),
            _ => Err(error),
        }
    }
}

/// CRC-32C (RFC 3720 §12.1), by which Google finds what got damaged on its way.
pub(in crate::keys) fn crc32c(data: &[u8]) -> u32 {
    let whole = data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            let low = if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            (crc >> 1) ^ low
        })
    });
    !whole
}
