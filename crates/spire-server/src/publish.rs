//! The server's bundle to the world outside: BundlePublishers and Notifiers.
//!
//! Both learn of a bundle when it changes, whichever server of the database changed it, and again until they have taken
//! it. A notifier hears of the first one before the server listens, and what it says no to then keeps the server from
//! starting.

mod aws;
mod azure;
mod format;
mod google;
mod k8s_configmap;
mod k8sbundle;

use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::Backoff;
use ah_spire_wire::model::Bundle;
use futures_util::future::{join_all, try_join_all};
use tokio::sync::watch;

pub use aws::{S3Publisher, TrustAnchor};
pub use azure::{Azure, AzureBlob, AzureIdentity};
pub use format::{Format, Formatted};
pub use google::{GcsBundle, GcsObject, GcsPublisher};
pub use k8s_configmap::{ConfigMapPublisher, ConfigMapTarget};
pub use k8sbundle::{BundleObjects, K8sBundle};

/// How often a publisher is called, and a notifier that has objects to look after, without anything new.
const AGAIN: Duration = Duration::from_secs(30);

/// After a failure it is tried again after a second, then after twice as long each time, up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Puts the bundle where others find it.
#[tonic::async_trait]
pub trait Publisher: Send + Sync + 'static {
    /// The plugin's name.
    fn name(&self) -> &str;

    /// Whether it wants a bundle again that it has taken before. Upstream leaves it to the plugin.
    fn wants_again(&self) -> bool {
        false
    }

    /// Publishes `bundle`. The error is for people.
    async fn publish(&self, bundle: &Bundle) -> Result<(), String>;
}

/// Is told of bundles.
#[tonic::async_trait]
pub trait Notifier: Send + Sync + 'static {
    /// The plugin's name.
    fn name(&self) -> &str;

    /// Whether it is called again without anything new, because it looks after objects that come and go.
    fn looks_again(&self) -> bool {
        false
    }

    /// The bundle at the start. An error, which is for people, ends the server.
    async fn loaded(&self, bundle: &Bundle) -> Result<(), String>;

    /// Any bundle after that.
    async fn updated(&self, bundle: &Bundle) -> Result<(), String>;
}

/// What the server's store has as its own bundle at the moment.
#[tonic::async_trait]
pub trait Newest: Send + Sync + 'static {
    /// Reads it.
    async fn bundle(&self) -> Result<Bundle, String>;
}

/// The bundle as PEM, as Kubernetes and Google's storage get it.
pub(super) fn certificates(bundle: &Bundle) -> String {
    ah_spire_wire::bundle::to_pem(bundle)
}

/// Who publishes and who is told.
#[derive(Default)]
pub struct Outside {
    /// In the order of the file.
    pub publishers: Vec<Arc<dyn Publisher>>,
    /// In the order of the file.
    pub notifiers: Vec<Arc<dyn Notifier>>,
}

impl Outside {
    /// Tells all notifiers the bundle that the server starts with.
    ///
    /// # Errors
    /// One of them said no.
    pub async fn loaded(&self, bundle: &Bundle) -> Result<(), String> {
        let all = self.notifiers.iter().map(|notifier| async {
            let told = notifier.loaded(bundle).await;
            tell(notifier.name(), "bundle loaded", &told);
            told
        });
        let told = try_join_all(all).await;
        told.map(|_| ())
            .map_err(|error| format!("one or more notifiers returned an error: {error}"))
    }

    /// Until it is dropped. `loaded` is what the notifiers were told at the start.
    pub async fn run(
        self,
        bundles: watch::Receiver<Option<Arc<Bundle>>>,
        loaded: Option<Arc<Bundle>>,
    ) {
        let publishers = self.publishers.into_iter().map(Member::Publisher);
        let notifiers = self.notifiers.into_iter().map(Member::Notifier);
        let all = publishers.chain(notifiers);
        join_all(all.map(|member| member.follow(bundles.clone(), loaded.clone()))).await;
        // Where there is nobody to tell.
        std::future::pending::<()>().await;
    }
}

/// Who is called with each bundle.
enum Member {
    Publisher(Arc<dyn Publisher>),
    Notifier(Arc<dyn Notifier>),
}

impl Member {
    /// Calls it with each bundle until it has taken it, and with what it took if it wants that. A notifier knows
    /// `loaded` already.
    async fn follow(
        self,
        mut bundles: watch::Receiver<Option<Arc<Bundle>>>,
        loaded: Option<Arc<Bundle>>,
    ) {
        let (again, mut done) = match &self {
            Self::Publisher(publisher) => (publisher.wants_again(), None),
            Self::Notifier(notifier) => (notifier.looks_again(), loaded),
        };
        let mut backoff = Backoff::new(Duration::from_secs(1), LONGEST_WAIT);
        loop {
            let newest = bundles.borrow_and_update().clone();
            let mut wait = AGAIN;
            if let Some(bundle) = newest
                && (again || done.as_ref() != Some(&bundle))
            {
                if self.takes(&bundle).await {
                    backoff.reset();
                    done = Some(bundle);
                } else {
                    wait = backoff.next_wait();
                }
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // Who made the bundles may be gone with the server.
                Ok(()) = bundles.changed() => {}
            }
        }
    }

    async fn takes(&self, bundle: &Bundle) -> bool {
        let publisher = match self {
            Self::Publisher(publisher) => publisher,
            Self::Notifier(notifier) => {
                let told = notifier.updated(bundle).await;
                tell(notifier.name(), "bundle updated", &told);
                return told.is_ok();
            }
        };
        let name = publisher.name();
        match publisher.publish(bundle).await {
            Ok(()) => {
                tracing::debug!(BundlePublisher = name, "Bundle published");
                true
            }
            Err(error) => {
                tracing::error!(BundlePublisher = name, error, "Failed to publish bundle");
                false
            }
        }
    }
}

fn tell(notifier: &str, event: &str, told: &Result<(), String>) {
    match told {
        Ok(()) => tracing::debug!(notifier, event, "Notifier handled event"),
        Err(error) => tracing::warn!(notifier, event, error, "Notifier failed to handle event"),
    }
}

#[cfg(test)]
mod tests;
