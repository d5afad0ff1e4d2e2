//! One request to the server for all who want the same token at the same time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ah_identity_provider::Backoff;
use ah_spire_wire::model::Entry;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use spiffe::SpiffeId;
use tokio::time::Instant;

use super::Key;
use crate::server_client::{IssuedJwt, ServerClient, ServerFault};

/// A request for a token.
pub(super) struct Flight {
    pub(super) client: Arc<ServerClient>,
    pub(super) entry: Arc<Entry>,
    pub(super) audience: Vec<String>,
    pub(super) patience: Duration,
}

/// Who has more patience does not join who has less.
#[derive(PartialEq, Eq, Hash)]
struct Route {
    key: Key,
    spiffe_id: SpiffeId,
    patience: Duration,
}

/// The requests under way. Each ends with the last of those who wait for it.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Route, UnderWay>>);

struct UnderWay(WeakShared<BoxFuture<'static, Result<IssuedJwt, ServerFault>>>);

impl Flights {
    /// The answer to `flight`, or to the one for the same `key` that is under way.
    pub(super) async fn join(&self, key: &Key, flight: Flight) -> Result<IssuedJwt, ServerFault> {
        let route = Route {
            key: key.clone(),
            spiffe_id: flight.entry.spiffe_id.clone(),
            patience: flight.patience,
        };
        self.shared(route, flight).await
    }

    fn shared(
        &self,
        route: Route,
        flight: Flight,
    ) -> Shared<BoxFuture<'static, Result<IssuedJwt, ServerFault>>> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = flights.get(&route).and_then(|flight| flight.0.upgrade());
        // One that has landed is no answer to who asks now.
        if let Some(shared) = under_way.filter(|shared| shared.peek().is_none()) {
            return shared;
        }
        flights.retain(|_, flight| flight.0.upgrade().is_some());
        let shared = flight.land().boxed().shared();
        if let Some(weak) = shared.downgrade() {
            flights.insert(route, UnderWay(weak));
        }
        shared
    }
}

impl Flight {
    /// A new token. While the server cannot be reached it is tried again, until the patience is over.
    pub(super) async fn land(self) -> Result<IssuedJwt, ServerFault> {
        const WHAT: &str = "signing a JWT-SVID";
        let Self {
            client,
            entry,
            audience,
            patience,
        } = self;
        let deadline = Instant::now() + patience;
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8));
        loop {
            let one = Box::pin(client.sign_jwt(&entry.id, &audience));
            let fault = match tokio::time::timeout_at(deadline, one).await {
                Ok(Ok(issued)) if issued.spiffe_id == entry.spiffe_id => return Ok(issued),
                Ok(Ok(issued)) => {
                    let why = format!(
                        "it is for {}, not for {}",
                        issued.spiffe_id, entry.spiffe_id
                    );
                    return Err(ServerFault::malformed(WHAT, why));
                }
                Ok(Err(fault)) => fault,
                Err(_) => {
                    let address = &client.settings().address;
                    return Err(ServerFault::timed_out(WHAT, patience, address));
                }
            };
            let wait = backoff.next_wait();
            let passes = matches!(
                fault,
                ServerFault::Unreachable(_) | ServerFault::Exhausted(_)
            );
            if !passes || Instant::now() + wait >= deadline {
                return Err(fault);
            }
            tokio::time::sleep(wait).await;
        }
    }
}
