//! From one message of the Workload API to one identity, or to what is wrong with it.

use std::collections::{BTreeMap, HashMap};

use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef};
use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};
use x509_parser::asn1_rs::{Any, FromDer};
use zeroize::Zeroizing;

use super::stream::proto::X509svidResponse;
use crate::{Identity, PrivateKey, TrustBundles, keys_match};

/// Everything that this process is entitled to at one moment (SV-75). Nothing of it was looked at yet.
pub(super) struct SvidSet {
    svids: Vec<Svid>,
    federated: HashMap<String, Vec<u8>>,
}

struct Svid {
    id: String,
    chain: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    bundle: Vec<u8>,
    hint: String,
}

impl From<X509svidResponse> for SvidSet {
    fn from(response: X509svidResponse) -> Self {
        let svids = response.svids.into_iter().map(|svid| Svid {
            id: svid.spiffe_id,
            chain: svid.x509_svid,
            key: Zeroizing::new(svid.x509_svid_key),
            bundle: svid.bundle,
            hint: svid.hint,
        });
        Self {
            svids: svids.collect(),
            federated: response.federated_bundles,
        }
    }
}

/// Which SVID to take where there are several. Without a wish it is the first (Workload API §5.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// `--spiffe-id`
    pub id: Option<SpiffeId>,
    /// `--spiffe-hint`
    pub hint: Option<String>,
}

/// Why a set gives no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    /// SV-77
    #[error("the answer holds no SVID")]
    NoSvid,
    /// None that was asked for.
    #[error("none of the SVIDs that were issued {wanted}; they are {}", issued.join(", "))]
    NotIssued { wanted: String, issued: Vec<String> },
    /// A mandatory field is empty (Workload API §4.5).
    #[error("the SVID {id} has no {field}")]
    Missing { id: String, field: &'static str },
    /// Not what a field has to hold.
    #[error("the {field} of the SVID {id}: {why}")]
    Malformed {
        id: String,
        field: &'static str,
        why: String,
    },
    /// SV-50
    #[error("the trust domain {0} has two federated bundles")]
    TwoBundles(TrustDomain),
}

/// An identity, and what an operator should know about the set it came from.
pub(super) struct Taken {
    pub(super) identity: Identity,
    pub(super) notes: Vec<String>,
}

impl SvidSet {
    /// The identity that `choice` picks, with the bundles that came along: those and no others (SV-76).
    pub(super) fn take(&self, choice: &Choice) -> Result<Taken, Unusable> {
        let mut notes = Vec::new();
        let svid = self.pick(choice, &mut notes)?;
        let malformed = |field, why: String| Unusable::Malformed {
            id: svid.id.clone(),
            field,
            why,
        };
        for (field, empty) in [
            ("spiffe_id", svid.id.is_empty()),
            ("x509_svid", svid.chain.is_empty()),
            ("x509_svid_key", svid.key.is_empty()),
        ] {
            if empty {
                let id = svid.id.clone();
                return Err(Unusable::Missing { id, field });
            }
        }
        let id =
            SpiffeId::new(&svid.id).map_err(|error| malformed("spiffe_id", error.to_string()))?;
        let chain = certificates(&svid.chain).map_err(|why| malformed("x509_svid", why))?;
        let key =
            private_key(&svid.key).map_err(|why| malformed("x509_svid_key", why.to_owned()))?;
        leaf_first(&chain, &key).map_err(|why| malformed("x509_svid", why.to_owned()))?;
        let bundles = TrustBundles {
            unscoped: Vec::new(),
            domains: self.domains(svid, &id, &mut notes)?,
        };
        let identity = Identity::new(chain, key, bundles)
            .map_err(|error| malformed("x509_svid", error.to_string()))?;
        let named = |uri: &String| SpiffeId::new(uri).is_ok_and(|found| found == id);
        if !identity.leaf().uris.iter().any(named) {
            let found = identity.leaf().uris.join(", ");
            return Err(malformed(
                "x509_svid",
                format!("its certificate names '{found}'"),
            ));
        }
        Ok(Taken { identity, notes })
    }

