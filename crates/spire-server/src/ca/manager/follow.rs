//! Following the bundle of an upstream authority that tells its own, and leaving what is tainted there.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_spire_wire::model::{Bundle, JwtKey, X509Authority};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{CaError, Manager, State};
use crate::ca::slots::{Slot, Status};
use crate::ca::upstream::{UpstreamBundle, UpstreamError, check_chain};
use crate::keys::KeyManager;
use crate::store::{BundleChange, Bundles, Journals};

/// Between two attempts to leave a tainted upstream authority that signs with it still.
const LEAVE_EVERY: Duration = Duration::from_secs(60);

impl<S: Bundles + Journals + 'static, K: KeyManager> Manager<S, K> {
    /// Takes over what the upstream authority's bundle is now: what is new there, and what is tainted or revoked. A root
    /// is marked as tainted here once this server's CA is no longer of it, so that nobody replaces an SVID of it by
    /// another of it.
    pub(super) async fn follow(&self, upstream: &UpstreamBundle) -> Result<(), CaError> {
        let of = &self.authorities.profile().trust_domain;
        let mut fresh = Vec::new();
        self.store
            .update_bundle(of, BundleChange::Update, |bundle| {
                let mut bundle = bundle?;
                fresh = take_over(&mut bundle, upstream);
                Some(bundle)
            })
            .await?;
        if fresh.is_empty() {
            return Ok(());
        }
        self.leave(&mut *self.state.lock().await, &fresh).await?;
        self.store
            .update_bundle(of, BundleChange::Update, |bundle| {
                let mut bundle = bundle?;
                for root in &mut bundle.x509 {
                    root.tainted |= fresh.contains(&root.der);
                }
                Some(bundle)
            })
            .await?;
        tracing::info!(
            authorities = fresh.len(),
            "X.509 upstream authorities tainted"
        );
        self.tell_tainted();
        Ok(())
    }

    /// Leaves what another server of this store has tainted: what it does to its own old authority's root concerns this
    /// server's active one, too.
    pub(super) async fn leave_tainted(&self, state: &mut State) -> Result<(), CaError> {
        if self.settings.upstream.is_none() {
            return Ok(());
        }
        let bundle = self.store.bundle(&self.authorities.profile().trust_domain);
        let roots = bundle.await?.into_iter().flat_map(|bundle| bundle.x509);
        let tainted = roots.filter(|root| root.tainted).map(|root| root.der);
        if self.leave(state, &tainted.collect::<Vec<_>>()).await? {
            self.tell_tainted();
        }
        Ok(())
    }

    /// Prepares and activates another X.509 CA where the active one leads to a root of `tainted`. Whether it did.
    async fn leave(&self, state: &mut State, tainted: &[Vec<u8>]) -> Result<bool, CaError> {
        let now = self.now();
        if tainted.is_empty() || !self.leads_to(&state.x509.current, tainted, now) {
            return Ok(false);
        }
        let prepared = state.x509.next.status() == Some(Status::Prepared);
        if !prepared || self.leads_to(&state.x509.next, tainted, now) {
            if state
                .left
                .is_some_and(|tried| tried.elapsed() < LEAVE_EVERY)
            {
                return Ok(false);
            }
            state.left = Some(Instant::now());
            tracing::info!(
                "The X.509 CA is signed by a tainted upstream authority, preparing rotation"
            );
            self.prepare_x509_ca(state).await?;
        }
        if self.leads_to(&state.x509.next, tainted, now) {
            return Err(UpstreamError(
                "it signs with an authority that is tainted: give it another one".into(),
            )
            .into());
        }
        state.left = None;
        state.x509.swap();
        self.activate_x509_ca(state).await;
        Ok(true)
    }

    fn leads_to(
        &self,
        slot: &Slot<crate::ca::X509Authority>,
        roots: &[Vec<u8>],
        now: SystemTime,
    ) -> bool {
        let id = self.authorities.profile().trust_domain.id_string();
        slot.authority.as_ref().is_some_and(|ca| {
            let key = ca.key.as_ref();
            check_chain(&ca.certificate, key, &ca.upstream_chain, roots, &id, now).is_ok()
        })
    }
}

/// The next bundle of an upstream authority that tells it.
pub(super) async fn newest(
    followed: &mut Option<watch::Receiver<Option<Arc<UpstreamBundle>>>>,
) -> Arc<UpstreamBundle> {
    while let Some(told) = followed {
        if told.changed().await.is_err() {
            break;
        }
        if let Some(bundle) = &*told.borrow_and_update() {
            return bundle.clone();
        }
    }
    pending().await
}

/// Everything but taints of X.509 authorities that were not known here: these are the answer.
fn take_over(bundle: &mut Bundle, upstream: &UpstreamBundle) -> Vec<Vec<u8>> {
    let mut fresh = Vec::new();
    for root in upstream.x509.iter().flatten() {
        match bundle.x509.iter().find(|ours| ours.der == root.der) {
            None => bundle.x509.push(root.clone()),
            Some(ours) if root.tainted && !ours.tainted => fresh.push(root.der.clone()),
            Some(_) => {}
        }
    }
    for key in upstream.jwt.iter().flatten() {
        match bundle.jwt.iter_mut().find(|ours| ours.id == key.id) {
            None => bundle.jwt.push(key.clone()),
            Some(ours) => ours.tainted |= key.tainted,
        }
    }
    // Only what is tainted is ever revoked; what ended is pruned here and there by itself.
    if let Some(told) = &upstream.x509 {
        let stays =
            |root: &X509Authority| !root.tainted || told.iter().any(|one| one.der == root.der);
        bundle.x509.retain(stays);
    }
    if let Some(told) = &upstream.jwt {
        let stays = |key: &JwtKey| !key.tainted || told.iter().any(|one| one.id == key.id);
        bundle.jwt.retain(stays);
    }
    fresh
}

#[cfg(test)]
mod tests {
    use spiffe::TrustDomain;

    use super::*;

    fn root(der: &[u8], tainted: bool) -> X509Authority {
        X509Authority {
            der: der.to_vec(),
            tainted,
        }
    }

    fn key(id: &str, tainted: bool) -> JwtKey {
        JwtKey {
            spki: Vec::new(),
            id: id.into(),
            expires_at: 0,
            tainted,
        }
    }

    #[test]
    fn new_tainted_and_revoked_authorities_are_taken_over() {
        let mut bundle = Bundle {
            trust_domain: TrustDomain::new("example.org").unwrap(),
            x509: vec![
                root(b"kept", false),
                root(b"gone", true),
                root(b"own", false),
            ],
            jwt: vec![key("kept", false), key("gone", true), key("own", false)],
            wit: Vec::new(),
            refresh_hint: 0,
            sequence: 0,
        };
        let upstream = UpstreamBundle {
            x509: Some(vec![root(b"kept", true), root(b"new", true)]),
            jwt: Some(vec![key("kept", true), key("new", false)]),
        };
        assert_eq!(take_over(&mut bundle, &upstream), [b"kept".to_vec()]);
        // The taint of a root waits until this server has left it.
        let expected = [
            root(b"kept", false),
            root(b"own", false),
            root(b"new", true),
        ];
        assert_eq!(bundle.x509, expected);
        let expected = [key("kept", true), key("own", false), key("new", false)];
        assert_eq!(bundle.jwt, expected);
        // What is not told of is left alone.
        let before = bundle.clone();
        take_over(&mut bundle, &UpstreamBundle::default());
        assert_eq!(bundle, before);
    }
}
