//! Finding the authorities of an earlier process again.

use std::sync::Arc;

use ah_spire_wire::model::{Bundle, JwtKey};
use ah_spire_wire::stored::journal::{JwtKeyEntry, X509caEntry};

use super::{Manager, token_key_id, x509_key_id};
use crate::ca::authority::{Certificate, Token, TokenAuthority, X509Authority, from_unix};
use crate::ca::journal::status;
use crate::ca::manager::CaError;
use crate::ca::sign::BACKDATE;
use crate::ca::slots::{Slot, SlotName, Slots, Status};
use crate::keys::KeyManager;
use crate::store::{Bundles, Journals};

impl<S: Bundles + Journals + 'static, K: KeyManager> Manager<S, K> {
    /// Fills the slots from the journal. An entry is passed over, and a new authority made in its place, when its key
    /// is gone, when it has ended, or when the bundle lacks it, as after a datastore was restored: nobody could
    /// verify what it signs.
    pub(super) async fn load(&mut self) -> Result<(), CaError> {
        let of = &self.authorities.profile().trust_domain;
        let mut bundle = self.store.bundle(of).await?;
        let entries = &self.state.get_mut().journal.entries.clone();
        let mut x509 = Vec::new();
        for entry in entries.x509_c_as.iter().rev() {
            match self.x509_slot(entry, bundle.as_ref()).await? {
                Ok(slot) => x509.push(slot),
                Err(why) => log_unusable(entry.status, &entry.slot_id, &entry.authority_id, &why),
            }
        }
        let mut tokens = Vec::new();
        for of in [Token::Jwt, Token::Wit] {
            let in_bundle = bundle.as_mut().map(|bundle| &*of.keys(bundle));
            let entries = match of {
                Token::Jwt => &entries.jwt_keys,
                Token::Wit => &entries.wit_keys,
            };
            let mut slots = Vec::new();
            for entry in entries.iter().rev() {
                match self.token_slot(of, entry, in_bundle).await? {
                    Ok(slot) => slots.push(slot),
                    Err(why) => {
                        log_unusable(entry.status, &entry.slot_id, &entry.authority_id, &why);
                    }
                }
            }
            tokens.push((of, Slots::choose(slots.into_iter())));
        }
        let state = self.state.get_mut();
        state.x509 = Slots::choose(x509.into_iter());
        // What was active signs again; what is due is for the first rotation.
        let current = &state.x509.current;
        if current.status() == Some(Status::Active) {
            self.authorities.set_x509(current.authority.clone());
        }
        for (of, slots) in tokens {
            let signs = self.settings.tokens().any(|(token, _)| token == of);
            if slots.current.status() == Some(Status::Active) && signs {
                self.authorities
                    .set_token(of, slots.current.authority.clone());
            }
            *state.tokens(of) = slots;
        }
        Ok(())
    }

    async fn x509_slot(
        &self,
        entry: &X509caEntry,
        bundle: Option<&Bundle>,
    ) -> Result<Result<Slot<X509Authority>, String>, CaError> {
        let Some(name) = SlotName::parse(&entry.slot_id) else {
            return Ok(Err("it has no slot".into()));
        };
        let Some(key) = self.keys.key(&x509_key_id(name)).await? else {
            return Ok(Err("its key is gone from the key manager".into()));
        };
        let certificate = match Certificate::read(entry.certificate.clone()) {
            Ok(certificate) => certificate,
            Err(error) => return Ok(Err(error)),
        };
        if certificate.spki != key.spki() {
            return Ok(Err("the key in its slot is another".into()));
        }
        let in_bundle = |bundle: &Bundle| bundle.x509.iter().any(|ca| ca.der == entry.certificate);
        if self.settings.upstream.is_none() && !bundle.is_some_and(in_bundle) {
            return Ok(Err("it is not in the bundle".into()));
        }
        if let Err(why) = self.in_time(entry.issued_at, entry.not_after) {
            return Ok(Err(why));
        }
        let authority = Arc::new(X509Authority {
            key,
            certificate,
            upstream_chain: entry.upstream_chain.clone(),
        });
        let issued_at = from_unix(entry.issued_at);
        Ok(Ok(Slot::holding(
            name,
            authority,
            issued_at,
            status(entry.status),
        )))
    }

    async fn token_slot(
        &self,
        of: Token,
        entry: &JwtKeyEntry,
        in_bundle: Option<&Vec<JwtKey>>,
    ) -> Result<Result<Slot<TokenAuthority>, String>, CaError> {
        let Some(name) = SlotName::parse(&entry.slot_id) else {
            return Ok(Err("it has no slot".into()));
        };
        let Some(key) = self.keys.key(&token_key_id(of, name)).await? else {
            return Ok(Err("its key is gone from the key manager".into()));
        };
        if entry.public_key != key.spki() {
            return Ok(Err("the key in its slot is another".into()));
        }
        if !in_bundle.is_some_and(|keys| keys.iter().any(|key| key.id == entry.kid)) {
            return Ok(Err("it is not in the bundle".into()));
        }
        if let Err(why) = self.in_time(entry.issued_at, entry.not_after) {
            return Ok(Err(why));
        }
        let authority = Arc::new(TokenAuthority {
            key,
            id: entry.kid.clone(),
            not_after: from_unix(entry.not_after),
        });
        let issued_at = from_unix(entry.issued_at);
        Ok(Ok(Slot::holding(
            name,
            authority,
            issued_at,
            status(entry.status),
        )))
    }

    fn in_time(&self, issued_at: i64, not_after: i64) -> Result<(), String> {
        let now = self.now();
        if from_unix(not_after) <= now {
            return Err("it has ended".into());
        }
        if now
            .checked_add(BACKDATE)
            .is_some_and(|soon| from_unix(issued_at) > soon)
        {
            return Err("it is from the future: the clock was set back".into());
        }
        Ok(())
    }
}

fn log_unusable(stored: i32, slot: &str, id: &str, why: &str) {
    // Nothing is lost with an old one, whose key is overwritten in time.
    if status(stored) == Status::Old {
        tracing::debug!(
            slot,
            local_authority_id = id,
            "old authority passed over: {why}"
        );
    } else {
        tracing::warn!(
            slot,
            local_authority_id = id,
            "authority of the journal is unusable: {why}"
        );
    }
}
