//! Where the registry and the audit log are kept (AP-11, AP-12).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ah_fleet::audit::AuditTarget;

use super::Wrong;

/// `--db` (AP-11). `Debug` and `Display` hide a password.
#[derive(Clone, PartialEq, Eq)]
pub enum DbUrl {
    /// The file of an SQLite database.
    Sqlite(PathBuf),
    /// The whole URL of a PostgreSQL database.
    Postgres(String),
}

impl FromStr for DbUrl {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let form = "write sqlite:PATH or postgres://USER@HOST/DATABASE";
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.starts_with(":memory:") {
                // The registry is durable (RG-1).
                return Err(Wrong::new(
                    "a file is needed, so that the registry outlives the process",
                )
                .hint(form));
            }
            return Ok(Self::Sqlite(PathBuf::from(path)));
        }
        match text.split_once("://") {
            Some(("postgres" | "postgresql", rest)) if !rest.is_empty() => {
                Ok(Self::Postgres(text.to_owned()))
            }
            // The text may hold a password and is not repeated.
            Some(("postgres" | "postgresql", _)) => {
                Err(Wrong::new("the host is missing").hint(form))
            }
            _ => Err(Wrong::new("neither sqlite: nor postgres://").hint(form)),
        }
    }
}

impl DbUrl {
    /// The URL in full, password and all.
    pub fn reveal(&self) -> String {
        match self {
            Self::Sqlite(path) => format!("sqlite:{}", path.display()),
            Self::Postgres(url) => url.clone(),
        }
    }
}

impl fmt::Display for DbUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => {
                // A password may stand in the authority or in the query; neither is shown.
                let url = url.split('?').next().unwrap_or_default();
                let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
                match rest.rsplit_once('@') {
                    Some((user, host)) => {
                        let user = user.split(':').next().unwrap_or_default();
                        write!(f, "postgres://{user}@{host}")
                    }
                    None => write!(f, "postgres://{rest}"),
                }
            }
        }
    }
}

impl fmt::Debug for DbUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DbUrl({self})")
    }
}

/// `--audit-log` (AP-12).
pub fn audit_target(text: &str) -> Result<AuditTarget, Wrong> {
    match text {
        "" => Err(Wrong::new("a path is missing")),
        text => Ok(AuditTarget::parse(text)),
    }
}
