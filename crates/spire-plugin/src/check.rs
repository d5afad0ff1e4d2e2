//! Rules that many keys share.

use std::time::Duration;

use spiffe::TrustDomain;

use crate::duration;
use crate::error::ConfigError;
use crate::settings::{FeatureFlag, LogConfig, Profiling};

/// A duration, `None` when not set.
pub(crate) fn duration(key: &str, text: &str) -> Result<Option<Duration>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = duration::parse(text);
    parsed
        .map(Some)
        .map_err(|why| ConfigError::Rule(format!("could not parse {key}: {why}")))
}

/// A TTL, `None` when not set or zero.
pub(crate) fn ttl(key: &str, text: &str) -> Result<Option<Duration>, ConfigError> {
    Ok(duration(key, text)?.filter(|ttl| !ttl.is_zero()))
}

/// A whole number that the type can hold.
pub(crate) fn number<T: TryFrom<i64>>(key: &str, value: i64) -> Result<T, ConfigError> {
    T::try_from(value).map_err(|_| {
        let what = if value < 0 {
            "must not be negative"
        } else {
            "is too large"
        };
        ConfigError::Rule(format!("{key} {what}: {value}"))
    })
}

/// A port; 0 is left to the caller.
pub(crate) fn port(key: &str, value: i64) -> Result<u16, ConfigError> {
    u16::try_from(value).map_err(|_| {
        ConfigError::Rule(format!("{key} must be a port from 1 to 65535, not {value}"))
    })
}

/// A trust domain, from its name or its SPIFFE ID. A name of more than 255 characters is refused (SPIFFE-ID §2.1),
/// for which upstream only warns.
pub(crate) fn trust_domain(text: &str) -> Result<TrustDomain, ConfigError> {
    TrustDomain::new(text)
        .map_err(|why| ConfigError::Rule(format!("could not parse trust_domain {text:?}: {why}")))
}

/// The keys of logging, `log_level` being `INFO` when not set.
pub(crate) fn log(
    level: &str,
    format: &str,
    file: String,
    source_location: bool,
) -> Result<LogConfig, ConfigError> {
    let level = if level.is_empty() { "INFO" } else { level };
    Ok(LogConfig {
        level: level.parse().map_err(ConfigError::Rule)?,
        format: format.parse().map_err(ConfigError::Rule)?,
        file: nonempty(file).map(Into::into),
        source_location,
    })
}

/// The keys of profiling.
pub(crate) fn profiling(
    enabled: bool,
    listen_port: i64,
    frequency: i64,
    names: Vec<String>,
) -> Result<Profiling, ConfigError> {
    Ok(Profiling {
        enabled,
        port: port("profiling_port", listen_port)?,
        frequency: number("profiling_freq", frequency)?,
        names,
    })
}

/// The block of experimental features, of which the operator is told when it is there.
pub(crate) fn experimental<T: Default>(block: Option<T>, warnings: &mut Vec<String>) -> T {
    if block.is_some() {
        warnings.push(
            "experimental features are configured; they may change with any release".to_owned(),
        );
    }
    block.unwrap_or_default()
}

/// The features that are switched on, told as warnings too.
pub(crate) fn feature_flags(
    names: &[String],
    warnings: &mut Vec<String>,
) -> Result<Vec<FeatureFlag>, ConfigError> {
    let flags = FeatureFlag::parse_all(names).map_err(ConfigError::Rule)?;
    for flag in &flags {
        warnings.push(format!("developer feature flag {:?} is on", flag.as_str()));
    }
    Ok(flags)
}

/// An empty text is one that is not set.
pub(crate) fn nonempty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// The text, or another where it is empty.
pub(crate) fn or(text: String, default: &str) -> String {
    nonempty(text).unwrap_or_else(|| default.to_owned())
}
