//! The server's own X509-SVID, for its TLS endpoint.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use zeroize::Zeroizing;

use super::SignError;
use super::sign::{Authorities, backdated};
use crate::keys::{KeyError, KeyType, LocalKey, SigningKey};

/// How often it is looked whether it is due.
pub const SVID_INTERVAL: Duration = Duration::from_secs(5);

/// `spiffe://TRUST-DOMAIN/spire/server`, chain and key of one moment.
pub struct ServerSvid {
    /// DER, leaf first, with the intermediates up to the bundle.
    pub chain: Vec<Vec<u8>>,
    /// PKCS #8, DER.
    pub key: Zeroizing<Vec<u8>>,
    /// Beginning of the leaf.
    pub not_before: SystemTime,
    /// End of the leaf.
    pub not_after: SystemTime,
}

/// Makes a new one, with a new key, when half of the old one's life is over or an authority was tainted.
pub struct ServerSvids {
    authorities: Arc<Authorities>,
    tainted: watch::Receiver<u64>,
    newest: watch::Sender<Arc<ServerSvid>>,
}

impl ServerSvids {
    /// With a first SVID, for which an authority has to be active. `tainted` is [`super::Manager::tainted`].
    pub fn new(
        authorities: Arc<Authorities>,
        tainted: watch::Receiver<u64>,
    ) -> Result<Self, SignError> {
        let first = make(&authorities)?;
        Ok(Self {
            authorities,
            tainted,
            newest: watch::Sender::new(Arc::new(first)),
        })
    }

    /// The present one and every later one.
    pub fn subscribe(&self) -> watch::Receiver<Arc<ServerSvid>> {
        self.newest.subscribe()
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
            match make(&self.authorities) {
                Ok(svid) => {
                    self.tainted.mark_unchanged();
                    tracing::debug!("server X509-SVID rotated");
                    self.newest.send_replace(Arc::new(svid));
                }
                Err(error) => tracing::error!(%error, "could not rotate server X509-SVID"),
            }
        }
    }

    fn is_due(&self) -> bool {
        let svid = self.newest.borrow().clone();
        let now = self.authorities.clock().now();
        let life = svid.not_after.duration_since(svid.not_before);
        let half = life.unwrap_or_default().checked_div(2).unwrap_or_default();
        // One from the future was made before the clock was set back.
        now < svid.not_before || svid.not_before.checked_add(half).is_none_or(|at| now > at)
    }
}

fn make(authorities: &Authorities) -> Result<ServerSvid, SignError> {
    let failed = |error: KeyError| SignError::Failed(error.to_string());
    let key = LocalKey::generate("server SVID", KeyType::EcP256).map_err(failed)?;
    let not_before = backdated(authorities.clock().now());
    let svid = authorities.sign_server_svid(key.spki())?;
    Ok(ServerSvid {
        chain: svid.chain,
        key: key.to_pkcs8().map_err(failed)?,
        not_before,
        not_after: svid.not_after,
    })
}
