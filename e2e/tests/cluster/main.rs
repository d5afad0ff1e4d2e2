//! Two SPIRE servers on one PostgreSQL or MariaDB, behind one DNS name, and an agent that knows the name alone.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use ah_e2e::programs;
use ah_testkit::mariadb::MariaDb;
use ah_testkit::postgres::Postgres;
use ah_testkit::process::{Finished, Process, eventually};
use tempfile::TempDir;

const NAME: &str = "spire-server.example.org";
/// What the two servers are called, and where they listen.
const SERVERS: [(&str, &str); 2] = [("one", "127.0.0.2"), ("other", "127.0.0.3")];

/// A database server of the test's own.
enum Database {
    Postgres(Postgres),
    MariaDb(MariaDb),
}

impl Database {
    /// The keys of DataStore `sql` for a new database.
    fn fresh(&self) -> String {
        let (kind, at) = match self {
            Self::Postgres(server) => (
                "postgres",
                format!("{}?sslmode=disable", server.fresh_database()),
            ),
            Self::MariaDb(server) => (
                "mysql",
                format!("{}?parseTime=true", server.fresh_database()),
            ),
        };
        format!(r#"database_type = "{kind}" connection_string = "{at}""#)
    }

    /// As a crash would end it.
    fn stop(&self) {
        match self {
            Self::Postgres(server) => server.stop(),
            Self::MariaDb(server) => server.stop(),
        }
    }

    fn start(&self) {
        match self {
            Self::Postgres(server) => server.start(),
            Self::MariaDb(server) => server.start(),
        }
    }

    /// Whether the servers may only read.
    fn set_read_only(&self, on: bool) {
        match self {
            Self::Postgres(server) => {
                let set = format!("ALTER DATABASE t0 SET default_transaction_read_only = {on}");
                server.sql("postgres", &set);
                server.sql(
                    "postgres",
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 't0'",
                );
            }
            Self::MariaDb(server) => server.set_read_only(on),
        }
    }
}

/// The database, and what is known of the machine that all of them share.
struct Site {
    database: Database,
    /// The keys of DataStore `sql`.
    datastore: String,
    port: u16,
    folder: TempDir,
}

impl Site {
    fn new(database: impl FnOnce() -> Option<Database>) -> Option<Self> {
        let allowed = Command::new("unshare").args(["--mount", "true"]).status();
        if !allowed.is_ok_and(|status| status.success()) {
            assert!(
                std::env::var_os("CI").is_none(),
                "namespaces cannot be made here"
            );
            println!("skipped: namespaces cannot be made here (run as root)");
            return None;
        }
        let database = database()?;
        let datastore = database.fresh();
        let port = eventually("a port is free on both addresses", || {
            let one = TcpListener::bind("127.0.0.2:0").unwrap();
            let port = one.local_addr().unwrap().port();
            TcpListener::bind(("127.0.0.3", port)).ok().map(|_| port)
        });
        Some(Self {
            database,
            datastore,
            port,
            folder: tempfile::tempdir().unwrap(),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start_server(&self, (name, address): (&str, &str)) -> Process {
        let folder = self.folder.path().display();
        let Self {
            datastore, port, ..
        } = self;
        let text = format!(
            r#"server {{
                bind_address = "{address}" bind_port = "{port}" socket_path = "{folder}/{name}.sock"
                trust_domain = "example.org" data_dir = "{folder}/{name}"
            }}
            plugins {{
                DataStore "sql" {{ plugin_data {{ {datastore} }} }}
                NodeAttestor "join_token" {{ plugin_data {{}} }}
                KeyManager "disk" {{ plugin_data {{ keys_path = "{folder}/{name}-keys.json" }} }}
            }}"#
        );
        let config = self.path(&format!("{name}.conf"));
        std::fs::write(&config, text).unwrap();
        let server = programs().join("spire-server");
        Process::start(Command::new(server).args(["run", "-config"]).arg(config))
    }

    /// An agent for which the name has both addresses.
    fn start_agent(&self, token: &str) -> Process {
        let folder = self.folder.path().display();
        let port = self.port;
        let text = format!(
            r#"agent {{
                data_dir = "{folder}/agent" trust_domain = "example.org" socket_path = "{folder}/agent.sock"
                server_address = "{NAME}" server_port = "{port}" insecure_bootstrap = true join_token = "{token}"
                experimental {{ sync_interval = "1s" }}
            }}
            plugins {{
                NodeAttestor "join_token" {{ plugin_data {{}} }}
                KeyManager "disk" {{ plugin_data {{ directory = "{folder}/agent" }} }}
                WorkloadAttestor "unix" {{ plugin_data {{}} }}
            }}"#
        );
        let (config, hosts) = (self.path("agent.conf"), self.path("hosts"));
        std::fs::write(&config, text).unwrap();
        let lines = SERVERS.map(|(_, address)| format!("{address} {NAME}\n"));
        std::fs::write(&hosts, lines.concat()).unwrap();
        let line = r#"mount --bind "$1" /etc/hosts && exec "$2" run -config "$3""#;
        Process::start(
            Command::new("unshare")
                .args(["--mount", "sh", "-c", line, "sh"])
                .args([hosts, programs().join("spire-agent"), config]),
        )
    }

    /// Runs a command on the socket of `program`'s process `name`.
    fn run(&self, program: &str, name: &str, words: &[&str], flags: &[&str]) -> Finished {
        let mut command = Command::new(programs().join(program));
        let socket = self.path(&format!("{name}.sock"));
        command.args(words).arg("-socketPath").arg(socket);
        Finished::from(command.args(flags).output().unwrap())
    }

