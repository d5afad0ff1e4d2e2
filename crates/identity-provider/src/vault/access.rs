//! Requests to Vault of somebody who is no provider, with a provider's login and care for the token.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::client::Ask;
use super::keeper::Order;
use super::{VaultConfig, dial, start_keeper};
use crate::{Clock, Explained, ProviderError};

/// One login at Vault. The token is kept alive until this is dropped.
pub struct VaultAccess(mpsc::Sender<Order>);

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
        let (orders, _) = start_keeper(&config, dial, clock)?;
        Ok(Self(orders))
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
        let (reply, answer) = oneshot::channel();
        let order = Order::Post {
            ask: Ask::post(path, fields),
            reply,
        };
        let gone = || super::gone().explained().clone();
        self.0.send(order).await.map_err(|_| gone())?;
        let answer = answer.await.map_err(|_| gone())?;
        let answer = answer.map_err(|error| error.explained().clone())?;
        answer.read().map_err(|failure| failure.explained())
    }
}
