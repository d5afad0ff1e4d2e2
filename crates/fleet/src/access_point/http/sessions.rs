//! Browsers that were signed in: a cookie that no script can read, in place of the token.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use uuid::Uuid;

use super::gate::Token;
use crate::access_point::registry::lock;

/// Whoever signed in has to do it again after so long.
const LIFE: Duration = Duration::from_secs(12 * 3600);
/// Most sessions at a time. Beyond it the one that ends first makes room.
const MOST: usize = 256;

/// The sessions of one door. They live in memory: a restart ends them.
pub(in crate::access_point) struct Sessions {
    /// Cookies of a host are sent to all of its ports, so that the port is in the name.
    cookie: String,
    attributes: &'static str,
    /// By the SHA-256 of the session id, so that the time of a look-up tells nothing of an id.
    kept: Mutex<HashMap<[u8; 32], Session>>,
}

struct Session {
    /// What it was opened with.
    token: Token,
    page_token: String,
    ends: Instant,
}

impl Sessions {
    /// For the door at `port`; `secure` when it speaks TLS.
    pub(super) fn new(port: u16, secure: bool) -> Self {
        // A browser takes a cookie with this prefix over TLS alone, and from this host alone.
        let prefix = if secure { "__Host-" } else { "" };
        Self {
            cookie: format!("{prefix}ah-session-{port}"),
            attributes: if secure {
                "Path=/; HttpOnly; SameSite=Strict; Secure"
            } else {
                "Path=/; HttpOnly; SameSite=Strict"
            },
            kept: Mutex::default(),
        }
    }

    /// Begins a session of somebody who showed `token`, and returns the `Set-Cookie` that hands it over.
    pub(super) fn open(&self, token: Token) -> String {
        let id = random();
        let now = Instant::now();
        let session = Session {
            token,
            page_token: random(),
            ends: now + LIFE,
        };
        let mut kept = lock(&self.kept);
        kept.retain(|_, session| session.ends > now);
        if kept.len() >= MOST
            && let Some(first) = kept.iter().min_by_key(|(_, session)| session.ends)
        {
            let first = *first.0;
            kept.remove(&first);
        }
        kept.insert(key(&id), session);
        let (cookie, attributes, life) = (&self.cookie, self.attributes, LIFE.as_secs());
        format!("{cookie}={id}; Max-Age={life}; {attributes}")
    }

    /// The page token of the session that the request belongs to. A session that was opened with another token than
    /// that of now is none.
    pub(super) fn find(&self, headers: &HeaderMap, token: &Token) -> Option<String> {
        let key = key(self.shown(headers)?);
        let kept = lock(&self.kept);
        let session = kept.get(&key)?;
        (session.ends > Instant::now() && session.token == *token)
            .then(|| session.page_token.clone())
    }

    /// Ends the session that the request belongs to, and returns the `Set-Cookie` that forgets it.
    pub(super) fn close(&self, headers: &HeaderMap) -> String {
        if let Some(id) = self.shown(headers) {
            lock(&self.kept).remove(&key(id));
        }
        format!("{}=; Max-Age=0; {}", self.cookie, self.attributes)
    }

    fn shown<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(name, _)| *name == self.cookie)
            .map(|(_, id)| id)
    }
}

/// 244 random bits from the operating system, in hex.
fn random() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

fn key(id: &str) -> [u8; 32] {
    Sha256::digest(id).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token::new("the-token-of-the-tests").unwrap()
    }

    fn with(cookie: &str) -> HeaderMap {
        let shown = cookie.split(';').next().unwrap();
        HeaderMap::from_iter([(
            header::COOKIE,
            format!("other=1; {shown}; ah-session-1=x").parse().unwrap(),
        )])
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_after_its_time_and_when_it_is_closed() {
        let sessions = Sessions::new(9443, true);
        let cookie = sessions.open(token());
        for part in [
            "__Host-ah-session-9443=",
            "HttpOnly",
            "SameSite=Strict",
            "Secure",
            "Path=/",
        ] {
            assert!(cookie.contains(part), "{cookie}");
        }
        let other = sessions.open(token());
        assert_ne!(cookie, other);
        assert_ne!(
            sessions.find(&with(&cookie), &token()),
            sessions.find(&with(&other), &token())
        );
        assert!(
            sessions
                .find(&with(&cookie), &token())
                .is_some_and(|token| token.len() == 64)
        );
        assert!(sessions.find(&HeaderMap::new(), &token()).is_none());
        assert!(
            sessions
                .find(&with("__Host-ah-session-9443=0"), &token())
                .is_none()
        );

        // Whoever stole the token before it was replaced has no session any more.
        let newer = Token::new("another-token-of-the-tests").unwrap();
        assert!(sessions.find(&with(&cookie), &newer).is_none());

        sessions.close(&with(&cookie));
        assert!(sessions.find(&with(&cookie), &token()).is_none());
        tokio::time::advance(LIFE - Duration::from_secs(1)).await;
        assert!(sessions.find(&with(&other), &token()).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(sessions.find(&with(&other), &token()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_signs_in_again_and_again_pushes_out_the_oldest() {
        let sessions = Sessions::new(9443, false);
        let first = sessions.open(token());
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = sessions.open(token());
        for _ in 1..MOST {
            sessions.open(token());
        }
        assert!(sessions.find(&with(&first), &token()).is_none());
        assert!(sessions.find(&with(&second), &token()).is_some());
        assert_eq!(lock(&sessions.kept).len(), MOST);
    }
}
