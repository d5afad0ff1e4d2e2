//! Connections of a database that servers share, and how a new one logs in.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use sqlx::mysql::{MySql, MySqlConnectOptions};
use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::postgres::{PgConnectOptions, Postgres};
use sqlx::{Connection, Database, Pool};
use tokio::sync::Mutex;

use super::connection::fault;
use crate::store::StoreError;
use crate::store::config::AwsLogin;

/// The age at which a token is not used for a new connection any more: it counts for 15 minutes.
const RENEW_AFTER: Duration = Duration::from_mins(10);

/// A database that a token can be given to instead of a password.
pub(super) trait LogsIn: Database {
    fn with_password(
        options: <Self::Connection as Connection>::Options,
        password: &str,
    ) -> <Self::Connection as Connection>::Options;

    /// The user, and the host and port of the server.
    fn target(options: &<Self::Connection as Connection>::Options) -> (&str, &str, u16);
}

impl LogsIn for Postgres {
    fn with_password(options: PgConnectOptions, password: &str) -> PgConnectOptions {
        options.password(password)
    }

    fn target(options: &PgConnectOptions) -> (&str, &str, u16) {
        (
            options.get_username(),
            options.get_host(),
            options.get_port(),
        )
    }
}

impl LogsIn for MySql {
    fn with_password(options: MySqlConnectOptions, password: &str) -> MySqlConnectOptions {
        options.password(password)
    }

    fn target(options: &MySqlConnectOptions) -> (&str, &str, u16) {
        (
            options.get_username(),
            options.get_host(),
            options.get_port(),
        )
    }
}

/// A database, and a replica of it where there is one.
#[derive(Debug)]
pub(super) struct Shared<DB: LogsIn> {
    pub(super) primary: Place<DB>,
    /// It answers lists and counts of the APIs.
    pub(super) replica: Option<Place<DB>>,
}

impl<DB: LogsIn> Shared<DB> {
    /// Where the state may be some seconds old.
    pub(super) fn stale(&self) -> &Place<DB> {
        self.replica.as_ref().unwrap_or(&self.primary)
    }

    pub(super) async fn close(&self) {
        if let Some(replica) = &self.replica {
            replica.pool.close().await;
        }
        self.primary.pool.close().await;
    }
}

/// One of the two.
#[derive(Debug)]
pub(super) struct Place<DB: LogsIn> {
    pool: Pool<DB>,
    login: Option<Login>,
}

impl<DB: LogsIn> Place<DB> {
    /// Nothing is connected before it is needed.
    pub(super) fn new(
        pool: PoolOptions<DB>,
        options: <DB::Connection as Connection>::Options,
        aws: Option<&AwsLogin>,
    ) -> Self {
        let login = aws.map(|aws| {
            let (user, host, port) = DB::target(&options);
            Login {
                aws: aws.clone(),
                user: user.to_owned(),
                host: host.to_owned(),
                port,
                made: Mutex::new(None),
            }
        });
        let pool = pool.connect_lazy_with(options);
        Self { pool, login }
    }

    pub(super) async fn acquire(&self) -> Result<PoolConnection<DB>, StoreError> {
        if let Some(login) = &self.login {
            login.renew(&self.pool).await?;
        }
        self.pool.acquire().await.map_err(fault)
    }
}

/// A login at Amazon RDS.
pub(super) struct Login {
    aws: AwsLogin,
    user: String,
    host: String,
    port: u16,
    made: Mutex<Option<Instant>>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Login {
    /// Has new connections of `pool` log in with a token that still counts.
    async fn renew<DB: LogsIn>(&self, pool: &Pool<DB>) -> Result<(), StoreError> {
        let mut made = self.made.lock().await;
        if made.is_some_and(|made| made.elapsed() < RENEW_AFTER) {
            return Ok(());
        }
        let token = self
            .aws
            .token(&self.user, &self.host, self.port, SystemTime::now())
            .await
            .map_err(|why| StoreError::Unavailable(format!("no token for Amazon RDS: {why}")))?;
        let options = (*pool.connect_options()).clone();
        pool.set_connect_options(DB::with_password(options, &token));
        *made = Some(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ah_spire_wire::aws::Environment;
    use ah_spire_wire::sigv4::Credentials;
    use sqlx::ConnectOptions;

    use super::*;

    // inventory §7 DataStore sql: a token counts for 15 minutes, a pool lives longer.
    #[tokio::test]
    async fn new_connections_log_in_with_a_token_that_still_counts() {
        let keys = Credentials {
            access_key_id: "a".into(),
            secret_access_key: "s".to_owned().into(),
            session_token: None,
        };
        let aws = AwsLogin::new(Environment::default(), "eu-west-1", Some(keys)).unwrap();
        let options = MySqlConnectOptions::new().host("db").username("u");
        let place = Place::<MySql>::new(PoolOptions::new(), options, Some(&aws));
        let login = place.login.as_ref().unwrap();
        let password = || {
            let url = place.pool.connect_options().to_url_lossy();
            url.password().map(str::to_owned)
        };
        assert_eq!(password(), None);
        login.renew(&place.pool).await.unwrap();
        let first = password().unwrap();
        assert!(first.contains("Signature"), "{first}");

        let forgotten = MySqlConnectOptions::new().host("db").username("u");
        place.pool.set_connect_options(forgotten);
        login.renew(&place.pool).await.unwrap();
        assert_eq!(password(), None, "the last one still counts");
        *login.made.lock().await = Instant::now().checked_sub(RENEW_AFTER);
        login.renew(&place.pool).await.unwrap();
        assert!(password().is_some());
    }
}
