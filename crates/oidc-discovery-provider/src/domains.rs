//! For which names the provider speaks.

use std::collections::BTreeSet;

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};

/// `domains`: whose keys a client asks for is part of what it gets back, so that no other name is answered.
#[derive(Clone, Debug)]
pub(crate) struct Domains(BTreeSet<String>);

impl Domains {
    /// # Errors
    /// Names the one that is no domain name in the form that goes over the wire.
    pub(crate) fn new(names: &[String]) -> Result<Self, String> {
        for name in names {
            check(name)?;
        }
        Ok(Self(names.iter().cloned().collect()))
    }

    /// Whether a request for `host`, with or without a port, is answered.
    ///
    /// # Errors
    /// Why it is not, in upstream's words.
    pub(crate) fn allow(&self, host: &str) -> Result<(), String> {
        let domain = without_port(host);
        if self.0.contains(domain) {
            return Ok(());
        }
        check(domain)?;
        Err(format!("domain {domain:?} is not allowed"))
    }
}

/// IDNA for lookups (UTS #46) finds nothing to change.
fn check(domain: &str) -> Result<(), String> {
    let ascii = Uts46::new()
        .to_ascii(
            domain.as_bytes(),
            AsciiDenyList::STD3,
            Hyphens::Check,
            DnsLength::Ignore,
        )
        .map_err(|_| format!("domain {domain:?} is not a valid domain name"))?;
    if ascii != domain {
        return Err(format!(
            "domain {domain:?} must already be punycode encoded"
        ));
    }
    Ok(())
}

/// `HOST` of `HOST:PORT`; the whole text where it is not of that form.
fn without_port(host: &str) -> &str {
    let bracketed = host.strip_prefix('[').and_then(|rest| {
        let (inside, after) = rest.split_once(']')?;
        after.strip_prefix(':').map(|port| (inside, port))
    });
    match bracketed.or_else(|| host.split_once(':')) {
        Some((name, port)) if !port.contains(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(names: &[&str]) -> Result<Domains, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Domains::new(&names)
    }

    // Inventory section 11: `domains`
    #[test]
    fn only_names_of_the_list_are_answered() {
        let domains = domains(&["oidc.example.org", "localhost", "xn--bcher-kva.example"]).unwrap();
        for host in [
            "oidc.example.org",
            "oidc.example.org:8443",
            "localhost:1",
            "xn--bcher-kva.example",
        ] {
            assert_eq!(domains.allow(host), Ok(()), "{host}");
        }
        for (host, why) in [
            ("example.org", "domain \"example.org\" is not allowed"),
            ("", "domain \"\" is not allowed"),
            (
                "OIDC.example.org",
                "domain \"OIDC.example.org\" must already be punycode encoded",
            ),
            (
                "bücher.example",
                "domain \"bücher.example\" must already be punycode encoded",
            ),
            (
                "a_b.example",
                "domain \"a_b.example\" is not a valid domain name",
            ),
            ("[::1]:443", "domain \"::1\" is not a valid domain name"),
            ("a:1:2", "domain \"a:1:2\" is not a valid domain name"),
        ] {
            assert_eq!(domains.allow(host), Err(why.to_owned()), "{host}");
        }
    }

    #[test]
    fn a_name_that_is_none_is_refused_at_the_start() {
        assert!(
            domains(&["a.org", "*.a.org"])
                .unwrap_err()
                .contains("*.a.org")
        );
        assert!(domains(&["A.org"]).is_err());
    }
}
