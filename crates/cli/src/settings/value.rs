//! Single values, valid once they exist.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use spiffe::{SpiffeId, TrustDomain};

/// The port of the fleet (contract §9).
pub const FLEET_PORT: u16 = 4433;

/// A value that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// What is wrong with it.
    pub what: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl Wrong {
    fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: None,
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Wrong {}

/// A length of time such as `10s`, `1m 30s` or `500ms`: more than nothing, at most a day.
pub fn duration(text: &str) -> Result<Duration, Wrong> {
    let forms = "write a number with its unit, such as 10s, 1m or 500ms";
    let parsed = humantime::parse_duration(text.trim()).map_err(|e| {
        if text.trim().parse::<f64>().is_ok() {
            Wrong::new("a unit is missing").hint(forms)
        } else {
            Wrong::new(e.to_string()).hint(forms)
        }
    })?;
    if parsed.is_zero() || parsed > Duration::from_secs(24 * 60 * 60) {
        return Err(Wrong::new("must be more than 0 and at most 1day"));
    }
    Ok(parsed)
}

/// An address to listen on.
pub fn listen_address(text: &str) -> Result<SocketAddr, Wrong> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        let with_port = SocketAddr::new(ip, FLEET_PORT);
        return Err(Wrong::new("the port is missing").hint(format!("write {with_port}")));
    }
    let wrong = Wrong::new("not an IP address and port");
    if let Some(port) = text.strip_prefix(':').or(text.strip_prefix("*:")) {
        return Err(wrong.hint(format!(
            "write 0.0.0.0:{port} or [::]:{port} for every address of this machine"
        )));
    }
    if let Some(port) = text.strip_prefix("localhost:") {
        return Err(wrong.hint(format!("write 127.0.0.1:{port} or [::1]:{port}")));
    }
    if let Some((_, rest)) = text.split_once("://") {
        return Err(wrong.hint(format!("write it without a scheme: {rest}")));
    }
    Err(wrong.hint("write it like 0.0.0.0:4433 or [::]:4433"))
}

/// A SPIFFE ID.
pub fn spiffe_id(text: &str) -> Result<SpiffeId, Wrong> {
    SpiffeId::new(text)
        .map_err(|e| Wrong::new(e.to_string()).hint("write it like spiffe://example.org/ah/serve"))
}

/// The host of an access point.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// DNS name, lower case, without a final dot.
    Dns(String),
    /// IP address.
    Ip(IpAddr),
}

impl Host {
    /// Whether it can only mean this machine.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Dns(name) => name == "localhost" || name.ends_with(".localhost"),
            Self::Ip(ip) => is_loopback(*ip),
        }
    }
}

/// Whether `ip` can only mean this machine. An IPv4 address mapped into IPv6 counts as what it maps.
pub fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// `--remote-server` (EN-1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteServer {
    /// Whom to dial, and by default the name that the certificate must carry.
    pub host: Host,
    /// The port; [`FLEET_PORT`] when none was written.
    pub port: u16,
}

impl FromStr for RemoteServer {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let form = "write it like https://access-point.example.com:4433";
        let lower = text.to_ascii_lowercase();
        let Some(rest) = lower.strip_prefix("https://") else {
            return Err(match lower.split_once("://") {
                Some((scheme, rest)) => {
                    Wrong::new(format!("the scheme is {scheme}, and only https is spoken"))
                        .hint(format!("write https://{rest}"))
                }
                None => Wrong::new("the scheme is missing").hint(format!("write https://{lower}")),
            });
        };
        if rest.contains('@') {
            return Err(Wrong::new("a user name has no place here").hint(form));
        }
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#']) {
            return Err(Wrong::new("a path or query has no place here").hint(form));
        }
        let (host, port) =
            split_port(authority).ok_or_else(|| Wrong::new("not a host and port").hint(form))?;
        let port = match port {
            None => FLEET_PORT,
            Some(port) => match port.parse() {
                Ok(port) if port > 0 => port,
                _ => {
                    return Err(
                        Wrong::new(format!("'{port}' is not a port")).hint("ports are 1 to 65535")
                    );
                }
            },
        };
        let host = match host {
            Bracketed::Ipv6(ip) => Host::Ip(ip.into()),
            Bracketed::Plain(host) => parse_host(host)?,
        };
        Ok(Self { host, port })
    }
}

enum Bracketed<'a> {
    Ipv6(Ipv6Addr),
    Plain(&'a str),
}

fn split_port(authority: &str) -> Option<(Bracketed<'_>, Option<&str>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (ip, after) = rest.split_once(']')?;
        let port = match after {
            "" => None,
            after => Some(after.strip_prefix(':')?),
        };
        return Some((Bracketed::Ipv6(ip.parse().ok()?), port));
    }
    match authority.split_once(':') {
        None => Some((Bracketed::Plain(authority), None)),
        // More than one colon is an IPv6 address without its brackets.
        Some((_, port)) if port.contains(':') => None,
        Some((host, port)) => Some((Bracketed::Plain(host), Some(port))),
    }
}

