//! Upstream's schema, and the rules by which versions of it are used, brought up to date or refused.

mod mysql;

use std::time::Duration;

use super::connection::{Arg, Connection, Kind};
use super::{OpenError, SqlStore, cannot_open, now};
use crate::store::StoreError;

/// The schema of upstream 1.15 and 1.16.
const VERSION: i64 = 25;

/// The schema of upstream 1.8 to 1.14; what came before needs an upstream release in between.
const OLDEST: i64 = 23;

/// The release of upstream that we count as. Upstream uses a database when the schema is its own, or when this
/// lies within one minor release of itself: 1.14 to 1.16 open what we made.
const CODE_VERSION: &str = "1.15.3";

/// Key of the advisory lock under which one server at a time brings the schema up to date: "spireDB".
const LOCK: i64 = 0x0073_7069_7265_4442;

/// How long a server waits for another that brings the schema up to date. MySQL alone bounds it.
const WAIT: Duration = Duration::from_secs(60);

/// Brings the schema up to date, in one transaction where the database has those for tables.
pub(super) async fn bring_up_to_date(
    store: &SqlStore,
    place: &str,
    disable_migration: bool,
) -> Result<(), OpenError> {
    let failed = |e: StoreError| cannot_open(place, e);
    let mut connection = store.begin().await.map_err(failed)?;
    let done = async {
        migrate(&mut connection, disable_migration).await?;
        mysql::compare_exactly(&mut connection, disable_migration).await
    };
    let done = done.await;
    match connection.end(done).await {
        Ok(()) => Ok(()),
        // Ours, with its own remedy.
        Err(StoreError::Precondition(text)) => Err(OpenError::Database(format!(
            "cannot use datastore {place}: {text}"
        ))),
        Err(e) => Err(failed(e)),
    }
}

async fn migrate(db: &mut Connection, disable_migration: bool) -> Result<(), StoreError> {
    // Two servers that start at once take turns, and the second finds the work done.
    let find = match db.kind() {
        Kind::Sqlite => "SELECT count(*) FROM sqlite_schema WHERE name = 'migrations'",
        Kind::Postgres => {
            db.execute("SELECT pg_advisory_xact_lock($1)", &[LOCK.into()])
                .await?;
            "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'migrations'"
        }
        Kind::MySql => {
            db.lock("schema", WAIT).await?;
            "SELECT count(*) FROM information_schema.tables WHERE table_schema = database() AND table_name = 'migrations'"
        }
    };
    let found: Option<(i64,)> = db.row(find, &[]).await?;
    if found.is_none_or(|(n,)| n == 0) {
        return create(db).await;
    }
    let version = "SELECT CAST(coalesce(version, 0) AS BIGINT), coalesce(code_version, '') FROM migrations ORDER BY id LIMIT 1";
    let Some((version, code)) = db.row::<(i64, String)>(version, &[]).await? else {
        return Err(StoreError::Precondition(
            "its table migrations is empty; restore that from a backup".into(),
        ));
    };
    let stored = release(&code).ok_or_else(|| {
        StoreError::Precondition(format!(
            "its code version {code:?} is none; restore table migrations from a backup"
        ))
    })?;
    let own = release(CODE_VERSION).unwrap_or_default();
    let close = stored.0 == own.0 && stored.1.abs_diff(own.1) <= 1;
    match version {
        VERSION => {
            if own > stored {
                stamp(db).await?;
            }
            return Ok(());
        }
        newer if newer > VERSION => {
            if close {
                tracing::warn!(
                    schema = newer,
                    known = VERSION,
                    "the datastore's schema is newer than this server; upgrade it soon"
                );
                return Ok(());
            }
            return Err(StoreError::Precondition(format!(
                "its schema {newer} was made by SPIRE {code} and is too new for this server, which knows schemas up to {VERSION}; \
                 run a newer server, or restore a backup from before the upgrade"
            )));
        }
        _ if disable_migration && !close => {
            return Err(StoreError::Precondition(format!(
                "its schema {version} is older than {VERSION} and disable_migration is set; unset it to bring the schema up to date"
            )));
        }
        older if older < OLDEST => {
            return Err(StoreError::Precondition(format!(
                "its schema {older} is from before SPIRE 1.8; start it once with SPIRE 1.8 to 1.14, which brings it to schema {OLDEST}"
            )));
        }
        _ => {}
    }
    // Without these two columns nothing here could be read, so disable_migration keeps only the version.
    let mut missing = Vec::new();
    for (table, column, kind) in [
        (
            "attested_node_entries",
            "agent_version",
            ["varchar(255)", "text", "varchar(255)"],
        ),
        (
            "registered_entries",
            "additional_attributes",
            ["blob", "bytea", "longblob"],
        ),
    ] {
        if !has_column(db, table, column).await? {
            let [sqlite, postgres, mysql] = kind;
            let kind = match db.kind() {
                Kind::Sqlite => sqlite,
                Kind::Postgres => postgres,
                Kind::MySql => mysql,
            };
            missing.push(format!("ALTER TABLE \"{table}\" ADD \"{column}\" {kind}"));
        }
    }
    if disable_migration && !missing.is_empty() {
        return Err(StoreError::Precondition(format!(
            "its schema {version} lacks columns that this server needs and disable_migration is set; unset it to bring the schema up to date"
        )));
    }
    for sql in missing {
        db.execute(&sql, &[]).await?;
    }
    if !disable_migration {
        stamp(db).await?;
        tracing::info!(
            from = version,
            to = VERSION,
            "datastore schema brought up to date"
        );
    }
    Ok(())
}

