//! Federation with other trust domains.

use ah_spire_wire::model::Bundle;
use spiffe::{SpiffeId, TrustDomain};

use super::bundles::{self, trust_domain};
use super::connection::{Arg, Connection};
use super::{SqlStore, after, cut, limit, now};
use crate::store::{Federation, Page, Paged, Profile, Relationship, StoreError};

const HTTPS_WEB: &str = "https_web";
const HTTPS_SPIFFE: &str = "https_spiffe";

type Columns = (i64, String, String, String, String);

impl Federation for SqlStore {
    async fn create_relationship(
        &self,
        relationship: &Relationship,
        bundle: Option<&Bundle>,
    ) -> Result<(), StoreError> {
        let mut db = self.begin().await?;
        let created = create(&mut db, relationship, bundle).await;
        db.end(created).await
    }

    async fn relationship(&self, with: &TrustDomain) -> Result<Option<Relationship>, StoreError> {
        let mut db = self.read().await?;
        let found = load(
            &mut db,
            "WHERE trust_domain = $1",
            &[with.to_string().into()],
        )
        .await;
        let found = db.end(found).await?.into_iter().next();
        Ok(found.map(|(_, relationship)| relationship))
    }

    async fn relationships(&self, page: &Page) -> Result<Paged<Relationship>, StoreError> {
        let args = [after(page)?.into(), limit(page).into()];
        let mut db = self.read().await?;
        let found = load(&mut db, "WHERE id > $1 ORDER BY id LIMIT $2", &args).await;
        let paged = cut(db.end(found).await?, page, |(row, _)| *row);
        Ok(Paged {
            rows: paged
                .rows
                .into_iter()
                .map(|(_, relationship)| relationship)
                .collect(),
            next: paged.next,
        })
    }

    async fn update_relationship(
        &self,
        with: &TrustDomain,
        change: impl FnOnce(&mut Relationship) + Send,
        bundle: Option<&Bundle>,
    ) -> Result<Relationship, StoreError> {
        let mut db = self.begin().await?;
        let updated = update(&mut db, with, change, bundle).await;
        db.end(updated).await
    }

    async fn delete_relationship(&self, with: &TrustDomain) -> Result<(), StoreError> {
        let sql = "DELETE FROM federated_trust_domains WHERE trust_domain = $1";
        let mut db = self.begin().await?;
        let deleted = db.execute(sql, &[with.to_string().into()]).await;
        match db.end(deleted).await? {
            0 => Err(missing(with)),
            _ => Ok(()),
        }
    }
}

async fn create(
    db: &mut Connection,
    relationship: &Relationship,
    bundle: Option<&Bundle>,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO federated_trust_domains (trust_domain, bundle_endpoint_url, bundle_endpoint_profile, endpoint_spiffe_id, implicit, created_at, updated_at)
        VALUES ($1, $2, $3, $4, false, $5::timestamptz, $5::timestamptz) ON CONFLICT DO NOTHING";
    if db.execute(sql, &columns(relationship)).await? == 0 {
        let with = &relationship.trust_domain;
        return Err(StoreError::AlreadyExists(format!(
            "federation relationship with {with}"
        )));
    }
    put_bundle(db, bundle).await
}

async fn update(
    db: &mut Connection,
    with: &TrustDomain,
    change: impl FnOnce(&mut Relationship) + Send,
    bundle: Option<&Bundle>,
) -> Result<Relationship, StoreError> {
    let found = load(
        db,
        "WHERE trust_domain = $1 FOR UPDATE",
        &[with.to_string().into()],
    )
    .await?;
    let (_, mut relationship) = found.into_iter().next().ok_or_else(|| missing(with))?;
    change(&mut relationship);
    relationship.trust_domain = with.clone();
    let sql = "UPDATE federated_trust_domains SET bundle_endpoint_url = $2, bundle_endpoint_profile = $3, endpoint_spiffe_id = $4,
        updated_at = $5::timestamptz WHERE trust_domain = $1";
    db.execute(sql, &columns(&relationship)).await?;
    put_bundle(db, bundle).await?;
    Ok(relationship)
}

async fn put_bundle(db: &mut Connection, bundle: Option<&Bundle>) -> Result<(), StoreError> {
    match bundle {
        Some(bundle) => bundles::put(db, bundle).await,
        None => Ok(()),
    }
}

fn columns(relationship: &Relationship) -> [Arg; 5] {
    let (profile, id) = match &relationship.profile {
        Profile::HttpsWeb => (HTTPS_WEB, String::new()),
        Profile::HttpsSpiffe(id) => (HTTPS_SPIFFE, id.to_string()),
    };
    [
        relationship.trust_domain.to_string().into(),
        relationship.endpoint_url.as_str().into(),
        profile.into(),
        id.into(),
        now(),
    ]
}

async fn load(
    db: &mut Connection,
    rest: &str,
    args: &[Arg],
) -> Result<Vec<(i64, Relationship)>, StoreError> {
    let sql = format!(
        "SELECT CAST(id AS BIGINT), trust_domain, coalesce(bundle_endpoint_url, ''), coalesce(bundle_endpoint_profile, ''),
            coalesce(endpoint_spiffe_id, '') FROM federated_trust_domains {rest}"
    );
    let rows: Vec<Columns> = db.rows(&sql, args).await?;
    let stored = |(row, name, endpoint_url, profile, id): Columns| {
        let broken = |why: String| {
            StoreError::Broken(format!("federation relationship with {name:?}: {why}"))
        };
        let profile = match profile.as_str() {
            HTTPS_WEB => Profile::HttpsWeb,
            HTTPS_SPIFFE => Profile::HttpsSpiffe(
                SpiffeId::new(&id)
                    .map_err(|e| broken(format!("endpoint SPIFFE ID {id:?}: {e}")))?,
            ),
            other => return Err(broken(format!("unknown bundle endpoint profile {other:?}"))),
        };
        let trust_domain = trust_domain(&name)?;
        Ok((
            row,
            Relationship {
                trust_domain,
                endpoint_url,
                profile,
            },
        ))
    };
    rows.into_iter().map(stored).collect()
}

fn missing(with: &TrustDomain) -> StoreError {
    StoreError::NotFound(format!("federation relationship with {with}"))
}
