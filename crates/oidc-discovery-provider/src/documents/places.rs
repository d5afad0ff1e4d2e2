//! Where the documents are, and what is told of that.

use ah_spire_plugin::oidc::{OidcConfig, WebUrl};

/// Paths, and the URLs that are told.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// Path of the discovery document.
    pub(super) discovery: String,
    /// Path of the keys.
    pub(super) keys: String,
    prefix: String,
    jwt_issuer: Option<WebUrl>,
    jwks_uri: Option<WebUrl>,
}

impl Places {
    pub(super) fn new(config: &OidcConfig) -> Self {
        let prefix = &config.server_path_prefix;
        Self {
            discovery: below(prefix, ".well-known/openid-configuration"),
            keys: below(prefix, "keys"),
            prefix: prefix.clone(),
            jwt_issuer: config.jwt_issuer.clone(),
            jwks_uri: config.jwks_uri.clone(),
        }
    }

    /// `jwt_issuer`, or the prefix at the host that was asked.
    pub(super) fn issuer(&self, scheme: &str, host: &str) -> String {
        match (&self.jwt_issuer, self.prefix.as_str()) {
            (Some(issuer), _) => issuer.text.clone(),
            (None, "/") => format!("{scheme}://{host}"),
            (None, prefix) => format!("{scheme}://{host}{prefix}"),
        }
    }

    /// `jwks_uri`; `keys` below `jwt_issuer`, which upstream has meant to end since its release 1.13; or at the host that
    /// was asked.
    pub(super) fn jwks_uri(&self, scheme: &str, host: &str) -> String {
        match (&self.jwks_uri, &self.jwt_issuer) {
            (Some(told), _) => told.text.clone(),
            (None, Some(issuer)) => {
                let keys = below(&issuer.path, "keys");
                format!("{}://{}{keys}", issuer.scheme, issuer.host)
            }
            (None, None) => format!("{scheme}://{host}{}", self.keys),
        }
    }
}

/// The path of `name` below `base`, from the root and without empty segments, `.` and `..`.
fn below(base: &str, name: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in base.split('/').chain(name.split('/')) {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn paths_are_joined_as_upstream_s() {
        for (base, joined) in [
            ("", "/keys"),
            ("/", "/keys"),
            ("/a", "/a/keys"),
            ("/a/", "/a/keys"),
            ("//a/./b/../c", "/a/c/keys"),
        ] {
            assert_eq!(below(base, "keys"), joined, "{base}");
        }
    }
}
