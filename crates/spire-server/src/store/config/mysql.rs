//! How a MySQL or MariaDB server is reached: the DSN of upstream's driver, `user:password@tcp(host:port)/database?parseTime=true`.

use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};

use super::{BadConfig, StoreConfig, unescape};

/// Parameters of upstream's driver that change nothing here: they are about that driver's own caches, dialect, buffers and
/// waits, or ask for what is done in any case.
const WITHOUT_EFFECT: [&str; 21] = [
    "allowFallbackToPlaintext",
    "allowNativePasswords",
    "allowOldPasswords",
    "charset",
    "checkConnLiveness",
    "clientFoundRows",
    "collation",
    "columnsWithAlias",
    "compress",
    "connectionAttributes",
    "inMemory",
    "interpolateParams",
    "maxAllowedPacket",
    "multiStatements",
    "readTimeout",
    "rejectReadOnly",
    "serverPubKey",
    "strict",
    "timeTruncate",
    "timeout",
    "writeTimeout",
];

const FORM: &str = "give it as user:password@tcp(host:port)/database?parseTime=true";

/// How to connect, and whether that is with a password. Errors never quote the text: there is one in it.
pub(super) fn options(
    key: &str,
    text: &str,
    config: &StoreConfig,
) -> Result<(MySqlConnectOptions, bool), BadConfig> {
    let bad = |why: String| BadConfig(format!("{key}: {why}"));
    // As upstream's driver: a password may have any character, for what counts is the last `/` and the last `@` before it.
    let (server, database) = text
        .rsplit_once('/')
        .ok_or_else(|| bad(format!("no database is named; {FORM}")))?;
    let (login, place) = server.rsplit_once('@').unwrap_or(("", server));
    let (user, password) = match login.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (login, None),
    };
    let mut options = at(MySqlConnectOptions::new(), place).map_err(|why| bad(why.into()))?;
    options = options.username(user);
    let password = password.filter(|password| !password.is_empty());
    if let Some(password) = password {
        options = options.password(password);
    }
    let (database, parameters) = database.split_once('?').unwrap_or((database, ""));
    let database = unescape(database).filter(|name| !name.is_empty());
    let database = database.ok_or_else(|| bad(format!("no database is named; {FORM}")))?;
    options = options.database(&database);

    let mut parse_time = false;
    let mut tls = MySqlSslMode::Disabled;
    let mut cleartext = false;
    for parameter in parameters.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = unescape(value).ok_or_else(|| bad(format!("{name} is not valid text")))?;
        match name {
            "parseTime" => parse_time = truth(&value).ok_or_else(|| no_truth(key, name))?,
            "tls" => tls = tls_mode(&value).map_err(|why| bad(format!("tls={value}: {why}")))?,
            "allowCleartextPasswords" => {
                cleartext = truth(&value).ok_or_else(|| no_truth(key, name))?;
            }
            "loc" if value == "UTC" => {}
            "loc" => {
                return Err(bad(
                    "loc: times are kept in UTC, as without it; leave it out".into(),
                ));
            }
            name if WITHOUT_EFFECT.contains(&name) => {}
            name => {
                return Err(bad(format!(
                    "unknown parameter {name:?}; variables of the server are set in its own configuration"
                )));
            }
        }
    }
    if !parse_time {
        return Err(bad(format!(
            "invalid mysql config: missing parseTime=true param in connection_string; {FORM}"
        )));
    }
    if config.aws.is_some() && !cleartext {
        return Err(bad(
            "Amazon RDS takes a token as it is: add allowCleartextPasswords=1, and tls=true or root_ca_path so that nobody else gets it".into(),
        ));
    }
    let options = options.enable_cleartext_plugin(cleartext).ssl_mode(tls);
    Ok((with_files(options, config)?, password.is_some()))
}

