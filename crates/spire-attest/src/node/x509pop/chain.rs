//! From a leaf to the roots that an operator trusts.

use std::cell::RefCell;
use std::time::SystemTime;

use ah_identity_provider::{CertificateError, CertificateFacts};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{
    ALL_VERIFICATION_ALGS, EndEntityCert, Error, ExtendedKeyUsageValidator, KeyPurposeIdIter,
    VerifiedPath, anchor_from_trusted_cert,
};

/// A certificate that is trusted.
pub(crate) struct Root {
    der: CertificateDer<'static>,
    facts: CertificateFacts,
}

impl Root {
    pub(crate) fn new(der: CertificateDer<'static>) -> Result<Self, CertificateError> {
        let facts = CertificateFacts::from_der(&der)?;
        Ok(Self { der, facts })
    }

    fn is_valid_at(&self, now: SystemTime) -> bool {
        self.facts.not_before <= now && now <= self.facts.not_after
    }
}

/// Why a leaf does not lead to a root.
pub(crate) struct Untrusted {
    pub(crate) why: String,
    pub(crate) hint: &'static str,
}

/// The certificates above the leaf in every path from `chain` (leaf first) to one of `roots`, each once, nearest first.
pub(crate) fn signers(
    chain: &[CertificateDer<'_>],
    roots: &[Root],
    now: SystemTime,
) -> Result<Vec<CertificateDer<'static>>, Untrusted> {
    let (leaf, intermediates) = chain
        .split_first()
        .ok_or_else(|| untrusted(&Error::BadDer))?;
    // A root that ended vouches for nobody: the path validator does not look at its dates.
    let roots: Vec<_> = roots.iter().filter(|root| root.is_valid_at(now)).collect();
    if roots.iter().any(|root| root.der == *leaf) {
        return Ok(Vec::new());
    }
    let mut anchors = Vec::new();
    let mut sources = Vec::new();
    for root in roots {
        if let Ok(anchor) = anchor_from_trusted_cert(&root.der) {
            anchors.push(anchor);
            sources.push(&root.der);
        }
    }
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    let time = UnixTime::since_unix_epoch(since.unwrap_or_default());
    let found = RefCell::new(Vec::<CertificateDer<'static>>::new());
    let note = |path: &VerifiedPath<'_>| {
        let mut found = found.borrow_mut();
        let mut add = |der: CertificateDer<'static>| {
            if !found.contains(&der) {
                found.push(der);
            }
        };
        for intermediate in path.intermediate_certificates() {
            add(intermediate.der().into_owned());
        }
        for (anchor, der) in anchors.iter().zip(&sources) {
            if anchor == path.anchor() {
                add((*der).clone());
            }
        }
        // No path is the one: the search goes on, for cross-signed CAs lead to several roots.
        Err(Error::UnknownIssuer)
    };
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| untrusted(&error))?;
    let outcome = leaf.verify_for_usage(
        ALL_VERIFICATION_ALGS,
        &anchors,
        intermediates,
        time,
        AnyPurpose,
        None,
        Some(&note),
    );
    let error = outcome.err().unwrap_or(Error::UnknownIssuer);
    let found = found.take();
    if found.is_empty() {
        return Err(untrusted(&error));
    }
    Ok(found)
}

/// Extended key usages are not looked at: certificates of nodes were made for many ends.
struct AnyPurpose;

impl ExtendedKeyUsageValidator for AnyPurpose {
    fn validate(&self, _purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        Ok(())
    }
}

fn untrusted(error: &Error) -> Untrusted {
    let (why, hint) = match error {
        Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => (
            "certificate signed by unknown authority".to_owned(),
            "add the CA to ca_bundle_path on the server, and the CAs between to certificate_path or intermediates_path on the agent",
        ),
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } => (
            format!("certificate has expired or is not yet valid: {error:?}"),
            "renew the certificate of the node, and check the clocks with `date -u`",
        ),
        Error::CaUsedAsEndEntity => (
            "the certificate of the node is that of a CA".to_owned(),
            "issue one with CA:FALSE, or put this one itself into ca_bundle_path on the server",
        ),
        other => (
            format!("{other:?}"),
            "look at the chain with `openssl verify -show_chain -untrusted INTERMEDIATES -CAfile ROOTS CERT`",
        ),
    };
    Untrusted { why, hint }
}
