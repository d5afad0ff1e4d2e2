//! Trust bundles: one protobuf a row.

use std::collections::BTreeSet;

use ah_spire_wire::bundle::{bundle_to_stored, key_from_stored};
use ah_spire_wire::model::{Bundle, X509Authority};
use ah_spire_wire::stored::common;
use prost::Message;
use spiffe::TrustDomain;

use super::connection::{Connection, Kind};
use super::entries::{delete_federated, touch_federated};
use super::{SqlStore, after, cut, limit, now};
use crate::store::{BundleChange, BundleDeletion, Bundles, Page, Paged, StoreError};

impl Bundles for SqlStore {
    async fn bundle(&self, of: &TrustDomain) -> Result<Option<Bundle>, StoreError> {
        let mut db = self.read().await?;
        let sql = "SELECT data FROM bundles WHERE trust_domain = $1";
        let found = db
            .row::<(Option<Vec<u8>>,)>(sql, &[stored_name(of).into()])
            .await;
        let found = db.end(found).await?;
        found
            .map(|(data,)| from_message(&decode(of, data)?, of))
            .transpose()
    }

    async fn bundles(&self, page: &Page) -> Result<Paged<Bundle>, StoreError> {
        let sql = "SELECT CAST(id AS BIGINT), trust_domain, data FROM bundles WHERE id > $1 ORDER BY id LIMIT $2";
        let args = [after(page)?.into(), limit(page).into()];
        let mut db = self.read().await?;
        let rows = db.rows::<(i64, String, Option<Vec<u8>>)>(sql, &args).await;
        let paged = cut(db.end(rows).await?, page, |row| row.0);
        let bundle = |(_, name, data): (i64, String, Option<Vec<u8>>)| {
            let of = trust_domain(&name)?;
            from_message(&decode(&of, data)?, &of)
        };
        Ok(Paged {
            rows: paged
                .rows
                .into_iter()
                .map(bundle)
                .collect::<Result<_, _>>()?,
            next: paged.next,
        })
    }

    async fn count_bundles(&self) -> Result<u64, StoreError> {
        let mut db = self.read().await?;
        let count = db.row::<(i64,)>("SELECT count(*) FROM bundles", &[]).await;
        let count = db.end(count).await?;
        Ok(count.map_or(0, |(n,)| n.unsigned_abs()))
    }

    async fn put_bundle(&self, bundle: &Bundle) -> Result<(), StoreError> {
        let mut db = self.begin().await?;
        let put = put(&mut db, bundle).await;
        db.end(put).await
    }

    async fn update_bundle(
        &self,
        of: &TrustDomain,
        _how: BundleChange,
        change: impl FnOnce(Option<Bundle>) -> Option<Bundle> + Send,
    ) -> Result<Option<Bundle>, StoreError> {
        let mut db = self.begin().await?;
        let updated = update(&mut db, of, change).await;
        db.end(updated).await
    }

    async fn delete_bundle(
        &self,
        of: &TrustDomain,
        mode: BundleDeletion,
    ) -> Result<(), StoreError> {
        let mut db = self.begin().await?;
        let deleted = delete(&mut db, of, mode).await;
        db.end(deleted).await
    }

    async fn bundle_domains(&self) -> Result<BTreeSet<TrustDomain>, StoreError> {
        let mut db = self.read().await?;
        let rows = db
            .rows::<(String,)>("SELECT trust_domain FROM bundles", &[])
            .await;
        let rows = db.end(rows).await?;
        rows.iter().map(|(name,)| trust_domain(name)).collect()
    }
}

/// Creates or replaces.
pub(super) async fn put(db: &mut Connection, bundle: &Bundle) -> Result<(), StoreError> {
    let of = &bundle.trust_domain;
    let (row, stored) = lock(db, of).await?;
    let mut message = bundle_to_stored(bundle);
    if let (true, Some(stored)) = (bundle.wit.is_empty(), stored) {
        // No bundle document tells them: who sets one does not mean that they are gone.
        message.wit_signing_keys = stored.wit_signing_keys;
    }
    write(db, row, &message).await
}

async fn update(
    db: &mut Connection,
    of: &TrustDomain,
    change: impl FnOnce(Option<Bundle>) -> Option<Bundle> + Send,
) -> Result<Option<Bundle>, StoreError> {
    let (row, stored) = lock(db, of).await?;
    let before = stored
        .as_ref()
        .map(|message| from_message(message, of))
        .transpose()?;
    let new = change(before.clone());
    let Some(mut new) = new.filter(|new| Some(new) != before.as_ref()) else {
        if before.is_none() {
            let delete = "DELETE FROM bundles WHERE id = $1";
            db.execute(delete, &[row.into()]).await?;
        }
        return Ok(before);
    };
    if let Some(before) = before {
        new.sequence = before.sequence.saturating_add(1);
    }
    new.trust_domain = of.clone();
    write(db, row, &bundle_to_stored(&new)).await?;
    Ok(Some(new))
}

