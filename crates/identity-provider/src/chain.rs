//! Puts the certificates of a file in the order that TLS wants: leaf first, then each one's issuer (FI-1).

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::key::PublicSide;
use crate::{CertificateError, KeyError, PrivateKey};

/// A chain ready to present, and what was changed to get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arranged {
    /// Leaf first, without a root.
    pub chain: Vec<CertificateDer<'static>>,
    /// One line for each thing an operator should mend in the file, in words.
    pub notes: Vec<String>,
}

/// Why no chain could be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArrangeError {
    /// No certificate has the private key's public key (ER-6).
    #[error("private key does not match certificate")]
    NoLeaf {
        /// Subject of the certificate that looks like the leaf.
        subject: String,
        /// SHA-256 of its public key.
        certificate_key: String,
        /// SHA-256 of the private key's public key.
        private_key: String,
    },
    /// Key or certificate cannot be used at all.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl From<CertificateError> for ArrangeError {
    fn from(error: CertificateError) -> Self {
        Self::Key(error.into())
    }
}

/// Orders `certificates` into the chain of `key`: its leaf, then each certificate's issuer by name and key identifier.
///
/// A root is dropped, because the other side has its own (RFC 8446 §4.4.2), and so is whatever is not in
/// the chain. Each change is told in [`Arranged::notes`].
pub fn arrange(
    certificates: &[CertificateDer<'static>],
    key: &PrivateKey,
) -> Result<Arranged, ArrangeError> {
    let mut notes = Vec::new();
    let mut rest = Vec::new();
    for (position, der) in certificates.iter().enumerate() {
        let link = Link::read(position, der)?;
        if rest.iter().any(|other: &Link<'_>| other.der == link.der) {
            notes.push(format!("dropped a second copy of {}", link.name()));
        } else {
            rest.push(link);
        }
    }
    let public = match PublicSide::of_key(key) {
        Ok(public) => public,
        Err(unreadable) => {
            // The certificate names the kind that the key only fails to be.
            if let Some(leaf) = looks_like_leaf(&rest) {
                PublicSide::of_certificate(leaf.der)?;
            }
            return Err(unreadable.into());
        }
    };
    let leaf = take_leaf(&mut rest, &public)?;
    let mut chain = vec![leaf];
    while let Some(last) = chain.last()
        && !last.self_issued()
        && let Some(index) = issuer_of(last, &rest)
    {
        let issuer = rest.remove(index);
        if issuer.self_issued() {
            notes.push(format!(
                "dropped the root {}: the other side must have it already",
                issuer.name()
            ));
            break;
        }
        chain.push(issuer);
    }
    for link in rest {
        let what = if link.self_issued() { "root " } else { "" };
        notes.push(format!(
            "dropped the {what}certificate {}: not part of the leaf's chain",
            link.name()
        ));
    }
    if !chain.is_sorted_by_key(|link| link.position) {
        let order: Vec<_> = chain.iter().map(Link::name).collect();
        notes.push(format!("put in order, leaf first: {}", order.join(", ")));
    }
    Ok(Arranged {
        chain: chain.into_iter().map(|link| link.der.clone()).collect(),
        notes,
    })
}

/// The first certificate of the key that is no authority, else the first of the key.
fn take_leaf<'a>(rest: &mut Vec<Link<'a>>, public: &PublicSide) -> Result<Link<'a>, ArrangeError> {
    let of_key = |link: &Link<'_>| link.has_key(public);
    let index = rest
        .iter()
        .position(|link| !link.is_ca() && of_key(link))
        .or_else(|| rest.iter().position(of_key));
    if let Some(index) = index {
        return Ok(rest.remove(index));
    }
    let Some(leaf) = looks_like_leaf(rest) else {
        return Err(CertificateError::new("no certificate").into());
    };
    Err(ArrangeError::NoLeaf {
        subject: leaf.name(),
        // A certificate whose key kind is not served is told as that.
        certificate_key: PublicSide::of_certificate(leaf.der)?.fingerprint(),
        private_key: public.fingerprint(),
    })
}

fn looks_like_leaf<'l, 'a>(links: &'l [Link<'a>]) -> Option<&'l Link<'a>> {
    let end_entity = links.iter().find(|link| !link.is_ca());
    end_entity.or_else(|| links.first())
}

/// Where in `rest` the issuer of `link` is: by name, and by key identifier where both sides have one
/// (RFC 5280 §4.2.1.1). One that is not a root is preferred: it lets a peer choose its own root.
fn issuer_of(link: &Link<'_>, rest: &[Link<'_>]) -> Option<usize> {
    let issues = |candidate: &Link<'_>| {
        let named = candidate.parsed.subject().as_raw() == link.parsed.issuer().as_raw();
        let keyed = match (link.authority_key_id(), candidate.subject_key_id()) {
            (Some(wanted), Some(found)) => wanted == found,
            _ => true,
        };
        named && keyed
    };
    rest.iter()
        .position(|candidate| issues(candidate) && !candidate.self_issued())
        .or_else(|| rest.iter().position(issues))
}

struct Link<'a> {
    position: usize,
    der: &'a CertificateDer<'static>,
    parsed: X509Certificate<'a>,
}

impl<'a> Link<'a> {
    fn read(position: usize, der: &'a CertificateDer<'static>) -> Result<Self, CertificateError> {
        let (_, parsed) =
            X509Certificate::from_der(der).map_err(|e| CertificateError::new(e.to_string()))?;
        Ok(Self {
            position,
            der,
            parsed,
        })
    }

    /// The subject, or the serial number where the subject is empty.
    fn name(&self) -> String {
        let subject = self.parsed.subject().to_string();
        if subject.is_empty() {
            format!("serial {}", self.parsed.raw_serial_as_string())
        } else {
            format!("\"{subject}\"")
        }
    }

    fn has_key(&self, public: &PublicSide) -> bool {
        PublicSide::of_certificate(self.der).is_ok_and(|own| own.matches(public))
    }

    fn self_issued(&self) -> bool {
        self.parsed.subject().as_raw() == self.parsed.issuer().as_raw()
    }

    fn is_ca(&self) -> bool {
        let constraints = self.parsed.basic_constraints().ok().flatten();
        constraints.is_some_and(|constraints| constraints.value.ca)
    }

    fn authority_key_id(&self) -> Option<&[u8]> {
        self.parsed.iter_extensions().find_map(|extension| {
            let ParsedExtension::AuthorityKeyIdentifier(id) = extension.parsed_extension() else {
                return None;
            };
            id.key_identifier.as_ref().map(|id| id.0)
        })
    }

    fn subject_key_id(&self) -> Option<&[u8]> {
        self.parsed.iter_extensions().find_map(|extension| {
            let ParsedExtension::SubjectKeyIdentifier(id) = extension.parsed_extension() else {
                return None;
            };
            Some(id.0)
        })
    }
}
