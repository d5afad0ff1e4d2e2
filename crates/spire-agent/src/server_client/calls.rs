//! The calls of the server's APIs that an agent makes, with their answers as valid values.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ah_spire_wire::bundle::bundle_from_wire;
use ah_spire_wire::model::{Bundle, Entry};
use ah_spire_wire::server::agent::agent_client::AgentClient;
use ah_spire_wire::server::agent::{AgentX509svidParams, PostStatusRequest, RenewAgentRequest};
use ah_spire_wire::server::bundle::bundle_client::BundleClient;
use ah_spire_wire::server::bundle::{GetBundleRequest, GetFederatedBundleRequest};
use ah_spire_wire::server::entry::entry_client::EntryClient;
use ah_spire_wire::server::entry::{
    EntryRevision, GetAuthorizedEntriesRequest, SyncAuthorizedEntriesRequest,
};
use ah_spire_wire::server::svid::svid_client::SvidClient;
use ah_spire_wire::server::svid::{BatchNewX509svidRequest, NewJwtsvidRequest, NewX509svidParams};
use ah_spire_wire::{Channel, MAX_MESSAGE_BYTES, entry_from_wire, spiffe_id_from_wire, types};
use futures_util::stream::{self, StreamExt};
use spiffe::{SpiffeId, TrustDomain};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::{ServerClient, ServerFault};

/// How many federated bundles are asked for at a time.
const BUNDLES_AT_A_TIME: usize = 10;

/// An X509-SVID as the server issued it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedSvid {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
}

/// The entries that the agent may serve, by their ids.
pub type SyncedEntries = BTreeMap<String, Arc<Entry>>;

/// A JWT-SVID as the server issued it.
#[derive(Clone)]
pub(crate) struct IssuedJwt {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) token: String,
    pub(crate) issued_at: SystemTime,
    pub(crate) expires_at: SystemTime,
}

impl ServerClient {
    /// The bundle of our own trust domain. It has at least one root, or is an error.
    pub async fn bundle(&self) -> Result<Bundle, ServerFault> {
        const WHAT: &str = "fetching the trust bundle";
        let answer = self
            .call(WHAT, async |channel| {
                bundle_client(channel)
                    .get_bundle(GetBundleRequest::default())
                    .await
            })
            .await?;
        let bundle = bundle_from_wire(&answer).map_err(|why| ServerFault::malformed(WHAT, why))?;
        let own = &self.settings().trust_domain;
        if bundle.trust_domain != *own {
            let why = format!(
                "it is of the trust domain {}, not of {own}",
                bundle.trust_domain
            );
            return Err(ServerFault::malformed(WHAT, why));
        }
        if bundle.x509.is_empty() {
            return Err(ServerFault::malformed(WHAT, "it has no X.509 authority"));
        }
        Ok(bundle)
    }

    /// The bundles of `domains`, without those that the server has not got.
    pub async fn federated_bundles(
        &self,
        domains: BTreeSet<TrustDomain>,
    ) -> Result<BTreeMap<TrustDomain, Bundle>, ServerFault> {
        let mut answers = stream::iter(domains)
            .map(|domain| self.federated_bundle(domain))
            .buffer_unordered(BUNDLES_AT_A_TIME);
        let mut bundles = BTreeMap::new();
        while let Some(answer) = answers.next().await {
            if let Some(bundle) = answer? {
                bundles.insert(bundle.trust_domain.clone(), bundle);
            }
        }
        Ok(bundles)
    }

    async fn federated_bundle(&self, domain: TrustDomain) -> Result<Option<Bundle>, ServerFault> {
        const WHAT: &str = "fetching a federated bundle";
        let request = GetFederatedBundleRequest {
            trust_domain: domain.to_string(),
            output_mask: None,
        };
        let answer = self
            .call(WHAT, async |channel| {
                bundle_client(channel).get_federated_bundle(request).await
            })
            .await;
        let bundle = match answer {
            Ok(bundle) => bundle_from_wire(&bundle),
            Err(ServerFault::NotFound(_)) => {
                tracing::warn!(trust_domain = %domain, "the server has no bundle of a federated trust domain");
                return Ok(None);
            }
            Err(fault) => return Err(fault),
        };
        match bundle {
            // SV-52: what is said of a domain must be of that domain.
            Ok(bundle) if bundle.trust_domain == domain => Ok(Some(bundle)),
            Ok(bundle) => {
                tracing::warn!(asked = %domain, got = %bundle.trust_domain, "the server sent the bundle of another trust domain");
                Ok(None)
            }
            Err(why) => {
                tracing::warn!(trust_domain = %domain, %why, "the server sent a bundle that is not valid");
                Ok(None)
            }
        }
    }

