//! Which database, and how it is reached: the plugin data of DataStore `sql`.

mod aws;
mod mysql;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use sqlx::mysql::MySqlConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

pub use self::aws::AwsLogin;

/// How long SQLite waits for a lock that another process holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The keys of DataStore `sql`, with upstream's names. Its `Debug` would show a password, so it has none.
#[derive(Clone, Default)]
pub struct StoreConfig {
    /// `sqlite3`, `postgres`, `mysql`, `aws_postgres` or `aws_mysql`.
    pub database_type: String,
    /// Of the last two: as whom to log in. Their connection strings have no password.
    pub aws: Option<AwsLogin>,
    /// A path or `file:` URI for SQLite, key/value pairs or a `postgres://` URL for PostgreSQL, a DSN such as
    /// `user:password@tcp(host:port)/database?parseTime=true` for MySQL and MariaDB.
    pub connection_string: String,
    /// As `connection_string`, of a replica that answers lists which may be stale.
    pub ro_connection_string: String,
    /// PEM file with the CAs of the database server.
    pub root_ca_path: Option<PathBuf>,
    /// PEM file with the certificate of this client.
    pub client_cert_path: Option<PathBuf>,
    /// PEM file with the key of `client_cert_path`.
    pub client_key_path: Option<PathBuf>,
    /// Age at which a connection is replaced; a duration such as `1h30m`. Without end when it is not set.
    pub conn_max_lifetime: Option<String>,
    /// Most connections; 100 when it is not set, 0 counts as not set.
    pub max_open_conns: Option<u32>,
    /// Most connections that are kept while nobody uses them; a pool keeps what it opened, so that this only
    /// lowers `max_open_conns`.
    pub max_idle_conns: Option<u32>,
    /// An older schema is left as it is.
    pub disable_migration: bool,
    /// Every statement is logged.
    pub log_sql: bool,
}

/// A configuration that names no database that can be opened. Names the key and the remedy, never a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadConfig(pub String);

/// What is to be opened.
#[derive(Clone)]
pub(super) enum Target {
    Sqlite(Box<SqliteConnectOptions>, PathBuf),
    Postgres(Box<PgConnectOptions>),
    MySql(Box<MySqlConnectOptions>),
}