fn parse_host(host: &str) -> Result<Host, Wrong> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Host::Ip(ip));
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    // A last label of digits is never a DNS name: it is an address with a typing error (RFC 1123 §2.1).
    let last = name.rsplit('.').next().unwrap_or_default();
    if !is_dns_name(name) || last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Wrong::new(format!(
            "'{host}' is neither a DNS name nor an IP address"
        )));
    }
    Ok(Host::Dns(name.to_owned()))
}

/// Letters, digits, `-` and `_` in labels of 1 to 63 bytes, 253 bytes in all (RFC 1035 §2.3.4).
fn is_dns_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

/// `HOST:PORT`, as error texts have it (ER-1).
impl fmt::Display for RemoteServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// `--name` (EN-6): 1 to 253 bytes of text without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(String);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        if !(1..=253).contains(&text.len()) {
            return Err(Wrong::new(format!(
                "a name has 1 to 253 bytes, and this has {}",
                text.len()
            )));
        }
        if text.chars().any(char::is_control) {
            return Err(Wrong::new("a name has no control characters"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `--label` (EN-8), within the limits of the protocol's `Hello.labels`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Label {
    /// 1 to 63 bytes.
    pub key: String,
    /// At most 255 bytes.
    pub value: String,
}

impl FromStr for Label {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let Some((key, value)) = text.split_once('=') else {
            return Err(Wrong::new("the '=' is missing").hint("write it like site=berlin"));
        };
        if !(1..=63).contains(&key.len()) {
            return Err(Wrong::new(format!(
                "a label's key has 1 to 63 bytes, and this has {}",
                key.len()
            )));
        }
        if value.len() > 255 {
            return Err(Wrong::new(format!(
                "a label's value has at most 255 bytes, and this has {}",
                value.len()
            )));
        }
        if text.chars().any(char::is_control) {
            return Err(Wrong::new("a label has no control characters"));
        }
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    }
}

/// `--executor-san-uri-prefix` (AP-5), without a final slash: it matches on whole path segments.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UriPrefix(String);

impl UriPrefix {
    /// The prefix as it was written, so that its final slash, if any, is kept.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UriPrefix {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let form = "write it like spiffe://example.org/ah/agent/";
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(Wrong::new("the scheme is missing").hint(form));
        };
        if scheme.is_empty() || rest.is_empty() || text.chars().any(|c| c.is_control() || c == ' ')
        {
            return Err(Wrong::new("not a URI").hint(form));
        }
        if scheme.eq_ignore_ascii_case("spiffe") {
            let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
            // SPIFFE-ID §2.1: lower case, so that such a rule would never match.
            if domain.chars().any(|c| c.is_ascii_uppercase()) {
                return Err(
                    Wrong::new(format!("trust domain '{domain}' has upper case"))
                        .hint(format!("write {}", domain.to_ascii_lowercase())),
                );
            }
            TrustDomain::new(domain)
                .map_err(|e| Wrong::new(format!("trust domain '{domain}': {e}")).hint(form))?;
            let path = path.strip_suffix('/').unwrap_or(path);
            if !path.is_empty() {
                SpiffeId::new(format!("spiffe://{domain}/{path}"))
                    .map_err(|e| Wrong::new(e.to_string()).hint(form))?;
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for UriPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `--executor-san-dns` (AP-6): a DNS name, lower case; `*` may stand for the whole first label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsPattern(String);

impl DnsPattern {
    /// The pattern.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DnsPattern {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let lower = text.trim().to_ascii_lowercase();
        let name = lower.strip_suffix('.').unwrap_or(&lower);
        let fixed = name.strip_prefix("*.").unwrap_or(name);
        if fixed.contains('*') {
            return Err(Wrong::new("'*' stands for the whole first label only")
                .hint("write it like *.example.com"));
        }
        if !is_dns_name(fixed) {
            return Err(Wrong::new(format!("'{text}' is not a DNS name")));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for DnsPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `--executor-san-ip` (AP-7): an address, or all that share its first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpRange {
    /// An address of the range.
    pub address: IpAddr,
    /// How many of its first bits count: at most 32 or 128.
    pub prefix_length: u8,
}

impl FromStr for IpRange {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let text = text.trim();
        let (ip, length) = match text.split_once('/') {
            Some((ip, length)) => (ip, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = ip.parse().map_err(|_| {
            Wrong::new(format!("'{ip}' is not an IP address")).hint("write 10.0.0.7 or 10.0.0.0/8")
        })?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix_length = match length {
            None => bits,
            Some(length) => match length.parse() {
                Ok(length) if length <= bits => length,
                _ => {
                    return Err(Wrong::new(format!(
                        "'/{length}' is not a prefix length of 0 to {bits}"
                    )));
                }
            },
        };
        Ok(Self {
            address,
            prefix_length,
        })
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

/// `--db` (AP-11). `Debug` and `Display` hide a password.
#[derive(Clone, PartialEq, Eq)]
pub enum DbUrl {
    /// The file of an SQLite database.
    Sqlite(PathBuf),
    /// The whole URL of a PostgreSQL database.
    Postgres(String),
}

impl FromStr for DbUrl {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let form = "write sqlite:PATH or postgres://USER@HOST/DATABASE";
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.starts_with(":memory:") {
                // The registry is durable (RG-1).
                return Err(Wrong::new(
                    "a file is needed, so that the registry outlives the process",
                )
                .hint(form));
            }
            return Ok(Self::Sqlite(PathBuf::from(path)));
        }
        match text.split_once("://") {
            Some(("postgres" | "postgresql", rest)) if !rest.is_empty() => {
                Ok(Self::Postgres(text.to_owned()))
            }
            // The text may hold a password and is not repeated.
            Some(("postgres" | "postgresql", _)) => {
                Err(Wrong::new("the host is missing").hint(form))
            }
            _ => Err(Wrong::new("neither sqlite: nor postgres://").hint(form)),
        }
    }
}

impl fmt::Display for DbUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => {
                // A password may stand in the authority or in the query; neither is shown.
                let url = url.split('?').next().unwrap_or_default();
                let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
                match rest.rsplit_once('@') {
                    Some((user, host)) => {
                        let user = user.split(':').next().unwrap_or_default();
                        write!(f, "postgres://{user}@{host}")
                    }
                    None => write!(f, "postgres://{rest}"),
                }
            }
        }
    }
}

impl fmt::Debug for DbUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DbUrl({self})")
    }
}

/// `--audit-log` (AP-12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditTarget {
    /// A file.
    File(PathBuf),
    /// Standard output.
    Stdout,
    /// The journal of systemd.
    Journald,
}

