//! SPIFFE IDs as clients write them, judged in the words that clients of SPIRE know.
//!
//! Stricter than [`SpiffeId::new`], which folds case: an ID that is not written as SPIFFE-ID §2 says is refused.

use ah_spire_wire::types::Spiffeid;
use spiffe::{SpiffeId, TrustDomain};

const SCHEME: &str = "spiffe://";
/// Bytes (SPIFFE-ID §2.3).
const LONGEST: usize = 2048;
const SERVER_PATH: &str = "/spire/server";
const AGENT_PATHS: &str = "/spire/agent/";
const RESERVED_PATHS: &str = "/spire/";

/// What an ID has to be, besides well formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anything with a path.
    Member,
    /// Of an agent.
    Agent,
    /// Outside of the reserved namespace.
    Workload,
}

/// Reads `spiffe://<trust domain>/<path>`. The error names what is wrong.
pub fn parse(text: &str) -> Result<SpiffeId, String> {
    if text.is_empty() {
        return Err("cannot be empty".into());
    }
    let rest = text
        .strip_prefix(SCHEME)
        .ok_or("scheme is missing or invalid")?;
    let (domain, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    from_parts(domain, path)
}

/// An ID from the wire; `None` is an error.
pub fn from_wire(id: Option<&Spiffeid>) -> Result<SpiffeId, String> {
    let id = id.ok_or("request must specify SPIFFE ID")?;
    let domain = trust_domain(&id.trust_domain)?;
    from_parts(domain.as_str(), &id.path)
}

/// An ID of `kind` in `of`, from the wire.
pub fn of_domain(id: Option<&Spiffeid>, of: &TrustDomain, kind: Kind) -> Result<SpiffeId, String> {
    let id = from_wire(id)?;
    check(&id, of, kind)?;
    Ok(id)
}

/// Whether `id` is a `kind` of `of`.
pub fn check(id: &SpiffeId, of: &TrustDomain, kind: Kind) -> Result<(), String> {
    if id.trust_domain() != of {
        return Err(format!("\"{id}\" is not a member of trust domain \"{of}\""));
    }
    let (what, where_) = match kind {
        Kind::Member => ("a member of", ""),
        Kind::Agent => ("an agent in", "path is not in the agent namespace"),
        Kind::Workload => ("a workload in", "path is in the reserved namespace"),
    };
    let not = |why: &str| format!("\"{id}\" is not {what} trust domain \"{of}\"; {why}");
    if id.path().is_empty() {
        return Err(not("path is empty"));
    }
    let fits = match kind {
        Kind::Member => true,
        Kind::Agent => is_agent(id),
        Kind::Workload => !is_reserved(id.path()),
    };
    if fits { Ok(()) } else { Err(not(where_)) }
}

/// Whether the path is one of an agent.
pub fn is_agent(id: &SpiffeId) -> bool {
    id.path()
        .strip_prefix(AGENT_PATHS)
        .is_some_and(|rest| !rest.is_empty())
}

/// Whether the ID is the server's.
pub fn is_server(id: &SpiffeId) -> bool {
    id.path() == SERVER_PATH
}

/// The server's own ID.
pub fn server(of: &TrustDomain) -> Result<SpiffeId, String> {
    from_parts(of.as_str(), SERVER_PATH)
}

fn is_reserved(path: &str) -> bool {
    path == RESERVED_PATHS.trim_end_matches('/') || path.starts_with(RESERVED_PATHS)
}

/// A trust domain by its name, or by a SPIFFE ID in it.
pub fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    if text.is_empty() {
        return Err("trust domain is missing".into());
    }
    if text.contains(":/") {
        return parse(text).map(|id| id.trust_domain().clone());
    }
    if !text.bytes().all(is_domain_byte) {
        return Err(
            "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
                .into(),
        );
    }
    TrustDomain::new(text).map_err(|error| error.to_string())
}

