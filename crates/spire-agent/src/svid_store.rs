//! X509-SVIDs for workloads that cannot ask: entries with `store_svid`, pushed to SVIDStores.
//!
//! The type of such an entry's selectors is the name of the store, and their values tell that store where to put the SVID.
//! What is new is pushed at once, again when SVID, bundle or entry change, and until it was taken. What has gone from the
//! entries is taken out of the store.

mod aws;
mod cache;
mod directory;
mod google;
mod secret;
mod service;

use std::collections::BTreeMap;

use ah_spire_plugin_host::svids::{Store, StoredSvid};
use tonic::Code;

pub(crate) use aws::AwsSecrets;
pub(crate) use cache::StoreCache;
pub(crate) use directory::Directory;
pub(crate) use google::GoogleSecrets;
pub(crate) use service::StoreService;

/// Why a store did not do what it was told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreFault {
    /// The selectors of the entry make no sense to it: it can hold nothing of that entry.
    #[error("{0}")]
    Malformed(String),
    /// Anything that may be over the next time.
    #[error("{0}")]
    Failed(String),
}

/// Where X509-SVIDs are put for others.
#[tonic::async_trait]
pub(crate) trait SvidStore: Send + Sync {
    /// The plugin's name, and the type of the selectors that mean it.
    fn name(&self) -> &str;

    /// Puts `svid` where `metadata`, the values of the entry's selectors, say. In place of the one before.
    async fn put(&self, svid: &StoredSvid, metadata: &[String]) -> Result<(), StoreFault>;

    /// Takes away what [`SvidStore::put`] has put there.
    async fn delete(&self, metadata: &[String]) -> Result<(), StoreFault>;
}

#[tonic::async_trait]
impl SvidStore for Store {
    fn name(&self) -> &str {
        self.name()
    }

    async fn put(&self, svid: &StoredSvid, metadata: &[String]) -> Result<(), StoreFault> {
        self.put(svid, metadata)
            .await
            .map_err(|status| fault(&status))
    }

    async fn delete(&self, metadata: &[String]) -> Result<(), StoreFault> {
        self.delete(metadata).await.map_err(|status| fault(&status))
    }
}

fn fault(status: &tonic::Status) -> StoreFault {
    let told = status.message().to_owned();
    match status.code() {
        Code::InvalidArgument => StoreFault::Malformed(told),
        _ => StoreFault::Failed(told),
    }
}

/// What `key:value` texts say, each key once.
fn parse_metadata(metadata: &[String]) -> Result<BTreeMap<&str, &str>, StoreFault> {
    let mut parsed = BTreeMap::new();
    for text in metadata {
        let (key, value) = text.split_once(':').ok_or_else(|| {
            StoreFault::Malformed(format!("metadata does not contain a colon: {text:?}"))
        })?;
        parsed.insert(key, value);
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests;