/// The row of a trust domain, to be written: no other transaction changes it before this one ends. Where there
/// was none, one without a bundle is made, so that two servers that make the first one take turns as well.
async fn lock(
    db: &mut Connection,
    of: &TrustDomain,
) -> Result<(i64, Option<common::Bundle>), StoreError> {
    let name = stored_name(of);
    // MySQL would share the lock of a row that is there, and two who have it wait for each other: this takes it alone.
    let conflict = match db.kind() {
        Kind::MySql => "ON DUPLICATE KEY UPDATE id = id",
        Kind::Sqlite | Kind::Postgres => "ON CONFLICT DO NOTHING",
    };
    let insert = format!(
        "INSERT INTO bundles (trust_domain, created_at, updated_at) VALUES ($1, $2::timestamptz, $2::timestamptz) {conflict}"
    );
    db.execute(&insert, &[name.as_str().into(), now()]).await?;
    let select = "SELECT CAST(id AS BIGINT), data FROM bundles WHERE trust_domain = $1 FOR UPDATE";
    let row: Option<(i64, Option<Vec<u8>>)> = db.row(select, &[name.as_str().into()]).await?;
    let (row, data) =
        row.ok_or_else(|| StoreError::Unavailable(format!("bundle {name} went away")))?;
    let stored = data.map(|data| decode(of, Some(data))).transpose()?;
    Ok((row, stored))
}

async fn write(db: &mut Connection, row: i64, message: &common::Bundle) -> Result<(), StoreError> {
    let sql = "UPDATE bundles SET data = $1, updated_at = $2::timestamptz WHERE id = $3";
    let args = [message.encode_to_vec().into(), now(), row.into()];
    db.execute(sql, &args).await.map(drop)
}

async fn delete(
    db: &mut Connection,
    of: &TrustDomain,
    mode: BundleDeletion,
) -> Result<(), StoreError> {
    let name = stored_name(of);
    let select = "SELECT CAST(id AS BIGINT) FROM bundles WHERE trust_domain = $1 FOR UPDATE";
    let row: Option<(i64,)> = db.row(select, &[name.as_str().into()]).await?;
    let (row,) = row.ok_or_else(|| StoreError::NotFound(format!("bundle of {of}")))?;
    let count = "SELECT count(*) FROM federated_registration_entries WHERE bundle_id = $1";
    let count: Option<(i64,)> = db.row(count, &[row.into()]).await?;
    let count = count.map_or(0, |(n,)| n);
    match mode {
        BundleDeletion::Restrict if count > 0 => {
            return Err(StoreError::Precondition(format!(
                "cannot delete bundle; federated with {count} registration entries"
            )));
        }
        BundleDeletion::Restrict => {}
        BundleDeletion::Delete => delete_federated(db, row).await?,
        BundleDeletion::Dissociate => {
            touch_federated(db, row).await?;
            let sql = "DELETE FROM federated_registration_entries WHERE bundle_id = $1";
            db.execute(sql, &[row.into()]).await?;
        }
    }
    let sql = "DELETE FROM bundles WHERE id = $1";
    db.execute(sql, &[row.into()]).await.map(drop)
}

/// How upstream writes a trust domain in the table of bundles.
pub(super) fn stored_name(domain: &TrustDomain) -> String {
    format!("spiffe://{domain}")
}

pub(super) fn trust_domain(name: &str) -> Result<TrustDomain, StoreError> {
    TrustDomain::new(name)
        .map_err(|e| StoreError::Broken(format!("trust domain {name:?} is malformed: {e}")))
}

fn decode(of: &TrustDomain, data: Option<Vec<u8>>) -> Result<common::Bundle, StoreError> {
    common::Bundle::decode(data.unwrap_or_default().as_slice())
        .map_err(|e| StoreError::Broken(format!("bundle of {of} cannot be read: {e}")))
}

fn from_message(message: &common::Bundle, of: &TrustDomain) -> Result<Bundle, StoreError> {
    let authority = |certificate: &common::Certificate| X509Authority {
        der: certificate.der_bytes.clone(),
        tainted: certificate.tainted_key,
    };
    Ok(Bundle {
        trust_domain: of.clone(),
        x509: message.root_cas.iter().map(authority).collect(),
        jwt: message
            .jwt_signing_keys
            .iter()
            .map(key_from_stored)
            .collect(),
        wit: message
            .wit_signing_keys
            .iter()
            .map(key_from_stored)
            .collect(),
        refresh_hint: message.refresh_hint,
        sequence: message.sequence_number,
    })
}
