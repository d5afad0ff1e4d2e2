//! What operators do with authorities, as the localauthority API offers it: show, prepare, activate, taint, revoke.

use ah_spire_wire::model::Bundle;

use super::{CaError, Manager};
use crate::ca::authority::{Certificate, hex};
use crate::ca::slots::{Authority, AuthorityState, Slots, Status};
use crate::keys::KeyManager;
use crate::store::{Bundles, Journals};

/// The authorities of a kind: at most one of each status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityStates {
    /// Signs.
    pub active: AuthorityState,
    /// The other slot's, prepared or old.
    pub other: Option<AuthorityState>,
}

impl<S: Bundles + Journals + 'static, K: KeyManager> Manager<S, K> {
    /// The X.509 authorities.
    pub async fn x509_states(&self) -> Result<AuthorityStates, CaError> {
        states(&self.state.lock().await.x509)
    }

    /// The JWT authorities.
    pub async fn jwt_states(&self) -> Result<AuthorityStates, CaError> {
        states(&self.state.lock().await.jwt)
    }

    /// Prepares an X.509 authority now. One that was prepared before is forgotten.
    pub async fn prepare_x509(&self) -> Result<AuthorityState, CaError> {
        let state = &mut *self.state.lock().await;
        states(&state.x509)?;
        self.prepare_x509_ca(state).await?;
        state.x509.next.state.clone().ok_or(CaError::Initializing)
    }

    /// Prepares a JWT authority now. One that was prepared before is forgotten.
    pub async fn prepare_jwt(&self) -> Result<AuthorityState, CaError> {
        let state = &mut *self.state.lock().await;
        states(&state.jwt)?;
        self.prepare_jwt_key(state).await?;
        state.jwt.next.state.clone().ok_or(CaError::Initializing)
    }

    /// Makes the prepared X.509 authority the active one.
    pub async fn activate_x509(&self, id: &str) -> Result<AuthorityState, CaError> {
        let state = &mut *self.state.lock().await;
        may_activate(&state.x509, id)?;
        state.x509.swap();
        self.activate_x509_ca(state).await;
        Ok(states(&state.x509)?.active)
    }

    /// Makes the prepared JWT authority the active one.
    pub async fn activate_jwt(&self, id: &str) -> Result<AuthorityState, CaError> {
        let state = &mut *self.state.lock().await;
        may_activate(&state.jwt, id)?;
        state.jwt.swap();
        self.activate_jwt_key(state).await;
        Ok(states(&state.jwt)?.active)
    }

    /// Marks the old X.509 authority in the bundle: agents and servers replace what it signed.
    pub async fn taint_x509(&self, id: &str) -> Result<AuthorityState, CaError> {
        self.without_upstream(
            "local authority can't be tainted if there is an upstream authority",
        )?;
        let state = self.state.lock().await;
        may_taint(&state.x509, id)?;
        self.change_bundle(|bundle| {
            let ca = x509(bundle, id).ok_or("no ca found with provided subject key ID")?;
            taint(&mut ca.tainted, "root CA is already tainted")
        })
        .await?;
        self.tainted
            .send_modify(|times| *times = times.wrapping_add(1));
        state.x509.next.state.clone().ok_or(CaError::Initializing)
    }

    /// Marks the old JWT authority in the bundle.
    pub async fn taint_jwt(&self, id: &str) -> Result<AuthorityState, CaError> {
        let state = self.state.lock().await;
        may_taint(&state.jwt, id)?;
        self.change_bundle(|bundle| {
            let key = bundle.jwt.iter_mut().find(|key| key.id == id);
            let key = key.ok_or("no JWT Key found with provided key ID")?;
            taint(&mut key.tainted, "key is already tainted")
        })
        .await?;
        state.jwt.next.state.clone().ok_or(CaError::Initializing)
    }

    /// Takes a tainted X.509 authority out of the bundle: what it signed is believed no more.
    pub async fn revoke_x509(&self, id: &str) -> Result<(), CaError> {
        self.without_upstream(
            "local authority can't be revoked if there is an upstream authority",
        )?;
        let state = self.state.lock().await;
        let slots = &state.x509;
        if id.is_empty() {
            return Err(CaError::Refused("no authority ID provided"));
        }
        if id == slots.current.id() {
            return Err(CaError::Refused("unable to use current authority"));
        }
        if id != slots.next.id() || slots.next.status() != Some(Status::Old) {
            return Err(CaError::Refused("only Old local authority can be revoked"));
        }
        self.change_bundle(|bundle| {
            let ca = x509(bundle, id).ok_or("no root CA found with provided subject key ID")?;
            if !ca.tainted {
                return Err("it is not possible to revoke an untainted root CA");
            }
            let der = ca.der.clone();
            bundle.x509.retain(|ca| ca.der != der);
            Ok(())
        })
        .await
    }

    /// Takes a tainted JWT authority out of the bundle.
    pub async fn revoke_jwt(&self, id: &str) -> Result<(), CaError> {
        let state = self.state.lock().await;
        let slots = &state.jwt;
        if id.is_empty() {
            return Err(CaError::Refused("no authority ID provided"));
        }
        if id == slots.current.id() {
            return Err(CaError::Refused("unable to use current authority"));
        }
        if id == slots.next.id() && slots.next.status() == Some(Status::Prepared) {
            return Err(CaError::Refused("unable to use a prepared key"));
        }
        self.change_bundle(|bundle| {
            let key = bundle.jwt.iter().find(|key| key.id == id);
            let key = key.ok_or("no JWT authority found with provided authority ID")?;
            if !key.tainted {
                return Err("it is not possible to revoke an untainted key");
            }
            bundle.jwt.retain(|key| key.id != id);
            Ok(())
        })
        .await
    }

    fn without_upstream(&self, why: &'static str) -> Result<(), CaError> {
        if self.settings.upstream.is_some() {
            return Err(CaError::Precondition(why));
        }
        Ok(())
    }

    async fn change_bundle(
        &self,
        change: impl FnOnce(&mut Bundle) -> Result<(), &'static str> + Send,
    ) -> Result<(), CaError> {
        let mut refused = Some("trust domain bundle is missing");
        self.store
            .update_bundle(&self.authorities.profile().trust_domain, |bundle| {
                let mut bundle = bundle?;
                refused = change(&mut bundle).err();
                refused.is_none().then_some(bundle)
            })
            .await?;
        refused.map_or(Ok(()), |why| Err(CaError::Refused(why)))
    }
}

