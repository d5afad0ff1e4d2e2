//! Configurations from texts, through the same door as the daemons.

use ah_spire_plugin::agent::{self, AgentConfig};
use ah_spire_plugin::goflag::FlagSet;
use ah_spire_plugin::oidc::{self, OidcConfig};
use ah_spire_plugin::server::{self, ServerConfig};
use ah_spire_plugin::{ConfigError, Environment};

/// No variable is set.
pub(crate) fn no_environment(_: &str) -> Option<String> {
    None
}

/// Loads a server's configuration with the arguments of `run` besides `-config`.
pub(crate) fn server_with(
    text: &str,
    arguments: &[&str],
    environment: Environment<'_>,
) -> Result<ServerConfig, ConfigError> {
    with_file(text, arguments, &server::run_flags("run"), |flags| {
        ServerConfig::load(flags, environment)
    })
}

/// Loads an agent's configuration with the arguments of `run` besides `-config`.
pub(crate) fn agent_with(
    text: &str,
    arguments: &[&str],
    environment: Environment<'_>,
) -> Result<AgentConfig, ConfigError> {
    with_file(text, arguments, &agent::run_flags("run"), |flags| {
        AgentConfig::load(flags, environment)
    })
}

/// Loads a provider's configuration.
pub(crate) fn oidc_with(
    text: &str,
    arguments: &[&str],
    environment: Environment<'_>,
) -> Result<OidcConfig, ConfigError> {
    with_file(text, arguments, &oidc::flags(), |flags| {
        OidcConfig::load(flags, environment)
    })
}

fn with_file<T>(
    text: &str,
    arguments: &[&str],
    flags: &FlagSet,
    load: impl FnOnce(&ah_spire_plugin::goflag::Flags) -> Result<T, ConfigError>,
) -> Result<T, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.conf");
    std::fs::write(&path, text).unwrap();
    let mut line = vec!["-config".to_owned(), path.display().to_string()];
    line.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    load(&flags.parse(&line).unwrap())
}

/// What is wrong, without the file's folder.
pub(crate) fn told<T>(result: Result<T, ConfigError>) -> String {
    match result {
        Ok(_) => "nothing".to_owned(),
        Err(why) => {
            let text = why.to_string();
            match (text.find("/"), text.find("test.conf")) {
                (Some(start), Some(end)) if start < end => {
                    format!("{}{}", &text[..start], &text[end..])
                }
                _ => text,
            }
        }
    }
}
