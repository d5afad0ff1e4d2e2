//! What operators do with authorities, as the localauthority API offers it: show, prepare, activate, taint, revoke.

use ah_spire_wire::model::{self, Bundle};

use super::{CaError, Manager};
use crate::ca::authority::{Certificate, Token, X509Authority, hex};
use crate::ca::rehearse;
use crate::ca::slots::{Authority, AuthorityState, Slot, Slots, Status};
use crate::keys::KeyManager;
use crate::store::{BundleChange, Bundles, Journals};

/// The authorities of a kind: at most one of each status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityStates {
    /// Signs.
    pub active: AuthorityState,
    /// The other slot's, prepared or old.
    pub other: Option<AuthorityState>,
}

/// What operators do with the authorities of this server.
#[tonic::async_trait]
pub trait LocalAuthorities: Send + Sync + 'static {
    /// The X.509 authorities.
    async fn x509_states(&self) -> Result<AuthorityStates, CaError>;
    /// The JWT authorities.
    async fn jwt_states(&self) -> Result<AuthorityStates, CaError>;
    /// Prepares an X.509 authority now. One that was prepared before is forgotten.
    async fn prepare_x509(&self) -> Result<AuthorityState, CaError>;
    /// Prepares a JWT authority now. One that was prepared before is forgotten.
    async fn prepare_jwt(&self) -> Result<AuthorityState, CaError>;
    /// Shakes hands with SVIDs of the prepared X.509 authority on both sides, judged by the bundle as it is stored.
    async fn rehearse_x509(&self, id: &str) -> Result<(), CaError>;
    /// Makes the prepared X.509 authority the active one.
    async fn activate_x509(&self, id: &str) -> Result<AuthorityState, CaError>;
    /// Makes the prepared JWT authority the active one.
    async fn activate_jwt(&self, id: &str) -> Result<AuthorityState, CaError>;
    /// Marks the old X.509 authority in the bundle: agents and servers replace what it signed.
    async fn taint_x509(&self, id: &str) -> Result<AuthorityState, CaError>;
    /// Marks the old JWT authority in the bundle: agents drop what it signed.
    async fn taint_jwt(&self, id: &str) -> Result<AuthorityState, CaError>;
    /// Takes a tainted X.509 authority out of the bundle: what it signed is believed no more.
    async fn revoke_x509(&self, id: &str) -> Result<(), CaError>;
    /// Takes a tainted JWT authority out of the bundle.
    async fn revoke_jwt(&self, id: &str) -> Result<(), CaError>;
    /// Marks the upstream authority that signed the old X.509 authority, by its subject key identifier.
    async fn taint_x509_upstream(&self, key_id: &str) -> Result<(), CaError>;
    /// Takes a tainted upstream authority out of the bundle.
    async fn revoke_x509_upstream(&self, key_id: &str) -> Result<(), CaError>;
}

#[tonic::async_trait]
impl<S: Bundles + Journals + 'static, K: KeyManager> LocalAuthorities for Manager<S, K> {
    async fn x509_states(&self) -> Result<AuthorityStates, CaError> {
        states(&self.state.lock().await.x509)
    }

    async fn jwt_states(&self) -> Result<AuthorityStates, CaError> {
        states(&self.state.lock().await.jwt)
    }

    async fn prepare_x509(&self) -> Result<AuthorityState, CaError> {
        let state = &mut *self.state.lock().await;
        states(&state.x509)?;
        self.prepare_x509_ca(state).await?;
        state.x509.next.state.clone().ok_or(CaError::Initializing)
    }

    async fn prepare_jwt(&self) -> Result<AuthorityState, CaError> {
        let state = &mut *self.state.lock().await;
        states(&state.jwt)?;
        let kind = self.settings.jwt_key_type;
        self.prepare_token_key(Token::Jwt, kind, state).await?;
        state.jwt.next.state.clone().ok_or(CaError::Initializing)
    }

    async fn rehearse_x509(&self, id: &str) -> Result<(), CaError> {
        let prepared = {
            let state = self.state.lock().await;
            may_activate(&state.x509, id)?;
            state.x509.next.authority.clone()
        };
        let prepared = prepared.ok_or(CaError::Initializing)?;
        let profile = self.authorities.profile();
        let bundle = self.store.bundle(&profile.trust_domain).await?;
        let bundle = bundle.ok_or(CaError::Bundle("trust domain bundle is missing"))?;
        rehearse::handshake(profile, self.authorities.clock(), prepared, &bundle)
            .await
            .map_err(CaError::Rehearsal)
    }

    async fn activate_x509(&self, id: &str) -> Result<AuthorityState, CaError> {
        let state = &mut *self.state.lock().await;
        may_activate(&state.x509, id)?;
        state.x509.swap();
        self.activate_x509_ca(state).await;
        Ok(states(&state.x509)?.active)
    }

    async fn activate_jwt(&self, id: &str) -> Result<AuthorityState, CaError> {
        let state = &mut *self.state.lock().await;
        may_activate(&state.jwt, id)?;
        state.jwt.swap();
        self.activate_token_key(Token::Jwt, state).await;
        Ok(states(&state.jwt)?.active)
    }

    async fn taint_x509(&self, id: &str) -> Result<AuthorityState, CaError> {
        self.without_upstream(
            "local authority can't be tainted if there is an upstream authority",
        )?;
        let state = self.state.lock().await;
        may_taint(&state.x509, id)?;
        self.taint_in_bundle(id).await?;
        state.x509.next.state.clone().ok_or(CaError::Initializing)
    }

    async fn taint_jwt(&self, id: &str) -> Result<AuthorityState, CaError> {
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

    async fn revoke_x509(&self, id: &str) -> Result<(), CaError> {
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
        self.revoke_in_bundle(id).await
    }

    async fn revoke_jwt(&self, id: &str) -> Result<(), CaError> {
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
        let known = id == slots.next.id() || self.is_in_bundle(id).await?;
        if !known {
            return Err(CaError::Refused(
                "no JWT authority found with provided authority ID",
            ));
        }
        self.change_bundle(|bundle| {
            let key = bundle.jwt.iter().find(|key| key.id == id);
            let key = key.ok_or("no JWT Key found with provided key ID")?;
            if !key.tainted {
                return Err("it is not possible to revoke an untainted key");
            }
            bundle.jwt.retain(|key| key.id != id);
            Ok(())
        })
        .await
    }

    async fn taint_x509_upstream(&self, key_id: &str) -> Result<(), CaError> {
        self.with_upstream()?;
        let state = self.state.lock().await;
        is_upstream_of_old(&state.x509, key_id)?;
        self.taint_in_bundle(key_id).await
    }

    async fn revoke_x509_upstream(&self, key_id: &str) -> Result<(), CaError> {
        self.with_upstream()?;
        let state = self.state.lock().await;
        is_upstream_of_old(&state.x509, key_id)?;
        self.revoke_in_bundle(key_id).await
    }
}