    fn healthy(&self, program: &str, name: &str) {
        eventually(&format!("{name} is healthy"), || {
            let checked = self.run(program, name, &["healthcheck"], &[]);
            (checked.code == 0).then_some(())
        });
    }

    fn ok(&self, name: &str, words: &[&str], flags: &[&str]) -> String {
        let done = self.run("spire-server", name, words, flags);
        assert_eq!(done.code, 0, "{words:?}: {done:?}");
        done.stdout
    }

    /// Registers `spiffe://example.org/<path>` for every process of this user with server `name`.
    fn create(&self, name: &str, agent: &str, path: &str) -> Finished {
        let (id, user) = (
            format!("spiffe://example.org/{path}"),
            format!("unix:uid:{}", nix::unistd::getuid()),
        );
        let flags = ["-parentID", agent, "-spiffeID", &id, "-selector", &user];
        self.run("spire-server", name, &["entry", "create"], &flags)
    }

    /// The active X.509 authority of server `name`, and the prepared one.
    fn authorities(&self, name: &str) -> (String, String) {
        let words = ["localauthority", "x509", "show"];
        let shown = self.ok(name, &words, &["-output", "json"]);
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let id = |of: &str| shown[of]["authority_id"].as_str().unwrap().to_owned();
        (id("active"), id("prepared"))
    }

    /// What a workload is told by `api fetch` with `words`.
    fn fetch(&self, words: &[&str]) -> Finished {
        let fetch = [&["api", "fetch"], words].concat();
        self.run("spire-agent", "agent", &fetch, &[])
    }
}

#[test]
fn an_agent_goes_from_one_server_to_the_other_and_lives_through_the_loss_of_the_database() {
    let postgres = || Postgres::private("cluster").map(Database::Postgres);
    if let Some(site) = Site::new(postgres) {
        from_one_to_the_other(&site);
    }
}

#[test]
fn and_so_it_does_where_the_database_is_a_mariadb() {
    let mariadb = || MariaDb::private("cluster").map(Database::MariaDb);
    if let Some(site) = Site::new(mariadb) {
        from_one_to_the_other(&site);
    }
}

fn from_one_to_the_other(site: &Site) {
    // Both find an empty database, and each makes a CA.
    let mut servers = SERVERS.map(|server| site.start_server(server));
    for (name, _) in SERVERS {
        site.healthy("spire-server", name);
    }
    for (name, _) in SERVERS {
        let bundle = site.ok(name, &["bundle", "show"], &[]);
        assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 2, "{bundle}");
    }

    // What one says the other knows.
    let told = site.ok("one", &["token", "generate"], &[]);
    let token = told
        .lines()
        .next()
        .unwrap()
        .strip_prefix("Token: ")
        .unwrap();
    let _agent = site.start_agent(token);
    site.healthy("spire-agent", "agent");
    let id = format!("spiffe://example.org/spire/agent/join_token/{token}");
    assert!(site.ok("other", &["agent", "list"], &[]).contains(&id));
    assert_eq!(site.create("other", &id, "first").code, 0);
    let workload = Process::start(
        Command::new(programs().join("spire-agent"))
            .args(["api", "watch", "-socketPath"])
            .arg(site.path("agent.sock")),
    );
    workload.wait_for("spiffe://example.org/first");
    // Until then it was told that it has no identity.
    let errors = workload.count("error");

    // Each of them is killed once, so that the agent has to go to the other at least once.
    for (killed, stays, path) in [(0, 1, "second"), (1, 0, "third")] {
        servers[killed].kill();
        assert_eq!(site.create(SERVERS[stays].0, &id, path).code, 0);
        workload.wait_for(&format!("spiffe://example.org/{path}"));
        servers[killed] = site.start_server(SERVERS[killed]);
        site.healthy("spire-server", SERVERS[killed].0);
    }
    // They found their CAs again.
    let bundle = site.ok("one", &["bundle", "show"], &[]);
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 2, "{bundle}");

    // The CA of each is replaced without force: what the agent acknowledges, it tells the one that it is connected to.
    for (name, _) in SERVERS {
        site.ok(name, &["localauthority", "x509", "prepare"], &[]);
        let (old, new) = site.authorities(name);
        for (verb, authority) in [("activate", &new), ("taint", &old), ("revoke", &old)] {
            let words = ["localauthority", "x509", verb];
            eventually(&format!("{name} may {verb}"), || {
                let done = site.run("spire-server", name, &words, &["-authorityID", authority]);
                (done.code == 0).then_some(())
            });
        }
    }

    // Without a database workloads are served, and whoever asks for more is told what is wrong.
    site.database.stop();
    let refused = site.create("one", &id, "fourth");
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("datastore"), "{refused:?}");
    let served = site.fetch(&["x509"]);
    assert!(served.stdout.contains("Received 3 svids"), "{served:?}");
    site.database.start();
    eventually("entries can be made again", || {
        (site.create("one", &id, "fourth").code == 0).then_some(())
    });
    workload.wait_for("spiffe://example.org/fourth");

    // One that may only be read signs on.
    site.database.set_read_only(true);
    eventually("it cannot be written", || {
        let refused = site.create("other", &id, "fifth");
        refused.stderr.contains("read-only").then_some(())
    });
    eventually("JWT-SVIDs are signed", || {
        let told = site.fetch(&["jwt", "-audience", "read-only"]);
        told.stdout
            .contains("token(spiffe://example.org/first)")
            .then_some(())
    });
    site.database.set_read_only(false);
    eventually("entries can be made again", || {
        (site.create("other", &id, "fifth").code == 0).then_some(())
    });
    workload.wait_for("spiffe://example.org/fifth");
    assert_eq!(workload.count("error"), errors, "{:?}", workload.lines());
}
