//! How a refusal crosses the wire: an [`Explained`] as a gRPC status with trailing metadata, and back.
//!
//! The table is part of `fleet.proto`; this is its only implementation.

use ah_identity_provider::{Code, Explained};
use tonic::Status;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

const CODE: &str = "ah-code";
const CAUSE: &str = "ah-cause";
const HINT: &str = "ah-hint";

/// The status that ends a call for the reason `explained`.
pub(crate) fn to_status(explained: &Explained) -> Status {
    status(grpc_code(explained.code), explained)
}

/// The status that ends a call whose peer sent too large a message.
pub(crate) fn oversized(explained: &Explained) -> Status {
    status(tonic::Code::OutOfRange, explained)
}

fn status(code: tonic::Code, explained: &Explained) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(
        CODE,
        AsciiMetadataValue::from_static(explained.code.as_str()),
    );
    for cause in &explained.causes {
        if let Ok(value) = percent_encode(cause).parse() {
            metadata.append(CAUSE, value);
        }
    }
    if let Some(hint) = &explained.hint
        && let Ok(value) = percent_encode(hint).parse()
    {
        metadata.insert(HINT, value);
    }
    Status::with_metadata(code, explained.text.clone(), metadata)
}

/// What an access point meant by `status`. A status without our metadata (a proxy's, a newer version's)
/// keeps its own text under [`Code::Unavailable`] or [`Code::Other`].
pub(crate) fn from_status(status: &Status) -> Explained {
    let metadata = status.metadata();
    let word = metadata.get(CODE).and_then(|value| value.to_str().ok());
    let code = word.and_then(known_code).unwrap_or(match status.code() {
        tonic::Code::Unavailable | tonic::Code::ResourceExhausted | tonic::Code::Cancelled => {
            Code::Unavailable
        }
        _ => Code::Other,
    });
    let text = if status.message().is_empty() {
        format!("access point ended the session: {}", status.code())
    } else {
        status.message().to_owned()
    };
    let mut explained = Explained::new(code, text);
    for cause in metadata.get_all(CAUSE) {
        explained = explained.cause(percent_decode(cause.as_bytes()));
    }
    if let Some(hint) = metadata.get(HINT) {
        explained = explained.hint(percent_decode(hint.as_bytes()));
    }
    explained
}

fn grpc_code(code: Code) -> tonic::Code {
    match code {
        Code::Draining => tonic::Code::Unavailable,
        Code::Unavailable => tonic::Code::ResourceExhausted,
        Code::Duplicate => tonic::Code::AlreadyExists,
        Code::SanMismatch | Code::ClientRevoked => tonic::Code::PermissionDenied,
        Code::ClientExpired | Code::ClientUnknownAuthority | Code::ClientCertificateRequired => {
            tonic::Code::Unauthenticated
        }
        Code::Usage => tonic::Code::InvalidArgument,
        _ => tonic::Code::Internal,
    }
}

fn known_code(word: &str) -> Option<Code> {
    [
        Code::Draining,
        Code::Unavailable,
        Code::Duplicate,
        Code::SanMismatch,
        Code::ClientRevoked,
        Code::ClientExpired,
        Code::ClientUnknownAuthority,
        Code::ClientCertificateRequired,
        Code::Usage,
    ]
    .into_iter()
    .find(|code| code.as_str() == word)
}

/// Encodes as the gRPC protocol does `grpc-message`: printable ASCII but `%` stays.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (0x20..=0x7e).contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Undoes [`percent_encode`]; what is not valid encoding stays as it is.
fn percent_decode(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_wire() {
        let sent = Explained::new(Code::Duplicate, "executor id is already enrolled")
            .cause("100 % of „live“ processes\nanswered")
            .cause("second")
            .hint("give each its own certificate");
        assert_eq!(from_status(&to_status(&sent)), sent);
    }

    #[test]
    fn a_strangers_status_keeps_its_text() {
        let explained = from_status(&Status::unavailable("upstream connect error"));
        assert_eq!(explained.code, Code::Unavailable);
        assert_eq!(explained.text, "upstream connect error");
        assert_eq!(from_status(&Status::internal("")).code, Code::Other);
    }

    #[test]
    fn broken_percent_encoding_is_kept_as_it_is() {
        assert_eq!(percent_decode(b"100%"), "100%");
        assert_eq!(percent_decode(b"%zz%4"), "%zz%4");
        assert_eq!(percent_decode(b"%41%"), "A%");
    }
}
