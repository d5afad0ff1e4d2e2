//! `systemd`: the unit that a process belongs to.
//!
//! systemd is asked over the system's D-Bus: which unit has the process (`GetUnitByPID`), and the unit's `Id` and
//! `FragmentPath`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::peer::PeerInfo;
use crate::workload::WorkloadAttestor;
use crate::{AttestError, Builtin, Selector};

mod dbus;
mod message;

use dbus::{Address, Bus, Fault};
use message::{Argument, Call};

/// Connections at once. A bus has a limit for each user, which is some hundreds.
const CONNECTIONS: usize = 16;

const SYSTEMD: &str = "org.freedesktop.systemd1";

/// What is said of a process that no unit has.
const NO_UNIT: &str = "org.freedesktop.systemd1.NoUnitForPID";

/// The attestor. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Systemd {
    bus: Address,
    places: Arc<Semaphore>,
}

impl Systemd {
    /// The attestor that asks at the bus `address`, as `DBUS_SYSTEM_BUS_ADDRESS` has it; empty for the usual one.
    ///
    /// # Errors
    /// When `address` names no unix socket.
    pub fn new(address: &str) -> Result<Self, AttestError> {
        let bus = Address::parse(address).ok_or_else(|| {
            AttestError::invalid(
                format!("DBUS_SYSTEM_BUS_ADDRESS: {address:?} has no unix socket with a path"),
                "unset it, or write it as in \"unix:path=/run/dbus/system_bus_socket\"",
            )
        })?;
        Ok(Self {
            bus,
            places: Arc::new(Semaphore::new(CONNECTIONS)),
        })
    }

    /// `Id` and `FragmentPath` of the unit of `pid`.
    async fn unit(&self, pid: u32) -> Result<Option<[String; 2]>, Fault> {
        let _place = self.places.acquire().await;
        let mut bus = Bus::connect(&self.bus).await?;
        let call = Call {
            destination: SYSTEMD,
            path: "/org/freedesktop/systemd1",
            interface: "org.freedesktop.systemd1.Manager",
            member: "GetUnitByPID",
            arguments: &[Argument::Number(pid)],
        };
        let unit = match bus.call(&call).await {
            Ok(reply) => reply.path()?,
            Err(Fault::Refused { name, .. }) if name == NO_UNIT => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let id = property(&mut bus, &unit, "Id").await?;
        let fragment_path = property(&mut bus, &unit, "FragmentPath").await?;
        Ok(Some([id, fragment_path]))
    }
}

async fn property(bus: &mut Bus, unit: &str, name: &str) -> Result<String, Fault> {
    let call = Call {
        destination: SYSTEMD,
        path: unit,
        interface: "org.freedesktop.DBus.Properties",
        member: "Get",
        arguments: &[
            Argument::Text("org.freedesktop.systemd1.Unit"),
            Argument::Text(name),
        ],
    };
    Ok(bus.call(&call).await?.variant_text()?)
}

impl WorkloadAttestor for Systemd {
    fn name(&self) -> &str {
        Builtin::Systemd.name()
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(10)
    }

    async fn attest(&self, peer: &PeerInfo) -> Result<Vec<Selector>, AttestError> {
        let pid = peer.pid().unsigned_abs();
        let unit = self.unit(pid).await.map_err(|fault| {
            AttestError::unavailable(
                format!("failed to get unit by pid {pid}: {}: {fault}", self.bus),
                "the attestor needs systemd and its bus: /run/dbus/system_bus_socket, or what DBUS_SYSTEM_BUS_ADDRESS \
                 names, and the host's PID namespace",
            )
        })?;
        let selector = |key: &str, value: &str| {
            Selector::new(Builtin::Systemd.name(), format!("{key}:{value}"))
        };
        Ok(unit.map_or_else(Vec::new, |[id, fragment_path]| {
            vec![
                selector("id", &id),
                selector("fragment_path", &fragment_path),
            ]
        }))
    }
}
