//! The keys that sign tokens: JWT-SVIDs and, where they are on, WIT-SVIDs.

use std::sync::Arc;

use ah_spire_wire::model::JwtKey;

use super::{CaError, Manager, State, free_slot, token_key_id};
use crate::ca::authority::{Token, TokenAuthority, from_unix, to_unix};
use crate::ca::metrics::done;
use crate::ca::prepare;
use crate::ca::slots::{Slot, Slots, Status};
use crate::keys::{KeyManager, KeyType};
use crate::store::{Bundles, Journals};

impl State {
    pub(super) fn tokens(&mut self, of: Token) -> &mut Slots<TokenAuthority> {
        match of {
            Token::Jwt => &mut self.jwt,
            Token::Wit => &mut self.wit,
        }
    }
}

impl<S: Bundles + Journals + 'static, K: KeyManager> Manager<S, K> {
    /// In the current slot when that is empty, else in the next.
    pub(super) async fn prepare_token_key(
        &self,
        of: Token,
        kind: KeyType,
        state: &mut State,
    ) -> Result<(), CaError> {
        let call = self.counts.prepare_token(of).start();
        let prepared = self.new_token_key(of, kind, state).await;
        done(call, &prepared);
        prepared
    }

    async fn new_token_key(
        &self,
        of: Token,
        kind: KeyType,
        state: &mut State,
    ) -> Result<(), CaError> {
        state.journal.save(self.store.as_ref()).await?;
        let slot = free_slot(state.tokens(of));
        let name = slot.name;
        let now = self.now();
        let key = self
            .keys
            .generate_key(&token_key_id(of, name), kind)
            .await?;
        slot.set_status(Status::Old);
        let authority = Arc::new(prepare::token(self.authorities.profile(), key, now)?);
        self.publish(
            of,
            JwtKey {
                spki: authority.key.spki().to_vec(),
                id: authority.id.clone(),
                expires_at: to_unix(authority.not_after),
                tainted: false,
            },
        )
        .await?;
        state
            .journal
            .append_token(of, name, &authority, to_unix(now));
        tracing::info!(slot = %name, local_authority_id = authority.id, "{} prepared", of.key_name());
        let issued_at = from_unix(to_unix(now));
        *free_slot(state.tokens(of)) = Slot::holding(name, authority, issued_at, Status::Prepared);
        self.save(state).await;
        Ok(())
    }

    pub(super) async fn activate_token_key(&self, of: Token, state: &mut State) {
        let slot = &mut state.tokens(of).current;
        slot.set_status(Status::Active);
        let (name, id) = (slot.name, slot.id().to_owned());
        self.authorities.set_token(of, slot.authority.clone());
        state.journal.activate_token(of, &id);
        self.counts.activated_token(of);
        tracing::info!(slot = %name, local_authority_id = id, "{} activated", of.key_name());
        self.save(state).await;
    }

    /// Upstream authorities take JWT keys alone.
    async fn publish(&self, of: Token, key: JwtKey) -> Result<(), CaError> {
        match of {
            Token::Jwt => self.publish_jwt(key).await.map(drop),
            Token::Wit => self.append(&[], Some((of, &[key]))).await.map(drop),
        }
    }
}