    /// All entries at once, as servers before 1.8 and `use_sync_authorized_entries = false` want it.
    pub async fn authorized_entries(&self) -> Result<SyncedEntries, ServerFault> {
        let request = GetAuthorizedEntriesRequest {
            output_mask: Some(mask()),
        };
        let answer = self
            .call("fetching the entries", async |channel| {
                entry_client(channel).get_authorized_entries(request).await
            })
            .await?;
        Ok(answer.entries.iter().filter_map(valid_entry).collect())
    }

    /// What `known` has become: only entries that changed are sent.
    pub async fn sync_entries(&self, known: &SyncedEntries) -> Result<SyncedEntries, ServerFault> {
        self.call("fetching the entries", async |channel| {
            sync(channel, known).await.map(Response::new)
        })
        .await
    }

    /// Signs the requests, each for an entry. Entries that the server does not sign for are missing in the answer.
    pub async fn sign_x509(
        &self,
        requests: Vec<(String, Vec<u8>)>,
    ) -> Result<BTreeMap<String, IssuedSvid>, ServerFault> {
        const WHAT: &str = "signing X509-SVIDs";
        let ids: Vec<String> = requests.iter().map(|(id, _)| id.clone()).collect();
        let params = requests
            .into_iter()
            .map(|(entry_id, csr)| NewX509svidParams { entry_id, csr });
        let request = BatchNewX509svidRequest {
            params: params.collect(),
        };
        let answer = self
            .call(WHAT, async |channel| {
                svid_client(channel).batch_new_x509svid(request).await
            })
            .await?;
        if answer.results.len() != ids.len() {
            let why = format!("{} answers to {} requests", answer.results.len(), ids.len());
            return Err(ServerFault::malformed(WHAT, why));
        }
        let mut issued = BTreeMap::new();
        for (id, result) in ids.into_iter().zip(answer.results) {
            match (result.svid, result.status) {
                (Some(svid), _) if !svid.cert_chain.is_empty() => {
                    issued.insert(id, issued_svid(svid));
                }
                (_, status) => {
                    let status = status.unwrap_or_default();
                    tracing::warn!(
                        entry.id = %id,
                        status = ?tonic::Code::from(status.code),
                        error = %status.message,
                        "the server did not sign an X509-SVID"
                    );
                }
            }
        }
        Ok(issued)
    }

    /// A JWT-SVID for an entry.
    pub(crate) async fn sign_jwt(
        &self,
        entry_id: &str,
        audience: &[String],
    ) -> Result<IssuedJwt, ServerFault> {
        const WHAT: &str = "signing a JWT-SVID";
        let request = NewJwtsvidRequest {
            entry_id: entry_id.to_owned(),
            audience: audience.to_vec(),
        };
        let answer = self
            .call(WHAT, async |channel| {
                svid_client(channel).new_jwtsvid(request).await
            })
            .await?;
        let malformed = |why: &str| ServerFault::malformed(WHAT, why);
        let svid = answer.svid.ok_or_else(|| malformed("it has no JWT-SVID"))?;
        let at = |seconds: i64| {
            let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0)?;
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
        };
        let issued_at =
            at(svid.issued_at).ok_or_else(|| malformed("it does not say since when"))?;
        let expires_at =
            at(svid.expires_at).ok_or_else(|| malformed("it does not say until when"))?;
        if svid.token.is_empty() || expires_at < issued_at {
            return Err(malformed("the token is empty, or ends before it begins"));
        }
        let spiffe_id = spiffe_id_from_wire(svid.id.as_ref(), "id")
            .map_err(|why| ServerFault::malformed(WHAT, why))?;
        Ok(IssuedJwt {
            spiffe_id,
            token: svid.token,
            issued_at,
            expires_at,
        })
    }

    /// The agent's own next SVID.
    pub async fn renew(&self, csr: Vec<u8>) -> Result<IssuedSvid, ServerFault> {
        const WHAT: &str = "renewing the agent's SVID";
        let request = RenewAgentRequest {
            params: Some(AgentX509svidParams { csr }),
        };
        let answer = self
            .call(WHAT, async |channel| {
                agent_client(channel).renew_agent(request).await
            })
            .await?;
        match answer.svid {
            Some(svid) if !svid.cert_chain.is_empty() => Ok(issued_svid(svid)),
            _ => Err(ServerFault::malformed(WHAT, "it has no certificate")),
        }
    }

    /// Tells the server which version runs and which bundle it knows. A server that does not want to know is fine:
    /// before 1.15 none has it among what agents may call, and each denial is a line in its log.
    pub async fn post_status(&self, version: &str, bundle: u64) -> Result<(), ServerFault> {
        let request = PostStatusRequest {
            current_bundle_serial: bundle,
            agent_version: version.to_owned(),
        };
        let answer = self
            .call("posting the agent's status", async |channel| {
                agent_client(channel).post_status(request).await
            })
            .await;
        match answer {
            Ok(_)
            | Err(
                ServerFault::Unimplemented(_) | ServerFault::Refused(_) | ServerFault::Denied(..),
            ) => Ok(()),
            Err(fault) => Err(fault),
        }
    }
}

