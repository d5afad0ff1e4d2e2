//! An upstream authority that is a plugin in a process of its own.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ah_identity_provider::Backoff;
use ah_spire_plugin_host::upstream::Upstream;
use ah_spire_wire::model::JwtKey;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use super::{Answer, MintedCa, UpstreamAuthority, UpstreamBundle, UpstreamError};

/// A plugin, and what it goes on to tell of its authorities: after each CA of the roots, after each JWT key of the keys,
/// and of both where it has a bundle to tell.
pub struct ExternalAuthority {
    plugin: Upstream,
    told: Arc<Told>,
    roots: Following,
    keys: Following,
    bundle: OnceLock<AbortOnDropHandle<()>>,
}

#[derive(Default)]
struct Following(Mutex<Option<AbortOnDropHandle<()>>>);

impl Following {
    /// In place of the one before.
    fn replace(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Some(AbortOnDropHandle::new(tokio::spawn(task)));
    }
}

/// The newest of what the plugin told.
struct Told(watch::Sender<Option<Arc<UpstreamBundle>>>);

impl Told {
    fn change(&self, change: impl FnOnce(&mut UpstreamBundle)) {
        self.0.send_if_modified(|newest| {
            let mut bundle = newest.as_deref().cloned().unwrap_or_default();
            change(&mut bundle);
            let changed = newest.as_deref() != Some(&bundle);
            if changed {
                *newest = Some(Arc::new(bundle));
            }
            changed
        });
    }
}

impl ExternalAuthority {
    /// Nothing is asked of the plugin yet.
    pub(crate) fn new(plugin: Upstream) -> Self {
        Self {
            plugin,
            told: Arc::new(Told(watch::Sender::new(None))),
            roots: Following::default(),
            keys: Following::default(),
            bundle: OnceLock::new(),
        }
    }
}

impl UpstreamAuthority for ExternalAuthority {
    fn mint_x509_ca<'a>(&'a self, csr: &'a [u8], ttl: Duration) -> Answer<'a, MintedCa> {
        Box::pin(async move {
            let minted = self.plugin.mint(csr, ttl).await.map_err(failed)?;
            let good = minted.roots.iter().filter(|root| !root.tainted);
            let signed = MintedCa {
                chain: minted.chain,
                roots: good.map(|root| root.der.clone()).collect(),
            };
            self.told.change(|told| told.x509 = Some(minted.roots));
            let (told, mut later) = (self.told.clone(), minted.later);
            self.roots.replace(async move {
                while goes_on(later.roots().await, |roots| {
                    told.change(|told| told.x509 = Some(roots));
                }) {}
            });
            Ok(signed)
        })
    }

    fn publish_jwt_key<'a>(&'a self, key: &'a JwtKey) -> Answer<'a, Option<Vec<JwtKey>>> {
        Box::pin(async move {
            let Some(published) = self.plugin.publish(key).await.map_err(failed)? else {
                return Ok(None);
            };
            let keys = published.keys.clone();
            self.told.change(|told| told.jwt = Some(published.keys));
            let (told, mut later) = (self.told.clone(), published.later);
            self.keys.replace(async move {
                while goes_on(later.keys().await, |keys| {
                    told.change(|told| told.jwt = Some(keys));
                }) {}
            });
            Ok(Some(keys))
        })
    }

    fn bundles(&self) -> Option<watch::Receiver<Option<Arc<UpstreamBundle>>>> {
        self.bundle.get_or_init(|| {
            let task = follow_bundle(self.plugin.clone(), self.told.clone());
            AbortOnDropHandle::new(tokio::spawn(task))
        });
        Some(self.told.0.subscribe())
    }
}

/// The plugin's bundle, where it has one; asked for anew when the plugin ends and is started again.
async fn follow_bundle(plugin: Upstream, told: Arc<Told>) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    loop {
        match plugin.bundle().await {
            Ok(None) => return,
            Ok(Some(mut later)) => loop {
                let next = later.bundle().await;
                // The stream of a plugin that has no such call may say so late.
                if matches!(&next, Err(status) if status.code() == Code::Unimplemented) {
                    return;
                }
                let ended = matches!(next, Ok(None));
                if !goes_on(next, |(roots, keys)| {
                    backoff.reset();
                    told.change(|told| {
                        told.x509 = Some(roots);
                        told.jwt = Some(keys);
                    });
                }) {
                    if ended {
                        return;
                    }
                    break;
                }
            },
            Err(error) => {
                let error = error.message();
                tracing::warn!(error, "The bundle of the upstream authority cannot be had");
            }
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

/// Whether there may be more after `next`. What makes no sense is told and passed over, as with upstream.
fn goes_on<T>(next: Result<Option<T>, Status>, take: impl FnOnce(T)) -> bool {
    match next {
        Ok(Some(told)) => {
            take(told);
            true
        }
        Ok(None) => false,
        Err(status) => {
            let error = status.message();
            if status.code() != Code::Unimplemented {
                tracing::warn!(
                    error,
                    "Failed to follow the authorities of the upstream authority"
                );
            }
            status.code() == Code::DataLoss
        }
    }
}

fn failed(status: Status) -> UpstreamError {
    UpstreamError(status.message().to_owned())
}
