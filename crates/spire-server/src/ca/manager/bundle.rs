//! The keys of the authorities in the bundle, from their beginning to a day after their end (SV-53).

use std::time::Duration;

use ah_spire_wire::model::{self, Bundle, JwtKey};

use super::{CaError, Manager};
use crate::ca::authority::{Certificate, Token, from_unix, to_unix};
use crate::ca::metrics::done;
use crate::keys::KeyManager;
use crate::store::{BundleChange, Bundles, Journals};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long a key that has expired stays in the bundle.
const BUNDLE_SAFETY: Duration = DAY;
/// How long a journal of expired authorities stays.
const JOURNAL_SAFETY: Duration = Duration::from_secs(14 * 24 * 3600);

impl<S: Bundles + Journals + 'static, K: KeyManager> Manager<S, K> {
    /// Publishes a JWT key, this server's or a downstream server's: upstream where the upstream authority takes JWT
    /// keys, and in the bundle. Answers all JWT keys.
    pub async fn publish_jwt(&self, key: JwtKey) -> Result<Vec<JwtKey>, CaError> {
        let published = match &self.settings.upstream {
            Some(upstream) => upstream.publish_jwt_key(&key).await?,
            None => None,
        };
        let keys = published.unwrap_or_else(|| vec![key]);
        Ok(self.append(&[], Some((Token::Jwt, &keys))).await?.jwt)
    }

    /// Puts keys into the bundle that are not there yet.
    pub(super) async fn append(
        &self,
        x509: &[Vec<u8>],
        tokens: Option<(Token, &[JwtKey])>,
    ) -> Result<Bundle, CaError> {
        let of = &self.authorities.profile().trust_domain;
        let bundle = self
            .store
            .update_bundle(of, BundleChange::Append, |bundle| {
                let mut bundle = bundle.unwrap_or_else(|| Bundle {
                    trust_domain: of.clone(),
                    x509: Vec::new(),
                    jwt: Vec::new(),
                    wit: Vec::new(),
                    refresh_hint: 0,
                    sequence: 0,
                });
                for der in x509 {
                    if !bundle.x509.iter().any(|ca| ca.der == *der) {
                        bundle.x509.push(model::X509Authority {
                            der: der.clone(),
                            tainted: false,
                        });
                    }
                }
                if let Some((of, new)) = tokens {
                    let keys = of.keys(&mut bundle);
                    for key in new {
                        if !keys.iter().any(|other| other.id == key.id) {
                            keys.push(key.clone());
                        }
                    }
                }
                Some(bundle)
            })
            .await?;
        bundle.ok_or(CaError::Bundle("trust domain bundle is missing"))
    }

    /// Takes keys out of the bundle that expired a day ago or earlier; never the last of a kind.
    pub async fn prune_bundle(&self) -> Result<(), CaError> {
        let call = self.counts.prune_bundle.start();
        let outcome = self.without_ended().await;
        done(call, &outcome);
        if outcome? {
            self.counts.pruned_bundle.increment();
        }
        Ok(())
    }

    /// Whether the bundle changed.
    async fn without_ended(&self) -> Result<bool, CaError> {
        let Some(before) = self.now().checked_sub(BUNDLE_SAFETY) else {
            return Ok(false);
        };
        let (mut left_empty, mut pruned) = (None, false);
        let of = &self.authorities.profile().trust_domain;
        self.store
            .update_bundle(of, BundleChange::Prune, |bundle| {
                let mut bundle = bundle?;
                let sizes =
                    |bundle: &Bundle| [bundle.x509.len(), bundle.jwt.len(), bundle.wit.len()];
                let before_pruning = sizes(&bundle);
                let [x509, jwt, _] = before_pruning;
                bundle.x509.retain(|ca| {
                    // What cannot be read does not expire.
                    Certificate::read(ca.der.clone())
                        .map_or(true, |certificate| certificate.not_after > before)
                });
                let holds =
                    |key: &JwtKey| key.expires_at == 0 || from_unix(key.expires_at) > before;
                bundle.jwt.retain(holds);
                // Where WIT-SVIDs are off no new ones come: the last stay, and keep nothing else from going.
                if bundle.wit.iter().any(holds) {
                    bundle.wit.retain(holds);
                }
                if bundle.x509.is_empty() && x509 > 0 {
                    left_empty = Some("would prune all certificates");
                }
                if bundle.jwt.is_empty() && jwt > 0 {
                    left_empty = Some("would prune all JWT signing keys");
                }
                pruned = sizes(&bundle) != before_pruning;
                (left_empty.is_none() && pruned).then_some(bundle)
            })
            .await?;
        left_empty.map_or(Ok(pruned), |why| Err(CaError::Bundle(why)))
    }

    /// Deletes journals of servers whose authorities expired two weeks ago or earlier.
    pub async fn prune_journals(&self) -> Result<(), CaError> {
        let Some(before) = self.now().checked_sub(JOURNAL_SAFETY) else {
            return Ok(());
        };
        self.store.prune_journals(to_unix(before)).await?;
        Ok(())
    }
}