impl StoreConfig {
    /// What can be said without opening anything.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub fn validate(&self) -> Result<(), BadConfig> {
        self.target()?;
        self.replica()?;
        self.max_lifetime()?;
        Ok(())
    }

    pub(super) fn target(&self) -> Result<Target, BadConfig> {
        if self.connection_string.is_empty() && !self.database_type.is_empty() {
            return Err(BadConfig("connection_string must be set".into()));
        }
        self.parse("connection_string", &self.connection_string)
    }

    /// `None` where there is none, and for SQLite, where a second connection is no help.
    pub(super) fn replica(&self) -> Result<Option<Target>, BadConfig> {
        if self.ro_connection_string.is_empty() {
            return Ok(None);
        }
        let target = self.parse("ro_connection_string", &self.ro_connection_string)?;
        Ok((!matches!(target, Target::Sqlite(..))).then_some(target))
    }

    pub(super) fn max_lifetime(&self) -> Result<Option<Duration>, BadConfig> {
        let Some(text) = self.conn_max_lifetime.as_deref().filter(|t| !t.is_empty()) else {
            return Ok(None);
        };
        let duration = ah_spire_plugin::duration::parse(text)
            .map_err(|why| BadConfig(format!("conn_max_lifetime: {why}")))?;
        Ok(Some(duration).filter(|d| !d.is_zero()))
    }

    fn parse(&self, key: &str, text: &str) -> Result<Target, BadConfig> {
        match self.database_type.as_str() {
            "" => Err(BadConfig(
                "database_type must be set: give sqlite3, postgres or mysql".into(),
            )),
            "sqlite3" => sqlite(key, text),
            "postgres" | "aws_postgres" => {
                let options = self.tls(postgres(key, text)?);
                self.check_login(key, postgres_password(text))?;
                Ok(Target::Postgres(Box::new(options)))
            }
            "mysql" | "aws_mysql" => {
                let (options, password) = mysql::options(key, text, self)?;
                self.check_login(key, password)?;
                Ok(Target::MySql(Box::new(options)))
            }
            other => Err(BadConfig(format!(
                "unsupported database_type {other:?}: use sqlite3, postgres, mysql, aws_postgres or aws_mysql"
            ))),
        }
    }

    /// A database of AWS is logged in to with tokens, and another one with what the connection string says.
    fn check_login(&self, key: &str, password: bool) -> Result<(), BadConfig> {
        let kind = &self.database_type;
        match (kind.starts_with("aws_"), &self.aws) {
            (false, None) => Ok(()),
            (false, Some(_)) => Err(BadConfig(format!(
                "database_type {kind:?} has no login of AWS: use aws_{kind}"
            ))),
            (true, None) => Err(BadConfig(format!(
                "database_type {kind:?}: region must be specified, as in database_type {kind:?} {{ region = \"eu-west-1\" }}"
            ))),
            (true, Some(_)) if password => Err(BadConfig(format!(
                "{key}: unexpected password in connection string for IAM authentication; take it out"
            ))),
            (true, Some(_)) => Ok(()),
        }
    }

    fn tls(&self, mut options: PgConnectOptions) -> PgConnectOptions {
        if let Some(path) = &self.root_ca_path {
            options = options.ssl_root_cert(path);
        }
        if let Some(path) = &self.client_cert_path {
            options = options.ssl_client_cert(path);
        }
        if let Some(path) = &self.client_key_path {
            options = options.ssl_client_key(path);
        }
        options
    }
}

/// A path, or a `file:` URI as SQLite reads it.
fn sqlite(key: &str, text: &str) -> Result<Target, BadConfig> {
    let bad = |why: String| BadConfig(format!("{key}: {why}"));
    let uri = text.strip_prefix("file:");
    if uri.is_none()
        && let Some((scheme, _)) = text.split_once("://")
    {
        return Err(bad(format!(
            "unsupported scheme {scheme:?}; give a path or file:PATH"
        )));
    }
    // Upstream reads a plain path as a URI, too: `?` ends the path either way.
    let (path, query) = uri
        .unwrap_or(text)
        .split_once('?')
        .unwrap_or((uri.unwrap_or(text), ""));
    let path = match path.strip_prefix("//") {
        // file://localhost/path and file:///path
        Some(rest) => rest
            .find('/')
            .and_then(|slash| rest.get(slash..))
            .ok_or_else(
                || bad("no path follows the host; give file:PATH or file:///PATH".into()),
            )?,
        None => path,
    };
    let path = if uri.is_some() {
        unescape(path)
    } else {
        Some(path.to_owned())
    }
    .filter(|path| !path.contains('\0'))
    .ok_or_else(|| bad("the path is not valid text".into()))?;
    let mut options = SqliteConnectOptions::new()
        .create_if_missing(true)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Wal)
        // An acknowledged write has to outlive a power cut; WAL with NORMAL would lose the last.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY_TIMEOUT);
    let mut memory = path == ":memory:";
    let mut must_exist = false;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("mode", "memory") => memory = true,
            ("mode", "rwc") => {}
            ("mode", "rw") => must_exist = true,
            ("mode", other) => {
                return Err(bad(format!(
                    "mode={other}: the datastore has to be writable"
                )));
            }
            ("_busy_timeout" | "_timeout", millis) => {
                let millis = millis
                    .parse()
                    .map_err(|_| bad(format!("_busy_timeout={millis}: not milliseconds")))?;
                options = options.busy_timeout(Duration::from_millis(millis));
            }
            // Set in any case, or without meaning for a file that all connections share.
            ("cache" | "_foreign_keys" | "_fk" | "_journal_mode" | "_journal" | "_loc", _) => {}
            ("_synchronous" | "_sync", level) => {
                let level = match level {
                    "OFF" | "off" | "0" => SqliteSynchronous::Off,
                    "NORMAL" | "normal" | "1" => SqliteSynchronous::Normal,
                    "FULL" | "full" | "2" => SqliteSynchronous::Full,
                    "EXTRA" | "extra" | "3" => SqliteSynchronous::Extra,
                    other => return Err(bad(format!("_synchronous={other}: unknown level"))),
                };
                options = options.synchronous(level);
            }
            (option, _) => {
                return Err(bad(format!("unknown SQLite option {option:?}")));
            }
        }
    }
    if memory {
        return Err(bad(
            "a datastore in memory would forget its entries and authorities; give a path".into(),
        ));
    }
    if path.is_empty() {
        return Err(bad("no path is given".into()));
    }
    let path = PathBuf::from(path);
    if must_exist && !path.exists() {
        return Err(bad(format!("mode=rw, but there is no {}", path.display())));
    }
    Ok(Target::Sqlite(Box::new(options.filename(&path)), path))
}

