//! Which URLs a bundle endpoint may have (SPIFFE Federation §5.2.1.1, §5.2.2.1).

use ::url::Url;

const SCHEME: &str = "https://";

/// `text` as it is stored: with its scheme in lower case.
///
/// # Errors
/// It is no `https` URL with a host and without user info (SV-54), in the words that clients of SPIRE know.
pub fn endpoint_url(text: &str) -> Result<String, String> {
    let scheme = text.get(..SCHEME.len()).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return Err("bundle endpoint URL must use the https scheme".into());
    }
    let rest = text.get(SCHEME.len()..).unwrap_or_default();
    // The parser would mend these, and others read them in another way.
    if let Some(bad) = rest
        .chars()
        .find(|c| c.is_control() || c.is_whitespace() || *c == '\\')
    {
        return Err(format!(
            "failed to parse bundle endpoint URL: invalid character {bad:?}"
        ));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err("bundle endpoint URL must not contain user info".into());
    }
    if authority.is_empty() || authority.starts_with(':') {
        return Err("bundle endpoint URL must specify the host".into());
    }
    let url = format!("{SCHEME}{rest}");
    Url::parse(&url).map_err(|error| format!("failed to parse bundle endpoint URL: {error}"))?;
    Ok(url)
}

/// Where a redirect of `from` leads (SV-55): the rules for endpoints hold there, too.
pub(super) fn redirected(from: &Url, location: &str) -> Result<Url, String> {
    let to = from
        .join(location)
        .map_err(|error| format!("it redirects to {location:?}: {error}"))?;
    let checked =
        endpoint_url(to.as_str()).map_err(|why| format!("it redirects to {to}: {why}"))?;
    Url::parse(&checked).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    // SV-54
    #[test]
    fn an_endpoint_is_https_with_a_host_and_without_user_info() {
        for good in [
            "https://a.test",
            "https://a.test:8443/bundle?x=1",
            "https://[::1]:1/",
            "https://127.0.0.1:1/@",
        ] {
            assert_eq!(endpoint_url(good), Ok(good.to_owned()));
        }
        assert_eq!(endpoint_url("HTTPS://a.test"), Ok("https://a.test".into()));
        for (bad, why) in [
            ("", "must use the https scheme"),
            ("a.test", "must use the https scheme"),
            ("http://a.test", "must use the https scheme"),
            ("https:a.test", "must use the https scheme"),
            ("https://", "must specify the host"),
            ("https:///bundle", "must specify the host"),
            ("https://:443/", "must specify the host"),
            ("https://user@a.test", "must not contain user info"),
            ("https://user:word@a.test", "must not contain user info"),
            ("https://@a.test", "must not contain user info"),
            ("https://a.test\\@b.test", "invalid character '\\\\'"),
            ("https://a .test", "invalid character ' '"),
            ("https://a.test:x", "failed to parse bundle endpoint URL"),
            (
                "https://a.test:99999",
                "failed to parse bundle endpoint URL",
            ),
        ] {
            let error = endpoint_url(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    // SV-55
    #[test]
    fn a_redirect_leads_to_an_endpoint_as_well() {
        let from = Url::parse("https://a.test/bundle").unwrap();
        let to = |location| redirected(&from, location).map(String::from);
        assert_eq!(to("/other"), Ok("https://a.test/other".into()));
        assert_eq!(to("https://b.test/"), Ok("https://b.test/".into()));
        for bad in [
            "http://a.test/bundle",
            "https://user@b.test/",
            "//user@b.test/",
        ] {
            assert!(to(bad).is_err(), "{bad}");
        }
    }
}
