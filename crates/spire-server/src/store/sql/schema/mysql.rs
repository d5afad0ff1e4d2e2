//! The schema as MySQL and MariaDB have it.
//!
//! Column types and names of indices are what upstream's object mapper makes of its models there. Upstream leaves the collation
//! to the server, whose default takes `A` and `a` for the same: then two SPIFFE IDs are one. Here all texts compare by their
//! bytes, and take any character, which upstream's three bytes a character do not; upstream works with such columns as with its own.

use crate::store::StoreError;
use crate::store::sql::connection::{Connection, Kind};

/// Tables of texts that are not compared exactly. All collations that do end in `bin`.
const INEXACT: &str = "SELECT DISTINCT CAST(table_name AS CHAR) FROM information_schema.columns
    WHERE table_schema = database() AND collation_name NOT LIKE '%bin' AND table_name IN
    ('bundles', 'attested_node_entries', 'attested_node_entries_events', 'node_resolver_map_entries', 'registered_entries', 'registered_entries_events', 'join_tokens', 'selectors', 'dns_names', 'federated_trust_domains', 'ca_journals', 'migrations') ORDER BY 1";

/// Has texts compared by their bytes where a server of upstream's made the tables.
pub(super) async fn compare_exactly(
    db: &mut Connection,
    disable_migration: bool,
) -> Result<(), StoreError> {
    if db.kind() != Kind::MySql {
        return Ok(());
    }
    let inexact: Vec<(String,)> = db.rows(INEXACT, &[]).await?;
    if let (true, Some((table,))) = (disable_migration, inexact.first()) {
        return Err(StoreError::Precondition(format!(
            "its table {table} takes capital and small letters for the same, so that two SPIFFE IDs may be one, and disable_migration is set; \
             unset it to have texts compared exactly"
        )));
    }
    for (table,) in inexact {
        let sql =
            format!("ALTER TABLE \"{table}\" CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin");
        db.execute(&sql, &[]).await?;
        tracing::info!(
            table,
            "texts of the datastore's table are now compared exactly"
        );
    }
    Ok(())
}

/// What [`TABLES`] calls the table `migrations`. Every statement about a table is committed by itself, so that a database that
/// has the name has all tables.
pub(super) const UNNAMED: &str = "migrations_unnamed";

/// Gives it its name.
pub(super) const NAME: &str = r#"RENAME TABLE "migrations_unnamed" TO "migrations""#;

/// Makes what is not there: a server may have been killed meanwhile.
pub(super) const TABLES: &str = r#"
CREATE TABLE IF NOT EXISTS "federated_registration_entries" ("bundle_id" int unsigned NOT NULL,"registered_entry_id" int unsigned NOT NULL,PRIMARY KEY ("bundle_id","registered_entry_id"),KEY "idx_federated_registration_entries_registered_entry_id" ("registered_entry_id")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS "bundles" ("id" int unsigned NOT NULL AUTO_INCREMENT,"created_at" datetime,"updated_at" datetime,"trust_domain" varchar(255) NOT NULL,"data" longblob,PRIMARY KEY ("id"),UNIQUE KEY "uix_bundles_trust_domain" ("trust_domain")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS "attested_node_entries" ("id" int unsigned NOT NULL AUTO_INCREMENT,"created_at" datetime,"updated_at" datetime,"spiffe_id" varchar(255),"data_type" varchar(255),"serial_number" varchar(255),"expires_at" datetime,"new_serial_number" varchar(255),"new_expires_at" datetime,"can_reattest" boolean,"agent_version" varchar(255),PRIMARY KEY ("id"),UNIQUE KEY "uix_attested_node_entries_spiffe_id" ("spiffe_id"),KEY "idx_attested_node_entries_expires_at" ("expires_at")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS "attested_node_entries_events" ("id" int unsigned NOT NULL AUTO_INCREMENT,"created_at" datetime,"updated_at" datetime,"spiffe_id" varchar(255),PRIMARY KEY ("id")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS "node_resolver_map_entries" ("id" int unsigned NOT NULL AUTO_INCREMENT,"created_at" datetime,"updated_at" datetime,"spiffe_id" varchar(255),"type" varchar(255),"value" varchar(255),PRIMARY KEY ("id"),UNIQUE KEY "idx_node_resolver_map" ("spiffe_id","type","value")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS "registered_entries" ("id" int unsigned NOT NULL AUTO_INCREMENT,"created_at" datetime,"updated_at" datetime,"entry_id" varchar(255),"spiffe_id" varchar(255),"parent_id" varchar(255),"ttl" int,"admin" boolean,"downstream" boolean,"expiry" bigint,"revision_number" bigint,"store_svid" boolean,"hint" varchar(255),"jwt_svid_ttl" int,"additional_attributes" longblob,PRIMARY KEY ("id"),UNIQUE KEY "uix_registered_entries_entry_id" ("entry_id"),KEY "idx_registered_entries_spiffe_id" ("spiffe_id"),KEY "idx_registered_entries_parent_id" ("parent_id"),KEY "idx_registered_entries_expiry" ("expiry"),KEY "idx_registered_entries_hint" ("hint")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS "registered_entries_events" ("id" int unsigned NOT NULL AUTO_INCREMENT,"created_at" datetime,"updated_at" datetime,"entry_id" varchar(255),PRIMARY KEY ("id")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS "join_tokens" ("id" int unsigned NOT NULL AUTO_INCREMENT,"created_at" datetime,"updated_at" datetime,"token" varchar(255),"expiry" bigint,PRIMARY KEY ("id"),UNIQUE KEY "uix_join_tokens_token" ("token")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS "selectors" ("id" int unsigned NOT NULL AUTO_INCREMENT,"created_at" datetime,"updated_at" datetime,"registered_entry_id" int unsigned,"type" varchar(255),"value" varchar(255),PRIMARY KEY ("id"),UNIQUE KEY "idx_selector_entry" ("registered_entry_id","type","value"),KEY "idx_selectors_type_value" ("type","value")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS "dns_names" ("id" int unsigned NOT NULL AUTO_INCREMENT,"created_at" datetime,"updated_at" datetime,"registered_entry_id" int unsigned,"value" varchar(255),PRIMARY KEY ("id"),UNIQUE KEY "idx_dns_entry" ("registered_entry_id","value")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS "federated_trust_domains" ("id" int unsigned NOT NULL AUTO_INCREMENT,"created_at" datetime,"updated_at" datetime,"trust_domain" varchar(255) NOT NULL,"bundle_endpoint_url" varchar(255),"bundle_endpoint_profile" varchar(255),"endpoint_spiffe_id" varchar(255),"implicit" boolean,PRIMARY KEY ("id"),UNIQUE KEY "uix_federated_trust_domains_trust_domain" ("trust_domain")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
CREATE TABLE IF NOT EXISTS "ca_journals" ("id" int unsigned NOT NULL AUTO_INCREMENT,"created_at" datetime,"updated_at" datetime,"data" longblob,"active_x509_authority_id" varchar(255),"active_jwt_authority_id" varchar(255),PRIMARY KEY ("id"),KEY "idx_ca_journals_active_x509_authority_id" ("active_x509_authority_id"),KEY "idx_ca_journals_active_jwt_authority_id" ("active_jwt_authority_id")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
DROP TABLE IF EXISTS "migrations_unnamed";
CREATE TABLE IF NOT EXISTS "migrations_unnamed" ("id" int unsigned NOT NULL AUTO_INCREMENT,"created_at" datetime,"updated_at" datetime,"version" int,"code_version" varchar(255),PRIMARY KEY ("id")) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin;
"#;
