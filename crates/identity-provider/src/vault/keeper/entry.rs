//! How the keeper comes by a token: from disk, from somebody, or by a login (VA-3 to VA-7, VA-15).

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::super::Secret;
use super::super::cache::{CacheError, Kept, Lock};
use super::super::client::Ask;
use super::super::fault::{Failure, Refusal};
use super::super::login::{self, Credential, Form};
use super::super::token::{Granted, LookedUp, Token};
use super::{Keeper, NoToken, REFUSED_FOR};
use crate::{Code, Explained};

/// A credential that was refused, and until when it is not sent again.
pub(super) struct Refused {
    fingerprint: String,
    pub(super) until: Instant,
    explained: Explained,
}

impl Keeper {
    /// Gets a token and takes it into use.
    pub(super) async fn log_in(&mut self, until: Option<SystemTime>) -> Result<(), NoToken> {
        self.client.begin_at_first();
        let config = self.config.clone();
        let credential = tokio::task::spawn_blocking(move || login::credential(&config))
            .await
            .unwrap_or_else(|_| Err(Explained::new(Code::Other, "reading was interrupted")))
            .map_err(NoToken::Setup)?;
        if let Some(refused) = &self.refused
            && refused.fingerprint == credential.fingerprint
            && Instant::now() < refused.until
        {
            return Err(NoToken::Refused(refused.explained.clone()));
        }
        let token = match &credential.form {
            Form::Token(secret) => self.given(secret.clone(), until).await,
            Form::Login { .. } => self.login(&credential, until).await,
        };
        match token {
            Ok(token) => {
                tracing::debug!(
                    method = self.config.login.method.as_str(),
                    ttl = token.left().map(tracing::field::debug),
                    "logged in to vault"
                );
                self.adopt(token);
                Ok(())
            }
            Err(NoToken::Refused(explained)) => {
                let seconds = rand::random_range(REFUSED_FOR.0..=REFUSED_FOR.1);
                self.refused = Some(Refused {
                    fingerprint: credential.fingerprint,
                    until: Instant::now() + Duration::from_secs_f64(seconds),
                    explained: explained.clone(),
                });
                Err(NoToken::Refused(explained))
            }
            Err(other) => Err(other),
        }
    }

    /// VA-7: a token that somebody gave. It is taken once; the same cannot follow itself.
    async fn given(&mut self, secret: Secret, until: Option<SystemTime>) -> Result<Token, NoToken> {
        if let Some(token) = &self.token
            && token.secret == secret
            && (token.expired() || !token.extends)
        {
            let why = login::refused(&self.config, "the token is at its end", false);
            return Err(NoToken::Refused(why));
        }
        let since = Instant::now();
        match self.look_up(&secret, until).await {
            Ok(found) => Ok(Token::looked_up(secret, &found.data, since)),
            Err(failure) if failure.refusal().is_some_and(Refusal::forbidden) => {
                let known = self.token.as_ref().filter(|token| token.secret == secret);
                if let (Some(_), Some(refusal)) = (known, failure.refusal()) {
                    let why = login::refused(&self.config, &refusal.words(), false);
                    return Err(NoToken::Refused(why));
                }
                // It may still be allowed to do what it is for.
                Ok(Token::unknown(secret, None, since))
            }
            Err(failure) => Err(self.failed(failure)),
        }
    }

    /// Logs in, or takes over the token that an earlier or another process obtained with the same credential.
    async fn login(
        &mut self,
        credential: &Credential,
        until: Option<SystemTime>,
    ) -> Result<Token, NoToken> {
        let lock = self.lock().await?;
        let kept = self.kept(lock.as_ref(), credential);
        if let Some(kept) = &kept {
            let since = Instant::now();
            match self.look_up(&kept.token, until).await {
                Ok(found) => {
                    tracing::debug!("the vault token on disk is still good");
                    return Ok(Token::looked_up(kept.token.clone(), &found.data, since));
                }
                Err(failure) if failure.refusal().is_none() => return Err(self.failed(failure)),
                Err(_) => {}
            }
        }
        match self.spend(credential, until).await {
            Ok(token) => {
                self.keep(lock.as_ref(), credential, &token);
                Ok(token)
            }
            Err(NoToken::Refused(explained)) => {
                // A policy may keep a token from looking itself up; then the one on disk is the better bet.
                let Some(kept) = kept else {
                    return Err(NoToken::Refused(explained));
                };
                let left = kept
                    .expires
                    .map(|at| at.duration_since(self.clock.now()).unwrap_or_default());
                Ok(Token::unknown(kept.token, left, Instant::now()))
            }
            Err(other) => Err(other),
        }
    }

