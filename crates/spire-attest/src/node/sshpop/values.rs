//! What `agent_path_template` can ask for.

use crate::Builtin;
use crate::node::sshpop::certificate::Certificate;
use crate::node::template;

/// Names after the dot, and what they stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    PluginName,
    Fingerprint,
    Hostname,
    KeyId,
    Serial,
    CertType,
    ValidAfter,
    ValidBefore,
    Principal(usize),
}

impl template::Value for Value {
    const KNOWN: &str = ".PluginName, .Fingerprint, .Hostname, .KeyId, .Serial, .CertType, .ValidAfter, .ValidBefore and index .ValidPrincipals <number>";

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            ".PluginName" => Self::PluginName,
            ".Fingerprint" => Self::Fingerprint,
            ".Hostname" => Self::Hostname,
            ".KeyId" => Self::KeyId,
            ".Serial" => Self::Serial,
            ".CertType" => Self::CertType,
            ".ValidAfter" => Self::ValidAfter,
            ".ValidBefore" => Self::ValidBefore,
            _ => return None,
        })
    }

    fn element(name: &str, place: usize) -> Option<Self> {
        (name == ".ValidPrincipals").then_some(Self::Principal(place))
    }
}

impl Value {
    /// The error is a text.
    pub(super) fn of(&self, certificate: &Certificate, hostname: &str) -> Result<String, String> {
        Ok(match self {
            Self::PluginName => Builtin::SshPop.name().to_owned(),
            Self::Fingerprint => certificate.fingerprint.clone(),
            Self::Hostname => hostname.to_owned(),
            Self::KeyId => certificate.key_id.clone(),
            Self::Serial => certificate.serial.to_string(),
            Self::CertType => certificate.kind.to_string(),
            Self::ValidAfter => certificate.valid_after.to_string(),
            Self::ValidBefore => certificate.valid_before.to_string(),
            Self::Principal(place) => {
                let principal = certificate.principals.get(*place);
                let count = certificate.principals.len();
                principal.cloned().ok_or_else(|| {
                    format!(
                        "the certificate has {count} principals, counted from 0, and none at {place}"
                    )
                })?
            }
        })
    }
}