/// `%41` → `A`; `None` when that is no UTF-8.
fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let hex = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// A URL, or the key/value pairs of libpq.
fn postgres(key: &str, text: &str) -> Result<PgConnectOptions, BadConfig> {
    // The parser's own messages may quote the text and with it the password.
    let bad = |why: &str| BadConfig(format!("{key}: {why}"));
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        let options = PgConnectOptions::from_str(text)
            .map_err(|_| bad("it starts like a PostgreSQL URL but is not a valid one"))?;
        // Upstream's driver asks for TLS when nothing is said; a URL without sslmode means that, too.
        let said = text.contains("sslmode=") || text.contains("ssl-mode=");
        return Ok(if said {
            options
        } else {
            options.ssl_mode(PgSslMode::Require)
        });
    }
    let mut options = PgConnectOptions::new().ssl_mode(PgSslMode::Require);
    for (name, value) in pairs(text).ok_or_else(|| {
        bad("give key=value pairs such as \"dbname=spire user=spire host=localhost\", or a postgres:// URL")
    })? {
        options = match name.as_str() {
            "dbname" => options.database(&value),
            "user" => options.username(&value),
            "password" => options.password(&value),
            "host" => options.host(&value),
            "port" => {
                let port = value.parse();
                options.port(port.map_err(|_| bad("port is not a number from 1 to 65535"))?)
            }
            "sslmode" => {
                let mode = value.parse();
                options.ssl_mode(mode.map_err(|_| {
                    bad("sslmode is none of disable, allow, prefer, require, verify-ca, verify-full")
                })?)
            }
            "sslrootcert" => options.ssl_root_cert(&value),
            "sslcert" => options.ssl_client_cert(&value),
            "sslkey" => options.ssl_client_key(&value),
            "application_name" | "fallback_application_name" => options.application_name(&value),
            // Bounds a connect; ours is bounded by the wait for a connection.
            "connect_timeout" => options,
            // Everything else is a run-time parameter of the server, as in upstream's driver.
            _ => options.options([(name, value)]),
        };
    }
    Ok(options)
}

/// Whether there is a password in it.
fn postgres_password(text: &str) -> bool {
    let is_password = |name: &str| name == "password";
    match url::Url::parse(text) {
        Ok(url) if text.starts_with("postgres") => {
            let mut options = url.query_pairs();
            url.password().is_some() || options.any(|(name, _)| is_password(&name))
        }
        _ => pairs(text).is_some_and(|pairs| pairs.iter().any(|(name, _)| is_password(name))),
    }
}