async fn has_column(db: &mut Connection, table: &str, column: &str) -> Result<bool, StoreError> {
    let sql = match db.kind() {
        Kind::Sqlite => "SELECT count(*) FROM pragma_table_info($1) WHERE name = $2",
        Kind::Postgres => {
            "SELECT count(*) FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = $1 AND column_name = $2"
        }
        Kind::MySql => {
            "SELECT count(*) FROM information_schema.columns WHERE table_schema = database() AND table_name = $1 AND column_name = $2"
        }
    };
    let found: Option<(i64,)> = db.row(sql, &[table.into(), column.into()]).await?;
    Ok(found.is_some_and(|(n,)| n > 0))
}

async fn create(db: &mut Connection) -> Result<(), StoreError> {
    let made = match db.kind() {
        Kind::Sqlite => {
            let tables = "SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'";
            let tables: Option<(i64,)> = db.row(tables, &[]).await?;
            if tables.is_some_and(|(n,)| n > 0) {
                return Err(StoreError::Precondition(
                    "the file is the SQLite database of another program; give connection_string a path of its own".into(),
                ));
            }
            db.script(SQLITE).await?;
            "migrations"
        }
        Kind::Postgres => {
            db.script(POSTGRES).await?;
            "migrations"
        }
        Kind::MySql => {
            db.script(mysql::TABLES).await?;
            mysql::UNNAMED
        }
    };
    let insert = format!("INSERT INTO {made} (version, code_version, created_at, updated_at)");
    let row = vec![VERSION.into(), CODE_VERSION.into(), now()];
    db.insert(&insert, vec![row]).await?;
    match db.kind() {
        Kind::MySql => db.script(mysql::NAME).await,
        Kind::Sqlite | Kind::Postgres => Ok(()),
    }
}

async fn stamp(db: &mut Connection) -> Result<(), StoreError> {
    let sql = "UPDATE migrations SET version = $1, code_version = $2, updated_at = $3::timestamptz";
    let args: [Arg; 3] = [VERSION.into(), CODE_VERSION.into(), now()];
    db.execute(sql, &args).await.map(drop)
}

/// Major, minor and patch of `1.14.1-dev-unk`. Nothing is written in databases from before 0.9.
fn release(text: &str) -> Option<(u64, u64, u64)> {
    if text.is_empty() {
        return Some((0, 0, 0));
    }
    let numbers = text.split(['-', '+']).next()?;
    let mut parts = numbers.split('.').map(|part| part.parse().ok());
    let release = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(release)
}

