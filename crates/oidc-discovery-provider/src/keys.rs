//! The public keys of the trust domain, asked for again and again.

mod file;
mod server_api;
mod workload_api;

use std::time::{Duration, SystemTime};

use ah_spire_plugin::oidc::OidcKeys;
use ah_spire_wire::{key_kind, openid_jwks};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

/// All of one look.
const PATIENCE: Duration = Duration::from_secs(30);

/// A key that JWT-SVIDs are signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    kid: String,
    spki: Vec<u8>,
}

impl Key {
    /// `None`, and told, for one that nobody could use.
    fn new(kid: String, spki: Vec<u8>) -> Option<Self> {
        match key_kind(&spki) {
            Ok(_) => Some(Self { kid, spki }),
            Err(error) => {
                tracing::warn!(kid, %error, "Malformed public key in bundle");
                None
            }
        }
    }
}

/// The keys of a look that differed from the one before.
#[derive(Clone, Debug)]
pub(crate) struct KeySet {
    /// The JWK set; `None` where there is no key.
    pub(crate) document: Option<Bytes>,
    /// When they were seen first.
    pub(crate) since: SystemTime,
}

/// What is known of the keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// `None` before the first look that succeeded; the last ones while looks fail.
    pub(crate) keys: Option<KeySet>,
    /// The last look that succeeded.
    pub(crate) looked: Option<Instant>,
    /// Why the last look failed, if it did.
    pub(crate) fault: Option<String>,
}

/// Looks, and tells what there is.
pub(crate) struct Poller {
    from: OidcKeys,
    interval: Duration,
    set_key_use: bool,
    last: Option<Vec<Key>>,
    known: watch::Sender<Known>,
}

impl Poller {
    pub(crate) fn new(from: OidcKeys, interval: Duration, set_key_use: bool) -> Self {
        Self {
            from,
            interval,
            set_key_use,
            last: None,
            known: watch::Sender::default(),
        }
    }

    pub(crate) fn known(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }

    /// Looks for ever.
    pub(crate) async fn run(mut self) {
        tracing::debug!(interval = ?self.interval, "Polling started");
        loop {
            self.look().await;
            tokio::time::sleep(self.interval).await;
        }
    }

    async fn look(&mut self) {
        let looked = tokio::time::timeout(PATIENCE, Box::pin(read(&self.from)));
        let looked = looked
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {}s", PATIENCE.as_secs())));
        match looked.and_then(|keys| self.take(keys)) {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(error, "Failed to fetch bundle");
                self.known.send_modify(|known| known.fault = Some(error));
            }
        }
    }

    fn take(&mut self, keys: Vec<Key>) -> Result<(), String> {
        let newer = match &self.last {
            Some(last) if *last == keys => None,
            _ => Some(self.written(&keys)?),
        };
        if newer.is_some() {
            tracing::info!(keys = keys.len(), "The keys are new");
            self.last = Some(keys);
        }
        self.known.send_modify(|known| {
            if known.fault.take().is_some() {
                tracing::info!("Fetching the bundle succeeds again");
            }
            known.looked = Some(Instant::now());
            known.keys = newer.or_else(|| known.keys.take());
        });
        Ok(())
    }

    fn written(&self, keys: &[Key]) -> Result<KeySet, String> {
        let document = match keys {
            [] => None,
            keys => {
                let keys = keys
                    .iter()
                    .map(|key| (key.kid.as_str(), key.spki.as_slice()));
                let document = openid_jwks(keys, self.set_key_use);
                Some(document.map_err(|error| error.to_string())?.into())
            }
        };
        Ok(KeySet {
            document,
            since: SystemTime::now(),
        })
    }
}

async fn read(from: &OidcKeys) -> Result<Vec<Key>, String> {
    match from {
        OidcKeys::ServerApi(socket) => server_api::read(socket).await,
        OidcKeys::WorkloadApi {
            socket,
            trust_domain,
        } => workload_api::read(socket, trust_domain).await,
        OidcKeys::File(path) => file::read(path).await,
    }
}

#[cfg(test)]
mod tests;
