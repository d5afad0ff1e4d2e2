//! DNS names in entries and certificates.

use std::collections::BTreeSet;

use idna::AsciiDenyList;
use idna::uts46::{DnsLength, Hyphens, Uts46};

/// Checks that `name` is a DNS name in the form that goes over the wire, or one with `*` as its first label.
pub(super) fn check(name: &str) -> Result<(), String> {
    if !name.is_ascii() {
        return Err("name must be ascii".into());
    }
    let plain = match name.bytes().filter(|byte| *byte == b'*').count() {
        0 => name,
        1 => name
            .strip_prefix("*.")
            .ok_or("wildcard must be first label")?,
        _ => return Err("too many wildcards".into()),
    };
    if plain.trim().is_empty() {
        return Err("empty or only whitespace".into());
    }
    if plain.ends_with('.') {
        return Err("domain ends with dot".into());
    }
    let ascii = Uts46::new()
        .to_ascii(
            plain.as_bytes(),
            AsciiDenyList::STD3,
            Hyphens::Check,
            DnsLength::Verify,
        )
        .map_err(|_| format!("idna error: \"{plain}\" is not a domain name"))?;
    if ascii != plain {
        return Err(format!(
            "input domain name \"{plain}\" does not match idna output \"{ascii}\": label mismatch after idna"
        ));
    }
    Ok(())
}

/// Refuses a name that a wildcard of the same list covers.
pub(super) fn check_overlap(names: &[String]) -> Result<(), String> {
    let all: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    for name in &all {
        let covering = name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
        if !name.starts_with('*') && covering.is_some_and(|it| all.contains(it.as_str())) {
            return Err(format!(
                "name \"{name}\" overlaps with an existing wildcard name in the list: wildcard overlap"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_in_the_words_of_upstream() {
        for good in [
            "a.example.org",
            "*.example.org",
            "localhost",
            "xn--mnchen-3ya.de",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "empty or only whitespace"),
            ("a.*.org", "wildcard must be first label"),
            ("*.*.org", "too many wildcards"),
            ("a.org.", "domain ends with dot"),
            ("münchen.de", "name must be ascii"),
            ("a_b.org", "idna error"),
            ("-a.org", "idna error"),
            ("A.org", "label mismatch after idna"),
            ("a..org", "idna error"),
            ("a b.org", "idna error"),
        ] {
            let error = check(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(check(&"a".repeat(64)).is_err());
    }

    #[test]
    fn a_wildcard_may_not_cover_another_name() {
        let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        assert!(check_overlap(&names(&["*.a.org", "b.a.org"])).is_err());
        assert_eq!(
            check_overlap(&names(&["*.a.org", "a.org", "c.b.a.org"])),
            Ok(())
        );
    }
}
