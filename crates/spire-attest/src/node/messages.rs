//! Messages of attestors that prove a key, as JSON, and their nonces.

use aws_lc_rs::rand;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The largest message that is read, in bytes.
pub(in crate::node) const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// What Go's `encoding/base64.StdEncoding` writes and takes.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Bytes, in JSON as base64; none where there is `null`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::node) struct Bytes(pub(in crate::node) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text: Option<String> = Option::deserialize(from)?;
        // Go leaves line ends inside base64 out.
        let text = text.unwrap_or_default().replace(['\r', '\n'], "");
        let bytes = BASE64.decode(text).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// Reads a message. The error is a text that does not quote it.
pub(in crate::node) fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, String> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(format!(
            "{} bytes, more than {MAX_MESSAGE_BYTES}",
            bytes.len()
        ));
    }
    // Go takes `null` for an empty message, and the fields then missing say what is wrong.
    let message: Option<T> = serde_json::from_slice(bytes).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let what = match error.classify() {
            serde_json::error::Category::Eof => "it ends too early",
            serde_json::error::Category::Syntax => "not JSON",
            _ => "JSON of another shape",
        };
        format!("{what} (line {line}, column {column})")
    })?;
    message.ok_or_else(|| "null".to_owned())
}

/// Writes a message. Text of our own making cannot fail to be written.
pub(in crate::node) fn write(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_default()
}

/// Length of a nonce, in bytes.
pub(in crate::node) const NONCE: usize = 32;

/// Random bytes that nobody has signed before.
pub(in crate::node) fn nonce() -> Result<Vec<u8>, &'static str> {
    let mut nonce = vec![0; NONCE];
    rand::fill(&mut nonce).map_err(|_| "the system gives no random numbers")?;
    Ok(nonce)
}
