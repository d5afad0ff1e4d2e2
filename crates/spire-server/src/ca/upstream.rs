//! An authority above the server's own: it signs the CA, and its roots are the bundle.

mod aws_pca;
mod aws_secret;
mod cert_manager;
mod disk;
mod ejbca;
mod external;
mod gcp_cas;
mod local;
mod spire;
mod vault;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_spire_wire::model::{JwtKey, X509Authority};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};

pub use aws_pca::{PcaAuthority, PcaSettings};
pub use aws_secret::{SecretAuthority, SecretSettings};
pub use cert_manager::{CertManagerAuthority, CertManagerSettings};
pub use disk::{DiskAuthority, Files};
pub use ejbca::{EjbcaAuthority, EjbcaSettings, EndEntity, NamePart};
pub use external::ExternalAuthority;
pub use gcp_cas::{GcpCasAuthority, GcpCasSettings};
pub use spire::{SpireAuthority, SpireSettings};
pub use vault::{VaultAuthority, VaultSettings};

use super::authority::Certificate;
use super::certificate::{Issuer, Template};
use super::compose::X509Attributes;
use super::name::Subject;
use super::sign::backdated;
use crate::keys::SigningKey;

/// Why an upstream authority signed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UpstreamError(pub String);

/// A CA certificate that an upstream authority signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MintedCa {
    /// DER: the CA, then its issuers up to a root, without that.
    pub chain: Vec<Vec<u8>>,
    /// DER: the roots that belong into the bundle.
    pub roots: Vec<Vec<u8>>,
}

/// An answer that may take a while.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, UpstreamError>> + Send + 'a>>;

/// Signs the CAs of servers.
pub trait UpstreamAuthority: Send + Sync + 'static {
    /// Signs the CA that `csr` (PKCS #10, DER) asks for. `ttl` is a wish.
    fn mint_x509_ca<'a>(&'a self, csr: &'a [u8], ttl: Duration) -> Answer<'a, MintedCa>;
    /// Publishes a JWT key upstream and answers all that are published there; `None` when this authority does not
    /// deal in JWT keys.
    fn publish_jwt_key<'a>(&'a self, key: &'a JwtKey) -> Answer<'a, Option<Vec<JwtKey>>>;
    /// What its bundle is, from the first time that it is known; `None` where it does not tell.
    fn bundles(&self) -> Option<watch::Receiver<Option<Arc<UpstreamBundle>>>> {
        None
    }
}

/// The authorities of an upstream authority that has a bundle of its own. `None` is what it does not tell of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamBundle {
    /// Its roots.
    pub x509: Option<Vec<X509Authority>>,
    /// Its JWT keys.
    pub jwt: Option<Vec<JwtKey>>,
}

impl fmt::Debug for dyn UpstreamAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpstreamAuthority")
    }
}

/// The subject alternative names that a request asks for.
fn alternative_names<'a>(
    request: &'a X509CertificationRequest<'_>,
) -> impl Iterator<Item = &'a GeneralName<'a>> {
    let extensions = request.requested_extensions().into_iter().flatten();
    let names = extensions.filter_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    names.flatten()
}

/// Whether what `ca` signs leads to one of `roots` over `issuers`, found out with a certificate that nobody gets to see.
pub(super) fn check_chain(
    ca: &Certificate,
    key: &dyn SigningKey,
    issuers: &[Vec<u8>],
    roots: &[Vec<u8>],
    uri: &str,
    now: SystemTime,
) -> Result<(), String> {
    let template = Template {
        serial: 1,
        not_before: backdated(now),
        not_after: ca.not_after,
        spki: key.spki(),
        uri,
        attributes: &X509Attributes::of(Subject::us("SPIRE")),
        is_ca: false,
    };
    let leaf = template
        .sign(&Issuer {
            name: Some(&ca.name),
            key_id: None,
            key,
        })
        .map_err(|error| error.to_string())?;
    let leaf = CertificateDer::from(leaf);
    let roots: Vec<_> = roots
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let anchors = roots
        .iter()
        .map(anchor_from_trusted_cert)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("a root cannot be read: {error}"))?;
    let issuers: Vec<_> = issuers
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    EndEntityCert::try_from(&leaf)
        .and_then(|leaf| {
            leaf.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &issuers,
                UnixTime::since_unix_epoch(since),
                KeyUsage::client_auth(),
                None,
                None,
            )
            .map(|_| ())
        })
        .map_err(|error| error.to_string())
}
