//! Which of the ways to trust the server the first time is configured: exactly one may be.

use std::net::IpAddr;

use url::Url;

use super::file::AgentBlock;
use super::{Bootstrap, TrustBundleFormat};
use crate::error::ConfigError;

pub(super) fn from(agent: &AgentBlock) -> Result<Bootstrap, ConfigError> {
    let ways = [
        ("insecure_bootstrap", agent.insecure_bootstrap),
        ("trust_bundle_path", !agent.trust_bundle_path.is_empty()),
        ("trust_bundle_url", !agent.trust_bundle_url.is_empty()),
        (
            "trust_bundle_spiffe_workload_api",
            !agent.trust_bundle_spiffe_workload_api.is_empty(),
        ),
    ];
    let chosen: Vec<&str> = ways
        .iter()
        .filter(|(_, chosen)| *chosen)
        .map(|(key, _)| *key)
        .collect();
    if chosen.len() > 1 {
        return ConfigError::rule(format!(
            "only one of {} can be specified",
            chosen.join(", ")
        ));
    }
    let format = format(&agent.trust_bundle_format)?;
    let way = chosen.first().copied().unwrap_or_default();
    if !agent.trust_bundle_unix_socket.is_empty() && way != "trust_bundle_url" {
        return ConfigError::rule("trust_bundle_unix_socket needs trust_bundle_url");
    }
    match way {
        "insecure_bootstrap" => Ok(Bootstrap::Insecure),
        "trust_bundle_path" => Ok(Bootstrap::File {
            path: agent.trust_bundle_path.clone().into(),
            format,
        }),
        "trust_bundle_url" => {
            let unix_socket = Some(&agent.trust_bundle_unix_socket).filter(|path| !path.is_empty());
            check_url(&agent.trust_bundle_url, unix_socket.is_some())?;
            Ok(Bootstrap::Url {
                url: agent.trust_bundle_url.clone(),
                unix_socket: unix_socket.map(Into::into),
                format,
            })
        }
        "trust_bundle_spiffe_workload_api" => {
            check_workload_api(&agent.trust_bundle_spiffe_workload_api)?;
            Ok(Bootstrap::WorkloadApi {
                address: agent.trust_bundle_spiffe_workload_api.clone(),
            })
        }
        _ => ConfigError::rule(
            "trust_bundle_path, trust_bundle_url or trust_bundle_spiffe_workload_api must be configured unless \
             insecure_bootstrap is set",
        ),
    }
}

fn format(text: &str) -> Result<TrustBundleFormat, ConfigError> {
    match text {
        "" | "pem" => Ok(TrustBundleFormat::Pem),
        "spiffe" => Ok(TrustBundleFormat::Spiffe),
        other => ConfigError::rule(format!(
            "trust_bundle_format {other:?} is unknown; use \"pem\" or \"spiffe\""
        )),
    }
}

/// Over a unix socket the agent adds query parameters of its own, whose names are therefore taken.
fn check_url(text: &str, over_unix_socket: bool) -> Result<(), ConfigError> {
    let url = Url::parse(text).map_err(|why| {
        let scheme = if over_unix_socket { "http" } else { "https" };
        ConfigError::Rule(format!(
            "trust_bundle_url {text:?} is not a URL ({why}); write it as in {scheme}://host/path"
        ))
    })?;
    if !over_unix_socket {
        if url.scheme() != "https" {
            return ConfigError::rule(format!(
                "trust_bundle_url must start with https://, not {}:",
                url.scheme()
            ));
        }
        return Ok(());
    }
    if url.scheme() != "http" {
        return ConfigError::rule(
            "trust_bundle_url must start with http:// when used with trust_bundle_unix_socket",
        );
    }
    let taken = |name: &str| name.starts_with("spiffe-") || name.starts_with("spire-");
    if let Some((name, _)) = url.query_pairs().find(|(name, _)| taken(name)) {
        return ConfigError::rule(format!(
            "trust_bundle_url has the query parameter {name:?}; names that start with spiffe- or spire- are taken"
        ));
    }
    Ok(())
}

/// SPIFFE Workload Endpoint §4: `unix:` with a path, or `tcp:` with an IP address and port, and nothing else.
fn check_workload_api(text: &str) -> Result<(), ConfigError> {
    let wrong = |what: &str| {
        ConfigError::rule(format!(
            "trust_bundle_spiffe_workload_api {text:?} is not the address of a Workload API: {what}"
        ))
    };
    let Ok(url) = Url::parse(text) else {
        return wrong("write it as in unix:///run/spire/agent.sock or tcp://127.0.0.1:8000");
    };
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return wrong("it may have no user, query or fragment");
    }
    match url.scheme() {
        "unix" if url.cannot_be_a_base() => wrong("the path of a unix: address must start with /"),
        "unix" if matches!(url.path(), "" | "/") => wrong("the path of the socket is missing"),
        "unix" => Ok(()),
        "tcp" => {
            let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
            match (host.parse::<IpAddr>(), url.port(), url.path()) {
                (Ok(_), Some(_), "" | "/") => Ok(()),
                _ => wrong("a tcp: address is an IP address and a port"),
            }
        }
        _ => wrong("it must start with unix: or tcp:"),
    }
}
