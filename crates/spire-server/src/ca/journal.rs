//! The journal of authorities, in upstream's format.
//!
//! A server finds its journal in the store by the active X.509 authority, whose key it has. So there is none to find
//! before the first authority is active.

use ah_spire_wire::stored::journal::{Entries, JwtKeyEntry, Status as Stored, X509caEntry};
use prost::Message;

use super::authority::{Token, TokenAuthority, X509Authority, hex, to_unix};
use super::certificate::subject_key_id;
use super::manager::CaError;
use super::slots::{SlotName, Status};
use crate::keys::KeyManager;
use crate::store::{Journals, StoreError};

/// How many authorities of a kind are remembered.
const KEPT: usize = 10;

#[derive(Default)]
pub(super) struct Journal {
    id: Option<u64>,
    active: String,
    pub(super) entries: Entries,
    /// Not yet in the store.
    dirty: bool,
}

impl Journal {
    /// The journal of whoever has these keys; an empty one where there is none.
    pub(super) async fn load<S: Journals, K: KeyManager>(
        store: &S,
        keys: &K,
    ) -> Result<Self, CaError> {
        for key in keys.keys().await? {
            let authority = hex(&subject_key_id(key.spki())?);
            let Some((id, data)) = store.journal(&authority).await? else {
                continue;
            };
            let entries = Entries::decode(data.as_slice()).map_err(|error| {
                CaError::Journal(format!("CA journal {id} cannot be read: {error}"))
            })?;
            tracing::info!(
                ca_journal_id = id,
                local_authority_id = %authority,
                x509_cas = entries.x509_c_as.len(),
                jwt_keys = entries.jwt_keys.len(),
                wit_keys = entries.wit_keys.len(),
                "CA journal loaded"
            );
            return Ok(Self {
                id: Some(id),
                active: authority,
                entries,
                dirty: false,
            });
        }
        tracing::info!(
            "no CA journal belongs to a key of this server: a new CA is made, as at a first start or after its keys were lost"
        );
        Ok(Self::default())
    }

    pub(super) fn append_x509(&mut self, slot: SlotName, authority: &X509Authority, now: i64) {
        let slot_id = slot.to_string();
        // The key of what was prepared in this slot before is gone.
        for entry in &mut self.entries.x509_c_as {
            if entry.slot_id == slot_id {
                entry.status = Stored::Old.into();
            }
        }
        self.entries.x509_c_as.push(X509caEntry {
            slot_id,
            issued_at: now,
            certificate: authority.der().to_vec(),
            upstream_chain: authority.upstream_chain.clone(),
            status: Stored::Prepared.into(),
            authority_id: authority.id(),
            not_after: to_unix(authority.not_after()),
            upstream_authority_id: authority.upstream_id(),
        });
        keep_newest(&mut self.entries.x509_c_as);
        self.dirty = true;
    }

    pub(super) fn append_token(
        &mut self,
        of: Token,
        slot: SlotName,
        authority: &TokenAuthority,
        now: i64,
    ) {
        let slot_id = slot.to_string();
        let keys = self.tokens(of);
        for entry in &mut *keys {
            if entry.slot_id == slot_id {
                entry.status = Stored::Old.into();
            }
        }
        keys.push(JwtKeyEntry {
            slot_id,
            issued_at: now,
            not_after: to_unix(authority.not_after),
            kid: authority.id.clone(),
            public_key: authority.key.spki().to_vec(),
            status: Stored::Prepared.into(),
            authority_id: authority.id.clone(),
        });
        keep_newest(keys);
        self.dirty = true;
    }

    /// `id` is active from now on, and whatever was is old: there is never a moment with two.
    pub(super) fn activate_x509(&mut self, id: &str) {
        for entry in &mut self.entries.x509_c_as {
            entry.status = after_activation(entry.status, entry.authority_id == id);
        }
        self.active = id.to_owned();
        self.dirty = true;
    }

    /// As [`Self::activate_x509`].
    pub(super) fn activate_token(&mut self, of: Token, id: &str) {
        for entry in self.tokens(of) {
            entry.status = after_activation(entry.status, entry.authority_id == id);
        }
        self.dirty = true;
    }

    fn tokens(&mut self, of: Token) -> &mut Vec<JwtKeyEntry> {
        match of {
            Token::Jwt => &mut self.entries.jwt_keys,
            Token::Wit => &mut self.entries.wit_keys,
        }
    }

    /// Brings to the store what is not there yet.
    pub(super) async fn save<S: Journals>(&mut self, store: &S) -> Result<(), CaError> {
        if !self.dirty || self.active.is_empty() {
            return Ok(());
        }
        let data = self.entries.encode_to_vec();
        let put = match store.put_journal(self.id, &self.active, &data).await {
            // Another server pruned it while this one was away.
            Err(StoreError::NotFound(_)) if self.id.is_some() => {
                store.put_journal(None, &self.active, &data).await
            }
            put => put,
        };
        self.id = Some(put?);
        self.dirty = false;
        Ok(())
    }
}

fn after_activation(status: i32, is_it: bool) -> i32 {
    if is_it {
        Stored::Active.into()
    } else if status == i32::from(Stored::Active) {
        Stored::Old.into()
    } else {
        status
    }
}

fn keep_newest<T>(entries: &mut Vec<T>) {
    let excess = entries.len().saturating_sub(KEPT);
    entries.drain(..excess);
}

/// Journals of upstream before 1.6 have no status; their two newest are taken as prepared.
pub(super) fn status(stored: i32) -> Status {
    match Stored::try_from(stored) {
        Ok(Stored::Active) => Status::Active,
        Ok(Stored::Old) => Status::Old,
        _ => Status::Prepared,
    }
}
