//! The flags of `spire-server run` and `spire-server validate`.

use super::file::ServerBlock;
use crate::goflag::{FlagSet, Flags};

/// What `run` and `validate` take; `command` is the one that the usage names.
#[must_use]
pub fn run_flags(command: &str) -> FlagSet {
    FlagSet::new(command)
        .string(
            "bindAddress",
            "",
            "IP address or DNS name to serve agents on",
        )
        .int("serverPort", 0, "Port to serve agents on")
        .string("config", "", "Path of the configuration file")
        .string("dataDir", "", "Directory for what the server keeps")
        .string("logFile", "", "File to write logs to")
        .string("logFormat", "", "'text' or 'json'")
        .bool(
            "logSourceLocation",
            false,
            "Tell file, line and function in each log line",
        )
        .string("logLevel", "", "'debug', 'info', 'warn', or 'error'")
        .string("trustDomain", "", "Trust domain of the server")
        .bool(
            "expandEnv",
            false,
            "Replace environment variables in the configuration file",
        )
        .string("socketPath", "", "Path of the socket that operators dial")
}

/// Flags win over the file; a truth value is on when either says so.
pub(super) fn overlay(flags: &Flags, server: &mut ServerBlock) {
    for (name, field) in [
        ("bindAddress", &mut server.bind_address),
        ("dataDir", &mut server.data_dir),
        ("logFile", &mut server.log_file),
        ("logFormat", &mut server.log_format),
        ("logLevel", &mut server.log_level),
        ("trustDomain", &mut server.trust_domain),
        ("socketPath", &mut server.socket_path),
    ] {
        if let Some(value) = flags.nonempty(name) {
            value.clone_into(field);
        }
    }
    if flags.int("serverPort") != 0 {
        server.bind_port = flags.int("serverPort");
    }
    server.log_source_location |= flags.bool("logSourceLocation");
}
