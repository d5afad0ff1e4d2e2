//! Logins at databases of Amazon RDS: instead of a password, a URL that is signed for the database, user and minute.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_spire_wire::aws::{Caller, Environment, Service};
use ah_spire_wire::sigv4::{Credentials, percent_encoded};
use http::Uri;
use zeroize::Zeroizing;

/// What tokens are signed for.
const RDS: Service = Service::regional("RDS", "rds-db");

/// How long RDS takes a token. Connections that were made with it last.
const LASTS: Duration = Duration::from_mins(15);

/// Who logs in at a database of Amazon RDS.
#[derive(Clone)]
pub struct AwsLogin(Arc<Caller>);

impl fmt::Debug for AwsLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AwsLogin").field(&self.0).finish()
    }
}

impl AwsLogin {
    /// With `keys`, or else as whom AWS's SDKs would find ([`Caller::new`]).
    ///
    /// # Errors
    /// `region` is no name of a region.
    pub fn new(
        environment: Environment,
        region: &str,
        keys: Option<Credentials>,
    ) -> Result<Self, String> {
        // Nothing is called: what the environment says of endpoints does not count.
        RDS.endpoint(&Environment::default(), region)?;
        Ok(Self(Arc::new(Caller::new(environment, region, keys))))
    }

    /// What stands for the password of `user` at `now`, for 15 minutes.
    ///
    /// # Errors
    /// There are no credentials, or the host is none.
    pub async fn token(
        &self,
        user: &str,
        host: &str,
        port: u16,
        now: SystemTime,
    ) -> Result<Zeroizing<String>, String> {
        let user = percent_encoded(user);
        let uri = format!("https://{host}:{port}/?Action=connect&DBUser={user}");
        let uri: Uri = uri
            .parse()
            .map_err(|_| format!("{host:?} is no name of a host"))?;
        let url = self.0.presigned(&uri, RDS, LASTS, now).await?;
        let token = url.strip_prefix("https://").unwrap_or(&url);
        Ok(Zeroizing::new(token.to_owned()))
    }
}
