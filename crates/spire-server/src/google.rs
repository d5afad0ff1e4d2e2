//! Calls of Google's REST interfaces, in JSON.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_spire_attest::node::gcp_iit::{AccessToken, Account, refusal};
use ah_spire_wire::sigv4::percent_encoded;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// What may be done.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// How long before its end a token is replaced.
const RENEW_BEFORE: Duration = Duration::from_secs(300);

/// More pages than this are no list.
const MOST_PAGES: usize = 1000;

/// One of Google's services, and as whom it is asked. A token is asked for once for its time.
pub(crate) struct GoogleApi {
    url: String,
    account: Account,
    held: Mutex<Option<(Arc<AccessToken>, Instant)>>,
}

/// Why a call brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GoogleError {
    /// `None` where there was no answer, or another one.
    pub(crate) status: Option<StatusCode>,
    text: String,
}

impl fmt::Display for GoogleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl GoogleError {
    fn other(why: impl fmt::Display) -> Self {
        Self {
            status: None,
            text: why.to_string(),
        }
    }

    /// There is no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status == Some(StatusCode::NOT_FOUND)
    }
}

impl GoogleApi {
    /// What is at `url` (without `/v1/…`), for `account`.
    pub(crate) fn new(url: String, account: Account) -> Self {
        Self {
            url,
            account,
            held: Mutex::new(None),
        }
    }

    /// What is at `/v1/{path}`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, GoogleError> {
        self.call(Method::GET, path, None).await
    }

    /// What `/v1/{path}` makes of `body`.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, GoogleError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}/v1/{path}", self.url))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.map_or_else(Bytes::new, |body| body.to_string().into()));
        let request = request.map_err(GoogleError::other)?;
        let answer = self.token().await?.send(request).await;
        let answer = answer.map_err(GoogleError::other)?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            *self.held.lock().await = None;
        }
        if !answer.status().is_success() {
            return Err(GoogleError {
                status: Some(answer.status()),
                text: refusal(&answer),
            });
        }
        serde_json::from_slice(answer.body()).map_err(|error| {
            GoogleError::other(format!("the answer is not what was asked for: {error}"))
        })
    }

    async fn token(&self) -> Result<Arc<AccessToken>, GoogleError> {
        let mut held = self.held.lock().await;
        let now = Instant::now();
        if let Some((token, until)) = held.as_ref()
            && now < *until
        {
            return Ok(token.clone());
        }
        let token = self.account.access_token(SCOPE, SystemTime::now()).await;
        let token = Arc::new(token.map_err(GoogleError::other)?);
        let until = now + token.lasts.saturating_sub(RENEW_BEFORE);
        *held = Some((token.clone(), until));
        Ok(token)
    }

    /// All pages of the list at `/v1/{path}`, with `filter` where there is one.
    pub(crate) async fn pages<T: DeserializeOwned>(
        &self,
        path: &str,
        filter: &str,
    ) -> Result<Vec<T>, GoogleError> {
        #[derive(Deserialize)]
        struct Page<T> {
            #[serde(flatten)]
            content: T,
            #[serde(default, rename = "nextPageToken")]
            next: String,
        }

        let mut pages = Vec::new();
        let mut query = "pageSize=100".to_owned();
        if !filter.is_empty() {
            query.push_str(&format!("&filter={}", percent_encoded(filter)));
        }
        let mut after = String::new();
        for _ in 0..MOST_PAGES {
            let page: Page<T> = self.get(&format!("{path}?{query}{after}")).await?;
            pages.push(page.content);
            if page.next.is_empty() {
                return Ok(pages);
            }
            after = format!("&pageToken={}", percent_encoded(&page.next));
        }
        let why = format!("{path} has more than {MOST_PAGES} pages");
        Err(GoogleError::other(why))
    }
}
