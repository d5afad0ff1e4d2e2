//! X509-SVIDs of one message, judged and printed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use ah_identity_provider::{CertificateFacts, Identity, PrivateKey, TrustBundles};
use ah_spire_plugin::duration;
use ah_spire_wire::workload::X509svidResponse;
use ah_tls::{IdentityVet, Role};
use rustls_pki_types::CertificateDer;
use spiffe::SpiffeId;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::failure::Failure;
use super::gotext::moment;

/// One certificate with its dates.
pub(super) struct Certificate {
    pub(super) der: CertificateDer<'static>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// One SVID that was found good.
pub(super) struct Svid {
    pub(super) id: String,
    hint: String,
    pub(super) chain: Vec<Certificate>,
    /// PKCS#8
    pub(super) key: Zeroizing<Vec<u8>>,
    pub(super) bundle: Vec<Certificate>,
}

/// All of a message.
pub(super) struct Svids {
    pub(super) svids: Vec<Svid>,
    /// By name as the message has it.
    pub(super) federated: BTreeMap<String, Vec<Certificate>>,
}

impl Svids {
    /// Reads a message and verifies each SVID against its bundle.
    pub(super) fn read(response: X509svidResponse) -> Result<Self, Failure> {
        if response.svids.is_empty() {
            return Err(Failure::new("workload response contains no svids"));
        }
        let mut federated = BTreeMap::new();
        for (domain, der) in response.federated_bundles {
            let bundle = certificates(&der).map_err(|error| {
                Failure::new(format!(
                    "failed to parse bundle for federated domain \"{domain}\": {error}"
                ))
            })?;
            if bundle.is_empty() {
                return Err(Failure::new(format!(
                    "no certificates in bundle for federated domain \"{domain}\""
                )));
            }
            federated.insert(domain, bundle);
        }
        let mut svids = Vec::with_capacity(response.svids.len());
        for (at, svid) in response.svids.into_iter().enumerate() {
            let key = Zeroizing::new(svid.x509_svid_key);
            let parsed = parse(&svid.spiffe_id, &svid.x509_svid, &svid.bundle);
            let (chain, bundle) = parsed.map_err(|error| {
                Failure::new(format!(
                    "failed to parse svid entry {at} for spiffe id \"{}\": {error}",
                    svid.spiffe_id
                ))
            })?;
            svids.push(Svid {
                id: svid.spiffe_id,
                hint: svid.hint,
                chain,
                key,
                bundle,
            });
        }
        for svid in &svids {
            svid.verify().map_err(|error| {
                Failure::new(format!(
                    "\"{}\" SVID failed verification against bundle: {error}",
                    svid.id
                ))
            })?;
        }
        Ok(Self { svids, federated })
    }

    /// As `api watch` prints it: no hints, and trust domains by name.
    pub(super) fn named_for_watching(mut self) -> Self {
        for svid in &mut self.svids {
            svid.hint.clear();
        }
        let federated = std::mem::take(&mut self.federated).into_iter();
        self.federated = federated
            .map(|(domain, bundle)| match domain.strip_prefix("spiffe://") {
                Some(name) => (name.to_owned(), bundle),
                None => (domain, bundle),
            })
            .collect();
        self
    }

    /// In upstream's layout; `after` is how long the message took.
    pub(super) fn pretty(&self, after: Duration) -> String {
        let plural = if self.svids.len() == 1 { "" } else { "s" };
        let mut text = format!(
            "Received {} svid{plural} after {}\n",
            self.svids.len(),
            duration::format(after)
        );
        for svid in &self.svids {
            text.push('\n');
            svid.print(&mut text);
            for (domain, bundle) in &self.federated {
                print_authorities(&mut text, &format!("[{domain}] "), bundle);
            }
        }
        text.push('\n');
        text
    }
}

impl Svid {
    fn print(&self, text: &mut String) {
        let _ = writeln!(text, "SPIFFE ID:\t\t{}", self.id);
        if !self.hint.is_empty() {
            let _ = writeln!(text, "Hint:\t\t\t{}", self.hint);
        }
        for (at, certificate) in self.chain.iter().enumerate() {
            let what = match at {
                0 => "SVID".to_owned(),
                at => format!("Intermediate #{at}"),
            };
            certificate.print(text, &what);
        }
        print_authorities(text, "", &self.bundle);
    }

    fn verify(&self) -> Result<(), String> {
        let id = SpiffeId::new(&self.id).map_err(|error| error.to_string())?;
        let ders = |certificates: &[Certificate]| {
            let ders = certificates
                .iter()
                .map(|certificate| certificate.der.clone());
            ders.collect::<Vec<_>>()
        };
        let bundles = TrustBundles {
            unscoped: Vec::new(),
            domains: [(id.trust_domain().clone(), ders(&self.bundle))].into(),
        };
        let key = PrivateKey::pkcs8(self.key.to_vec());
        let identity =
            Identity::new(ders(&self.chain), key, bundles).map_err(|error| format!("{error}"))?;
        let vetted = IdentityVet::new(Role::Executor, false).examine(&identity, SystemTime::now());
        match vetted {
            Ok(examined) => match examined.unanchored {
                None => Ok(()),
                Some(why) => Err(why),
            },
            Err(explained) => Err(std::iter::once(&explained.text)
                .chain(&explained.causes)
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(": ")),
        }
    }
}

impl Certificate {
    fn print(&self, text: &mut String, what: &str) {
        let (from, until) = (moment(self.not_before), moment(self.not_after));
        let _ = writeln!(text, "{what} Valid After:\t{from}");
        let _ = writeln!(text, "{what} Valid Until:\t{until}");
    }
}

fn print_authorities(text: &mut String, prefix: &str, bundle: &[Certificate]) {
    for (at, authority) in bundle.iter().enumerate() {
        authority.print(text, &format!("{prefix}CA #{}", at.saturating_add(1)));
    }
}

fn parse(
    id: &str,
    chain: &[u8],
    bundle: &[u8],
) -> Result<(Vec<Certificate>, Vec<Certificate>), String> {
    SpiffeId::new(id).map_err(|error| error.to_string())?;
    let chain = certificates(chain)?;
    if chain.is_empty() {
        return Err("no certificates found".to_owned());
    }
    let bundle =
        certificates(bundle).map_err(|error| format!("failed to parse trust bundle: {error}"))?;
    if bundle.is_empty() {
        return Err("no certificates in trust bundle".to_owned());
    }
    Ok((chain, bundle))
}

/// Certificates one after the other.
fn certificates(mut der: &[u8]) -> Result<Vec<Certificate>, String> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (rest, parsed) = X509Certificate::from_der(der)
            .map_err(|error| format!("not a certificate: {error}"))?;
        let length = der.len().saturating_sub(rest.len());
        let one = der.get(..length).unwrap_or(der);
        let facts =
            CertificateFacts::from_parsed(&parsed, one).map_err(|error| error.to_string())?;
        found.push(Certificate {
            not_before: facts.not_before,
            not_after: facts.not_after,
            der: CertificateDer::from(one.to_vec()),
        });
        der = rest;
    }
    Ok(found)
}
