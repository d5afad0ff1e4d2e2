//! The product's TLS configurations, made from a benchmark's files without the rest of the access point.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use ah_identity_provider::{
    Identity, IdentityWatch, PrivateKey, ProviderKind, Published, SystemClock, TrustBundles,
};
use ah_tls::{Policy, PolicyCell, SanRules, ServerConfigs};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use crate::pki::{self, Files};

/// Configurations with the rule that admits the simulated executors. The sender keeps the identity alive; the future
/// follows it.
pub(crate) fn server_configs(
    files: &Files,
) -> io::Result<(
    watch::Sender<Arc<Published>>,
    ServerConfigs,
    impl Future<Output = ()> + Send + 'static,
)> {
    let certificate = CertificateDer::from_pem_file(files.server()).map_err(io::Error::other)?;
    let key = PrivatePkcs8KeyDer::from_pem_file(files.server_key()).map_err(io::Error::other)?;
    let ca = CertificateDer::from_pem_file(files.ca()).map_err(io::Error::other)?;
    let bundles = TrustBundles {
        unscoped: vec![ca],
        ..TrustBundles::default()
    };
    let key = PrivateKey::pkcs8(key.secret_pkcs8_der().to_vec());
    let identity = Identity::new(vec![certificate], key, bundles).map_err(io::Error::other)?;
    let (sender, identity) = IdentityWatch::starting_at(Published {
        generation: 1,
        identity,
        provider: ProviderKind::Files,
        since: SystemTime::now(),
    });
    let rules = SanRules::parse(&[pki::executor_prefix()], &[], &[])
        .map_err(|faults| io::Error::other(format!("{faults:?}")))?;
    let policy = PolicyCell::new(Policy {
        rules,
        ..Policy::default()
    });
    let (configs, follow) = ServerConfigs::publish(identity, policy, Arc::new(SystemClock))
        .map_err(|error| io::Error::other(format!("{error:?}")))?;
    Ok((sender, configs, follow))
}
