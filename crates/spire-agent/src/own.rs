//! The agent's own identity: found on the disk, got by attestation, renewed.

use std::time::SystemTime;

use ah_identity_provider::CertificateFacts;
use rustls_pki_types::CertificateDer;
use spiffe::SpiffeId;

use crate::attest::id_of;
use crate::data::AgentData;
use crate::keys::{KeyManager, NodeKey, key_of_svid};
use crate::rotation::rotate_at;
use crate::server_client::Credentials;

/// An SVID of the agent, with its key.
#[derive(Clone, Debug)]
pub(crate) struct OwnIdentity {
    pub(crate) id: SpiffeId,
    /// DER, leaf first.
    pub(crate) svid: Vec<CertificateDer<'static>>,
    pub(crate) key: NodeKey,
    /// The key's slot in the key manager; where it is not [`Self::kept`], that of the SVID before.
    pub(crate) slot: String,
    /// Whether it will be found again after a restart.
    pub(crate) kept: bool,
    pub(crate) reattestable: bool,
    pub(crate) not_after: SystemTime,
    /// From when on it is to be replaced.
    pub(crate) rotate_at: SystemTime,
}

impl OwnIdentity {
    /// The one that `data` remembers, if its key is still there. It may have expired.
    pub(crate) fn remembered(
        data: &AgentData,
        keys: &dyn KeyManager,
        availability_target: Option<std::time::Duration>,
    ) -> Option<Self> {
        let leaf = data.svid.first()?;
        let Some((slot, key)) = key_of_svid(keys, leaf) else {
            tracing::warn!(
                "the agent's SVID was found without its key; the node has to attest again"
            );
            return None;
        };
        Self::new(
            &data.svid,
            key,
            slot,
            data.reattestable,
            availability_target,
        )
    }

    /// `None` where `svid` is no agent's.
    pub(crate) fn new(
        svid: &[CertificateDer<'static>],
        key: NodeKey,
        slot: String,
        reattestable: bool,
        availability_target: Option<std::time::Duration>,
    ) -> Option<Self> {
        let facts = CertificateFacts::from_der(svid.first()?).ok()?;
        Some(Self {
            id: id_of(svid)?,
            svid: svid.to_vec(),
            key,
            slot,
            kept: true,
            reattestable,
            not_after: facts.not_after,
            rotate_at: rotate_at(
                facts.not_before,
                facts.not_after,
                availability_target,
                rand::random(),
            ),
        })
    }

    pub(crate) fn is_valid(&self, now: SystemTime) -> bool {
        now < self.not_after
    }

    /// What a connection is made with.
    pub(crate) fn credentials(&self, roots: Vec<CertificateDer<'static>>) -> Credentials {
        Credentials {
            roots: Some(roots),
            identity: Some((self.svid.clone(), self.key.for_tls())),
        }
    }
}
