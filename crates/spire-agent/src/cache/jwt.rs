mod flights;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ah_identity_provider::Clock;
use ah_spire_wire::model::Entry;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use spiffe::SpiffeId;

use crate::health::one_line;
use crate::identities::{JwtError, JwtIdentity};
use crate::metrics::CacheMetrics;
use crate::server_client::{IssuedJwt, ServerClient, ServerFault};
use flights::{Flight, Flights};

/// How long a caller may wait for a new token when there is none.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
pub(crate) struct JwtSettings {
    /// Tokens, at most.
    pub(crate) limit: usize,
    /// How long a caller may wait for a new token while the old one is valid.
    pub(crate) patience_with_valid: Option<Duration>,
}

/// JWT-SVIDs by entry and audience.
pub(super) struct JwtCache {
    settings: JwtSettings,
    metrics: Arc<CacheMetrics>,
    tokens: Mutex<Tokens>,
    flights: Flights,
}

#[derive(Default)]
struct Tokens {
    by_key: HashMap<Key, Cached>,
    uses: u64,
    /// Keys that were found tainted before.
    tainted: BTreeSet<String>,
}

type Key = (String, Vec<String>);

struct Cached {
    spiffe_id: SpiffeId,
    token: String,
    issued_at: SystemTime,
    expires_at: SystemTime,
    used: u64,
}

impl JwtCache {
    pub(super) fn new(settings: JwtSettings, metrics: Arc<CacheMetrics>) -> Self {
        Self {
            settings,
            metrics,
            tokens: Mutex::default(),
            flights: Flights::default(),
        }
    }

    /// Tokens that are held.
    pub(super) fn len(&self) -> usize {
        self.tokens().by_key.len()
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From the cache in the first half of a token's life; then a new one, or the old one while the server does not
    /// answer. Whoever asks for what is being asked for already waits for that answer. Entries whose tokens carry a
    /// `jti` get a new one each time.
    pub(super) async fn token(
        &self,
        client: &Arc<ServerClient>,
        entry: &Arc<Entry>,
        audience: &[String],
        clock: &dyn Clock,
    ) -> Result<JwtIdentity, JwtError> {
        let mut sorted = audience.to_vec();
        sorted.sort_unstable();
        let key = (entry.id.clone(), sorted);
        let now = clock.now();
        let mut valid = None;
        if !entry.jwt_svid_include_jti
            && let Some((token, fresh)) = self.tokens().find(&key, entry, now)
        {
            if fresh {
                return Ok(token);
            }
            valid = Some(token);
        }
        let patience = match &valid {
            Some(_) => self.settings.patience_with_valid.unwrap_or(PATIENCE),
            None => PATIENCE,
        };
        let flight = Flight {
            client: client.clone(),
            entry: entry.clone(),
            audience: audience.to_vec(),
            patience,
        };
        let signed = if entry.jwt_svid_include_jti {
            flight.land().await
        } else {
            self.flights.join(&key, flight).await
        };
        match (signed, valid) {
            (Ok(issued), _) => {
                let token = identity(
                    entry,
                    &issued.spiffe_id,
                    &issued.token,
                    (issued.issued_at, issued.expires_at),
                );
                if !entry.jwt_svid_include_jti {
                    let mut tokens = self.tokens();
                    tokens.put(key, issued, self.settings.limit);
                    self.metrics.jwt_svids.set_count(tokens.by_key.len());
                }
                Ok(token)
            }
            (Err(fault), Some(valid)) => {
                tracing::warn!(
                    entry.id = %entry.id,
                    spiffe_id = %entry.spiffe_id,
                    error = one_line(fault.explained()),
                    "the JWT-SVID cannot be renewed; the one before is still valid"
                );
                Ok(valid)
            }
            (Err(fault), None) => Err(match &fault {
                ServerFault::Unreachable(_)
                | ServerFault::UnknownAuthority(_)
                | ServerFault::Exhausted(_) => JwtError::Unavailable(told(&fault)),
                _ => JwtError::Refused(told(&fault)),
            }),
        }
    }

    /// Drops the tokens that were signed with one of the keys `ids`.
    pub(super) fn drop_signed_by(&self, ids: &[String]) {
        if ids.is_empty() {
            return;
        }
        let processing = self.metrics.taint_jwt.start();
        let mut tokens = self.tokens();
        let before = tokens.by_key.len();
        tokens
            .by_key
            .retain(|_, cached| key_id(&cached.token).is_none_or(|id| !ids.contains(&id)));
        let dropped = before - tokens.by_key.len();
        let fresh = ids
            .iter()
            .filter(|id| !tokens.tainted.contains(*id))
            .count();
        tokens.tainted = ids.iter().cloned().collect();
        if fresh == 0 && dropped == 0 {
            processing.discard();
            return;
        }
        self.metrics.tainted_jwt.observe(dropped as f64);
        self.metrics.jwt_svids.set_count(tokens.by_key.len());
        processing.done(tonic::Code::Ok);
    }

    pub(super) fn clear(&self) {
        self.tokens().by_key.clear();
        self.metrics.jwt_svids.set_count(0);
    }
}

impl Tokens {
    /// A valid token, and whether it is in the first half of its life.
    fn find(&mut self, key: &Key, entry: &Entry, now: SystemTime) -> Option<(JwtIdentity, bool)> {
        self.uses += 1;
        let cached = self.by_key.get_mut(key)?;
        // An entry that got another name has no use for tokens of the old one.
        if now >= cached.expires_at || cached.spiffe_id != entry.spiffe_id {
            self.by_key.remove(key);
            return None;
        }
        cached.used = self.uses;
        let life = cached
            .expires_at
            .duration_since(cached.issued_at)
            .unwrap_or_default();
        let left = cached.expires_at.duration_since(now).unwrap_or_default();
        let token = identity(
            entry,
            &cached.spiffe_id,
            &cached.token,
            (cached.issued_at, cached.expires_at),
        );
        Some((token, left > life / 2))
    }

    fn put(&mut self, key: Key, issued: IssuedJwt, limit: usize) {
        self.uses += 1;
        if self.by_key.len() >= limit && !self.by_key.contains_key(&key) {
            let oldest = self
                .by_key
                .iter()
                .min_by_key(|(_, cached)| cached.used)
                .map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.by_key.remove(&oldest);
            }
        }
        if limit > 0 {
            let cached = Cached {
                spiffe_id: issued.spiffe_id,
                token: issued.token,
                issued_at: issued.issued_at,
                expires_at: issued.expires_at,
                used: self.uses,
            };
            self.by_key.insert(key, cached);
        }
    }
}

fn told(fault: &ServerFault) -> String {
    let explained = fault.explained();
    match explained.causes.first() {
        Some(cause) => format!("{}: {cause}", explained.text),
        None => explained.text.clone(),
    }
}

fn identity(
    entry: &Entry,
    spiffe_id: &SpiffeId,
    token: &str,
    (issued_at, expires_at): (SystemTime, SystemTime),
) -> JwtIdentity {
    JwtIdentity {
        spiffe_id: spiffe_id.clone(),
        token: token.to_owned(),
        issued_at,
        expires_at,
        hint: entry.hint.clone(),
    }
}

/// `kid` of a token's header.
fn key_id(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Header {
        kid: String,
    }
    let (header, _) = token.split_once('.')?;
    let header = URL_SAFE_NO_PAD.decode(header).ok()?;
    let header: Header = serde_json::from_slice(&header).ok()?;
    Some(header.kid)
}