fn x509<'a>(
    bundle: &'a mut Bundle,
    id: &str,
) -> Option<&'a mut ah_spire_wire::model::X509Authority> {
    bundle.x509.iter_mut().find(|ca| {
        Certificate::read(ca.der.clone()).is_ok_and(|certificate| hex(&certificate.key_id) == id)
    })
}

fn taint(tainted: &mut bool, already: &'static str) -> Result<(), &'static str> {
    if std::mem::replace(tainted, true) {
        Err(already)
    } else {
        Ok(())
    }
}

fn states<A: Authority>(slots: &Slots<A>) -> Result<AuthorityStates, CaError> {
    let active = slots.current.state.clone();
    Ok(AuthorityStates {
        active: active
            .filter(|state| state.status == Status::Active)
            .ok_or(CaError::Initializing)?,
        other: slots.next.state.clone(),
    })
}

fn may_activate<A: Authority>(slots: &Slots<A>, id: &str) -> Result<(), CaError> {
    if id.is_empty() {
        return Err(CaError::Refused("no authority ID provided"));
    }
    if id != slots.next.id() {
        return Err(CaError::Refused("unexpected authority ID"));
    }
    if slots.next.status() != Some(Status::Prepared) {
        return Err(CaError::Refused(
            "only Prepared authorities can be activated",
        ));
    }
    Ok(())
}

fn may_taint<A: Authority>(slots: &Slots<A>, id: &str) -> Result<(), CaError> {
    if id.is_empty() {
        return Err(CaError::Refused("no authority ID provided"));
    }
    if id == slots.current.id() {
        return Err(CaError::Refused("unable to taint current local authority"));
    }
    if id != slots.next.id() {
        return Err(CaError::Refused("unexpected authority ID"));
    }
    if slots.next.status() != Some(Status::Old) {
        return Err(CaError::Refused(
            "only Old local authorities can be tainted",
        ));
    }
    Ok(())
}
