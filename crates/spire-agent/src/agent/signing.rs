use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ah_identity_provider::{CertificateFacts, Explained};
use ah_spire_attest::node::AgentHalf;
use ah_spire_wire::model::Entry;
use ah_tls::{Trust, parse_spiffe_id, verify_spiffe_server};
use rustls_pki_types::CertificateDer;
use tokio::time::Instant;

use super::Agent;
use super::syncing::Stay;
use crate::cache::Held;
use crate::identities::X509Identity;
use crate::keys::{KeyKind, PrivateKey, spki_of_certificate};
use crate::metrics::counted;
use crate::rotation::rotate_at;
use crate::server_client::{IssuedSvid, ServerFault, trust_of};

/// Requests that a server signs at once for one address.
pub(super) const SIGN_AT_ONCE: usize = 500;

impl<A: AgentHalf> Agent<A> {
    /// Makes the X509-SVIDs that are missing or due.
    pub(super) async fn sign(&mut self, stay: &mut Stay) -> Result<(), ServerFault> {
        let mut unsigned = self.cache.unsigned();
        if let Some(stored) = &self.stored {
            unsigned.extend(stored.unsigned(self.clock.now()));
        }
        let outcome = Box::pin(self.sign_all(unsigned, stay)).await;
        self.cache.end_round();
        match &outcome {
            Ok(all) if *all => {
                stay.sign_backoff.reset();
                stay.sign_after = Instant::now();
            }
            _ => stay.sign_after = Instant::now() + stay.sign_backoff.next_wait(),
        }
        outcome.map(|_| ())
    }

    /// Whether all were signed. A batch that is too much for the server is halved for the next time.
    async fn sign_all(
        &mut self,
        unsigned: Vec<Arc<Entry>>,
        stay: &mut Stay,
    ) -> Result<bool, ServerFault> {
        let domain = &self.settings.trust_domain;
        let trust = Arc::new(trust_of(domain, self.data.data().bundle.clone()));
        let mut all = true;
        let mut left = unsigned.as_slice();
        while !left.is_empty() {
            let (batch, rest) = left.split_at(stay.sign_at_once.min(left.len()));
            let call = self.metrics.fetch_svids.start();
            let made = make_keys(batch.to_vec(), self.settings.workload_key)
                .await
                .map_err(ServerFault::Refused);
            let made = match made {
                Ok(made) => made,
                Err(fault) => return counted(call, Err(fault)),
            };
            let requests = made
                .iter()
                .map(|made| (made.entry.id.clone(), made.csr.clone()));
            let issued = self.client.sign_x509(requests.collect()).await;
            let mut issued = match counted(call, issued) {
                Ok(issued) => issued,
                Err(fault) => {
                    stay.sign_at_once = (stay.sign_at_once / 2).max(1);
                    return Err(fault);
                }
            };
            let held = self.held(made, &mut issued, &trust);
            tracing::info!(
                asked = batch.len(),
                got = held.len(),
                "X509-SVIDs were signed"
            );
            all &= held.len() == batch.len();
            let (stored, held) = held
                .into_iter()
                .partition(|held| held.identity.entry.store_svid);
            self.cache.put(held);
            if let Some(cache) = &self.stored {
                cache.put(stored);
            }
            stay.sign_at_once = SIGN_AT_ONCE.min(stay.sign_at_once * 2);
            left = rest;
        }
        Ok(all)
    }

    fn held(
        &self,
        made: Vec<Made>,
        issued: &mut BTreeMap<String, IssuedSvid>,
        trust: &Trust,
    ) -> Vec<Held> {
        let now = self.clock.now();
        let mut all = Vec::with_capacity(made.len());
        for made in made {
            let Some(svid) = issued.remove(&made.entry.id) else {
                continue;
            };
            let (id, spiffe_id) = (made.entry.id.clone(), made.entry.spiffe_id.clone());
            match vet(svid, made, trust, self.settings.availability_target, now) {
                Ok(held) => all.push(held),
                Err(why) => tracing::error!(
                    entry.id = %id,
                    spiffe_id = %spiffe_id,
                    error = why,
                    "the server sent an X509-SVID that is not served"
                ),
            }
        }
        all
    }
}

/// A key and a request for an entry.
struct Made {
    entry: Arc<Entry>,
    key: Arc<PrivateKey>,
    csr: Vec<u8>,
}

/// Off the runtime: RSA keys take their time.
async fn make_keys(entries: Vec<Arc<Entry>>, kind: KeyKind) -> Result<Vec<Made>, Explained> {
    let making = tokio::task::spawn_blocking(move || {
        entries
            .into_iter()
            .map(|entry| {
                let key = PrivateKey::generate(kind)?;
                let csr = key.request(Some(&entry.spiffe_id))?;
                Ok(Made { entry, key, csr })
            })
            .collect::<Result<Vec<_>, crate::keys::KeyError>>()
    });
    let failed = |cause: &dyn std::fmt::Display| {
        Explained::new(
            ah_identity_provider::Code::Other,
            "cannot make keys for X509-SVIDs",
        )
        .cause(cause)
    };
    match making.await {
        Ok(Ok(made)) => Ok(made),
        Ok(Err(error)) => Err(error.explained().clone()),
        Err(error) => Err(failed(&error)),
    }
}

/// Serves only what the entry says, for our own key, by an authority of the bundle.
fn vet(
    issued: IssuedSvid,
    made: Made,
    trust: &Trust,
    availability_target: Option<Duration>,
    now: std::time::SystemTime,
) -> Result<Held, String> {
    let leaf = issued.chain.first().ok_or("it has no certificate")?;
    if spki_of_certificate(leaf).is_none_or(|spki| spki != made.key.spki()) {
        return Err("it was issued for another key".into());
    }
    let facts = CertificateFacts::from_der(&CertificateDer::from(leaf.as_slice()))
        .map_err(|e| e.to_string())?;
    let id = facts.uris.first().and_then(|uri| parse_spiffe_id(uri).ok());
    if id.as_ref() != Some(&made.entry.spiffe_id) {
        let got = id.map_or_else(|| "no SPIFFE ID".to_owned(), |id| id.to_string());
        return Err(format!("it is for {got}"));
    }
    let chain: Vec<CertificateDer<'_>> = issued
        .chain
        .iter()
        .map(|der| der.as_slice().into())
        .collect();
    verify_spiffe_server(&chain, trust, &made.entry.spiffe_id, now).map_err(|refused| {
        let told = refused.explained();
        format!("{}: {}", told.text, told.causes.join("; "))
    })?;
    let rotate_at = rotate_at(
        facts.not_before,
        facts.not_after,
        availability_target,
        rand::random(),
    );
    let identity = X509Identity {
        entry: made.entry,
        chain: issued.chain,
        key: made.key.pkcs8().clone(),
        not_after: facts.not_after,
    };
    Ok(Held {
        identity: Arc::new(identity),
        rotate_at,
    })
}
