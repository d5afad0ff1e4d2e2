//! Why an attestation failed, named by what the receiver does next.

use std::fmt;

use ah_identity_provider::{Code, Explained};

use crate::{Builtin, PluginKind};

/// A failed attestation. `Display` prints the text that goes over the wire; [`AttestError::explained`] has the hint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttestError {
    /// What was sent is not what this attestor takes, and sending it again cannot help (`InvalidArgument`).
    #[error("{0}")]
    Invalid(Explained),
    /// Understood and not believed: the proof failed, or policy says no (`PermissionDenied`).
    #[error("{0}")]
    Refused(Explained),
    /// Something that is needed does not answer now: try again (`Unavailable`).
    #[error("{0}")]
    Unavailable(Explained),
    /// What was named is not there (`NotFound`).
    #[error("{0}")]
    NotFound(Explained),
    /// This side is not set up for what was asked (`FailedPrecondition`).
    #[error("{0}")]
    NotSetUp(Explained),
    /// Broken on this side (`Internal`).
    #[error("{0}")]
    Internal(Explained),
}

impl AttestError {
    pub(crate) fn invalid(text: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self::Invalid(Explained::new(Code::Other, text.to_string()).hint(hint))
    }

    pub(crate) fn refused(text: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self::Refused(Explained::new(Code::PermissionDenied, text.to_string()).hint(hint))
    }

    pub(crate) fn unavailable(text: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self::Unavailable(Explained::new(Code::Unavailable, text.to_string()).hint(hint))
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn not_found(text: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self::NotFound(Explained::new(Code::Other, text.to_string()).hint(hint))
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn not_set_up(text: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self::NotSetUp(Explained::new(Code::Other, text.to_string()).hint(hint))
    }

    pub(crate) fn internal(text: impl fmt::Display, hint: impl Into<String>) -> Self {
        Self::Internal(Explained::new(Code::Other, text.to_string()).hint(hint))
    }

    /// What to tell.
    pub fn explained(&self) -> &Explained {
        match self {
            Self::Invalid(e)
            | Self::Refused(e)
            | Self::Unavailable(e)
            | Self::NotFound(e)
            | Self::NotSetUp(e)
            | Self::Internal(e) => e,
        }
    }

    /// With the plugin's name before the text, as SPIRE's servers and agents send it: `nodeattestor(x509pop): …`.
    #[must_use]
    pub fn of_plugin(self, kind: PluginKind, name: &str) -> Self {
        let kind = kind.as_str().to_ascii_lowercase();
        self.map(|mut explained| {
            explained.text = format!("{kind}({name}): {}", explained.text);
            explained
        })
    }

    pub(crate) fn of_builtin(self, builtin: Builtin) -> Self {
        self.of_plugin(builtin.kind(), builtin.name())
    }

    fn map(self, change: impl FnOnce(Explained) -> Explained) -> Self {
        match self {
            Self::Invalid(e) => Self::Invalid(change(e)),
            Self::Refused(e) => Self::Refused(change(e)),
            Self::Unavailable(e) => Self::Unavailable(change(e)),
            Self::NotFound(e) => Self::NotFound(change(e)),
            Self::NotSetUp(e) => Self::NotSetUp(change(e)),
            Self::Internal(e) => Self::Internal(change(e)),
        }
    }
}
