//! What the SPIFFE standards ask of a certificate that carries a SPIFFE ID (rows SV-1 to SV-35).
//!
//! Path, signatures and dates (SV-36 to SV-38) belong to [`crate::verify`]; this module looks at one
//! certificate at a time and needs no trust.

use std::fmt;

use rustls_pki_types::CertificateDer;
use spiffe::SpiffeId;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::uri_constraints::UriConstraints;

/// Whom a row of the checklist speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The standard tells the validator: always refused.
    Validator,
    /// The standard tells the issuer: logged, and refused under `--strict-svid` (AP-8).
    Issuer,
}

/// One rule that a certificate breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SvidFault {
    /// Row of the checklist, `SV-7`.
    pub row: &'static str,
    /// What the row asks.
    pub rule: &'static str,
    /// Whether a validator must refuse.
    pub severity: Severity,
    /// What was found instead.
    pub text: String,
}

impl fmt::Display for SvidFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}: {})", self.text, self.row, self.rule)
    }
}

/// Every rule that `chain` (leaf first) breaks, for people: `doctor` and `status`.
///
/// Empty for a chain whose leaf has no SPIFFE ID, and for bytes that are no certificate: those fail
/// elsewhere with a better text.
pub fn svid_faults(chain: &[CertificateDer<'_>]) -> Vec<SvidFault> {
    let Some((leaf, signers)) = chain.split_first() else {
        return Vec::new();
    };
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else {
        return Vec::new();
    };
    if !has_spiffe_uri(&leaf) {
        return Vec::new();
    }
    let (id, mut faults) = leaf_faults(&leaf);
    for signer in signers {
        let Ok((_, signer)) = X509Certificate::from_der(signer) else {
            continue;
        };
        faults.extend(signer_faults(&signer));
        if let Some(id) = &id {
            faults.extend(UriConstraints::of(&signer).fault(id));
        }
    }
    faults
}

/// Reads a SPIFFE ID by every rule of SPIFFE-ID §2. Stricter than [`SpiffeId::new`], which folds case.
pub fn parse_spiffe_id(uri: &str) -> Result<SpiffeId, Vec<SvidFault>> {
    let mut faults = Faults::default();
    let (scheme, rest) = uri.split_once(':').unwrap_or(("", uri));
    if scheme != "spiffe" {
        faults.add(SV_1, format!("the scheme of `{uri}` is `{scheme}`"));
    }
    let (rest, fragment) = rest
        .split_once('#')
        .map_or((rest, None), |(a, b)| (a, Some(b)));
    if fragment.is_some() {
        faults.add(SV_4, format!("`{uri}` has a fragment"));
    }
    let (rest, query) = rest
        .split_once('?')
        .map_or((rest, None), |(a, b)| (a, Some(b)));
    if query.is_some() {
        faults.add(SV_3, format!("`{uri}` has a query"));
    }
    let after = rest.strip_prefix("//").unwrap_or("");
    let (authority, path) = match after.find('/') {
        Some(at) => after.split_at(at),
        None => (after, ""),
    };
    authority_faults(uri, authority, &mut faults);
    path_faults(uri, path, &mut faults);
    if !faults.0.is_empty() {
        return Err(faults.0);
    }
    SpiffeId::new(uri).map_err(|error| {
        faults.add(SV_8, format!("`{uri}`: {error}"));
        faults.0
    })
}

/// Whether the scheme of `uri` is `spiffe` in any case: such a URI claims to be a SPIFFE ID.
pub(crate) fn claims_spiffe(uri: &str) -> bool {
    uri.split_once(':')
        .is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("spiffe"))
}

/// The SPIFFE ID of a leaf, where it is well formed, and what the leaf breaks.
///
/// Only for a certificate with at least one URI that [claims to be a SPIFFE ID](claims_spiffe).
pub(crate) fn leaf_faults(leaf: &X509Certificate<'_>) -> (Option<SpiffeId>, Vec<SvidFault>) {
    let mut faults = Faults::default();
    let uris = uris(leaf);
    if uris.len() > 1 {
        faults.add(SV_19, format!("it has {} URI SANs", uris.len()));
    }
    let mut id = None;
    for uri in uris.iter().filter(|uri| claims_spiffe(uri)) {
        match parse_spiffe_id(uri) {
            Ok(parsed) => {
                if parsed.path().is_empty() {
                    faults.add(SV_22, format!("`{uri}` has no path"));
                }
                id = Some(parsed);
            }
            Err(found) => faults.0.extend(found),
        }
    }
    if leaf.subject().iter().next().is_none()
        && leaf
            .subject_alternative_name()
            .is_ok_and(|san| san.is_some_and(|san| !san.critical))
    {
        faults.add(SV_23, "the subject is empty and the SAN is not critical");
    }
    if is_ca(leaf) {
        faults.add(SV_26, "cA is true on the leaf");
    }
    key_usage_faults(leaf, "the leaf", &mut faults, |usage, faults| {
        if !usage.digital_signature {
            faults.add(SV_31, "the leaf's key usage lacks digitalSignature");
        }
        if usage.key_cert_sign {
            faults.add(SV_32, "the leaf's key usage has keyCertSign");
        }
        if usage.crl_sign {
            faults.add(SV_33, "the leaf's key usage has cRLSign");
        }
    });
    if let Ok(Some(eku)) = leaf.extended_key_usage()
        && !(eku.value.any || (eku.value.server_auth && eku.value.client_auth))
    {
        faults.add(
            SV_34,
            "the extended key usage lacks serverAuth or clientAuth",
        );
    }
    (id, faults.0)
}

