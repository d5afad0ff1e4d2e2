//! Flags of the spiffe provider (AP-4, EN-4, SP-1).

use ah_identity_provider::spiffe::{DEFAULT_SOCKET, Endpoint};
use clap::{Args, ValueHint};
use spiffe::SpiffeId;

use crate::settings::value::{endpoint, spiffe_id};

/// SPIFFE Workload API.
#[derive(Debug, Args)]
pub struct SpiffeArgs {
    /// Where the SPIFFE Workload API listens: PATH, unix:PATH or tcp:IP:PORT
    #[arg(
        long,
        id = "spiffe-socket",
        env = "SPIFFE_ENDPOINT_SOCKET",
        value_name = "PATH|unix:…|tcp:…",
        default_value = DEFAULT_SOCKET,
        value_parser = endpoint,
        value_hint = ValueHint::FilePath
    )]
    pub spiffe_socket: Endpoint,

    /// Which of several SVIDs to use, by SPIFFE ID [default: the first]
    #[arg(long, id = "spiffe-id", value_name = "spiffe://…", value_parser = spiffe_id)]
    pub spiffe_id: Option<SpiffeId>,

    /// Which of several SVIDs to use, by the hint of its registration entry [default: the first]
    #[arg(long, id = "spiffe-hint", value_name = "HINT")]
    pub spiffe_hint: Option<String>,
}
