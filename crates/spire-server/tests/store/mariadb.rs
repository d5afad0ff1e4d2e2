//! What MySQL and MariaDB have of their own (inventory §7 DataStore sql).

use ah_testkit::ca::TestCa;
use ah_testkit::mariadb::MariaDb;
use spire_server::store::{
    Agents, Bundles, Entries, JoinTokens, SqlStore, StoreConfig, StoreError,
};
use tempfile::TempDir;

use crate::common::{
    Database, add, agent, all_entries, bundle, entry, id, mariadb_config, spender,
};
use crate::rds::{hello, packet, send, server};
use crate::schema::{refusal, run};

/// The tables that have texts.
const TABLES: [&str; 12] = [
    "attested_node_entries",
    "attested_node_entries_events",
    "bundles",
    "ca_journals",
    "dns_names",
    "federated_trust_domains",
    "join_tokens",
    "migrations",
    "node_resolver_map_entries",
    "registered_entries",
    "registered_entries_events",
    "selectors",
];

// Upstream leaves the collation to the server, whose default takes `A` for `a`.
#[tokio::test]
async fn tables_that_upstream_made_compare_exactly_from_then_on() {
    let Some(database) = Database::mariadb("collations") else {
        return;
    };
    let config = &database.config;
    let store = database.open().await;
    let made = add(&store, entry("w", &["t:a", "t:b"])).await;
    store.put_agent(&agent("a", &["t:a"])).await.unwrap();
    store.put_bundle(&bundle("a.test", 1)).await.unwrap();
    store.close().await;
    for table in TABLES {
        let sql =
            format!("ALTER TABLE {table} CONVERT TO CHARACTER SET utf8 COLLATE utf8_general_ci");
        run(config, &[&sql]).await;
    }
    let mut still = config.clone();
    still.disable_migration = true;
    let refused = refusal(&still).await;
    assert!(
        refused.contains("disable_migration") && refused.contains("attested_node_entries"),
        "{refused}"
    );

    let store = database.open().await;
    assert_eq!(all_entries(&store).await, [made]);
    assert_eq!(store.agent(&id("spire/agent/A")).await.unwrap(), None);
    store.put_agent(&agent("A", &["t:a"])).await.unwrap();
    assert_eq!(store.all_agents().await.unwrap().len(), 2);
    add(&store, entry("W", &["t:a", "t:b"])).await;
    let bundle = bundle("a.test", 1);
    let known = store.bundle(&bundle.trust_domain).await;
    assert_eq!(known.unwrap(), Some(bundle));
    // Nothing is left to do.
    SqlStore::open(&still).await.unwrap();
}

// Each statement about a table is committed by itself: there is no transaction to take them back.
#[tokio::test]
async fn a_schema_that_was_made_in_part_is_made_whole() {
    let Some(database) = Database::mariadb("half a schema") else {
        return;
    };
    database.open().await.close().await;
    let undone = [
        "RENAME TABLE migrations TO migrations_unnamed",
        "DROP TABLE selectors",
        "DROP TABLE ca_journals",
    ];
    run(&database.config, &undone).await;
    let store = database.open().await;
    let made = add(&store, entry("w", &["t:a"])).await;
    assert_eq!(store.entry(&made.id).await.unwrap(), Some(made));
    database.open().await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_never_cut() {
    let Some(server) = MariaDb::shared("what does not fit") else {
        return;
    };
    let dsn = server.fresh_database();
    let store = SqlStore::open(&mariadb_config(&dsn)).await.unwrap();
    let long = "x".repeat(256);
    let mut wanted = entry("w", &["t:a"]);
    wanted.hint = long.clone();
    let refused = store.create_entry(wanted).await;
    assert!(
        matches!(&refused, Err(StoreError::Invalid(why)) if why.contains("hint")),
        "{refused:?}"
    );
    let refused = store
        .create_entry(entry("w", &[&format!("t:{long}")]))
        .await;
    assert!(
        matches!(refused, Err(StoreError::Invalid(_))),
        "{refused:?}"
    );
    assert_eq!(all_entries(&store).await, []);
    assert_eq!(
        server.sql(MariaDb::name(&dsn), "SELECT count(*) FROM selectors"),
        "0"
    );
}

#[tokio::test]
async fn a_mariadb_that_ends_connections_is_used_again() {
    let Some(server) = MariaDb::shared("ended connections") else {
        return;
    };
    let dsn = server.fresh_database();
    let store = SqlStore::open(&mariadb_config(&dsn)).await.unwrap();
    let made = add(&store, entry("w", &["t:a"])).await;
    let ours = format!(
        "SELECT group_concat('KILL ', id SEPARATOR ';') FROM information_schema.processlist WHERE db = '{}'",
        MariaDb::name(&dsn)
    );
    server.sql("mysql", &server.sql("mysql", &ours));
    assert_eq!(store.entry(&made.id).await.unwrap(), Some(made));
}

// inventory §7 DataStore sql: tls, root_ca_path, and the socket.
#[tokio::test]
async fn a_server_is_reached_over_tls_and_its_socket() {
    let Some(server) = MariaDb::shared("tls") else {
        return;
    };
    let dsn = server.fresh_database();
    let name = MariaDb::name(&dsn);
    let user = format!(
        "CREATE USER safe_{name}@'%' IDENTIFIED BY 'hush' REQUIRE SSL; GRANT ALL ON {name}.* TO safe_{name}@'%'"
    );
    server.sql("mysql", &user);
    let tls = |parameters: &str| {
        let at = format!("safe_{name}:hush@tcp(127.0.0.1:{})/{name}", server.port());
        let mut config = mariadb_config(&at);
        config.connection_string += parameters;
        config
    };
    let own = |path| StoreConfig {
        root_ca_path: Some(path),
        ..tls("")
    };
    for config in [tls("&tls=skip-verify"), own(server.ca().to_owned())] {
        SqlStore::open(&config).await.unwrap().close().await;
    }
    let folder = TempDir::new().unwrap();
    let other = TestCa::new("other.test").write(folder.path(), "other");
    for (config, why) in [
        (tls(""), "Access denied"),
        (tls("&tls=true"), "certificate"),
        (own(other), "certificate"),
    ] {
        let refused = refusal(&config).await;
        assert!(refused.contains(why), "{refused}");
        assert!(!refused.contains("hush"), "{refused}");
        assert!(refused.contains(&format!("@tcp(127.0.0.1:{})", server.port())));
    }

    let login = dsn.split("@tcp").next().unwrap();
    let socket = format!("{login}@unix({})/{name}", server.socket().display());
    let store = SqlStore::open(&mariadb_config(&socket)).await.unwrap();
    let taken = store.consume_join_token("t", &spender("k", 1)).await;
    assert!(taken.unwrap().is_none());
}

// MySQL's default plugin: without TLS it would encrypt the password with a key that the server sends.
#[tokio::test]
async fn a_password_that_needs_tls_is_told_so() {
    let (listener, port) = server().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        hello(&mut stream, "caching_sha2_password").await;
        let (_, number) = packet(&mut stream).await;
        // Full authentication.
        send(&mut stream, number + 1, &[1, 4]).await;
        let (asked, number) = packet(&mut stream).await;
        assert_eq!(asked, [2], "the server's key");
        send(&mut stream, number + 1, b"\x01no key").await;
    });
    let dsn = format!("u:hush@tcp(127.0.0.1:{port})/spire");
    let refused = refusal(&mariadb_config(&dsn)).await;
    assert!(
        refused.contains("over TLS") && refused.contains("tls=true"),
        "{refused}"
    );
    assert!(!refused.contains("hush"), "{refused}");
}
