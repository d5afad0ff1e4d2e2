//! What a person reads when something fails: text, causes and a hint (contract §8).

use std::fmt;

use serde::{Deserialize, Serialize};

/// The row of the contract's error table (§8) that a failure belongs to.
///
/// Code decides on this value and never on the text. [`Code::as_str`] is stable: metrics use it as the
/// `reason` label and JSON output as `code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// ER-1
    ConnectionRefused,
    /// ER-2
    ConnectionTimedOut,
    /// ER-3
    VerifyFailed,
    /// ER-4
    ExpiredOrNotYetValid,
    /// ER-5
    NoLocalIssuer,
    /// ER-6
    KeyMismatch,
    /// ER-7
    SanMismatch,
    /// ER-8
    PermissionDenied,
    /// ER-9
    NoSuchFile,
    /// ER-10
    NoIdentity,
    /// ER-11
    WorkloadApi,
    /// ER-12
    ServerIdMismatch,
    /// ER-13
    VaultAuthFailed,
    /// ER-14
    NotIssued,
    /// ER-15
    VaultSealed,
    /// ER-16
    VaultPathDenied,
    /// ER-18
    VaultUnreachable,
    /// ER-19
    VaultTokenExpired,
    /// ER-20
    ClientCertificateRequired,
    /// ER-21, signed by unknown authority
    ClientUnknownAuthority,
    /// ER-21, expired or not yet valid
    ClientExpired,
    /// ER-21, revoked
    ClientRevoked,
    /// ER-22
    UnknownAuthority,
    /// A live process already holds this executor id (RG-2).
    Duplicate,
    /// The other side is going away and asked us to come back (AP-19).
    Draining,
    /// The other side is alive but cannot take us now.
    Unavailable,
    /// A setting is wrong.
    Usage,
    /// ER-24: everything else.
    Other,
}

impl Code {
    /// The stable name, as used in metric labels and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectionTimedOut => "connection_timed_out",
            Self::VerifyFailed => "verify_failed",
            Self::ExpiredOrNotYetValid => "expired_or_not_yet_valid",
            Self::NoLocalIssuer => "no_local_issuer",
            Self::KeyMismatch => "key_mismatch",
            Self::SanMismatch => "san_mismatch",
            Self::PermissionDenied => "permission_denied",
            Self::NoSuchFile => "no_such_file",
            Self::NoIdentity => "no_identity",
            Self::WorkloadApi => "workload_api",
            Self::ServerIdMismatch => "server_id_mismatch",
            Self::VaultAuthFailed => "vault_auth_failed",
            Self::NotIssued => "not_issued",
            Self::VaultSealed => "vault_sealed",
            Self::VaultPathDenied => "vault_path_denied",
            Self::VaultUnreachable => "vault_unreachable",
            Self::VaultTokenExpired => "vault_token_expired",
            Self::ClientCertificateRequired => "client_certificate_required",
            Self::ClientUnknownAuthority => "client_unknown_authority",
            Self::ClientExpired => "client_expired",
            Self::ClientRevoked => "client_revoked",
            Self::UnknownAuthority => "unknown_authority",
            Self::Duplicate => "duplicate",
            Self::Draining => "draining",
            Self::Unavailable => "unavailable",
            Self::Usage => "usage",
            Self::Other => "other",
        }
    }
}

/// A failure told to a person: `error: TEXT`, any number of causes, and what to do next.
///
/// `Display` prints the text alone, on one line; [`Explained::report`] prints all of it in the shape of
/// contract §8. It never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The row this failure belongs to.
    pub code: Code,
    /// TEXT of the row, filled in.
    pub text: String,
    /// What led to it, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Explained {
    /// A failure of row `code` whose first line is `text`.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
            causes: Vec::new(),
            hint: None,
        }
    }

    /// Adds a cause line.
    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.causes.push(cause.to_string());
        self
    }

    /// Sets the hint line.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Text and causes on one line. Hints are left out: they name the flags of one program.
    pub fn one_line(&self) -> String {
        let causes = self.causes.iter().map(String::as_str);
        let parts: Vec<&str> = [self.text.as_str()].into_iter().chain(causes).collect();
        parts.join(": ")
    }

    /// The whole message: `error: …`, then `  cause: …` lines, then `  hint: …`, without a final newline.
    pub fn report(&self) -> String {
        let mut out = format!("error: {}", self.text);
        for cause in &self.causes {
            out.push_str("\n  cause: ");
            out.push_str(cause);
        }
        if let Some(hint) = &self.hint {
            out.push_str("\n  hint: ");
            out.push_str(hint);
        }
        out
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Explained {}