/// As upstream's object mapper writes it, spelling and all: a dump of the two differs in nothing.
const SQLITE: &str = r#"
CREATE TABLE "federated_registration_entries" ("bundle_id" integer,"registered_entry_id" integer, PRIMARY KEY ("bundle_id","registered_entry_id"));
CREATE TABLE "bundles" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"trust_domain" varchar(255) NOT NULL,"data" blob );
CREATE UNIQUE INDEX uix_bundles_trust_domain ON "bundles"(trust_domain) ;
CREATE TABLE "attested_node_entries" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"spiffe_id" varchar(255),"data_type" varchar(255),"serial_number" varchar(255),"expires_at" datetime,"new_serial_number" varchar(255),"new_expires_at" datetime,"can_reattest" bool,"agent_version" varchar(255) );
CREATE INDEX idx_attested_node_entries_expires_at ON "attested_node_entries"(expires_at) ;
CREATE UNIQUE INDEX uix_attested_node_entries_spiffe_id ON "attested_node_entries"(spiffe_id) ;
CREATE TABLE "attested_node_entries_events" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"spiffe_id" varchar(255) );
CREATE TABLE "node_resolver_map_entries" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"spiffe_id" varchar(255),"type" varchar(255),"value" varchar(255) );
CREATE UNIQUE INDEX idx_node_resolver_map ON "node_resolver_map_entries"(spiffe_id, "type", "value") ;
CREATE TABLE "registered_entries" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"entry_id" varchar(255),"spiffe_id" varchar(255),"parent_id" varchar(255),"ttl" integer,"admin" bool,"downstream" bool,"expiry" bigint,"revision_number" bigint,"store_svid" bool,"hint" varchar(255),"jwt_svid_ttl" integer,"additional_attributes" blob );
CREATE INDEX idx_registered_entries_expiry ON "registered_entries"("expiry") ;
CREATE INDEX idx_registered_entries_hint ON "registered_entries"("hint") ;
CREATE INDEX idx_registered_entries_spiffe_id ON "registered_entries"(spiffe_id) ;
CREATE INDEX idx_registered_entries_parent_id ON "registered_entries"(parent_id) ;
CREATE UNIQUE INDEX uix_registered_entries_entry_id ON "registered_entries"(entry_id) ;
CREATE TABLE "registered_entries_events" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"entry_id" varchar(255) );
CREATE TABLE "join_tokens" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"token" varchar(255),"expiry" bigint );
CREATE UNIQUE INDEX uix_join_tokens_token ON "join_tokens"("token") ;
CREATE TABLE "selectors" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"registered_entry_id" integer,"type" varchar(255),"value" varchar(255) );
CREATE INDEX idx_selectors_type_value ON "selectors"("type", "value") ;
CREATE UNIQUE INDEX idx_selector_entry ON "selectors"(registered_entry_id, "type", "value") ;
CREATE TABLE "migrations" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"version" integer,"code_version" varchar(255) );
CREATE TABLE "dns_names" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"registered_entry_id" integer,"value" varchar(255) );
CREATE UNIQUE INDEX idx_dns_entry ON "dns_names"(registered_entry_id, "value") ;
CREATE TABLE "federated_trust_domains" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"trust_domain" varchar(255) NOT NULL,"bundle_endpoint_url" varchar(255),"bundle_endpoint_profile" varchar(255),"endpoint_spiffe_id" varchar(255),"implicit" bool );
CREATE UNIQUE INDEX uix_federated_trust_domains_trust_domain ON "federated_trust_domains"(trust_domain) ;
CREATE TABLE "ca_journals" ("id" integer primary key autoincrement,"created_at" datetime,"updated_at" datetime,"data" blob,"active_x509_authority_id" varchar(255),"active_jwt_authority_id" varchar(255) );
CREATE INDEX idx_ca_journals_active_x509_authority_id ON "ca_journals"(active_x509_authority_id) ;
CREATE INDEX idx_ca_journals_active_jwt_authority_id ON "ca_journals"(active_jwt_authority_id) ;
CREATE INDEX idx_federated_registration_entries_registered_entry_id ON "federated_registration_entries"(registered_entry_id) ;
"#;

