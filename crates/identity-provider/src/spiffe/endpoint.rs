//! Where the Workload API is (SPIFFE Workload Endpoint §4).

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The address of a Workload API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port. The standard asks for no TLS there (SV-70), so that the private key crosses it as it is.
    Tcp(SocketAddr),
}

/// A text that names no Workload API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WrongEndpoint(String);

impl FromStr for Endpoint {
    type Err = WrongEndpoint;

    /// Reads `PATH`, `unix:PATH`, `unix://PATH`, `tcp:IP:PORT` or `tcp://IP:PORT` (AP-4, SV-72).
    fn from_str(text: &str) -> Result<Self, WrongEndpoint> {
        if let Some(address) = text.strip_prefix("tcp:") {
            let address = address.strip_prefix("//").unwrap_or(address);
            return address.parse().map(Self::Tcp).map_err(|_| {
                wrong(format!(
                    "'{address}' is not an IP address and port, and a tcp: endpoint is nothing else"
                ))
            });
        }
        let path = match text.strip_prefix("unix:") {
            Some(rest) => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                if !path.starts_with('/') {
                    return Err(wrong("the path of a unix: endpoint begins with '/'"));
                }
                if path.contains(['?', '#']) {
                    return Err(wrong("a unix: endpoint has no query and no fragment"));
                }
                path
            }
            None => match text.split_once("://") {
                Some((scheme, _)) => {
                    return Err(wrong(format!(
                        "an endpoint is unix: or tcp:, and not '{scheme}:'"
                    )));
                }
                None => text,
            },
        };
        if path.is_empty() || path.ends_with('/') {
            return Err(wrong("the path of a socket is missing"));
        }
        Ok(Self::Unix(path.into()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

fn wrong(what: impl Into<String>) -> WrongEndpoint {
    WrongEndpoint(what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    // AP-4, SV-72
    #[test]
    fn sv_72_each_form_of_an_endpoint_is_read() {
        for text in [
            "/run/spire/agent.sock",
            "unix:/run/spire/agent.sock",
            "unix:///run/spire/agent.sock",
        ] {
            let socket = Endpoint::Unix("/run/spire/agent.sock".into());
            assert_eq!(text.parse(), Ok(socket), "{text}");
        }
        assert_eq!(
            "agent.sock".parse(),
            Ok(Endpoint::Unix("agent.sock".into()))
        );
        for (text, address) in [
            ("tcp:127.0.0.1:8000", "127.0.0.1:8000"),
            ("tcp://127.0.0.1:8000", "127.0.0.1:8000"),
            ("tcp://[::1]:8000", "[::1]:8000"),
        ] {
            let tcp = Endpoint::Tcp(address.parse().unwrap());
            assert_eq!(text.parse(), Ok(tcp), "{text}");
        }
    }

    // SV-72: no host or query with unix, no name, path or missing port with tcp, no other scheme.
    #[test]
    fn sv_72_what_is_no_endpoint_is_refused() {
        for text in [
            "",
            "unix:",
            "unix://",
            "unix:///",
            "unix://host/agent.sock",
            "unix:agent.sock",
            "unix:///agent.sock?x=1",
            "unix:///agent.sock#x",
            "tcp:",
            "tcp://localhost:8000",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:8000/path",
            "tcp://user@127.0.0.1:8000",
            "http://127.0.0.1:8000",
            "/run/spire/",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