/// One round of the protocol: revisions come page by page, then whole entries are asked for where they changed.
async fn sync(channel: Channel, known: &SyncedEntries) -> Result<SyncedEntries, Status> {
    let (requests, receiver) = mpsc::channel(2);
    let send = async |request| {
        requests
            .send(request)
            .await
            .map_err(|_| Status::unavailable("the server ended the stream"))
    };
    send(SyncAuthorizedEntriesRequest {
        output_mask: Some(mask()),
        ids: Vec::new(),
    })
    .await?;
    let mut answers = entry_client(channel)
        .sync_authorized_entries(ReceiverStream::new(receiver))
        .await?
        .into_inner();
    let ended = || Status::unavailable("the server ended the stream early");

    let first = answers.message().await?.ok_or_else(ended)?;
    if first.entry_revisions.is_empty() {
        return Ok(first.entries.iter().filter_map(valid_entry).collect());
    }
    let page = first.entry_revisions.len();
    let mut synced = SyncedEntries::new();
    let mut changed = Vec::new();
    let mut more = first.more;
    take_revisions(first.entry_revisions, known, &mut synced, &mut changed);
    while more {
        let next = answers.message().await?.ok_or_else(ended)?;
        if !next.entries.is_empty() {
            return Err(Status::internal("the server sent entries among revisions"));
        }
        more = next.more;
        take_revisions(next.entry_revisions, known, &mut synced, &mut changed);
    }

    // Sorted, since servers look them up in that order.
    changed.sort_unstable();
    for ids in changed.chunks(page) {
        send(SyncAuthorizedEntriesRequest {
            output_mask: None,
            ids: ids.to_vec(),
        })
        .await?;
        loop {
            let next = answers.message().await?.ok_or_else(ended)?;
            if !next.entry_revisions.is_empty() {
                return Err(Status::internal("the server sent revisions among entries"));
            }
            synced.extend(next.entries.iter().filter_map(valid_entry));
            if !next.more {
                break;
            }
        }
    }
    Ok(synced)
}

/// Carries over what did not change and notes what did. An entry that was deleted and made again under its old id
/// has another time of creation.
fn take_revisions(
    revisions: Vec<EntryRevision>,
    known: &SyncedEntries,
    synced: &mut SyncedEntries,
    changed: &mut Vec<String>,
) {
    for revision in revisions {
        if revision.id.is_empty() || revision.revision_number < 0 {
            tracing::warn!(entry.id = %revision.id, "the server sent a revision that is not valid");
            continue;
        }
        match known.get(&revision.id) {
            Some(entry)
                if entry.revision == revision.revision_number
                    && (revision.created_at == 0 || entry.created_at == revision.created_at) =>
            {
                synced.insert(revision.id, entry.clone());
            }
            _ => changed.push(revision.id),
        }
    }
}

fn valid_entry(entry: &types::Entry) -> Option<(String, Arc<Entry>)> {
    if entry.id.is_empty() || entry.selectors.is_empty() {
        tracing::warn!(entry.id = %entry.id, "the server sent an entry without id or selectors");
        return None;
    }
    match entry_from_wire(entry) {
        Ok(valid) => Some((entry.id.clone(), Arc::new(valid))),
        Err(error) => {
            tracing::warn!(entry.id = %entry.id, %error, "the server sent an entry that is not valid");
            None
        }
    }
}

/// What an agent looks at; servers require the revision.
fn mask() -> types::EntryMask {
    types::EntryMask {
        spiffe_id: true,
        parent_id: true,
        selectors: true,
        federates_with: true,
        admin: true,
        downstream: true,
        expires_at: true,
        revision_number: true,
        store_svid: true,
        hint: true,
        created_at: true,
        additional_attributes: true,
        ..types::EntryMask::default()
    }
}

fn issued_svid(svid: types::X509svid) -> IssuedSvid {
    IssuedSvid {
        chain: svid.cert_chain.into_iter().map(Vec::from).collect(),
    }
}

pub(crate) fn agent_client(channel: Channel) -> AgentClient<Channel> {
    AgentClient::with_origin(channel, Channel::origin())
}

fn bundle_client(channel: Channel) -> BundleClient<Channel> {
    BundleClient::with_origin(channel, Channel::origin())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn entry_client(channel: Channel) -> EntryClient<Channel> {
    EntryClient::with_origin(channel, Channel::origin())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn svid_client(channel: Channel) -> SvidClient<Channel> {
    SvidClient::with_origin(channel, Channel::origin()).max_decoding_message_size(MAX_MESSAGE_BYTES)
}