impl FromStr for AuditTarget {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        Ok(match text {
            "" => return Err(Wrong::new("a path is missing")),
            "-" => Self::Stdout,
            "journald" => Self::Journald,
            path => Self::File(PathBuf::from(path)),
        })
    }
}

impl fmt::Display for AuditTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Stdout => f.write_str("-"),
            Self::Journald => f.write_str("journald"),
        }
    }
}

/// Where the executor `name` listens for `ah agent status` by default (EN-11): `<run>/executor-<name>.sock`.
///
/// Bytes of the name that have no place in a file name are written `%XX`. A path longer than what a
/// socket address holds (107 bytes, `unix(7)`) keeps the beginning of the name and a hash of all of it.
pub fn default_status_socket(run: &Path, name: &Name) -> PathBuf {
    let mut plain = String::new();
    for byte in name.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            plain.push(char::from(byte));
        } else {
            plain.push_str(&format!("%{byte:02X}"));
        }
    }
    let path = run.join(format!("executor-{plain}.sock"));
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return path;
    }
    let beginning: String = plain.chars().take(24).collect();
    let hash = fnv1a(name.as_str().as_bytes());
    run.join(format!("executor-{beginning}-{hash:016x}.sock"))
}

/// Bytes that a socket's path may have: `sun_path` less its final zero.
pub const MAX_SOCKET_PATH: usize = 107;

