//! The server's own X509-SVID, for its TLS endpoint.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_identity_provider::PrivateKey;
use ah_spire_telemetry::CallCounter;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::SignError;
use super::metrics::done;
use super::sign::{Authorities, backdated};
use crate::endpoints::ServerSvid;
use crate::keys::{KeyError, KeyType, LocalKey, SigningKey};

/// From when to when an SVID is good.
pub(super) struct Life {
    not_before: SystemTime,
    not_after: SystemTime,
}

/// How often it is looked whether it is due.
pub const SVID_INTERVAL: Duration = Duration::from_secs(5);

/// Makes `spiffe://TRUST-DOMAIN/spire/server` anew, with a new key, when half of the old one's life is over or an
/// authority was tainted.
pub struct ServerSvids {
    authorities: Arc<Authorities>,
    tainted: watch::Receiver<u64>,
    newest: watch::Sender<Option<Arc<ServerSvid>>>,
    chain: watch::Sender<Vec<Vec<u8>>>,
    life: Life,
    rotations: CallCounter,
}

impl ServerSvids {
    /// With a first SVID, for which an authority has to be active. `tainted` is [`super::Manager::tainted`].
    pub fn new(
        authorities: Arc<Authorities>,
        tainted: watch::Receiver<u64>,
    ) -> Result<Self, SignError> {
        let rotations = authorities.metrics().calls(&["svid", "rotate"], &[]);
        let (first, life) = counted(&rotations, &authorities)?;
        Ok(Self {
            rotations,
            authorities,
            tainted,
            chain: watch::Sender::new(first.chain.clone()),
            newest: watch::Sender::new(Some(Arc::new(first))),
            life,
        })
    }

    /// The present one and every later one; never `None`.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<ServerSvid>>> {
        self.newest.subscribe()
    }

    /// The chain of each, without its key.
    pub fn chains(&self) -> watch::Receiver<Vec<Vec<u8>>> {
        self.chain.subscribe()
    }

    /// Rotates until it is dropped. What fails is logged and tried again at the next turn.
    pub async fn run(mut self) {
        let mut ticks = interval(SVID_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // A sender that is gone taints nothing any more.
            let tainted = self.tainted.has_changed().unwrap_or(false);
            if !tainted && !self.is_due() {
                continue;
            }
            match counted(&self.rotations, &self.authorities) {
                Ok((svid, life)) => {
                    self.tainted.mark_unchanged();
                    self.life = life;
                    tracing::debug!("server X509-SVID rotated");
                    self.chain.send_replace(svid.chain.clone());
                    self.newest.send_replace(Some(Arc::new(svid)));
                }
                Err(error) => tracing::error!(%error, "could not rotate server X509-SVID"),
            }
        }
    }

    fn is_due(&self) -> bool {
        let Life {
            not_before,
            not_after,
        } = self.life;
        let now = self.authorities.clock().now();
        let life = not_after.duration_since(not_before).unwrap_or_default();
        let half = life.checked_div(2).unwrap_or_default();
        // One from the future was made before the clock was set back.
        now < not_before || not_before.checked_add(half).is_none_or(|at| now > at)
    }
}

fn counted(
    rotations: &CallCounter,
    authorities: &Authorities,
) -> Result<(ServerSvid, Life), SignError> {
    let call = rotations.start();
    let made = make(authorities);
    done(call, &made);
    made
}

pub(super) fn make(authorities: &Authorities) -> Result<(ServerSvid, Life), SignError> {
    let failed = |error: KeyError| SignError::Failed(error.to_string());
    let key = LocalKey::generate("server SVID", KeyType::EcP256).map_err(failed)?;
    let not_before = backdated(authorities.clock().now());
    let svid = authorities.sign_server_svid(key.spki())?;
    let mut pkcs8 = key.to_pkcs8().map_err(failed)?;
    let life = Life {
        not_before,
        not_after: svid.not_after,
    };
    let svid = ServerSvid {
        chain: svid.chain,
        key: PrivateKey::pkcs8(std::mem::take(&mut *pkcs8)),
    };
    Ok((svid, life))
}
