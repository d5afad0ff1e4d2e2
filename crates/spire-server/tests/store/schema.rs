//! Databases of other versions (inventory §7 DataStore sql, automigration and disable_migration).

use spire_server::store::{AgentFilter, Agents, Entries, EntryMask, Page, SqlStore, StoreConfig};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use crate::common::{Database, add, agent, all_entries, beside_mariadb, entry, id, selectors};

pub(crate) async fn refusal(config: &StoreConfig) -> String {
    match SqlStore::open(config).await {
        Ok(_) => panic!("it was taken"),
        Err(error) => error.to_string(),
    }
}

/// Runs statements on a database beside the store.
pub(crate) async fn run(config: &StoreConfig, statements: &[&str]) {
    for sql in statements {
        let sql = AssertSqlSafe((*sql).to_owned());
        match config.database_type.as_str() {
            "sqlite3" => {
                let mut connection = SqliteConnection::connect(&config.connection_string)
                    .await
                    .unwrap();
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            "mysql" => {
                let mut connection = beside_mariadb(config).await;
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
            }
            _ => {
                let mut connection = sqlx::PgConnection::connect(&config.connection_string)
                    .await
                    .unwrap();
                sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
            }
        }
    }
}

async fn versions(config: &StoreConfig) -> (i64, String) {
    let sql = "SELECT CAST(version AS BIGINT), code_version FROM migrations";
    let found = match config.database_type.as_str() {
        "sqlite3" => {
            let mut connection = SqliteConnection::connect(&config.connection_string)
                .await
                .unwrap();
            sqlx::query_as(sql).fetch_one(&mut connection).await
        }
        "mysql" => {
            let sql = "SELECT CAST(version AS SIGNED), code_version FROM migrations";
            let mut connection = beside_mariadb(config).await;
            sqlx::query_as(sql).fetch_one(&mut connection).await
        }
        _ => {
            let mut connection = sqlx::PgConnection::connect(&config.connection_string)
                .await
                .unwrap();
            sqlx::query_as(sql).fetch_one(&mut connection).await
        }
    };
    found.unwrap()
}

fn databases(test: &str) -> Vec<Database> {
    let all = [
        Some(Database::sqlite()),
        Database::postgres(test),
        Database::mariadb(test),
    ];
    all.into_iter().flatten().collect()
}

/// What upstream 1.8 to 1.14 leave behind: schema 23, times with nanoseconds and in zones.
const UPSTREAM_1_14: &[&str] = &[
    "ALTER TABLE attested_node_entries DROP COLUMN agent_version",
    "ALTER TABLE registered_entries DROP COLUMN additional_attributes",
    "UPDATE migrations SET version = 23, code_version = '1.14.1'",
    "INSERT INTO registered_entries (created_at, updated_at, entry_id, spiffe_id, parent_id, ttl, admin, downstream, expiry, revision_number, store_svid, hint, jwt_svid_ttl)
     VALUES ('2026-11-22 04:43:30.592380788+00:00', '2026-11-22 04:43:30.592380788+00:00', 'c49d8bf4-1756-4666-a948-06507ab945af',
             'spiffe://example.org/w', 'spiffe://example.org/spire/agent/a', 0, true, false, 0, 0, false, 'h', 30)",
    "INSERT INTO selectors (created_at, updated_at, registered_entry_id, type, value)
     SELECT '2026-11-22 04:43:30.592638776+00:00', '2026-11-22 04:43:30.592638776+00:00', id, 'unix', 'uid:1' FROM registered_entries",
    "INSERT INTO attested_node_entries (created_at, updated_at, spiffe_id, data_type, serial_number, expires_at, new_serial_number, new_expires_at, can_reattest)
     VALUES ('2026-11-22 06:43:30.592380788+02:00', '2026-11-22 06:43:30.592380788+02:00', 'spiffe://example.org/spire/agent/b', 'join_token',
             '42', '2033-05-18 05:33:20+02:00', '', NULL, false)",
];

/// Upstream's driver for MySQL writes times in UTC, and the columns have whole seconds.
fn upstream_1_14(config: &StoreConfig) -> Vec<String> {
    let of_mysql = |sql: &&str| {
        sql.replace("04:43:30.592380788+00:00", "04:43:31")
            .replace("04:43:30.592638776+00:00", "04:43:31")
            .replace("06:43:30.592380788+02:00", "04:43:31")
            .replace("05:33:20+02:00", "03:33:20")
    };
    match config.database_type.as_str() {
        "mysql" => UPSTREAM_1_14.iter().map(of_mysql).collect(),
        _ => UPSTREAM_1_14.iter().map(ToString::to_string).collect(),
    }
}

#[tokio::test]
async fn what_upstream_1_14_made_is_brought_up_to_date() {
    for database in databases("what_upstream_1_14_made_is_brought_up_to_date") {
        database.open().await.close().await;
        let statements = upstream_1_14(&database.config);
        let statements: Vec<_> = statements.iter().map(String::as_str).collect();
        run(&database.config, &statements).await;
        let mut still = database.config.clone();
        still.disable_migration = true;
        let refused = refusal(&still).await;
        assert!(refused.contains("disable_migration"), "{refused}");
        assert_eq!(versions(&database.config).await, (23, "1.14.1".into()));

        let store = database.open().await;
        let mut wanted = entry("w", &["unix:uid:1"]);
        wanted.id = "c49d8bf4-1756-4666-a948-06507ab945af".into();
        wanted.admin = true;
        wanted.hint = "h".into();
        wanted.jwt_svid_ttl = 30;
        // Upstream rounds to the nearest second.
        wanted.created_at = 1_795_322_611;
        assert_eq!(all_entries(&store).await, [wanted.clone()]);
        let mut known = agent("b", &[]);
        known.attestation_type = "join_token".into();
        known.serial_number = "42".into();
        known.can_reattest = false;
        known.version = String::new();
        assert_eq!(store.all_agents().await.unwrap(), [known.clone()]);
        for (before, found) in [(2_000_000_000, 0), (2_000_000_001, 1)] {
            let filter = AgentFilter {
                expires_before: Some(before),
                ..AgentFilter::default()
            };
            assert_eq!(
                store
                    .agents(&filter, &Page::default())
                    .await
                    .unwrap()
                    .rows
                    .len(),
                found
            );
        }
        // The new columns take values.
        wanted.disable_x509_svid_prefetch = true;
        let updated = store
            .update_entry(wanted.clone(), &EntryMask::ALL)
            .await
            .unwrap();
        assert!(updated.disable_x509_svid_prefetch);
        known.version = "1.16.0".into();
        known.selectors = selectors(&["t:a"]);
        store.put_agent(&known).await.unwrap();
        assert_eq!(
            store.agent(&id("spire/agent/b")).await.unwrap(),
            Some(known)
        );
        let (version, code) = versions(&database.config).await;
        assert_eq!(
            (version, code.as_str()),
            (25, "1.15.3"),
            "what 1.14 to 1.16 take"
        );
    }
}

#[tokio::test]
async fn what_is_too_old_or_too_new_is_refused_with_a_remedy() {
    for database in databases("what_is_too_old_or_too_new_is_refused_with_a_remedy") {
        let store = database.open().await;
        add(&store, entry("w", &["t:a"])).await;
        store.close().await;
        for (version, code, why) in [
            (22, "1.7.2", "start it once with SPIRE 1.8 to 1.14"),
            (26, "1.17.0", "run a newer server"),
            (26, "2.15.0", "run a newer server"),
            (25, "new", "code version"),
        ] {
            let set = format!("UPDATE migrations SET version = {version}, code_version = '{code}'");
            run(&database.config, &[&set]).await;
            let refused = refusal(&database.config).await;
            assert!(refused.contains(why), "{refused}");
            assert_eq!(versions(&database.config).await, (version, code.to_owned()));
        }
        // A cluster in the middle of an upgrade: one minor release ahead is used as it is.
        run(
            &database.config,
            &["UPDATE migrations SET version = 26, code_version = '1.16.0'"],
        )
        .await;
        assert_eq!(all_entries(&database.open().await).await.len(), 1);
        assert_eq!(versions(&database.config).await, (26, "1.16.0".into()));
        // A release that knows this schema, and is newer than we count as, keeps its mark.
        run(
            &database.config,
            &["UPDATE migrations SET version = 25, code_version = '1.16.0'"],
        )
        .await;
        database.open().await.close().await;
        assert_eq!(versions(&database.config).await, (25, "1.16.0".into()));
        run(&database.config, &["DELETE FROM migrations"]).await;
        let refused = refusal(&database.config).await;
        assert!(refused.contains("restore"), "{refused}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_datastore_is_refused_and_left_as_it_is() {
    let database = Database::sqlite();
    let path = database.config.connection_string.clone();
    let text = "not a database at all, but long enough to look at\n".repeat(100);
    std::fs::write(&path, &text).unwrap();
    let refused = refusal(&database.config).await;
    assert!(
        refused.contains("not a database") && refused.contains(&path),
        "{refused}"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

    std::fs::write(&path, "").unwrap();
    run(&database.config, &["CREATE TABLE cookies (a)"]).await;
    let refused = refusal(&database.config).await;
    assert!(refused.contains("another program"), "{refused}");

    let mut missing = database.config.clone();
    missing.connection_string = format!("{path}.d/no/such");
    let refused = refusal(&missing).await;
    assert!(
        refused.contains("no/such") && refused.contains("connection_string"),
        "{refused}"
    );
}

#[tokio::test]
async fn an_unreachable_postgresql_is_named_without_its_password() {
    let mut config = StoreConfig {
        database_type: "postgres".into(),
        connection_string: "postgres://u:hush@127.0.0.1:1/spire?sslmode=disable".into(),
        ..StoreConfig::default()
    };
    for _ in 0..2 {
        let refused = refusal(&config).await;
        assert!(
            refused.contains("postgres://u@127.0.0.1:1/spire"),
            "{refused}"
        );
        assert!(!refused.contains("hush"), "{refused}");
        config.connection_string =
            "user=u password=hush host=127.0.0.1 port=1 dbname=spire sslmode=disable".into();
    }
}