    /// The login itself: from here on a one-time secret id is spent.
    async fn spend(
        &mut self,
        credential: &Credential,
        until: Option<SystemTime>,
    ) -> Result<Token, NoToken> {
        let Form::Login { fields, wrapped } = &credential.form else {
            return Err(NoToken::Setup(Explained::new(
                Code::Other,
                "a token needs no login",
            )));
        };
        let mut fields = fields.clone();
        if let Some(wrapping) = wrapped {
            let secret = self
                .unwrap(&credential.fingerprint, wrapping, until)
                .await?;
            fields.push(("secret_id", secret));
        }
        let path = format!("auth/{}/login", self.config.login.mount);
        let ask = Ask::post(path, &login::body(&fields));
        let since = Instant::now();
        let reply = match self.send(&ask, until).await {
            Ok(reply) => reply,
            Err(failure) => return Err(self.failed(failure)),
        };
        self.lost = false;
        match reply.read::<Granted>() {
            Ok(Granted { auth: Some(auth) }) => Ok(Token::granted(auth, since)),
            Ok(Granted { auth: None }) => Err(NoToken::Refused(login::refused(
                &self.config,
                "the answer holds no token (a second factor may be asked for)",
                false,
            ))),
            Err(failure) => Err(NoToken::Passing(failure)),
        }
    }

    /// The secret id in a wrapping token, which gives it away once.
    async fn unwrap(
        &mut self,
        credential: &str,
        wrapping: &Secret,
        until: Option<SystemTime>,
    ) -> Result<Secret, NoToken> {
        if let Some((of, secret)) = &self.unwrapped
            && of == credential
        {
            return Ok(secret.clone());
        }
        let ask = Ask::post("sys/wrapping/unwrap", &[].into()).with(wrapping);
        let reply = match self.send(&ask, until).await {
            Ok(reply) => reply,
            Err(failure) => {
                return Err(match failure.refusal() {
                    Some(refusal) => {
                        NoToken::Refused(login::not_unwrapped(&self.config, &refusal.words()))
                    }
                    None => self.failed(failure),
                });
            }
        };
        let found = reply.read::<Unwrapped>().map_err(|_| {
            NoToken::Refused(login::not_unwrapped(&self.config, "it wraps no secret id"))
        })?;
        self.unwrapped = Some((credential.to_owned(), found.data.secret_id.clone()));
        Ok(found.data.secret_id)
    }

    async fn look_up(
        &mut self,
        token: &Secret,
        until: Option<SystemTime>,
    ) -> Result<LookedUp, Failure> {
        let ask = Ask::get("auth/token/lookup-self").with(token);
        self.send(&ask, until).await?.read()
    }

    fn failed(&mut self, failure: Failure) -> NoToken {
        let lost = self.lost;
        self.lost |= failure.ambiguous();
        match failure.refusal() {
            Some(refusal) => NoToken::Refused(login::refused(&self.config, &refusal.words(), lost)),
            None if failure.passes() => NoToken::Passing(failure),
            None => NoToken::Setup(failure.explained()),
        }
    }

    // The token on disk

    async fn lock(&mut self) -> Result<Option<Lock>, NoToken> {
        let Some(cache) = &self.cache else {
            return Ok(None);
        };
        match cache.lock().await {
            Ok(lock) => Ok(Some(lock)),
            Err(error) => {
                self.cache_fails(&error);
                Ok(None)
            }
        }
    }

    fn kept(&self, lock: Option<&Lock>, credential: &Credential) -> Option<Kept> {
        let kept = self
            .cache
            .as_ref()?
            .read(lock?, &credential.fingerprint, self.clock.now())?;
        let ours = self
            .token
            .as_ref()
            .is_some_and(|token| token.secret == kept.token);
        (!ours).then_some(kept)
    }

    fn keep(&mut self, lock: Option<&Lock>, credential: &Credential, token: &Token) {
        let (Some(cache), Some(lock)) = (&self.cache, lock) else {
            return;
        };
        let expires = token.left().map(|left| self.clock.now() + left);
        if let Err(error) = cache.write(lock, &credential.fingerprint, &token.secret, expires) {
            self.cache_fails(&error);
        }
    }

    fn cache_fails(&mut self, error: &CacheError) {
        if !std::mem::replace(&mut self.cache_told, true) {
            tracing::warn!(
                %error,
                "the vault token is not kept on disk: each start logs in anew, which a one-time secret id does not survive"
            );
        }
    }
}

#[derive(serde::Deserialize)]
struct Unwrapped {
    data: UnwrappedData,
}

#[derive(serde::Deserialize)]
struct UnwrappedData {
    secret_id: Secret,
}