    /// The first that fits, also where several have the same hint (SV-77, Workload API §5.2.1).
    fn pick(&self, choice: &Choice, notes: &mut Vec<String>) -> Result<&Svid, Unusable> {
        let first = self.svids.first().ok_or(Unusable::NoSvid)?;
        let fits = |svid: &&Svid| {
            let id_fits = choice
                .id
                .as_ref()
                .is_none_or(|wanted| SpiffeId::new(&svid.id).is_ok_and(|id| id == *wanted));
            let hint_fits = choice
                .hint
                .as_ref()
                .is_none_or(|wanted| svid.hint == *wanted);
            id_fits && hint_fits
        };
        let issued = || self.svids.iter().map(Svid::describe).collect::<Vec<_>>();
        if choice.id.is_none() && choice.hint.is_none() {
            if self.svids.len() > 1 {
                notes.push(format!(
                    "several SVIDs were issued ({}) and the first is used; --spiffe-id or --spiffe-hint picks another",
                    issued().join(", ")
                ));
            }
            return Ok(first);
        }
        let mut fitting = self.svids.iter().filter(fits);
        let picked = fitting.next().ok_or_else(|| {
            let id = choice.id.as_ref().map(|id| format!("is {id}"));
            let hint = choice
                .hint
                .as_ref()
                .map(|hint| format!("has the hint '{hint}'"));
            let wanted: Vec<_> = id.into_iter().chain(hint).collect();
            Unusable::NotIssued {
                wanted: wanted.join(" and "),
                issued: issued(),
            }
        })?;
        if let (Some(hint), Some(_)) = (&choice.hint, fitting.next()) {
            notes.push(format!(
                "several SVIDs have the hint '{hint}', which the standard forbids; the first, {}, is used",
                picked.id
            ));
        }
        Ok(picked)
    }

    /// The bundle of each trust domain (SV-52). One that is empty stays, and distrusts its whole domain (SV-47).
    fn domains(
        &self,
        own: &Svid,
        own_id: &SpiffeId,
        notes: &mut Vec<String>,
    ) -> Result<BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>, Unusable> {
        let own_domain = own_id.trust_domain();
        let mut domains = BTreeMap::new();
        let mut named = Vec::new();
        for (name, bundle) in &self.federated {
            let Ok(domain) = TrustDomain::new(name) else {
                notes.push(format!(
                    "a federated bundle is left out: '{name}' is no trust domain"
                ));
                continue;
            };
            if named.contains(&domain) {
                return Err(Unusable::TwoBundles(domain));
            }
            named.push(domain.clone());
            if domain == *own_domain {
                notes.push(format!(
                    "a federated bundle names the own trust domain {domain} and is left out: the own bundle comes with the SVID"
                ));
                continue;
            }
            let roots = certificates(bundle).unwrap_or_else(|why| {
                notes.push(format!("the federated bundle of {domain}: {why}"));
                Vec::new()
            });
            domains.insert(domain, roots);
        }
        // A process may have identities in several domains: each comes with the bundle of its own.
        for other in &self.svids {
            let domain = SpiffeId::new(&other.id).map(|id| id.trust_domain().clone());
            if let Ok(domain) = domain
                && domain != *own_domain
                && !domains.contains_key(&domain)
            {
                domains.insert(domain, certificates(&other.bundle).unwrap_or_default());
            }
        }
        let roots = certificates(&own.bundle).map_err(|why| Unusable::Malformed {
            id: own.id.clone(),
            field: "bundle",
            why,
        })?;
        domains.insert(own_domain.clone(), roots);
        for (domain, roots) in &domains {
            if roots.is_empty() {
                notes.push(format!(
                    "the trust bundle of {domain} is empty: nobody of that trust domain is trusted"
                ));
            }
        }
        Ok(domains)
    }
}

impl Svid {
    fn describe(&self) -> String {
        if self.hint.is_empty() {
            self.id.clone()
        } else {
            format!("{} (hint '{}')", self.id, self.hint)
        }
    }
}

/// Certificates one after the other in DER, each once.
fn certificates(der: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found: Vec<CertificateDer<'static>> = Vec::new();
    let mut rest = der;
    while !rest.is_empty() {
        let (after, _) =
            Any::from_der(rest).map_err(|error| format!("not certificates in DER: {error}"))?;
        let length = rest.len().saturating_sub(after.len());
        let certificate = CertificateDer::from(rest.get(..length).unwrap_or(rest).to_vec());
        if !found.contains(&certificate) {
            found.push(certificate);
        }
        rest = after;
    }
    Ok(found)
}

/// SV-78. Which kinds of key are served is the vetting's to say.
fn private_key(der: &Zeroizing<Vec<u8>>) -> Result<PrivateKey, &'static str> {
    if PrivateKeyInfoRef::try_from(der.as_slice()).is_ok() {
        return Ok(PrivateKey::pkcs8(der.to_vec()));
    }
    if EncryptedPrivateKeyInfoRef::try_from(der.as_slice()).is_ok() {
        return Err("the private key is encrypted");
    }
    Err("not a private key in PKCS#8")
}

/// SV-78. A key that belongs to none of the certificates is told by the vetting (ER-6).
fn leaf_first(chain: &[CertificateDer<'static>], key: &PrivateKey) -> Result<(), &'static str> {
    let has_key = |certificate| keys_match(key, certificate) == Ok(true);
    match chain.split_first() {
        Some((first, rest)) if !has_key(first) && rest.iter().any(has_key) => {
            Err("the leaf is not the first certificate")
        }
        _ => Ok(()),
    }
}
