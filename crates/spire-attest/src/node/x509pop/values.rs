//! What `agent_path_template` can ask for.

use std::collections::BTreeMap;

use crate::node::template;
use crate::node::x509pop::certificate::Certificate;

/// Where the values come from.
pub(super) struct Values<'a> {
    pub(super) leaf: &'a Certificate,
    pub(super) trust_domain: &'a str,
    pub(super) svid_path: &'a str,
    pub(super) uri_selectors: &'a BTreeMap<String, String>,
}

/// Names after the dot, and what they stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::node) enum Value {
    PluginName,
    Fingerprint,
    TrustDomain,
    SerialNumberHex,
    SerialNumber,
    SvidPathTrimmed,
    SubjectCommonName,
    SubjectSerialNumber,
    IssuerCommonName,
    IssuerSerialNumber,
    UriSanSelector(String),
}

impl template::Value for Value {
    const KNOWN: &str = ".PluginName, .Fingerprint, .TrustDomain, .SerialNumberHex, .SerialNumber, .SVIDPathTrimmed, .Subject.CommonName, .Subject.SerialNumber, .Issuer.CommonName, .Issuer.SerialNumber and .URISanSelectors.<key>";

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            ".PluginName" => Self::PluginName,
            ".Fingerprint" => Self::Fingerprint,
            ".TrustDomain" => Self::TrustDomain,
            ".SerialNumberHex" => Self::SerialNumberHex,
            ".SerialNumber" => Self::SerialNumber,
            ".SVIDPathTrimmed" => Self::SvidPathTrimmed,
            ".Subject.CommonName" => Self::SubjectCommonName,
            ".Subject.SerialNumber" => Self::SubjectSerialNumber,
            ".Issuer.CommonName" => Self::IssuerCommonName,
            ".Issuer.SerialNumber" => Self::IssuerSerialNumber,
            other => {
                let key = other.strip_prefix(".URISanSelectors.")?;
                if key.contains('.') {
                    return None;
                }
                Self::UriSanSelector(key.to_owned())
            }
        })
    }
}

impl Value {
    /// The error is a text.
    pub(super) fn of(&self, values: &Values<'_>) -> Result<String, String> {
        let leaf = values.leaf;
        Ok(match self {
            Self::PluginName => crate::Builtin::X509Pop.name(),
            Self::Fingerprint => &leaf.fingerprint,
            Self::TrustDomain => values.trust_domain,
            Self::SerialNumberHex => &leaf.serial_hex,
            Self::SerialNumber => &leaf.serial_decimal,
            Self::SvidPathTrimmed => values.svid_path,
            Self::SubjectCommonName => &leaf.subject.common_name,
            Self::SubjectSerialNumber => &leaf.subject.serial_number,
            Self::IssuerCommonName => &leaf.issuer.common_name,
            Self::IssuerSerialNumber => &leaf.issuer.serial_number,
            Self::UriSanSelector(key) => values.uri_selectors.get(key).ok_or_else(|| {
                format!(
                    "the certificate has no URI SAN x509pop://{}/{key}/<value>, which .URISanSelectors.{key} asks for",
                    values.trust_domain
                )
            })?,
        }
        .to_owned())
    }
}