/// FNV-1a, 64 bits: the same in every build, which the standard library's hasher does not promise.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> Result<String, String> {
        let parsed = text.parse::<RemoteServer>();
        parsed.map(|s| s.to_string()).map_err(|e| e.to_string())
    }

    // EN-1
    #[test]
    fn a_remote_server_is_https_host_and_port() {
        for (text, expected) in [
            ("https://127.0.0.1:4433", "127.0.0.1:4433"),
            (
                "https://Access-Point.Example.com",
                "access-point.example.com:4433",
            ),
            ("https://[::1]:9", "[::1]:9"),
            ("https://[::1]", "[::1]:4433"),
            ("HTTPS://a.b.:1/", "a.b:1"),
        ] {
            assert_eq!(server(text).unwrap(), expected);
        }
        for (text, part) in [
            (
                "http://a:4433",
                "only https is spoken; write https://a:4433",
            ),
            ("a:4433", "the scheme is missing; write https://a:4433"),
            ("https://u:p@a:4433", "user name"),
            ("https://a:4433/x", "path"),
            ("https://a?x", "path or query"),
            ("https://a:0", "not a port"),
            ("https://a:65536", "not a port"),
            ("https://::1:4433", "not a host and port"),
            ("https://[::1", "not a host and port"),
            ("https://", "neither"),
            ("https://192.168.1.300", "neither"),
            ("https://-a", "neither"),
        ] {
            let error = server(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    // EN-9, AP-16
    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("1m").unwrap(), Duration::from_secs(60));
        assert!(duration("10").unwrap_err().to_string().contains("10s, 1m"));
        for bad in ["", "0s", "2days", "-1s", "ten", "1e999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    // AP-1
    #[test]
    fn a_listen_address_without_port_is_answered_with_the_right_one() {
        let hint = |text| listen_address(text).unwrap_err().hint.unwrap();
        assert_eq!(hint("0.0.0.0"), "write 0.0.0.0:4433");
        assert_eq!(hint("::1"), "write [::1]:4433");
        assert!(hint(":4433").contains("0.0.0.0:4433"));
        assert!(hint("localhost:1").contains("127.0.0.1:1"));
        assert!(hint("https://0.0.0.0:1").ends_with("0.0.0.0:1"));
        assert!(listen_address("[::]:0").is_ok());
    }

    // EN-8
    #[test]
    fn labels_keep_the_limits_of_the_protocol() {
        let label: Label = "a=b=c".parse().unwrap();
        assert_eq!((label.key.as_str(), label.value.as_str()), ("a", "b=c"));
        assert!("a=".parse::<Label>().is_ok());
        let long = |k: usize, v: usize| format!("{}={}", "k".repeat(k), "v".repeat(v));
        assert!(long(63, 255).parse::<Label>().is_ok());
        for bad in [&long(64, 1), &long(1, 256), "=x", "x", "a=\n"] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }

    // AP-5, AP-6, AP-7
    #[test]
    fn admission_rules_are_checked_when_they_are_read() {
        assert!(
            "spiffe://example.org/ah/agent/"
                .parse::<UriPrefix>()
                .is_ok()
        );
        assert!("spiffe://example.org".parse::<UriPrefix>().is_ok());
        assert!("https://example.org/x".parse::<UriPrefix>().is_ok());
        for bad in [
            "",
            "example.org",
            "spiffe://",
            "spiffe://UPPER/x",
            "spiffe://a//b",
            "a://x y",
        ] {
            assert!(bad.parse::<UriPrefix>().is_err(), "{bad}");
        }
        let pattern: DnsPattern = "*.Example.com".parse().unwrap();
        assert_eq!(pattern.as_str(), "*.example.com");
        for bad in ["", "*", "a.*.b", "*a.b", "a..b", "https://a"] {
            assert!(bad.parse::<DnsPattern>().is_err(), "{bad}");
        }
        let range: IpRange = "10.0.0.0/8".parse().unwrap();
        assert_eq!(range.prefix_length, 8);
        assert_eq!("::1".parse::<IpRange>().unwrap().prefix_length, 128);
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "::1/129",
            "1.1.1.1/-1",
            "1.1.1.1/256",
        ] {
            assert!(bad.parse::<IpRange>().is_err(), "{bad}");
        }
    }

    // AP-11: secrets do not show.
    #[test]
    fn a_database_url_shows_no_password() {
        for text in [
            "postgres://ah:hunter2@db:5432/fleet",
            "postgresql://ah@db/fleet?password=hunter2",
            "postgres://ah:hun@ter2@db/fleet",
        ] {
            let url: DbUrl = text.parse().unwrap();
            assert!(matches!(&url, DbUrl::Postgres(whole) if whole == text));
            let shown = format!("{url} {url:?}");
            assert!(!shown.contains("ter2"), "{shown}");
            assert!(shown.contains("ah@db"), "{shown}");
        }
        let url: DbUrl = "sqlite:///var/x.db".parse().unwrap();
        assert_eq!(url, DbUrl::Sqlite("/var/x.db".into()));
        for bad in ["", "sqlite:", "sqlite::memory:", "mysql://x", "postgres://"] {
            assert!(bad.parse::<DbUrl>().is_err(), "{bad}");
        }
    }

    // EN-11
    #[test]
    fn every_name_has_a_status_socket_that_can_be_bound() {
        let run = Path::new("/run/ah");
        let name = |text: &str| text.parse::<Name>().unwrap();
        assert_eq!(
            default_status_socket(run, &name("worker-1")),
            Path::new("/run/ah/executor-worker-1.sock")
        );
        assert_eq!(
            default_status_socket(run, &name("../a b")),
            Path::new("/run/ah/executor-..%2Fa%20b.sock")
        );
        let one = default_status_socket(run, &name(&"x".repeat(253)));
        let other = default_status_socket(run, &name(&"x".repeat(252)));
        assert!(one.as_os_str().len() <= MAX_SOCKET_PATH);
        assert_ne!(one, other);
        assert!("".parse::<Name>().is_err() && "x".repeat(254).parse::<Name>().is_err());
    }
}