/// `tcp(host:port)`, `unix(/path)` or nothing, which is this machine.
fn at(options: MySqlConnectOptions, place: &str) -> Result<MySqlConnectOptions, &'static str> {
    let (net, address) = match place.split_once('(') {
        Some((net, rest)) => {
            let address = rest.strip_suffix(')');
            (
                net,
                address.ok_or("the address of the server has no closing brace")?,
            )
        }
        None => (place, ""),
    };
    match net {
        "unix" if address.is_empty() => Ok(options.socket("/tmp/mysql.sock")),
        "unix" => Ok(options.socket(address)),
        "" | "tcp" | "tcp4" | "tcp6" => {
            let (host, port) = host_and_port(address)?;
            Ok(options.host(host).port(port))
        }
        "cloudsql" => Err(
            "cloudsql(…) is not supported: run the Cloud SQL Auth Proxy beside this server and connect to it by tcp(…) or unix(…)",
        ),
        _ => Err(
            "the network has to be tcp or unix, as in user:password@tcp(host:port)/database?parseTime=true",
        ),
    }
}

fn host_and_port(address: &str) -> Result<(&str, u16), &'static str> {
    const PORT: u16 = 3306;
    let number = |text: &str| {
        let port = text.parse::<u16>().ok().filter(|port| *port != 0);
        port.ok_or("the port is not a number from 1 to 65535")
    };
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest
                .split_once(']')
                .ok_or("the IPv6 address has no closing bracket")?;
            match rest.strip_prefix(':') {
                Some(port) => (host, number(port)?),
                None => (host, PORT),
            }
        }
        None => match address.split_once(':') {
            Some((_, rest)) if rest.contains(':') => {
                return Err("an IPv6 address stands in brackets, as in tcp([::1]:3306)");
            }
            Some((host, port)) => (host, number(port)?),
            None => (address, PORT),
        },
    };
    Ok((if host.is_empty() { "127.0.0.1" } else { host }, port))
}

/// Files of certificates mean that the server is verified, whatever `tls` says, as with upstream.
fn with_files(
    mut options: MySqlConnectOptions,
    config: &StoreConfig,
) -> Result<MySqlConnectOptions, BadConfig> {
    if let Some(path) = &config.root_ca_path {
        options = options.ssl_ca(path).ssl_mode(MySqlSslMode::VerifyIdentity);
    }
    match (&config.client_cert_path, &config.client_key_path) {
        (Some(certificate), Some(key)) => Ok(options
            .ssl_client_cert(certificate)
            .ssl_client_key(key)
            .ssl_mode(MySqlSslMode::VerifyIdentity)),
        (None, None) => Ok(options),
        _ => Err(BadConfig(
            "client_cert_path and client_key_path belong together: set both or none".into(),
        )),
    }
}

fn tls_mode(value: &str) -> Result<MySqlSslMode, &'static str> {
    match (truth(value), value) {
        (Some(true), _) => Ok(MySqlSslMode::VerifyIdentity),
        (Some(false), _) => Ok(MySqlSslMode::Disabled),
        (None, "skip-verify") => Ok(MySqlSslMode::Required),
        (None, "preferred") => Ok(MySqlSslMode::Preferred),
        (None, _) => Err(
            "give true, false, skip-verify or preferred; a CA of your own goes into root_ca_path",
        ),
    }
}

