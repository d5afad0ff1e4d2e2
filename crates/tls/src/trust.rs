//! Trust anchors, computed once per generation.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ah_identity_provider::TrustBundles;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use spiffe::{SpiffeId, TrustDomain};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::SvidFault;
use crate::fault::{Dates, Fault};
use crate::svid::signer_faults;
use crate::uri_constraints::UriConstraints;

/// Whom to trust, in the form a handshake needs. Bundles of different domains stay apart (SV-52).
pub struct Trust {
    unscoped: Anchors,
    /// The domain's own roots and the unscoped ones; none where the domain's bundle is empty (SV-47).
    domains: BTreeMap<TrustDomain, Anchors>,
}

impl Trust {
    /// Reads the roots. One that cannot be read is left out and logged: a bundle may hold what we need
    /// besides what we cannot use.
    pub fn new(bundles: &TrustBundles) -> Self {
        let domains = bundles.domains.iter().map(|(domain, own)| {
            let mut anchors = Anchors::read(own);
            if !anchors.is_empty() {
                anchors.extend(Anchors::read(&bundles.unscoped));
            }
            (domain.clone(), anchors)
        });
        Self {
            domains: domains.collect(),
            unscoped: Anchors::read(&bundles.unscoped),
        }
    }

    /// The anchors that may vouch for a leaf with this SPIFFE ID, or with none.
    pub(crate) fn anchors(&self, id: Option<&SpiffeId>) -> &Anchors {
        id.and_then(|id| self.domains.get(id.trust_domain()))
            .unwrap_or(&self.unscoped)
    }

    /// Whether any root at all has this DER subject.
    pub(crate) fn knows(&self, subject: &[u8]) -> bool {
        let all = self.domains.values().chain([&self.unscoped]);
        all.flat_map(|anchors| &anchors.roots)
            .any(|root| root.full_subject == subject)
    }
}

/// The roots that may vouch for one kind of leaf.
pub(crate) struct Anchors {
    /// The form webpki takes, in the order of `roots`.
    webpki: Vec<TrustAnchor<'static>>,
    roots: Vec<Root>,
}

impl Anchors {
    fn read<'a>(ders: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> Self {
        let (webpki, roots) = ders.into_iter().filter_map(read_root).unzip();
        Self { webpki, roots }
    }

    fn extend(&mut self, more: Self) {
        self.webpki.extend(more.webpki);
        self.roots.extend(more.roots);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.roots.len()
    }

    pub(crate) fn for_webpki(&self) -> &[TrustAnchor<'static>] {
        &self.webpki
    }

    /// The roots whose URI constraints leave `id` out (SV-35).
    pub(crate) fn outside<'a>(&'a self, id: &'a SpiffeId) -> impl Iterator<Item = SvidFault> + 'a {
        self.roots
            .iter()
            .filter_map(|root| root.constraints.fault(id))
    }

    /// The root that `anchor`, one of [`Anchors::for_webpki`], stands for.
    pub(crate) fn root(&self, anchor: &TrustAnchor<'_>) -> Option<&Root> {
        let position = self.webpki.iter().position(|candidate| {
            candidate.subject == anchor.subject
                && candidate.subject_public_key_info == anchor.subject_public_key_info
        })?;
        self.roots.get(position)
    }
}

fn read_root(der: &CertificateDer<'static>) -> Option<(TrustAnchor<'static>, Root)> {
    let anchor = webpki::anchor_from_trusted_cert(der)
        .map(|anchor| anchor.to_owned())
        .map_err(|error| error.to_string());
    let cert = X509Certificate::from_der(der).map_err(|error| error.to_string());
    match (anchor, cert) {
        (Ok(anchor), Ok((_, cert))) => Some((anchor, Root::new(&cert))),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!(error, "a certificate of the trust bundle cannot be a root");
            None
        }
    }
}

/// One trusted root and what a path under it must heed.
pub(crate) struct Root {
    full_subject: Vec<u8>,
    subject: String,
    not_before: SystemTime,
    not_after: SystemTime,
    path_len: Option<u32>,
    pub(crate) constraints: UriConstraints,
    pub(crate) svid_faults: Vec<SvidFault>,
}

impl Root {
    fn new(cert: &X509Certificate<'_>) -> Self {
        Self {
            full_subject: cert.subject().as_raw().to_vec(),
            subject: cert.subject().to_string(),
            not_before: time(cert.validity().not_before.timestamp()),
            not_after: time(cert.validity().not_after.timestamp()),
            path_len: cert
                .basic_constraints()
                .ok()
                .flatten()
                .and_then(|constraints| constraints.value.path_len_constraint),
            constraints: UriConstraints::of(cert),
            svid_faults: signer_faults(cert),
        }
    }

    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Dates and pathLen, which webpki leaves to whoever configured the anchor (SV-36, SV-37).
    pub(crate) fn check(&self, intermediates: usize, now: SystemTime) -> Result<(), Fault> {
        if now < self.not_before || now > self.not_after {
            return Err(Fault::Dates(Dates {
                subject: self.subject.clone(),
                not_before: self.not_before,
                not_after: self.not_after,
                now,
            }));
        }
        let allowed = self
            .path_len
            .map(|len| usize::try_from(len).unwrap_or(usize::MAX));
        if allowed.is_some_and(|allowed| intermediates > allowed) {
            return Err(Fault::Refused(format!(
                "more intermediates than the pathLen of `{}` allows",
                self.subject
            )));
        }
        Ok(())
    }
}

/// Dates before 1970 read as 1970.
pub(crate) fn time(timestamp: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0))
}
