//! What the vault provider works with: values that are valid once they exist.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;

use super::Secret;

/// Everything the vault provider needs to know (VA-1 to VA-15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultConfig {
    /// Servers, in the order they are tried (VA-1). At least one.
    pub addresses: Vec<VaultAddress>,
    /// `X-Vault-Namespace` (VA-8).
    pub namespace: Option<String>,
    /// How the servers are judged, and who we are to them.
    pub tls: VaultTls,
    /// Where certificates come from (VA-2).
    pub pki: PkiPath,
    /// How to log in (VA-3).
    pub login: VaultLogin,
    /// What the certificate says (VA-9 to VA-11).
    pub request: CertificateRequest,
    /// Share of a certificate's life after which it is renewed (VA-12).
    pub renewal_threshold: Share,
    /// Further attempts of one request (VA-13).
    pub retry: Retry,
    /// Directory of the token cache (VA-15); `None` keeps no token on disk.
    pub token_cache: Option<PathBuf>,
}

/// TLS towards Vault (VA-8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VaultTls {
    /// Roots in PEM; without it, those of the system.
    pub ca: Option<PathBuf>,
    /// Chain and key in PEM that we present.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// A value of a setting that cannot be taken, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {instead}")]
pub struct BadValue {
    /// What is wrong.
    pub what: String,
    /// What to write.
    pub instead: &'static str,
}

impl BadValue {
    fn new(what: impl Into<String>, instead: &'static str) -> Self {
        Self {
            what: what.into(),
            instead,
        }
    }
}

/// `--vault-addr`: where one server is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VaultAddress {
    tls: bool,
    /// Without brackets.
    host: String,
    port: u16,
    /// Path before `/v1`, as behind a gateway; empty, or it begins with `/`.
    prefix: String,
}

impl VaultAddress {
    /// Whether it is HTTPS.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// DNS name or IP address, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path before `/v1`.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// `host:port` as a Host header has it.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether others could read what is sent there.
    pub(super) fn in_clear(&self) -> bool {
        let local = self.host == "localhost"
            || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        !self.tls && !local
    }
}

impl FromStr for VaultAddress {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        const INSTEAD: &str = "write it like https://vault.example.com:8200";
        let text = text.trim();
        let uri: Uri = text
            .parse()
            .map_err(|_| BadValue::new("not a URL", INSTEAD))?;
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) => {
                let what = format!("{scheme} is not a way to reach Vault");
                return Err(BadValue::new(what, INSTEAD));
            }
            None => return Err(BadValue::new("the scheme is missing", INSTEAD)),
        };
        let authority = uri
            .authority()
            .ok_or_else(|| BadValue::new("the host is missing", INSTEAD))?;
        if authority.as_str().contains('@') {
            let what = "user and password have no place in it";
            return Err(BadValue::new(what, INSTEAD));
        }
        if uri.query().is_some() {
            return Err(BadValue::new("a query has no place in it", INSTEAD));
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        if host.is_empty() {
            return Err(BadValue::new("the host is missing", INSTEAD));
        }
        let path = uri.path().trim_end_matches('/');
        // What the API prepends itself is easily copied along.
        let prefix = path.strip_suffix("/v1").unwrap_or(path);
        Ok(Self {
            tls,
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            prefix: prefix.to_owned(),
        })
    }
}

impl fmt::Display for VaultAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.prefix)
    }
}

/// `--vault-pki-path`: `MOUNT/issue/ROLE` or `MOUNT/sign/ROLE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PkiPath {
    mount: String,
    /// Whether the key is made here and only signed for there.
    sign: bool,
    role: String,
}

impl PkiPath {
    /// Where the PKI engine is mounted.
    pub fn mount(&self) -> &str {
        &self.mount
    }

    /// The role.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Whether the key is made here and never leaves.
    pub fn sign(&self) -> bool {
        self.sign
    }
}

impl FromStr for PkiPath {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        const INSTEAD: &str =
            "write MOUNT/issue/ROLE or MOUNT/sign/ROLE, such as pki_int/sign/executor";
        let path = text.trim().trim_matches('/');
        let path = path.strip_prefix("v1/").unwrap_or(path);
        let mut parts = path.rsplitn(3, '/');
        let (Some(role), Some(verb), Some(mount)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(BadValue::new("not a path of a PKI role", INSTEAD));
        };
        let sign = match verb {
            "issue" => false,
            "sign" => true,
            other => {
                let what = format!("{other:?} is neither issue nor sign");
                return Err(BadValue::new(what, INSTEAD));
            }
        };
        api_path(mount)?;
        api_path(role)?;
        Ok(Self {
            mount: mount.to_owned(),
            sign,
            role: role.to_owned(),
        })
    }
}

impl fmt::Display for PkiPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.sign { "sign" } else { "issue" };
        write!(f, "{}/{verb}/{}", self.mount, self.role)
    }
}

/// A mount or another path of Vault's API, which can stand in a URL as it is.
pub fn api_path(text: &str) -> Result<String, BadValue> {
    let path = text.trim().trim_matches('/');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    let steps = path
        .split('/')
        .all(|step| !step.is_empty() && step != "." && step != "..");
    if !steps || !path.bytes().all(plain) {
        return Err(BadValue::new(
            format!("{text:?} is not a path in Vault"),
            "use letters, digits, `-`, `_`, `.`, and `/` between steps",
        ));
    }
    Ok(path.to_owned())
}