impl<S: Bundles + Journals + 'static, K: KeyManager> Manager<S, K> {
    /// Marks a root in the bundle, and has the server's own SVID replaced.
    pub(super) async fn taint_in_bundle(&self, id: &str) -> Result<(), CaError> {
        self.change_bundle(|bundle| {
            let ca = x509(bundle, id).ok_or("no ca found with provided subject key ID")?;
            taint(&mut ca.tainted, "root CA is already tainted")
        })
        .await?;
        self.tell_tainted();
        Ok(())
    }

    pub(super) fn tell_tainted(&self) {
        self.tainted
            .send_modify(|times| *times = times.wrapping_add(1));
    }

    async fn revoke_in_bundle(&self, id: &str) -> Result<(), CaError> {
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

    async fn is_in_bundle(&self, jwt_id: &str) -> Result<bool, CaError> {
        let of = &self.authorities.profile().trust_domain;
        let bundle = self.store.bundle(of).await?;
        Ok(bundle.is_some_and(|bundle| bundle.jwt.iter().any(|key| key.id == jwt_id)))
    }

    fn with_upstream(&self) -> Result<(), CaError> {
        match &self.settings.upstream {
            Some(_) => Ok(()),
            None => Err(CaError::Precondition(
                "upstream authority is not configured",
            )),
        }
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
        let of = &self.authorities.profile().trust_domain;
        self.store
            .update_bundle(of, BundleChange::Update, |bundle| {
                let mut bundle = bundle?;
                refused = change(&mut bundle).err();
                refused.is_none().then_some(bundle)
            })
            .await?;
        refused.map_or(Ok(()), |why| Err(CaError::Bundle(why)))
    }
}

fn x509<'a>(bundle: &'a mut Bundle, id: &str) -> Option<&'a mut model::X509Authority> {
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
        return Err(CaError::Status(
            "only Prepared authorities can be activated",
            slots.next.status(),
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
        return Err(CaError::Status(
            "only Old local authorities can be tainted",
            slots.next.status(),
        ));
    }
    Ok(())
}

fn is_upstream_of_old(slots: &Slots<X509Authority>, key_id: &str) -> Result<(), CaError> {
    let signed = |slot: &Slot<X509Authority>| {
        let state = slot.state.as_ref();
        state.is_some_and(|state| state.upstream_id == key_id)
    };
    if key_id.is_empty() {
        return Err(CaError::Refused("no subject key ID provided"));
    }
    if signed(&slots.current) {
        return Err(CaError::Refused(
            "unable to use upstream authority singing current authority",
        ));
    }
    if !signed(&slots.next) {
        return Err(CaError::Refused(
            "upstream authority didn't sign the old local authority",
        ));
    }
    if slots.next.status() == Some(Status::Prepared) {
        return Err(CaError::Refused(
            "only upstream authorities signing an old authority can be used",
        ));
    }
    Ok(())
}
