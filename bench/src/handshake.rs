//! Handshakes in memory: what SPIFFE validation and policy add to the server's side of one.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};

use crate::pki::{Authority, Files};
use crate::product;
use crate::suite::Sample;
use crate::tls::{ClientTemplate, server_config_like};

#[derive(Args, Clone, Debug)]
pub(crate) struct Handshake {
    /// Folder with the authority and server identity.
    #[arg(long)]
    pki: PathBuf,
    /// Handshakes of each kind.
    #[arg(long, default_value_t = 8_000)]
    count: usize,
}

/// Median time of the server's side of a full mutual handshake with an executor that was not there before: what interrupts
/// a few of them does not count, and no signature is known from an earlier one.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// With the chain verified and nothing else, in microseconds.
    pub(crate) bare_us: f64,
    /// With the product's verifier and a SAN rule, in microseconds.
    pub(crate) product_us: f64,
}

/// Handshakes of one kind before the other has its turn.
const TURN: usize = 100;

impl Handshake {
    pub(crate) fn run(&self) -> io::Result<Cost> {
        let files = Files::at(&self.pki);
        let authority = Authority::open(&files)?;
        let template = ClientTemplate::new(&authority, &[b"h2"])?;
        let key = Authority::executor_key()?;
        let (_identity, configs, _follow) = product::server_configs(&files)?;
        let product = configs.current().config().clone();
        let bare = Arc::new(server_config_like(&product, &files, &[b"h2"])?);

        let mut numbers = 0..;
        let mut times = [Vec::new(), Vec::new()];
        // The first turn of each warms caches and is not counted.
        for turn in 0..=self.count / TURN {
            for (server, times) in [&bare, &product].into_iter().zip(&mut times) {
                for number in numbers.by_ref().take(TURN) {
                    let client = template.present(authority.executor(&key, number)?)?;
                    let time = server_side(server, &client)?;
                    if turn > 0 {
                        times.push(time.as_secs_f64() * 1e6);
                    }
                }
            }
        }
        let [Some(bare), Some(product)] = times.map(Sample::of) else {
            return Err(io::Error::other("no handshake was asked for"));
        };
        Ok(Cost {
            bare_us: bare.median,
            product_us: product.median,
        })
    }
}

/// Has one handshake and returns how long the server's side of it took.
fn server_side(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> io::Result<Duration> {
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    let mut client = ClientConnection::new(client.clone(), name).map_err(io::Error::other)?;
    let mut spent = Duration::ZERO;
    let begun = Instant::now();
    let mut server = ServerConnection::new(server.clone()).map_err(io::Error::other)?;
    spent += begun.elapsed();
    let mut wire = Vec::with_capacity(8_192);
    while client.is_handshaking() || server.is_handshaking() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire)?;
        }
        let begun = Instant::now();
        let mut unread = wire.as_slice();
        while !unread.is_empty() {
            server.read_tls(&mut unread)?;
            server.process_new_packets().map_err(io::Error::other)?;
        }
        let mut answer = Vec::with_capacity(4_096);
        while server.wants_write() {
            server.write_tls(&mut answer)?;
        }
        spent += begun.elapsed();
        let mut unread = answer.as_slice();
        while !unread.is_empty() {
            client.read_tls(&mut unread)?;
            client.process_new_packets().map_err(io::Error::other)?;
        }
    }
    Ok(spent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_server_finish_handshakes() {
        let dir = tempfile::tempdir().unwrap();
        Authority::create(&Files::at(dir.path())).unwrap();
        let handshake = Handshake {
            pki: dir.path().to_owned(),
            count: TURN,
        };
        let cost = handshake.run().unwrap();
        assert!(cost.bare_us > 0.0 && cost.product_us > 0.0);
    }
}
