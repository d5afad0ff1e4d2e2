//! Single values, valid once they exist.

mod server;
mod store;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ah_identity_provider::exec::{ExecCommand, NoCommand};
use ah_identity_provider::spiffe::Endpoint;
use ah_identity_provider::vault::Secret;
use spiffe::SpiffeId;

pub use server::{Host, RemoteServer, is_loopback};
pub use store::{DbUrl, audit_target};

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
    let parsed = with_unit(text, "10s, 1m or 500ms")?;
    if parsed.is_zero() || parsed > Duration::from_secs(24 * 60 * 60) {
        return Err(Wrong::new("must be more than 0 and at most 1day"));
    }
    Ok(parsed)
}

/// The life of a certificate, in whole seconds, such as `24h` or `90days`: at most ten years.
pub fn certificate_life(text: &str) -> Result<Duration, Wrong> {
    let parsed = with_unit(text, "24h or 90days")?;
    if parsed.as_secs() == 0 || parsed > Duration::from_secs(3650 * 24 * 60 * 60) {
        return Err(Wrong::new("must be at least 1s and at most 3650days"));
    }
    Ok(Duration::from_secs(parsed.as_secs()))
}

fn with_unit(text: &str, examples: &str) -> Result<Duration, Wrong> {
    humantime::parse_duration(text.trim()).map_err(|error| {
        let wrong = if text.trim().parse::<f64>().is_ok() {
            Wrong::new("a unit is missing")
        } else {
            Wrong::new(error.to_string())
        };
        wrong.hint(format!("write a number with its unit, such as {examples}"))
    })
}

/// A secret: any text, which no error shows.
pub fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text.trim().to_owned()))
}

/// A URI to be a SAN. A SPIFFE ID must be a whole one.
pub fn uri_san(text: &str) -> Result<String, Wrong> {
    let text = text.trim();
    if text
        .get(..9)
        .is_some_and(|start| start.eq_ignore_ascii_case("spiffe://"))
    {
        return Ok(spiffe_id(text)?.to_string());
    }
    let uri = text.parse::<http::Uri>().ok();
    if uri.is_none_or(|uri| uri.scheme().is_none()) || text.contains(',') {
        return Err(Wrong::new("not a URI with a scheme")
            .hint("write it like spiffe://example.org/ah/agent/executor-1"));
    }
    Ok(text.to_owned())
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

/// `--exec-command` (EX-1).
pub fn exec_command(text: &str) -> Result<ExecCommand, Wrong> {
    text.parse().map_err(|error: NoCommand| {
        Wrong::new(error.to_string())
            .hint("write it as in a shell, with quotes around what has spaces; no shell is run, so `sh -c '…'` is needed for pipes and variables")
    })
}

/// Where a SPIFFE Workload API is (AP-4).
pub fn endpoint(text: &str) -> Result<Endpoint, Wrong> {
    let forms =
        "write it like /run/spire/agent.sock, unix:///run/spire/agent.sock or tcp://127.0.0.1:8000";
    let endpoint = text.parse::<Endpoint>();
    endpoint.map_err(|wrong| Wrong::new(wrong.to_string()).hint(forms))
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
mod tests;
