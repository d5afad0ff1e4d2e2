//! SVIDStores.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use ah_spire_wire::Channel;
use tonic::Status;
use zeroize::Zeroizing;

use crate::Plugin;
use crate::packages::spire::plugin::agent::svidstore::v1 as wire;
use wire::svid_store_client::SvidStoreClient;

/// What makes a plugin an SVIDStore.
pub const SERVICE: &str = "spire.plugin.agent.svidstore.v1.SVIDStore";

/// An SVIDStore in a process of its own.
#[derive(Clone)]
pub struct Store(Plugin);

/// An X509-SVID to be stored, with all that a workload needs beside it.
#[derive(Clone)]
pub struct StoredSvid {
    /// Its SPIFFE ID.
    pub spiffe_id: String,
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// PKCS #8, DER.
    pub key: Zeroizing<Vec<u8>>,
    /// Roots of its trust domain, DER.
    pub bundle: Vec<Vec<u8>>,
    /// End of the leaf.
    pub not_after: SystemTime,
    /// Roots of the trust domains that its entry federates with, DER.
    pub federated: BTreeMap<String, Vec<Vec<u8>>>,
}

impl Store {
    /// `plugin` has to be one of [`SERVICE`].
    pub fn new(plugin: Plugin) -> Self {
        Self(plugin)
    }

    /// The plugin's name.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// `PutX509SVID`; `metadata` are the values of the entry's selectors.
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn put(&self, svid: &StoredSvid, metadata: &[String]) -> Result<(), Status> {
        let since = svid.not_after.duration_since(SystemTime::UNIX_EPOCH);
        let seconds = since.unwrap_or(Duration::ZERO).as_secs();
        let federated = svid.federated.iter();
        let federated_bundles: HashMap<_, _> = federated
            .map(|(domain, roots)| (domain.clone(), roots.concat()))
            .collect();
        let request = wire::PutX509svidRequest {
            svid: Some(wire::X509svid {
                spiffe_id: svid.spiffe_id.clone(),
                cert_chain: svid.chain.clone(),
                private_key: svid.key.to_vec(),
                bundle: svid.bundle.clone(),
                expires_at: i64::try_from(seconds).unwrap_or(i64::MAX),
            }),
            metadata: metadata.to_vec(),
            federated_bundles,
        };
        let answer = self.0.call(async |channel| {
            let mut client = SvidStoreClient::with_origin(channel, Channel::origin());
            client.put_x509svid(request).await
        });
        answer.await.map(|_| ())
    }

    /// `DeleteX509SVID`
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn delete(&self, metadata: &[String]) -> Result<(), Status> {
        let request = wire::DeleteX509svidRequest {
            metadata: metadata.to_vec(),
        };
        let answer = self.0.call(async |channel| {
            let mut client = SvidStoreClient::with_origin(channel, Channel::origin());
            client.delete_x509svid(request).await
        });
        answer.await.map(|_| ())
    }
}