/// What a certificate that signs SVIDs breaks.
pub(crate) fn signer_faults(signer: &X509Certificate<'_>) -> Vec<SvidFault> {
    let mut faults = Faults::default();
    let subject = signer.subject();
    for uri in uris(signer).into_iter().filter(|uri| claims_spiffe(uri)) {
        match parse_spiffe_id(uri) {
            Ok(id) if !id.path().is_empty() => {
                faults.add(SV_24, format!("the signer's ID `{id}` has a path"));
            }
            Ok(_) => {}
            Err(found) => faults.0.extend(found),
        }
    }
    if !is_ca(signer) {
        faults.add(SV_27, format!("cA is not true on the signer `{subject}`"));
    }
    let whose = format!("the signer `{subject}`");
    key_usage_faults(signer, &whose, &mut faults, |usage, faults| {
        if !usage.key_cert_sign {
            faults.add(SV_30, format!("key usage of {whose} lacks keyCertSign"));
        }
    });
    faults.0
}

/// The fault of a certificate that has to be an SVID and has no SPIFFE ID at all.
pub(crate) fn missing_id(uris: &[String]) -> SvidFault {
    let mut faults = Faults::default();
    match uris.first() {
        None => faults.add(SV_20, "it has no URI SAN"),
        Some(uri) => faults.add(SV_39, format!("its URI SAN is `{uri}`")),
    }
    faults.0.remove(0)
}

fn has_spiffe_uri(cert: &X509Certificate<'_>) -> bool {
    uris(cert).into_iter().any(claims_spiffe)
}

fn uris<'a>(cert: &'a X509Certificate<'_>) -> Vec<&'a str> {
    let Ok(Some(san)) = cert.subject_alternative_name() else {
        return Vec::new();
    };
    san.value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect()
}

fn is_ca(cert: &X509Certificate<'_>) -> bool {
    cert.basic_constraints()
        .ok()
        .flatten()
        .is_some_and(|constraints| constraints.value.ca)
}

struct KeyUsageBits {
    digital_signature: bool,
    key_cert_sign: bool,
    crl_sign: bool,
}

/// SV-28, SV-29 and, where there is a key usage, what `check` finds in it.
fn key_usage_faults(
    cert: &X509Certificate<'_>,
    whose: &str,
    faults: &mut Faults,
    check: impl FnOnce(&KeyUsageBits, &mut Faults),
) {
    let found = cert
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::KeyUsage(usage) => Some((extension.critical, usage)),
            _ => None,
        });
    let Some((critical, usage)) = found else {
        faults.add(SV_28, format!("{whose} has no key usage"));
        return;
    };
    if !critical {
        faults.add(SV_29, format!("key usage of {whose} is not critical"));
    }
    let bits = KeyUsageBits {
        digital_signature: usage.digital_signature(),
        key_cert_sign: usage.key_cert_sign(),
        crl_sign: usage.crl_sign(),
    };
    check(&bits, faults);
}

fn authority_faults(uri: &str, authority: &str, faults: &mut Faults) {
    let (userinfo, host) = match authority.rsplit_once('@') {
        Some((userinfo, host)) => (Some(userinfo), host),
        None => (None, authority),
    };
    if userinfo.is_some() {
        faults.add(SV_5, format!("`{uri}` has user information"));
    }
    // An IPv6 literal holds colons of its own; its brackets are the fault (SV-8).
    let bracketed = host.starts_with('[');
    let (host, port) = match host.split_once(':') {
        Some((host, port)) if !bracketed => (host, Some(port)),
        _ => (host, None),
    };
    if port.is_some() {
        faults.add(SV_6, format!("`{uri}` has a port"));
    }
    if host.is_empty() {
        faults.add(SV_2, format!("`{uri}` has no host"));
    } else if host.contains('%') {
        faults.add(SV_9, format!("the host `{host}` is percent-encoded"));
    } else if host.bytes().any(|b| b.is_ascii_uppercase()) {
        faults.add(SV_7, format!("the host `{host}` has upper-case letters"));
    } else if !host
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
    {
        faults.add(SV_8, format!("the host `{host}` has other characters"));
    }
}

