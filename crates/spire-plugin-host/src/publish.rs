//! Who is told the server's bundle: BundlePublishers and Notifiers.

use ah_spire_wire::Channel;
use ah_spire_wire::model::{Bundle, JwtKey, X509Authority};
use tonic::Status;

use crate::Plugin;
use crate::packages::spire::plugin::server::bundlepublisher::v1 as publisher;
use crate::packages::spire::plugin::server::notifier::v1 as notifier;
use crate::packages::spire::plugin::types;
use notifier::notifier_client::NotifierClient;
use notifier::notify_and_advise_request::Event as Advised;
use notifier::notify_request::Event as Told;
use publisher::bundle_publisher_client::BundlePublisherClient;

/// What makes a plugin a BundlePublisher.
pub const PUBLISHER_SERVICE: &str = "spire.plugin.server.bundlepublisher.v1.BundlePublisher";

/// What makes a plugin a Notifier.
pub const NOTIFIER_SERVICE: &str = "spire.plugin.server.notifier.v1.Notifier";

/// A BundlePublisher in a process of its own.
#[derive(Clone)]
pub struct Publisher(Plugin);

impl Publisher {
    /// `plugin` has to be one of [`PUBLISHER_SERVICE`].
    pub fn new(plugin: Plugin) -> Self {
        Self(plugin)
    }

    /// The plugin's name.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// `PublishBundle`
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn publish(&self, bundle: &Bundle) -> Result<(), Status> {
        let request = publisher::PublishBundleRequest {
            bundle: Some(to_wire(bundle)),
        };
        let answer = self.0.call(async |channel| {
            let mut client = BundlePublisherClient::with_origin(channel, Channel::origin());
            client.publish_bundle(request).await
        });
        answer.await.map(|_| ())
    }
}

/// A Notifier in a process of its own.
#[derive(Clone)]
pub struct Notifier(Plugin);

impl Notifier {
    /// `plugin` has to be one of [`NOTIFIER_SERVICE`].
    pub fn new(plugin: Plugin) -> Self {
        Self(plugin)
    }

    /// The plugin's name.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// `NotifyAndAdvise` of the bundle that the server starts with.
    ///
    /// # Errors
    /// What the plugin says: the server is not to start.
    pub async fn loaded(&self, bundle: &Bundle) -> Result<(), Status> {
        let bundle = Some(to_wire(bundle));
        let request = notifier::NotifyAndAdviseRequest {
            event: Some(Advised::BundleLoaded(notifier::BundleLoaded { bundle })),
        };
        let answer = self.0.call(async |channel| {
            let mut client = NotifierClient::with_origin(channel, Channel::origin());
            client.notify_and_advise(request).await
        });
        answer.await.map(|_| ())
    }

    /// `Notify` of a changed bundle.
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn updated(&self, bundle: &Bundle) -> Result<(), Status> {
        let bundle = Some(to_wire(bundle));
        let request = notifier::NotifyRequest {
            event: Some(Told::BundleUpdated(notifier::BundleUpdated { bundle })),
        };
        let answer = self.0.call(async |channel| {
            let mut client = NotifierClient::with_origin(channel, Channel::origin());
            client.notify(request).await
        });
        answer.await.map(|_| ())
    }
}

/// A bundle as plugins get it.
pub fn to_wire(bundle: &Bundle) -> types::Bundle {
    types::Bundle {
        trust_domain: bundle.trust_domain.to_string(),
        x509_authorities: bundle.x509.iter().map(root_to_wire).collect(),
        jwt_authorities: bundle.jwt.iter().map(key_to_wire).collect(),
        refresh_hint: bundle.refresh_hint,
        sequence_number: bundle.sequence,
    }
}

fn root_to_wire(root: &X509Authority) -> types::X509Certificate {
    types::X509Certificate {
        asn1: root.der.clone(),
        tainted: root.tainted,
    }
}

pub(crate) fn key_to_wire(key: &JwtKey) -> types::JwtKey {
    types::JwtKey {
        public_key: key.spki.clone(),
        key_id: key.id.clone(),
        expires_at: key.expires_at,
        tainted: key.tainted,
    }
}
