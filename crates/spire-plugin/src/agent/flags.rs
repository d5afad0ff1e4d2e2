//! The flags of `spire-agent run` and `spire-agent validate`.

use super::DEFAULT_CONFIG_PATH;
use super::file::AgentBlock;
use crate::goflag::{FlagSet, Flags};

/// What `run` and `validate` take; `command` is the one that the usage names.
#[must_use]
pub fn run_flags(command: &str) -> FlagSet {
    FlagSet::new(command)
        .string(
            "config",
            DEFAULT_CONFIG_PATH,
            "Path of the configuration file",
        )
        .string("dataDir", "", "Directory for what the agent keeps")
        .string(
            "joinToken",
            "",
            "Token made by the server that admits the agent once",
        )
        .string("joinTokenFile", "", "File that holds the join token")
        .string("logFile", "", "File to write logs to")
        .string("logFormat", "", "'text' or 'json'")
        .string("logLevel", "", "'debug', 'info', 'warn', or 'error'")
        .bool(
            "logSourceLocation",
            false,
            "Tell file, line and function in each log line",
        )
        .string(
            "serverAddress",
            "",
            "IP address or DNS name of the SPIRE server",
        )
        .int("serverPort", 0, "Port of the SPIRE server")
        .string("trustDomain", "", "Trust domain of the agent")
        .bool(
            "disableWorkloadAPI",
            false,
            "Do not serve the SPIFFE Workload API",
        )
        .bool("disableSDSAPI", false, "Do not serve Envoy's SDS API")
        .string("trustBundle", "", "Path of the server's CA bundle")
        .string("trustBundleUrl", "", "URL of the server's CA bundle")
        .string(
            "trustBundleFormat",
            "",
            "Format of the bundle to start from, \"pem\" or \"spiffe\"",
        )
        .bool(
            "allowUnauthenticatedVerifiers",
            false,
            "Give bundles to workloads without a registration entry",
        )
        .bool(
            "insecureBootstrap",
            false,
            "Trust whatever server answers the first time",
        )
        .string("rebootstrapMode", "", "One of 'never', 'auto', or 'always'")
        .string(
            "rebootstrapDelay",
            "",
            "Time from finding the server untrusted to trusting it anew",
        )
        .bool(
            "expandEnv",
            false,
            "Replace environment variables in the configuration file",
        )
        .string("socketPath", "", "Path of the socket that workloads dial")
}

/// Flags win over the file. A truth value is on when either says so: the command line cannot turn off what the
/// file turns on, as with upstream.
pub(super) fn overlay(flags: &Flags, agent: &mut AgentBlock) {
    for (name, field) in [
        ("dataDir", &mut agent.data_dir),
        ("joinToken", &mut *agent.join_token),
        ("joinTokenFile", &mut agent.join_token_file),
        ("logFile", &mut agent.log_file),
        ("logFormat", &mut agent.log_format),
        ("logLevel", &mut agent.log_level),
        ("serverAddress", &mut agent.server_address),
        ("trustDomain", &mut agent.trust_domain),
        ("trustBundle", &mut agent.trust_bundle_path),
        ("trustBundleUrl", &mut agent.trust_bundle_url),
        ("trustBundleFormat", &mut agent.trust_bundle_format),
        ("rebootstrapMode", &mut agent.rebootstrap_mode),
        ("rebootstrapDelay", &mut agent.rebootstrap_delay),
        ("socketPath", &mut agent.socket_path),
    ] {
        if let Some(value) = flags.nonempty(name) {
            value.clone_into(field);
        }
    }
    if flags.int("serverPort") != 0 {
        agent.server_port = flags.int("serverPort");
    }
    agent.log_source_location |= flags.bool("logSourceLocation");
    agent.disable_workload_api |= flags.bool("disableWorkloadAPI");
    agent.disable_sds_api |= flags.bool("disableSDSAPI");
    agent.allow_unauthenticated_verifiers |= flags.bool("allowUnauthenticatedVerifiers");
    agent.insecure_bootstrap |= flags.bool("insecureBootstrap");
}