fn from_parts(domain: &str, path: &str) -> Result<SpiffeId, String> {
    if domain.contains(':') {
        return Err(
            "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"
                .into(),
        );
    }
    let domain = trust_domain(domain)?;
    check_path(path)?;
    if SCHEME.len() + domain.as_str().len() + path.len() > LONGEST {
        return Err(format!("a SPIFFE ID has at most {LONGEST} bytes"));
    }
    SpiffeId::new(format!("{SCHEME}{domain}{path}")).map_err(|error| error.to_string())
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Ok(());
    }
    let segments = path
        .strip_prefix('/')
        .ok_or("path must have a leading slash")?;
    let mut rest = segments.split('/').peekable();
    while let Some(segment) = rest.next() {
        match segment {
            "" if rest.peek().is_none() => return Err("path cannot have a trailing slash"),
            "" => return Err("path cannot contain empty segments"),
            "." | ".." => return Err("path cannot contain dot segments"),
            _ if !segment.bytes().all(is_path_byte) => {
                return Err(
                    "path segment characters are limited to letters, numbers, dots, dashes, and underscores",
                );
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_domain_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_')
}

fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(trust_domain: &str, path: &str) -> Spiffeid {
        Spiffeid {
            trust_domain: trust_domain.into(),
            path: path.into(),
        }
    }

    // SV-3 to SV-15: hostile spellings, each refused by its own name.
    #[test]
    fn ids_that_are_not_written_as_the_standard_says_are_refused() {
        for (domain, path, why) in [
            ("", "/a", "trust domain is missing"),
            ("Example.org", "/a", "lowercase letters"),
            ("example.org:80", "/a", "lowercase letters"),
            ("user@example.org", "/a", "lowercase letters"),
            ("example.org/x", "/a", "lowercase letters"),
            ("exämple.org", "/a", "lowercase letters"),
            ("example.org", "a", "leading slash"),
            ("example.org", "/", "trailing slash"),
            ("example.org", "/a/", "trailing slash"),
            ("example.org", "/a//b", "empty segments"),
            ("example.org", "/./b", "dot segments"),
            ("example.org", "/a/..", "dot segments"),
            ("example.org", "/%41", "path segment characters"),
            ("example.org", "/a?b", "path segment characters"),
            ("example.org", "/a#b", "path segment characters"),
            ("example.org", "/a\0", "path segment characters"),
        ] {
            let error = from_wire(Some(&wire(domain, path))).unwrap_err();
            assert!(error.contains(why), "{domain} {path}: {error}");
        }
        assert!(from_wire(None).unwrap_err().contains("must specify"));
        let long = format!("/{}", "a".repeat(4096));
        assert!(from_wire(Some(&wire("example.org", &long))).is_err());
    }

    #[test]
    fn kinds_are_told_apart_by_path() {
        let ours = TrustDomain::new("example.org").unwrap();
        let judge = |text: &str, kind| check(&parse(text).unwrap(), &ours, kind);
        assert_eq!(judge("spiffe://example.org/w", Kind::Workload), Ok(()));
        assert_eq!(
            judge("spiffe://example.org/spire/agent/x", Kind::Workload),
            Err("\"spiffe://example.org/spire/agent/x\" is not a workload in trust domain \"example.org\"; path is in the reserved namespace".into())
        );
        assert_eq!(
            judge("spiffe://example.org/spire/agent/x", Kind::Agent),
            Ok(())
        );
        assert!(judge("spiffe://example.org/w", Kind::Agent).is_err());
        assert!(judge("spiffe://other.org/w", Kind::Member).is_err());
        assert!(judge("spiffe://example.org", Kind::Member).is_err());
        assert_eq!(
            judge("spiffe://example.org/spire/server", Kind::Member),
            Ok(())
        );
    }

    #[test]
    fn a_trust_domain_may_be_given_as_an_id() {
        assert_eq!(trust_domain("spiffe://a.org/b").unwrap().as_str(), "a.org");
        assert_eq!(trust_domain("a.org").unwrap().as_str(), "a.org");
        assert!(trust_domain("http://a.org").unwrap_err().contains("scheme"));
    }
}
