//! Who calls.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ah_spire_wire::model::Entry;
use spiffe::SpiffeId;

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process that may open the local socket.
    Local,
    /// Somebody on the network.
    Remote {
        /// From where.
        address: SocketAddr,
        /// What it proved in the TLS handshake; `None` without a certificate.
        svid: Option<PeerSvid>,
    },
}

/// The X509-SVID that a peer proved to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSvid {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// Decimal.
    pub serial_number: String,
    /// Its end.
    pub not_after: SystemTime,
}

/// Who calls, and by what right. Only [`super::authorize`] makes one; handlers find it among the extensions of the
/// request.
#[derive(Clone, Debug)]
pub struct Caller {
    pub(super) peer: Arc<Peer>,
    pub(super) right: Right,
}

/// Why a call is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Right {
    /// Everybody may.
    Anybody,
    /// It came over the local socket.
    Local,
    /// An administrator by configuration or by entry.
    Admin,
    /// A downstream server, by these entries; there is one at least.
    Downstream(Vec<Entry>),
    /// An attested agent in good standing.
    Agent,
}

impl Caller {
    /// By what right the call is made.
    pub fn right(&self) -> &Right {
        &self.right
    }

    /// The SPIFFE ID that was proved, if any.
    pub fn id(&self) -> Option<&SpiffeId> {
        self.svid().map(|svid| &svid.id)
    }

    /// The X509-SVID that was proved, if any.
    pub(super) fn svid(&self) -> Option<&PeerSvid> {
        match &*self.peer {
            Peer::Remote { svid, .. } => svid.as_ref(),
            Peer::Local => None,
        }
    }

    /// Where the call comes from; `None` for the local socket.
    pub fn address(&self) -> Option<SocketAddr> {
        match &*self.peer {
            Peer::Remote { address, .. } => Some(*address),
            Peer::Local => None,
        }
    }
}
