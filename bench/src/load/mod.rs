//! The load generator: executors simulated in one process on one thread. Each run prints one JSON event a line.

mod connect;
mod hold;
mod noise;
mod rate;
mod rotate;
mod session;
pub(crate) mod stats;

use std::io;

use clap::Subcommand;

pub(crate) use connect::Protocol;
pub(crate) use hold::MOST;

/// What load.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Load {
    /// Connect, enroll and leave, as often as the server can.
    Rate(rate::Rate),
    /// Connect, enroll and leave at a given rate.
    Open(rate::Open),
    /// Hold as many idle sessions as standard input asks for.
    Hold(hold::Hold),
    /// Executors that insist on having a session.
    Storm(hold::Storm),
    /// Sockets that never become a session.
    Noise(noise::Noise),
    /// Replace the server's certificate under load and watch which one is served.
    Rotate(rotate::Rotate),
}

impl Load {
    pub(crate) async fn run(self) -> io::Result<()> {
        match self {
            Self::Rate(load) => load.run().await,
            Self::Open(load) => load.run().await,
            Self::Hold(load) => load.run().await,
            Self::Storm(load) => load.run().await,
            Self::Noise(load) => load.run().await,
            Self::Rotate(load) => load.run().await,
        }
    }
}
