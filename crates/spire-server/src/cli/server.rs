//! Which server a command talks to.

use std::env;
use std::path::PathBuf;

use ah_spire_plugin::goflag::{FlagSet, Flags};
use ah_spire_wire::rotation::rotation_client::RotationClient;
use ah_spire_wire::server::agent::agent_client::AgentClient;
use ah_spire_wire::server::bundle::bundle_client::BundleClient;
use ah_spire_wire::server::debug::debug_client::DebugClient;
use ah_spire_wire::server::entry::entry_client::EntryClient;
use ah_spire_wire::server::localauthority::local_authority_client::LocalAuthorityClient;
use ah_spire_wire::server::logger::logger_client::LoggerClient;
use ah_spire_wire::server::svid::svid_client::SvidClient;
use ah_spire_wire::server::trustdomain::trust_domain_client::TrustDomainClient;
use ah_spire_wire::{Channel, MAX_MESSAGE_BYTES, health::health_client::HealthClient};
use tonic::Status;

use super::Failure;

/// Where a server listens when nobody says something else.
const DEFAULT_SOCKET: &str = "/tmp/spire-server/private/api.sock";
const SOCKET: &str = "SPIRE_SERVER_PRIVATE_SOCKET";
const TEMPLATE: &str = "SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE";

pub(super) fn flags() -> FlagSet {
    FlagSet::new("")
        .string(
            "socketPath",
            DEFAULT_SOCKET,
            "Path to the SPIRE Server API socket",
        )
        .string(
            "instance",
            "",
            "Instance name to substitute into socket templates (env SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE).",
        )
}

/// A server on this host, dialled at the first call.
pub(super) struct Server {
    socket: Result<PathBuf, Failure>,
    channel: Option<Channel>,
}

macro_rules! client {
    ($name:ident, $client:ident) => {
        pub(super) async fn $name(&mut self) -> Result<$client<Channel>, Failure> {
            let channel = self.channel().await?;
            Ok($client::with_origin(channel, Channel::origin())
                .max_decoding_message_size(MAX_MESSAGE_BYTES))
        }
    };
}

impl Server {
    pub(super) fn new(flags: &Flags) -> Self {
        let socket = socket(
            flags.string("socketPath"),
            flags.string("instance"),
            |name| env::var(name).ok().filter(|value| !value.is_empty()),
        );
        Self {
            socket: socket.map(PathBuf::from),
            channel: None,
        }
    }

    client!(agents, AgentClient);
    client!(bundles, BundleClient);
    client!(debug, DebugClient);
    client!(entries, EntryClient);
    client!(health, HealthClient);
    client!(local_authorities, LocalAuthorityClient);
    client!(logger, LoggerClient);
    client!(rotation, RotationClient);
    client!(svids, SvidClient);
    client!(trust_domains, TrustDomainClient);

    async fn channel(&mut self) -> Result<Channel, Failure> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let socket = self.socket.clone()?;
        let channel = Channel::unix(&socket).await.map_err(|error| {
            let why = match error.kind() {
                std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
                std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
                std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
                _ => error.to_string(),
            };
            Status::unavailable(format!(
                "connection error: desc = \"transport: Error while dialing: dial unix {}: connect: {why}\"",
                socket.display()
            ))
        })?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }
}

fn socket(
    path: &str,
    instance: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<String, Failure> {
    let template = variable(TEMPLATE);
    if !instance.is_empty() {
        let Some(template) = &template else {
            return Err(Failure(format!(
                "you must define {TEMPLATE} to use the instance flag"
            )));
        };
        if !template.contains("%i") {
            return Err(Failure(format!("failed to find %i in {TEMPLATE}")));
        }
    }
    Ok(match template {
        _ if path != DEFAULT_SOCKET => path.to_owned(),
        Some(template) if !instance.is_empty() => template.replace("%i", instance),
        _ => variable(SOCKET).unwrap_or_else(|| path.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Inventory section 6: -socketPath, -instance, and the environment.
    #[test]
    fn the_flag_wins_then_the_instance_then_the_environment() {
        let set = |name: &str| match name {
            TEMPLATE => Some("/run/%i/api.sock".to_owned()),
            _ => Some("/run/env.sock".to_owned()),
        };
        let chosen = |path, instance| socket(path, instance, set).unwrap();
        assert_eq!(chosen("/a", "x"), "/a");
        assert_eq!(chosen(DEFAULT_SOCKET, "x"), "/run/x/api.sock");
        assert_eq!(chosen(DEFAULT_SOCKET, ""), "/run/env.sock");
        let unset = |_: &str| None;
        assert_eq!(socket(DEFAULT_SOCKET, "", unset).unwrap(), DEFAULT_SOCKET);
        assert_eq!(
            socket("/a", "x", unset).unwrap_err().0,
            "you must define SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE to use the instance flag"
        );
        let plain = |_: &str| Some("/run/api.sock".to_owned());
        assert!(socket("/a", "x", plain).is_err());
    }
}