/// How to get a token (VA-3 to VA-7), and where the method is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultLogin {
    /// The method with what it takes.
    pub method: LoginMethod,
    /// Mount of the method, without `auth/`. A token has none.
    pub mount: String,
}

/// A way to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginMethod {
    /// VA-4
    AppRole {
        /// Role id.
        role_id: Material,
        /// Secret id, or a token that wraps it. A role may ask for none (`bind_secret_id=false`).
        secret_id: Option<Material>,
        /// Whether the secret id has to be unwrapped first.
        wrapped: bool,
    },
    /// VA-5
    Kubernetes {
        /// Role of the auth mount.
        role: String,
        /// The service account's token.
        jwt: PathBuf,
    },
    /// VA-6
    Jwt {
        /// Role of the auth mount; without one, the mount's default.
        role: Option<String>,
        /// The JWT.
        jwt: PathBuf,
    },
    /// The client certificate of [`VaultTls::client`] logs in.
    Cert {
        /// Name of the certificate role; without one, Vault looks for a match.
        role: Option<String>,
    },
    /// VA-7
    Token(Material),
}

impl LoginMethod {
    /// The name on the command line, and of Vault's default mount.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::AppRole { .. } => "approle",
            Self::Kubernetes { .. } => "kubernetes",
            Self::Jwt { .. } => "jwt",
            Self::Cert { .. } => "cert",
            Self::Token(_) => "token",
        }
    }
}

/// Something secret or half secret, given once or kept in a file that is read again at each login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Material {
    /// Given by flag or environment.
    Given(Secret),
    /// First line of this file.
    File(PathBuf),
}

/// What is asked of the PKI engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateRequest {
    /// Common name (VA-9).
    pub common_name: String,
    /// URI SANs (VA-10).
    pub uris: Vec<String>,
    /// DNS SANs besides the common name.
    pub dns: Vec<String>,
    /// IP SANs.
    pub ips: Vec<IpAddr>,
    /// Life asked for; the role's own without (VA-11).
    pub ttl: Option<Duration>,
}

/// A share between 0 and 1, both excluded (VA-12).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share(f64);

// It is never NaN.
impl Eq for Share {}

impl Share {
    /// Two thirds.
    pub const TWO_THIRDS: Self = Self(2.0 / 3.0);

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl FromStr for Share {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        const INSTEAD: &str = "write a number between 0 and 1, such as 0.75 or 2/3";
        let number = |text: &str| text.trim().parse::<f64>().ok();
        let value = match text.split_once('/') {
            Some((above, below)) => number(above).zip(number(below)).map(|(a, b)| a / b),
            None => number(text),
        };
        match value {
            Some(value) if value > 0.0 && value < 1.0 => Ok(Self(value)),
            Some(_) => Err(BadValue::new("not between 0 and 1", INSTEAD)),
            None => Err(BadValue::new("not a number", INSTEAD)),
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How often, and how soon, one request is tried again (VA-13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts after the first.
    pub max: u32,
    /// Before the first of them; it doubles each time.
    pub delay: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max: 5,
            delay: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // VA-1
    #[test]
    fn va_1_addresses_as_people_write_them() {
        let shown = |text: &str| text.parse::<VaultAddress>().map(|a| a.to_string());
        for (text, expected) in [
            (
                "https://vault.example.com:8200",
                "https://vault.example.com:8200",
            ),
            ("https://vault.example.com", "https://vault.example.com:443"),
            ("http://127.0.0.1:8200/", "http://127.0.0.1:8200"),
            ("http://[::1]:8200", "http://[::1]:8200"),
            (
                "https://gw.example.com/vault/v1/",
                "https://gw.example.com:443/vault",
            ),
        ] {
            assert_eq!(shown(text).as_deref(), Ok(expected), "{text}");
        }
        for (text, word) in [
            ("vault.example.com:8200", "scheme"),
            ("ftp://vault.example.com", "ftp"),
            ("https://u:p@vault.example.com", "password"),
            ("", "URL"),
        ] {
            let error = shown(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    // VA-2
    #[test]
    fn va_2_paths_name_mount_verb_and_role() {
        let path: PkiPath = "pki_int/issue/executor".parse().unwrap();
        assert_eq!(
            (path.mount(), path.sign(), path.role()),
            ("pki_int", false, "executor")
        );
        let path: PkiPath = "/v1/team/a/pki/sign/x-1".parse().unwrap();
        assert_eq!(
            (path.mount(), path.sign(), path.role()),
            ("team/a/pki", true, "x-1")
        );
        assert_eq!(path.to_string(), "team/a/pki/sign/x-1");
        for text in [
            "pki/executor",
            "pki/roles/executor",
            "a b/issue/x",
            "../issue/x",
            "pki/issue/x?y",
        ] {
            assert!(text.parse::<PkiPath>().is_err(), "{text}");
        }
    }

    // VA-12
    #[test]
    fn va_12_a_share_is_between_0_and_1() {
        assert_eq!("0.75".parse::<Share>().unwrap().get(), 0.75);
        assert_eq!("2/3".parse::<Share>().unwrap(), Share::TWO_THIRDS);
        for text in ["0", "1", "1.5", "-1", "NaN", "3/0", "x", "inf"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }

    // VA-14
    #[test]
    fn va_14_no_secret_is_in_debug() {
        let login = LoginMethod::Token(Material::Given(Secret::new("s.hidden".to_owned())));
        assert!(!format!("{login:?}").contains("hidden"));
    }
}
