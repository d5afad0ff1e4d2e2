//! Parts of a configuration that server and agent share.

use std::path::PathBuf;
use std::str::FromStr;

use zeroize::Zeroizing;

/// How much is logged; the names of SPIRE, which match without regard to case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// The least.
    Panic,
    /// Before the process ends.
    Fatal,
    /// What failed.
    Error,
    /// What may fail; also `warning`.
    Warn,
    /// What happens. The default.
    Info,
    /// How it happens.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The name as `logger get` prints it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Fatal => "fatal",
            Self::Error => "error",
            Self::Warn => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "panic" => Self::Panic,
            "fatal" => Self::Fatal,
            "error" => Self::Error,
            "warn" | "warning" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => {
                return Err(format!(
                    "log_level {text:?} is unknown; use one of panic, fatal, error, warn, info, debug, trace"
                ));
            }
        })
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_uppercase().as_str() {
            "" | "TEXT" => Ok(Self::Text),
            "JSON" => Ok(Self::Json),
            _ => Err(format!("log_format {text:?} is unknown; use text or json")),
        }
    }
}

/// Where logs go and what they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `log_level`
    pub level: LogLevel,
    /// `log_format`
    pub format: LogFormat,
    /// `log_file`; stdout without one.
    pub file: Option<PathBuf>,
    /// `log_source_location`
    pub source_location: bool,
}

/// `profiling_*`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profiling {
    /// `profiling_enabled`
    pub enabled: bool,
    /// `profiling_port`; 0 when not set.
    pub port: u16,
    /// `profiling_freq`, how often to dump, in seconds; 0 for never.
    pub frequency: u64,
    /// `profiling_names`
    pub names: Vec<String>,
}

/// Features of SPIRE that are off unless `experimental.feature_flags` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FeatureFlag {
    /// `wit-svid`
    WitSvid,
    /// `i_am_a_test_flag`, which does nothing.
    Test,
}

impl FeatureFlag {
    /// The name in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WitSvid => "wit-svid",
            Self::Test => "i_am_a_test_flag",
        }
    }

    /// All of them, or an error that names every unknown one.
    pub fn parse_all(names: &[String]) -> Result<Vec<Self>, String> {
        let known = [Self::WitSvid, Self::Test];
        let find = |name: &&String| known.into_iter().find(|flag| flag.as_str() == *name);
        let mut unknown: Vec<&str> = names
            .iter()
            .filter(|name| find(name).is_none())
            .map(String::as_str)
            .collect();
        if !unknown.is_empty() {
            unknown.sort_unstable();
            return Err(format!(
                "unknown feature flag(s): {}; known ones are {}",
                unknown.join(" "),
                known.map(Self::as_str).join(" ")
            ));
        }
        Ok(names.iter().filter_map(|name| find(&name)).collect())
    }
}

/// The type of a key that is made. Names match without regard to case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyType {
    /// `rsa-2048`
    Rsa2048,
    /// `rsa-4096`; for the keys of a server only.
    Rsa4096,
    /// `ec-p256`, the default everywhere.
    EcP256,
    /// `ec-p384`
    EcP384,
}

impl KeyType {
    /// The name in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa4096 => "rsa-4096",
            Self::EcP256 => "ec-p256",
            Self::EcP384 => "ec-p384",
        }
    }

    /// The type with this name, if it is among those allowed.
    pub fn among(allowed: &[Self], text: &str) -> Result<Self, String> {
        let found = allowed
            .iter()
            .find(|kind| kind.as_str().eq_ignore_ascii_case(text));
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = allowed.iter().map(|kind| kind.as_str()).collect();
            format!(
                "key type {text:?} is unknown; must be one of [{}]",
                names.join(", ")
            )
        })
    }
}

/// A token that admits one agent once. It is wiped from memory and cannot be printed by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken(Zeroizing<String>);

impl JoinToken {
    /// Takes a token over.
    #[must_use]
    pub fn new(token: Zeroizing<String>) -> Self {
        Self(token)
    }

    /// The token itself, for the attestation payload.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}