fn path_faults(uri: &str, path: &str, faults: &mut Faults) {
    let Some(path) = path.strip_prefix('/') else {
        return;
    };
    let (path, trailing) = match path.strip_suffix('/') {
        Some(path) => (path, true),
        None => (path, path.is_empty()),
    };
    if trailing {
        faults.add(SV_14, format!("`{uri}` ends in `/`"));
    }
    if path.is_empty() {
        return;
    }
    for segment in path.split('/') {
        if segment.is_empty() {
            faults.add(SV_12, format!("`{uri}` has an empty path segment"));
        } else if segment == "." || segment == ".." {
            faults.add(SV_13, format!("`{uri}` has the path segment `{segment}`"));
        } else if segment.contains('%') {
            faults.add(SV_11, format!("the path of `{uri}` is percent-encoded"));
        } else if !segment
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        {
            faults.add(SV_15, format!("the path segment `{segment}` of `{uri}`"));
        }
    }
}

#[derive(Default)]
struct Faults(Vec<SvidFault>);

impl Faults {
    fn add(&mut self, row: Row, text: impl Into<String>) {
        self.0.push(row.fault(text));
    }
}

/// A row of the checklist.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    row: &'static str,
    rule: &'static str,
    severity: Severity,
}

impl Row {
    pub(crate) fn fault(self, text: impl Into<String>) -> SvidFault {
        SvidFault {
            row: self.row,
            rule: self.rule,
            severity: self.severity,
            text: text.into(),
        }
    }
}

const fn validator(row: &'static str, rule: &'static str) -> Row {
    Row {
        row,
        rule,
        severity: Severity::Validator,
    }
}

const fn issuer(row: &'static str, rule: &'static str) -> Row {
    Row {
        row,
        rule,
        severity: Severity::Issuer,
    }
}

const SV_1: Row = validator("SV-1", "the scheme is `spiffe`, SPIFFE-ID §2");
const SV_2: Row = validator("SV-2", "the host is not empty, SPIFFE-ID §2.1");
const SV_3: Row = validator("SV-3", "no query, SPIFFE-ID §2");
const SV_4: Row = validator("SV-4", "no fragment, SPIFFE-ID §2");
const SV_5: Row = validator("SV-5", "no user information, SPIFFE-ID §2.1");
const SV_6: Row = validator("SV-6", "no port, SPIFFE-ID §2.1");
const SV_7: Row = validator("SV-7", "the host is lower case, SPIFFE-ID §2.1");
const SV_8: Row = validator("SV-8", "the host is of [a-z0-9.-_], SPIFFE-ID §2.1");
const SV_9: Row = validator("SV-9", "no percent-encoding in the host, SPIFFE-ID §2.1");
const SV_11: Row = validator("SV-11", "no percent-encoding in the path, SPIFFE-ID §2.2");
const SV_12: Row = validator("SV-12", "no empty path segment, SPIFFE-ID §2.2");
const SV_13: Row = validator("SV-13", "no `.` or `..` path segment, SPIFFE-ID §2.2");
const SV_14: Row = validator("SV-14", "no trailing `/`, SPIFFE-ID §2.2");
const SV_15: Row = validator("SV-15", "segments are of [a-zA-Z0-9.-_], SPIFFE-ID §2.2");
const SV_19: Row = validator("SV-19", "exactly one URI SAN, X509-SVID §2");
const SV_20: Row = validator("SV-20", "a URI SAN, X509-SVID §2");
const SV_22: Row = validator("SV-22", "the leaf's ID has a path, X509-SVID §3.1");
const SV_23: Row = issuer(
    "SV-23",
    "critical SAN under an empty subject, X509-SVID §3.1",
);
const SV_24: Row = issuer("SV-24", "a signer's ID has no path, X509-SVID §3.2");
const SV_26: Row = validator("SV-26", "cA is false on the leaf, X509-SVID §4.1");
const SV_27: Row = validator("SV-27", "cA is true on a signer, X509-SVID §4.1");
const SV_28: Row = issuer("SV-28", "key usage is present, X509-SVID §4.3");
const SV_29: Row = issuer("SV-29", "key usage is critical, X509-SVID §4.3");
const SV_30: Row = validator("SV-30", "a signer has keyCertSign, X509-SVID §4.3");
const SV_31: Row = issuer("SV-31", "the leaf has digitalSignature, X509-SVID §4.3");
const SV_32: Row = validator("SV-32", "the leaf has no keyCertSign, X509-SVID §4.3");
const SV_33: Row = validator("SV-33", "the leaf has no cRLSign, X509-SVID §4.3");
const SV_34: Row = issuer(
    "SV-34",
    "serverAuth and clientAuth together, X509-SVID §4.4",
);
pub(crate) const SV_35: Row = validator(
    "SV-35",
    "the ID is inside the URI name constraints, X509-SVID §4.2",
);
const SV_39: Row = validator("SV-39", "the URI SAN's scheme is `spiffe`, X509-SVID §5.2");
