//! How MySQL and MariaDB differ: statements, sessions, transactions and codes of errors.
//!
//! They have no `RETURNING` for all, no conflicts to leave alone without a count that lies, and no locks of their own that end
//! with a transaction: what needs those is written twice by its caller.

use sqlx::mysql::{MySql, MySqlConnectOptions, MySqlDatabaseError, MySqlPoolOptions};

use super::connection::{Arg, Connection};
use super::place::Place;
use crate::store::StoreError;

/// Begins a transaction that writes. Each statement sees what was committed before it, as with PostgreSQL, and rows
/// that are not there are not locked: MySQL's default would have writers wait for each other without need, or deadlock.
pub(super) const BEGIN: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION";

/// Begins one that reads one state.
pub(super) const BEGIN_SNAPSHOT: &str = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";

/// Takes a lock that lasts until [`UNLOCK`] or the end of the connection, for a name in this database: 1 when it was free
/// in time. Names have 64 characters at most and are the whole server's.
pub(super) const LOCK: &str = "SELECT coalesce(GET_LOCK(left(sha2(concat(coalesce(database(), ''), ' ', $1), 256), 64), $2), 0)";

/// Ends all locks of the connection.
pub(super) const UNLOCK: &str = "DO RELEASE_ALL_LOCKS()";

/// What every new connection is told. A text that does not fit is an error and is never cut, and `||` and `"` mean what they
/// mean to the other databases.
const SESSION: &str =
    "SET SESSION sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT,STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'";

/// `pool`, with its connections made ready.
pub(super) fn ready(pool: MySqlPoolOptions) -> MySqlPoolOptions {
    pool.after_connect(|connection, _| {
        Box::pin(async move {
            let done = sqlx::raw_sql(SESSION).execute(connection).await;
            done.map(drop)
        })
    })
}

/// Ours alone set the mode of a session.
pub(super) fn options(options: MySqlConnectOptions) -> MySqlConnectOptions {
    options
        .pipes_as_concat(false)
        .no_engine_substitution(false)
        .timezone(None::<String>)
}

pub(super) async fn snapshot(place: &Place<MySql>) -> Result<Connection, StoreError> {
    Connection::mysql(place.acquire().await?, BEGIN_SNAPSHOT).await
}

/// Whether a connection was not made because the password cannot be sent without TLS: the driver would need RSA for that.
pub(super) fn wants_tls(why: &(dyn std::error::Error + 'static)) -> bool {
    why.to_string().starts_with("RSA auth backend disabled")
}

/// The same, for those who have to do something about it.
pub(super) fn needs_tls() -> StoreError {
    StoreError::Broken(
        "the server wants this user's password over TLS (caching_sha2_password or sha256_password): add tls=true, skip-verify or \
         preferred to the parameters of connection_string"
            .into(),
    )
}

/// The database as people name it, without the password.
pub(super) fn place(options: &MySqlConnectOptions) -> String {
    let user = options.get_username();
    let database = options.get_database().unwrap_or_default();
    match options.get_socket() {
        Some(socket) => format!("{user}@unix({})/{database}", socket.display()),
        None => format!(
            "{user}@tcp({}:{})/{database}",
            options.get_host(),
            options.get_port()
        ),
    }
}

/// A statement in MySQL's words.
pub(super) struct Statement {
    pub(super) sql: String,
    /// The values in the order of their question marks.
    pub(super) args: Vec<Arg>,
    /// A row that is there already counts as none written.
    pub(super) may_conflict: bool,
}

/// `sql` is PostgreSQL's, of this store: it has no `$` but those of its values.
pub(super) fn statement(sql: &str, args: &[Arg]) -> Result<Statement, StoreError> {
    const CONFLICT: &str = "ON CONFLICT DO NOTHING";
    const TIME: &str = "::timestamptz";
    let may_conflict = sql.contains(CONFLICT);
    let mut out = String::with_capacity(sql.len());
    let mut in_order = Vec::with_capacity(args.len());
    let mut parts = sql.split('$');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = part.split_at(digits);
        let place = number.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
        let arg = place.and_then(|place| args.get(place)).ok_or_else(|| {
            StoreError::Broken(format!("the statement has no value ${number}: {sql}"))
        })?;
        let (arg, rest) = match rest.strip_prefix(TIME) {
            Some(rest) => (without_zone(arg), rest),
            None => (arg.clone(), rest),
        };
        in_order.push(arg);
        out.push('?');
        out.push_str(rest);
    }
    let sql = out
        .replace(CONFLICT, "")
        .replace(" AS BIGINT)", " AS SIGNED)")
        .replace(" AS INTEGER)", " AS SIGNED)");
    Ok(Statement {
        sql,
        args: in_order,
        may_conflict,
    })
}

/// Columns of times have no zone: they are in UTC, as upstream writes them.
fn without_zone(arg: &Arg) -> Arg {
    match arg {
        Arg::Text(text) => Arg::from(text.trim_end_matches("+00:00")),
        other => other.clone(),
    }
}

/// Whether a row was there already (`ER_DUP_ENTRY`, `ER_DUP_ENTRY_WITH_KEY_NAME`).
pub(super) fn is_conflict(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    let error = error.and_then(|error| error.try_downcast_ref::<MySqlDatabaseError>());
    error.is_some_and(|error| matches!(error.number(), 1062 | 1586))
}

/// By the number of the error (MySQL Error Reference; MariaDB's are the same up to 1900).
pub(super) fn fault(number: u16, text: String) -> StoreError {
    match number {
        1062 | 1586 => StoreError::AlreadyExists(text),
        // Too long, out of range, or with characters that the column's set does not have.
        1264 | 1292 | 1366 | 1406 | 3988 => StoreError::Invalid(text),
        // Access denied, no such database, table or column, a syntax error, mixed collations.
        1044 | 1045 | 1049 | 1054 | 1064 | 1142 | 1146 | 1227 | 1267 | 1698 => {
            StoreError::Broken(text)
        }
        _ => StoreError::Unavailable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_where_their_numbers_are() {
        let args = [Arg::Int(7), Arg::from("2026-11-22 00:00:00+00:00")];
        let sql = "INSERT INTO t SELECT CAST(id AS BIGINT), $2::timestamptz, $2::timestamptz, $2 FROM s WHERE id = $1 ON CONFLICT DO NOTHING";
        let got = statement(sql, &args).unwrap();
        assert_eq!(
            got.sql.trim_end(),
            "INSERT INTO t SELECT CAST(id AS SIGNED), ?, ?, ? FROM s WHERE id = ?"
        );
        assert!(got.may_conflict);
        let texts: Vec<_> = got
            .args
            .iter()
            .map(|arg| match arg {
                Arg::Text(text) => text.as_str(),
                Arg::Int(7) => "7",
                _ => "?",
            })
            .collect();
        let (time, zoned) = ("2026-11-22 00:00:00", "2026-11-22 00:00:00+00:00");
        assert_eq!(texts, [time, time, zoned, "7"]);
        assert!(statement("SELECT $3", &args).is_err());
    }
}