/// The same for PostgreSQL.
const POSTGRES: &str = r#"
CREATE TABLE "federated_registration_entries" ("bundle_id" integer,"registered_entry_id" integer, PRIMARY KEY ("bundle_id","registered_entry_id"));
CREATE TABLE "bundles" ("id" serial,"created_at" timestamp with time zone,"updated_at" timestamp with time zone,"trust_domain" text NOT NULL,"data" bytea , PRIMARY KEY ("id"));
CREATE UNIQUE INDEX uix_bundles_trust_domain ON "bundles"(trust_domain);
CREATE TABLE "attested_node_entries" ("id" serial,"created_at" timestamp with time zone,"updated_at" timestamp with time zone,"spiffe_id" text,"data_type" text,"serial_number" text,"expires_at" timestamp with time zone,"new_serial_number" text,"new_expires_at" timestamp with time zone,"can_reattest" boolean,"agent_version" text , PRIMARY KEY ("id"));
CREATE INDEX idx_attested_node_entries_expires_at ON "attested_node_entries"(expires_at);
CREATE UNIQUE INDEX uix_attested_node_entries_spiffe_id ON "attested_node_entries"(spiffe_id);
CREATE TABLE "attested_node_entries_events" ("id" serial,"created_at" timestamp with time zone,"updated_at" timestamp with time zone,"spiffe_id" text , PRIMARY KEY ("id"));
CREATE TABLE "node_resolver_map_entries" ("id" serial,"created_at" timestamp with time zone,"updated_at" timestamp with time zone,"spiffe_id" text,"type" text,"value" text , PRIMARY KEY ("id"));
CREATE UNIQUE INDEX idx_node_resolver_map ON "node_resolver_map_entries"(spiffe_id, "type", "value");
CREATE TABLE "registered_entries" ("id" serial,"created_at" timestamp with time zone,"updated_at" timestamp with time zone,"entry_id" text,"spiffe_id" text,"parent_id" text,"ttl" integer,"admin" boolean,"downstream" boolean,"expiry" bigint,"revision_number" bigint,"store_svid" boolean,"hint" text,"jwt_svid_ttl" integer,"additional_attributes" bytea , PRIMARY KEY ("id"));
CREATE INDEX idx_registered_entries_expiry ON "registered_entries"("expiry");
CREATE INDEX idx_registered_entries_hint ON "registered_entries"("hint");
CREATE INDEX idx_registered_entries_spiffe_id ON "registered_entries"(spiffe_id);
CREATE INDEX idx_registered_entries_parent_id ON "registered_entries"(parent_id);
CREATE UNIQUE INDEX uix_registered_entries_entry_id ON "registered_entries"(entry_id);
CREATE TABLE "registered_entries_events" ("id" serial,"created_at" timestamp with time zone,"updated_at" timestamp with time zone,"entry_id" text , PRIMARY KEY ("id"));
CREATE TABLE "join_tokens" ("id" serial,"created_at" timestamp with time zone,"updated_at" timestamp with time zone,"token" text,"expiry" bigint , PRIMARY KEY ("id"));
CREATE UNIQUE INDEX uix_join_tokens_token ON "join_tokens"("token");
CREATE TABLE "selectors" ("id" serial,"created_at" timestamp with time zone,"updated_at" timestamp with time zone,"registered_entry_id" integer,"type" text,"value" text , PRIMARY KEY ("id"));
CREATE INDEX idx_selectors_type_value ON "selectors"("type", "value");
CREATE UNIQUE INDEX idx_selector_entry ON "selectors"(registered_entry_id, "type", "value");
CREATE TABLE "migrations" ("id" serial,"created_at" timestamp with time zone,"updated_at" timestamp with time zone,"version" integer,"code_version" text , PRIMARY KEY ("id"));
CREATE TABLE "dns_names" ("id" serial,"created_at" timestamp with time zone,"updated_at" timestamp with time zone,"registered_entry_id" integer,"value" text , PRIMARY KEY ("id"));
CREATE UNIQUE INDEX idx_dns_entry ON "dns_names"(registered_entry_id, "value");
CREATE TABLE "federated_trust_domains" ("id" serial,"created_at" timestamp with time zone,"updated_at" timestamp with time zone,"trust_domain" text NOT NULL,"bundle_endpoint_url" text,"bundle_endpoint_profile" text,"endpoint_spiffe_id" text,"implicit" boolean , PRIMARY KEY ("id"));
CREATE UNIQUE INDEX uix_federated_trust_domains_trust_domain ON "federated_trust_domains"(trust_domain);
CREATE TABLE "ca_journals" ("id" serial,"created_at" timestamp with time zone,"updated_at" timestamp with time zone,"data" bytea,"active_x509_authority_id" text,"active_jwt_authority_id" text , PRIMARY KEY ("id"));
CREATE INDEX idx_ca_journals_active_x509_authority_id ON "ca_journals"(active_x509_authority_id);
CREATE INDEX idx_ca_journals_active_jwt_authority_id ON "ca_journals"(active_jwt_authority_id);
CREATE INDEX idx_federated_registration_entries_registered_entry_id ON "federated_registration_entries"(registered_entry_id);
"#;

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        assert_eq!(release("1.14.1-dev-unk"), Some((1, 14, 1)));
        assert_eq!(release(""), Some((0, 0, 0)));
        assert!(release("1.9.6") < release("1.15.3"));
        for text in ["1.15", "x", "1.2.3.4", "1..3"] {
            assert_eq!(release(text), None, "{text}");
        }
    }
}
