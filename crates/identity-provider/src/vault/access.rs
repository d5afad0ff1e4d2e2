//! Requests to Vault of somebody who is no provider, with a provider's login and care for the token.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::client::{Ask, Client, Reply};
use super::fault::{Failure, path_denied};
use super::keeper::{Denied, Order};
use super::{Secret, VaultConfig, dial, start_keeper};
use crate::{Clock, Explained, ProviderError};

/// One login at Vault. The token is kept alive until this is dropped. Requests go beside each other, each over a
/// connection of its own.
pub struct VaultAccess {
    orders: mpsc::Sender<Order>,
    client: Mutex<Client>,
    namespace: Option<String>,
}

/// Why a request got nothing.
enum Ended {
    /// 404
    NotFound(Explained),
    With(Explained),
}

impl VaultAccess {
    /// By the addresses, the TLS and the login of `config`; what it says of certificates is not used. Starts a task of
    /// the present runtime, and sends nothing yet.
    ///
    /// # Errors
    /// A namespace that cannot be sent.
    pub fn new(config: VaultConfig, clock: Arc<dyn Clock>) -> Result<Self, ProviderError> {
        let dial = Arc::new(dial::Network {
            tls: config.tls.clone(),
        });
        let client = super::client(&config, dial.clone(), clock.clone())?;
        let (orders, _) = start_keeper(&config, dial, clock)?;
        Ok(Self {
            orders,
            client: Mutex::new(client),
            namespace: config.namespace,
        })
    }

    /// Posts `fields` to `path` below `/v1/`, and reads the reply.
    ///
    /// # Errors
    /// What Vault refused, or why it cannot be asked.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        fields: &BTreeMap<&str, &str>,
    ) -> Result<T, Explained> {
        let reply = self.found(Ask::post(path, fields)).await?;
        reply.read().map_err(|failure| failure.explained())
    }

    /// Posts `fields` to `path`, where the reply says nothing more than that it was done.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub async fn write(&self, path: &str, fields: &BTreeMap<&str, &str>) -> Result<(), Explained> {
        self.found(Ask::post(path, fields)).await.map(|_| ())
    }

    /// What is at `path`, which may have a query; `None` when nothing is.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Explained> {
        match self.send(Ask::get(path)).await {
            Ok(reply) => reply
                .read()
                .map(Some)
                .map_err(|failure| failure.explained()),
            Err(Ended::NotFound(_)) => Ok(None),
            Err(Ended::With(explained)) => Err(explained),
        }
    }

    /// Deletes `path`.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub async fn delete(&self, path: &str) -> Result<(), Explained> {
        self.found(Ask::delete(path)).await.map(|_| ())
    }

    async fn found(&self, ask: Ask) -> Result<Reply, Explained> {
        self.send(ask).await.map_err(|ended| match ended {
            Ended::NotFound(explained) | Ended::With(explained) => explained,
        })
    }

    async fn send(&self, ask: Ask) -> Result<Reply, Ended> {
        let mut token = self.token(None).await.map_err(Ended::With)?;
        let mut again = true;
        loop {
            let failure = match self.once(&ask, &token).await {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
            let Some(refusal) = failure.refusal() else {
                return Err(Ended::With(failure.explained()));
            };
            if !refusal.forbidden() {
                let explained = failure.explained();
                return Err(match refusal.status {
                    404 => Ended::NotFound(explained),
                    _ => Ended::With(explained),
                });
            }
            if !std::mem::take(&mut again) {
                let denied = path_denied(&ask.path, self.namespace.as_deref());
                return Err(Ended::With(denied));
            }
            let denied = Denied {
                token,
                path: ask.path.clone(),
                refusal: refusal.clone(),
            };
            token = self.token(Some(denied)).await.map_err(Ended::With)?;
        }
    }

    async fn once(&self, ask: &Ask, token: &Secret) -> Result<Reply, Failure> {
        let locked = || self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let mut client = locked().clone();
        let reply = client.send(&ask.clone().with(token), || None).await;
        locked().learn(&client);
        reply
    }

    async fn token(&self, denied: Option<Denied>) -> Result<Secret, Explained> {
        let gone = || super::gone().explained().clone();
        let (reply, answer) = oneshot::channel();
        let order = Order::Token { denied, reply };
        self.orders.send(order).await.map_err(|_| gone())?;
        let answer = answer.await.map_err(|_| gone())?;
        answer.map_err(|error| error.explained().clone())
    }
}
