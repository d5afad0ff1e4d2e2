//! The sockets on which executors are waited for (AP-1).

use std::net::{Ipv6Addr, SocketAddr};

use ah_daemon::layer::Origin;
use ah_daemon::systemd;
use ah_identity_provider::{Code, Explained};
use nix::sys::socket::{getsockopt, sockopt::Ipv6V6Only};
use tokio::net::TcpListener;

use crate::commands::no_runtime;
use crate::settings::{AccessPointSettings, Launch};

/// Sockets that were handed over; without any, or where addresses are named, those of `--fleet-listen`.
///
/// # Errors
/// A socket that cannot be used or taken, or one that a dev identity may not listen on (DV-2).
pub(super) async fn listeners(
    launch: &Launch<AccessPointSettings>,
) -> Result<Vec<TcpListener>, Explained> {
    let inherited = systemd::inherited_sockets().map_err(|error| {
        Explained::new(Code::Other, error.to_string())
            .hint("check the ListenStream= lines of the .socket unit")
    })?;
    let mut listeners = Vec::new();
    let mut held = Vec::new();
    for socket in inherited.tcp {
        let one = Held::of(&socket).map_err(|error| no_runtime(&error))?;
        launch.settings.may_take(one.address)?;
        held.push(one);
        listeners.push(TcpListener::from_std(socket).map_err(|error| no_runtime(&error))?);
    }
    let named = launch.origins.get("fleet-listen") != Some(&Origin::Default);
    if listeners.is_empty() || named {
        for address in &launch.settings.fleet_listen {
            if !held.iter().any(|held| held.serves(*address)) {
                listeners
                    .push(ah_tls::bind(*address).map_err(|error| at_odds(error, *address, &held))?);
            }
        }
    }
    Ok(listeners)
}

/// A port that systemd has already is no other process's: the two places that name addresses have to agree.
fn at_odds(error: Explained, address: SocketAddr, held: &[Held]) -> Explained {
    match held
        .iter()
        .find(|held| held.address.port() == address.port())
    {
        Some(held) => error
            .cause(format!("systemd handed over a socket on {}", held.address))
            .hint(format!(
                "let ListenStream= of the .socket unit and --fleet-listen agree: \
                 `systemctl edit ah-access-point.socket`, or leave {address} out"
            )),
        None => error,
    }
}

/// Where a socket that was handed over listens.
#[derive(Clone, Copy, Debug)]
struct Held {
    address: SocketAddr,
    /// It takes IPv4 connections although it is an IPv6 socket (ipv6(7)).
    dual: bool,
}

impl Held {
    fn of(socket: &std::net::TcpListener) -> std::io::Result<Self> {
        let address = socket.local_addr()?;
        Ok(Self {
            address,
            dual: address.is_ipv6() && !getsockopt(socket, Ipv6V6Only)?,
        })
    }

    /// Whether what is dialled at `wanted` arrives here, and nothing else does.
    fn serves(&self, wanted: SocketAddr) -> bool {
        let everywhere = self.dual && self.address.ip() == Ipv6Addr::UNSPECIFIED;
        self.address == wanted
            || (everywhere && wanted.ip().is_unspecified() && self.address.port() == wanted.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // AP-1: an IPv6 socket of systemd's takes IPv4 connections as well, unless BindIPv6Only=ipv6-only.
    #[test]
    fn a_socket_serves_its_own_address_and_every_address_if_it_takes_both_families() {
        let held = |address: &str, dual| Held {
            address: address.parse().unwrap(),
            dual,
        };
        let serves = |held: &Held, wanted: &str| held.serves(wanted.parse().unwrap());
        let everywhere = held("[::]:4433", true);
        assert!(serves(&everywhere, "[::]:4433"));
        assert!(serves(&everywhere, "0.0.0.0:4433"));
        assert!(!serves(&everywhere, "0.0.0.0:4434"));
        // Narrower than the socket: who names it wants no more.
        assert!(!serves(&everywhere, "127.0.0.1:4433"));
        assert!(!serves(&held("[::]:4433", false), "0.0.0.0:4433"));
        assert!(!serves(&held("[::1]:4433", true), "0.0.0.0:4433"));
        assert!(serves(&held("127.0.0.1:4433", false), "127.0.0.1:4433"));
    }

    #[test]
    fn both_families_are_told_from_one() {
        let Ok(socket) = std::net::TcpListener::bind("[::]:0") else {
            println!("skipped: no IPv6 here");
            return;
        };
        assert!(Held::of(&socket).unwrap().dual);
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!Held::of(&socket).unwrap().dual);
    }
}
