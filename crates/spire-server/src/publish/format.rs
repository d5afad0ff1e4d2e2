//! How a bundle is published.

use std::str::FromStr;
use std::time::Duration;

use ah_spire_plugin::duration;
use ah_spire_wire::bundle::{Contents, to_document, to_pem};
use ah_spire_wire::model::Bundle;

/// A format that bundles are published in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A SPIFFE bundle document.
    Spiffe,
    /// A plain JWK set (RFC 7517 §5) of all keys.
    Jwks,
    /// The CA certificates.
    Pem,
}

impl Format {
    /// The media type, where whoever stores a bundle wants one.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Spiffe | Self::Jwks => "application/json",
            Self::Pem => "application/x-pem-file",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "spiffe" => Ok(Self::Spiffe),
            "jwks" => Ok(Self::Jwks),
            "pem" => Ok(Self::Pem),
            _ => Err(format!(
                "unknown bundle format: {text:?}: use \"spiffe\", \"jwks\" or \"pem\""
            )),
        }
    }
}

/// A format, and the refresh hint that is told in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formatted {
    format: Format,
    refresh_hint: Option<i64>,
}

impl Formatted {
    /// `format` and `refresh_hint` of a configuration; an empty hint is the bundle's own.
    ///
    /// # Errors
    /// Says which of them is wrong, and why.
    pub fn read(format: &str, refresh_hint: &str) -> Result<Self, String> {
        if format.is_empty() {
            return Err("format is required: \"spiffe\", \"jwks\" or \"pem\"".into());
        }
        Ok(Self {
            format: format.parse()?,
            refresh_hint: hint(refresh_hint)?,
        })
    }

    /// Which.
    pub fn format(self) -> Format {
        self.format
    }

    /// `bundle` in this format.
    ///
    /// # Errors
    /// A key of it is of no kind that the format can hold.
    pub fn of(self, bundle: &Bundle) -> Result<String, String> {
        let document = |contents| {
            let mut bundle = bundle.clone();
            bundle.refresh_hint = self.refresh_hint.unwrap_or(bundle.refresh_hint);
            to_document(&bundle, contents).map_err(|error| error.to_string())
        };
        match self.format {
            Format::Spiffe => document(Contents::Spiffe),
            Format::Jwks => document(Contents::Jwks),
            Format::Pem => Ok(to_pem(bundle)),
        }
    }
}

fn hint(text: &str) -> Result<Option<i64>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let hint = duration::parse(text);
    let hint = hint.map_err(|error| format!("could not parse refresh_hint {text:?}: {error}"))?;
    if hint >= Duration::from_secs(24 * 3600) {
        tracing::warn!(
            refresh_hint = text,
            "refresh_hint is a day or more: a bundle that changes unplanned is learnt of late; 5m is a good value"
        );
    } else if hint < Duration::from_secs(60) {
        tracing::warn!(
            refresh_hint = text,
            "refresh_hint is below a minute, and nobody refreshes more often than that"
        );
    }
    let hint = i64::try_from(hint.as_secs()).unwrap_or(i64::MAX);
    Ok((hint != 0).then_some(hint))
}