/// `key = 'va\'lue'` as libpq reads it (PostgreSQL manual §34.1.1.1).
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return (!found.is_empty()).then_some(found);
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| !c.is_whitespace() && *c != '=') {
            name.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        chars.next_if_eq(&'=')?;
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut value = String::new();
        if chars.next_if_eq(&'\'').is_some() {
            loop {
                match chars.next()? {
                    '\'' => break,
                    '\\' => value.push(chars.next()?),
                    c => value.push(c),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                value.push(if c == '\\' { chars.next()? } else { c });
            }
        }
        if name.is_empty() {
            return None;
        }
        found.push((name, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(kind: &str, text: &str) -> StoreConfig {
        StoreConfig {
            database_type: kind.into(),
            connection_string: text.into(),
            ..StoreConfig::default()
        }
    }

    fn path(text: &str) -> PathBuf {
        match config("sqlite3", text).target() {
            Ok(Target::Sqlite(_, path)) => path,
            Ok(_) => panic!("{text} is a file"),
            Err(e) => panic!("{text}: {e}"),
        }
    }

    fn pg(text: &str) -> PgConnectOptions {
        match config("postgres", text).target() {
            Ok(Target::Postgres(options)) => *options,
            Ok(_) => panic!("{text} is PostgreSQL's"),
            Err(e) => panic!("{text}: {e}"),
        }
    }

    fn refused(kind: &str, text: &str) -> String {
        config(kind, text).validate().unwrap_err().to_string()
    }

    // inventory §7 DataStore sql: upstream's forms of a path.
    #[test]
    fn sqlite_is_a_path_or_a_file_uri() {
        for text in [
            "/a b/d.sqlite3",
            "file:/a b/d.sqlite3",
            "file:///a%20b/d.sqlite3?_busy_timeout=10",
            "file://localhost/a%20b/d.sqlite3",
            "/a b/d.sqlite3?cache=shared",
        ] {
            assert_eq!(path(text), PathBuf::from("/a b/d.sqlite3"), "{text}");
        }
        assert_eq!(path("./d.sqlite3"), PathBuf::from("./d.sqlite3"));
        assert_eq!(path("file:d.sqlite3"), PathBuf::from("d.sqlite3"));
        for text in [
            "mysql://x",
            ":memory:",
            "file::memory:",
            "file:x?mode=memory",
            "x?mode=ro",
            "x?wat=1",
            "?mode=rw",
            "file:%00",
        ] {
            let error = refused("sqlite3", text);
            assert!(error.starts_with("connection_string: "), "{error}");
        }
    }

    // inventory §7 DataStore sql: key/value pairs and URLs, sslmode.
    #[test]
    fn postgres_is_pairs_or_a_url() {
        let pairs =
            pg(r"dbname=spire user = 'o\'brien' password='a b' host=db port=5433 sslmode=disable");
        let url = pg("postgres://o%27brien:a%20b@db:5433/spire?sslmode=disable");
        for options in [pairs, url] {
            assert_eq!(options.get_database(), Some("spire"));
            assert_eq!(options.get_username(), "o'brien");
            assert_eq!(options.get_host(), "db");
            assert_eq!(options.get_port(), 5433);
            assert!(matches!(options.get_ssl_mode(), PgSslMode::Disable));
        }
        for text in ["dbname=spire", "postgres://db/spire"] {
            let mode = pg(text).get_ssl_mode();
            assert!(matches!(mode, PgSslMode::Require), "{text}: {mode:?}");
        }
    }

    #[test]
    fn an_error_names_the_key_and_never_the_password() {
        for text in [
            "postgres://u:hush@db:port/x",
            "password=hush port=seven",
            "password='hush",
            "hush",
            "password=hush sslmode=perhaps",
        ] {
            let error = refused("postgres", text);
            assert!(error.starts_with("connection_string: "), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
        let error = refused("oracle", "x");
        assert!(
            error.contains("oracle") && error.contains("postgres"),
            "{error}"
        );
        assert!(refused("", "x").contains("database_type"));
        assert!(refused("sqlite3", "").contains("connection_string"));
        let mut bad = config("sqlite3", "x");
        bad.conn_max_lifetime = Some("soon".into());
        assert!(
            bad.validate()
                .unwrap_err()
                .to_string()
                .contains("conn_max_lifetime")
        );
    }
}