/// A truth as upstream's driver reads it.
fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "true" | "TRUE" | "True" => Some(true),
        "0" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn no_truth(key: &str, name: &str) -> BadConfig {
    BadConfig(format!("{key}: {name} is neither true nor false"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn config(text: &str) -> StoreConfig {
        StoreConfig {
            database_type: "mysql".into(),
            connection_string: text.into(),
            ..StoreConfig::default()
        }
    }

    fn read(text: &str) -> MySqlConnectOptions {
        match options("connection_string", text, &config(text)) {
            Ok((options, _)) => options,
            Err(error) => panic!("{text}: {error}"),
        }
    }

    // inventory §7 DataStore sql: the DSN of upstream's driver.
    #[test]
    fn a_dsn_is_read_as_upstream_s_driver_reads_it() {
        for (text, user, host, port) in [
            ("spire:p@tcp(db:3307)/spire", "spire", "db", 3307),
            ("spire@tcp(db)/spire", "spire", "db", 3306),
            ("spire:@/spire", "spire", "127.0.0.1", 3306),
            ("spire@tcp/spire", "spire", "127.0.0.1", 3306),
            ("a:b:c@d/e@tcp([::1]:33)/spire", "a", "::1", 33),
            ("/sp%69re", "", "127.0.0.1", 3306),
        ] {
            let options = read(&format!("{text}?parseTime=true"));
            assert_eq!(options.get_username(), user, "{text}");
            assert_eq!(options.get_host(), host, "{text}");
            assert_eq!(options.get_port(), port, "{text}");
            assert_eq!(options.get_database(), Some("spire"), "{text}");
            assert!(matches!(options.get_ssl_mode(), MySqlSslMode::Disabled));
        }
        let unix = read("u:p@unix(/run/my.sock)/spire?charset=utf8&parseTime=1&loc=UTC");
        assert_eq!(unix.get_socket(), Some(&PathBuf::from("/run/my.sock")));
    }

    // inventory §7 DataStore sql: tls, root_ca_path, client_cert_path, client_key_path.
    #[test]
    fn tls_is_asked_for_by_the_dsn_or_by_files() {
        let mode = |tls: &str| read(&format!("u@tcp(db)/s?parseTime=true{tls}")).get_ssl_mode();
        assert!(matches!(mode("&tls=true"), MySqlSslMode::VerifyIdentity));
        assert!(matches!(mode("&tls=false"), MySqlSslMode::Disabled));
        assert!(matches!(mode("&tls=skip-verify"), MySqlSslMode::Required));
        assert!(matches!(mode("&tls=preferred"), MySqlSslMode::Preferred));
        let text = "u@tcp(db)/s?parseTime=true&tls=skip-verify";
        let mut files = config(text);
        files.root_ca_path = Some("/ca.pem".into());
        let (read, _) = options("connection_string", text, &files).unwrap();
        assert!(matches!(read.get_ssl_mode(), MySqlSslMode::VerifyIdentity));
        files.client_cert_path = Some("/c.pem".into());
        let error = options("connection_string", text, &files).unwrap_err();
        assert!(error.0.contains("belong together"), "{error}");
    }

    #[test]
    fn an_error_says_what_to_do_and_never_the_password() {
        for (text, why) in [
            ("u:hush@tcp(db:3306)", "no database is named"),
            (
                "u:hush@tcp(db:3306)/?parseTime=true",
                "no database is named",
            ),
            ("u:hush@tcp(db:3306)/s", "missing parseTime=true"),
            (
                "u:hush@tcp(db:3306)/s?parseTime=false",
                "missing parseTime=true",
            ),
            (
                "u:hush@tcp(db:3306)/s?parseTime=yes",
                "neither true nor false",
            ),
            ("u:hush@tcp(db:port)/s?parseTime=true", "the port is not"),
            ("u:hush@tcp(db:3306/s?parseTime=true", "no closing brace"),
            ("u:hush@tcp(::1)/s?parseTime=true", "in brackets"),
            (
                "u:hush@cloudsql(p:r:i)/s?parseTime=true",
                "Cloud SQL Auth Proxy",
            ),
            ("u:hush/s?parseTime=true", "has to be tcp or unix"),
            ("mysql://u:hush@db/s", "has to be tcp or unix"),
            ("u:hush@tcp(db)/s?parseTime=true&tls=own", "root_ca_path"),
            ("u:hush@tcp(db)/s?parseTime=true&loc=Local", "UTC"),
            (
                "u:hush@tcp(db)/s?parseTime=true&sql_mode=x",
                "unknown parameter \"sql_mode\"",
            ),
        ] {
            let error = config(text).validate().unwrap_err().to_string();
            assert!(error.starts_with("connection_string: "), "{error}");
            assert!(
                error.contains(why) && !error.contains("hush"),
                "{text}: {error}"
            );
        }
    }
}
