//! How an operator names an executor or a certificate, and why something was not done for them.

use ah_identity_provider::{Code, Explained};

/// How an operator names an executor or a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(pub String);

/// Percent-encodes all but the unreserved characters (RFC 3986 §2.3): an id is one segment, slashes and all.
pub fn path_segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Why something was not done for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotDone {
    /// Nothing is known by that name.
    Unknown(Explained),
    /// Several are known by that name, or it is not in the state that the request is about.
    Conflict(Explained),
    /// The store did not answer; a bar is in force all the same.
    Unavailable(Explained),
    /// The store can never hold it; a bar is in force until a restart.
    Refused(Explained),
}

impl NotDone {
    /// What to tell.
    pub fn explained(&self) -> &Explained {
        match self {
            Self::Unknown(explained)
            | Self::Conflict(explained)
            | Self::Unavailable(explained)
            | Self::Refused(explained) => explained,
        }
    }
}

/// Lower-case hex of what reads as a serial number or SHA-256: hex digits, with or without colons. A short
/// text without colons might be a name, so it takes a colon, a `0x` or 16 digits to be a fingerprint.
pub(super) fn fingerprint(text: &str) -> Option<String> {
    let bare = text.strip_prefix("0x").unwrap_or(text);
    let marked = bare.len() != text.len() || bare.contains(':');
    let hex = bare.replace(':', "").to_ascii_lowercase();
    let looks = !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !looks || !(marked || hex.len() >= 16) {
        return None;
    }
    if hex.len() == 64 {
        return Some(hex);
    }
    Some(serial_as_encoded(&hex))
}

/// A serial number as certificates encode it and we keep it: whole bytes, no needless zeros in front, and one
/// where the first bit is set (X.690 §8.3.2). `openssl x509 -serial` leaves that one out.
fn serial_as_encoded(hex: &str) -> String {
    let digits = hex.trim_start_matches('0');
    let digits = if digits.is_empty() { "0" } else { digits };
    let sign = match (digits.len() % 2, digits.chars().next()) {
        (1, _) => "0",
        (_, Some('8'..='f')) => "00",
        _ => "",
    };
    format!("{sign}{digits}")
}

/// Nothing is known by that name.
pub(super) fn unknown(selector: &Selector) -> NotDone {
    NotDone::Unknown(
        Explained::new(
            Code::Usage,
            format!("no executor is known as {}", selector.0),
        )
        .hint(
            "`ah agent fleet list` shows ids and names; a serial number or SHA-256 takes hex digits",
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    // FL-1: serial numbers as people copy them.
    #[test]
    fn fingerprints_are_read_as_people_write_them() {
        let cases = [
            ("0x1", Some("01")),
            ("01:AB", Some("01ab")),
            ("00:c3:5d", Some("00c35d")),
            ("c3:5d", Some("00c35d")),
            ("0000000000000001", Some("01")),
            ("C35D1122334455667788", Some("00c35d1122334455667788")),
            ("deadbeef", None),
            ("worker-1", None),
            ("", None),
            (":", None),
        ];
        for (text, expected) in cases {
            assert_eq!(fingerprint(text).as_deref(), expected, "{text}");
        }
        let sha256 = "00AB".repeat(16);
        assert_eq!(fingerprint(&sha256), Some(sha256.to_lowercase()));
    }
}
