//! Agents without a process of their own: each a connection that polls as agents do, and listens where the server tells.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ah_spire_wire::changes::WatchRequest;
use ah_spire_wire::changes::changes_client::ChangesClient;
use ah_spire_wire::server::bundle::GetBundleRequest;
use ah_spire_wire::server::bundle::bundle_client::BundleClient;
use ah_spire_wire::server::entry::SyncAuthorizedEntriesRequest;
use ah_spire_wire::server::entry::entry_client::EntryClient;
use ah_spire_wire::server::svid::svid_client::SvidClient;
use ah_spire_wire::server::svid::{BatchNewX509svidRequest, NewX509svidParams};
use ah_spire_wire::{Channel, MAX_MESSAGE_BYTES, types};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::site::{Identity, Site};

/// `sync_interval`
const INTERVAL: Duration = Duration::from_secs(5);

/// What all of them share.
pub(super) struct Fleet {
    pub(super) site: Arc<Site>,
    pub(super) csr: Vec<u8>,
    /// Entries that came since an agent's first round, by SPIFFE ID path, with the time at which their SVID was there.
    pub(super) served: mpsc::UnboundedSender<(String, Instant)>,
    /// Times that the server was started anew.
    pub(super) restarts: AtomicU64,
    /// Agents that have had a round since the last of them.
    pub(super) ready: AtomicU64,
    /// Rounds of all agents.
    pub(super) rounds: AtomicU64,
    pub(super) hasher: RandomState,
}

/// One agent.
pub(super) struct Node {
    fleet: Arc<Fleet>,
    identity: Identity,
    /// Hashes of entry IDs.
    known: HashSet<u64>,
    /// Restarts before its last round; none before its first.
    seen: Option<u64>,
}

impl Node {
    pub(super) fn new(fleet: Arc<Fleet>, identity: Identity) -> Self {
        Self {
            fleet,
            identity,
            known: HashSet::new(),
            seen: None,
        }
    }

    /// Never ends; a connection that does is made anew.
    pub(super) async fn run(mut self) {
        // Not all in step.
        tokio::time::sleep(INTERVAL.mul_f64(rand::random())).await;
        loop {
            if let Ok(channel) = self.fleet.site.connect(Some(&self.identity)).await {
                // Servers end connections now and then, and are killed.
                let _ = self.stay(channel).await;
            }
            tokio::time::sleep(Duration::from_secs(1).mul_f64(0.5 + rand::random::<f64>() / 2.0))
                .await;
        }
    }

    async fn stay(&mut self, channel: Channel) -> Result<(), Status> {
        let mut changes = ChangesClient::with_origin(channel.clone(), Channel::origin());
        let mut news = match changes.watch(WatchRequest {}).await {
            Ok(answer) => Some(answer.into_inner()),
            Err(status) if status.code() == Code::Unimplemented => None,
            Err(status) => return Err(status),
        };
        loop {
            self.round(&channel).await?;
            let poll = INTERVAL.mul_f64(0.95 + rand::random::<f64>() / 10.0);
            let told = async {
                match &mut news {
                    Some(news) => news.message().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                told = told => if told?.is_none() {
                    return Ok(());
                },
                () = tokio::time::sleep(poll) => {}
            }
        }
    }

    async fn round(&mut self, channel: &Channel) -> Result<(), Status> {
        let fresh = self.sync(channel).await?;
        let mut bundles = BundleClient::with_origin(channel.clone(), Channel::origin());
        bundles.get_bundle(GetBundleRequest::default()).await?;
        let fleet = &self.fleet;
        if !fresh.is_empty() {
            let params = fresh.iter().map(|entry| NewX509svidParams {
                entry_id: entry.id.clone(),
                csr: fleet.csr.clone(),
            });
            let params = params.collect();
            let mut svids = SvidClient::with_origin(channel.clone(), Channel::origin());
            let answer = svids.batch_new_x509svid(BatchNewX509svidRequest { params });
            let results = answer.await?.into_inner().results;
            for (entry, result) in fresh.into_iter().zip(results) {
                if result.svid.is_some() {
                    let path = entry.spiffe_id.unwrap_or_default().path;
                    // Fails when nobody counts any more.
                    let _ = fleet.served.send((path, Instant::now()));
                }
            }
        }
        fleet.rounds.fetch_add(1, Ordering::Relaxed);
        let restarts = fleet.restarts.load(Ordering::Relaxed);
        if self.seen.replace(restarts) != Some(restarts) {
            fleet.ready.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The entries that came since the last time; none the first time.
    async fn sync(&mut self, channel: &Channel) -> Result<Vec<types::Entry>, Status> {
        let (requests, receiver) = mpsc::channel(2);
        let send = async |output_mask, ids| {
            let request = SyncAuthorizedEntriesRequest { output_mask, ids };
            let sent = requests.send(request).await;
            sent.map_err(|_| Status::unavailable("the stream ended"))
        };
        send(Some(mask()), Vec::new()).await?;
        let mut client = EntryClient::with_origin(channel.clone(), Channel::origin())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let answers = client.sync_authorized_entries(ReceiverStream::new(receiver));
        let mut answers = answers.await?.into_inner();
        let mut fresh = Vec::new();
        let mut unknown = Vec::new();
        loop {
            let Some(answer) = answers.message().await? else {
                return Ok(fresh);
            };
            for entry in answer.entries {
                if self.is_new(&entry.id) {
                    fresh.push(entry);
                }
            }
            for revision in answer.entry_revisions {
                if self.is_new(&revision.id) {
                    unknown.push(revision.id);
                }
            }
            if !answer.more {
                break;
            }
        }
        if !unknown.is_empty() {
            send(None, unknown).await?;
            if let Some(answer) = answers.message().await? {
                fresh.extend(answer.entries);
            }
        }
        Ok(fresh)
    }

    fn is_new(&mut self, id: &str) -> bool {
        self.known.insert(self.fleet.hasher.hash_one(id)) && self.seen.is_some()
    }
}

/// What agents look at.
fn mask() -> types::EntryMask {
    types::EntryMask {
        spiffe_id: true,
        selectors: true,
        federates_with: true,
        expires_at: true,
        revision_number: true,
        hint: true,
        created_at: true,
        ..types::EntryMask::default()
    }
}
