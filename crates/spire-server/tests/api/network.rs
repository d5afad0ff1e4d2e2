//! The APIs over TLS: who may call what (inventory section 8).

use std::sync::Arc;

use crate::rig::{DOMAIN, Identity, Rig, TestAuthority, csr, entry, id, reason, refused, wire};
use ah_identity_provider::TrustBundles;
use ah_spire_wire::health::{HealthCheckRequest, health_client::HealthClient};
use ah_spire_wire::model::{Entry, Selector};
use ah_spire_wire::server::agent::agent_client::AgentClient;
use ah_spire_wire::server::agent::{
    AgentX509svidParams, BanAgentRequest, DeleteAgentRequest, ListAgentsRequest, PostStatusRequest,
    RenewAgentRequest,
};
use ah_spire_wire::server::bundle::bundle_client::BundleClient;
use ah_spire_wire::server::bundle::{
    GetBundleRequest, PublishJwtAuthorityRequest, PublishWitAuthorityRequest,
};
use ah_spire_wire::server::entry::entry_client::EntryClient;
use ah_spire_wire::server::entry::{
    GetAuthorizedEntriesRequest, ListEntriesRequest, SyncAuthorizedEntriesRequest,
};
use ah_spire_wire::server::svid::svid_client::SvidClient;
use ah_spire_wire::server::svid::{
    BatchNewX509svidRequest, NewDownstreamX509caRequest, NewJwtsvidRequest, NewX509svidParams,
};
use ah_spire_wire::types::permission_denied_details::Reason;
use ah_spire_wire::{Channel, types};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use spiffe::{SpiffeId, TrustDomain};
use spire_server::store::{Agents, Created, Entries};
use tonic::{Code, Status};

pub(crate) async fn agents(rig: &Rig, identity: Option<&Identity>) -> AgentClient<Channel> {
    let channel = rig.network(identity).await.unwrap();
    AgentClient::with_origin(channel, Channel::origin())
}

#[tokio::test]
async fn a_join_token_lets_one_agent_in_once() {
    let rig = Rig::start().await;
    let token = rig.token().await;
    let attest = || async {
        let key = KeyPair::generate().unwrap();
        rig.attest("join_token", token.as_bytes(), csr(&key)).await
    };
    let (one, two) = tokio::join!(attest(), attest());
    let (won, lost): (Vec<_>, Vec<_>) = [one, two].into_iter().partition(Result::is_ok);
    assert_eq!((won.len(), lost.len()), (1, 1));
    let error = lost.into_iter().next().unwrap().map(|_| ()).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_eq!(
        error.message(),
        "failed to attest: join token does not exist or has already been used"
    );
    let svid = won.into_iter().next().unwrap().unwrap().svid.unwrap();
    assert_eq!(svid.id, wire(&format!("/spire/agent/join_token/{token}")));
}

#[tokio::test]
async fn a_join_token_whose_answer_was_lost_is_answered_again_to_the_same_key() {
    let rig = Rig::start().await;
    let token = rig.token().await;
    let key = KeyPair::generate().unwrap();
    let attest = async |key: &KeyPair| rig.attest("join_token", token.as_bytes(), csr(key)).await;
    let lost = attest(&key).await.unwrap().svid.unwrap();
    let again = attest(&key).await.unwrap().svid.unwrap();
    assert_eq!(again.id, lost.id);
    assert_ne!(again.cert_chain, lost.cert_chain);
    let other = refused(attest(&KeyPair::generate().unwrap()).await);
    assert_eq!(other.code(), Code::InvalidArgument);
    // The newer of the two is the agent's.
    let identity = |svid: types::X509svid| Identity {
        chain: svid.cert_chain.iter().map(|der| der.to_vec()).collect(),
        key: key.serialize_der(),
    };
    let renew = async |svid| {
        let request = RenewAgentRequest {
            params: Some(AgentX509svidParams { csr: csr(&key) }),
        };
        agents(&rig, Some(&identity(svid)))
            .await
            .renew_agent(request)
            .await
    };
    let old = refused(renew(lost).await);
    assert_eq!(reason(&old), Some(Reason::AgentNotActive));
    assert!(renew(again).await.is_ok());
    // Once the operator evicts it, the token lets nobody in.
    let mut local = rig.agents().await;
    let id = wire(&format!("/spire/agent/join_token/{token}"));
    local.delete_agent(DeleteAgentRequest { id }).await.unwrap();
    let evicted = refused(attest(&key).await);
    assert_eq!(evicted.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_attestation_that_makes_no_sense_is_refused_by_name() {
    let rig = Rig::start().await;
    let good = csr(&KeyPair::generate().unwrap());
    let token = rig.token().await;
    for (kind, payload, csr, code, text) in [
        (
            "",
            "x",
            good.clone(),
            Code::InvalidArgument,
            "malformed param: missing attestation data type",
        ),
        (
            "join_token",
            "",
            good.clone(),
            Code::InvalidArgument,
            "malformed param: missing attestation data payload",
        ),
        (
            "join_token",
            "x",
            vec![],
            Code::InvalidArgument,
            "malformed param: missing CSR",
        ),
        (
            "join_token",
            token.as_str(),
            vec![0x30; 99],
            Code::InvalidArgument,
            "failed to parse CSR: ",
        ),
        (
            "none",
            "x",
            good.clone(),
            Code::FailedPrecondition,
            "error getting node attestor: could not find node attestor type \"none\"",
        ),
    ] {
        let error = rig
            .attest(kind, payload.as_bytes(), csr)
            .await
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.code(), code, "{}", error.message());
        assert!(error.message().starts_with(text), "{}", error.message());
    }
    // The damaged request did not use the token up.
    assert!(
        rig.attest("join_token", token.as_bytes(), good)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn challenges_go_to_the_agent_and_back() {
    let rig = Rig::start().await;
    let key = KeyPair::generate().unwrap();
    let result = rig.attest("echo", b"hello", csr(&key)).await.unwrap();
    assert!(result.reattestable);
    let stored = rig
        .store
        .agent(&id("/spire/agent/echo/1"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(stored.selectors, [Selector::new("echo", "yes")]);
    // An agent that can prove itself again has to, instead of renewing.
    let chain = result
        .svid
        .unwrap()
        .cert_chain
        .iter()
        .map(|der| der.to_vec())
        .collect();
    let identity = Identity {
        chain,
        key: key.serialize_der(),
    };
    let request = RenewAgentRequest {
        params: Some(AgentX509svidParams { csr: csr(&key) }),
    };
    let error = agents(&rig, Some(&identity))
        .await
        .renew_agent(request)
        .await;
    assert_eq!(
        reason(&error.map(|_| ()).unwrap_err()),
        Some(Reason::AgentMustReattest)
    );
}

#[tokio::test]
async fn a_ban_and_an_eviction_are_in_force_on_the_next_call_of_an_open_connection() {
    let rig = Rig::start().await;
    let (agent, identity) = rig.attested().await;
    let mut client = agents(&rig, Some(&identity)).await;
    let post = || PostStatusRequest {
        current_bundle_serial: 0,
        agent_version: "1.2.3".into(),
    };
    client.post_status(post()).await.unwrap();
    let stored = rig.store.agent(&agent).await.unwrap().unwrap();
    assert_eq!(stored.version, "1.2.3");
    let long = PostStatusRequest {
        current_bundle_serial: 0,
        agent_version: "v".repeat(256),
    };
    let error = refused(client.post_status(long).await);
    assert_eq!(
        error.message(),
        "agent version is too long (max 255 characters)"
    );

    let ban = BanAgentRequest {
        id: wire(agent.path()),
    };
    rig.agents().await.ban_agent(ban).await.unwrap();
    let error = refused(client.post_status(post()).await);
    assert_eq!(reason(&error), Some(Reason::AgentBanned));
    assert_eq!(
        error.message(),
        "authorization denied for method /spire.api.server.agent.v1.Agent/PostStatus"
    );
    rig.store.delete_agent(&agent).await.unwrap();
    let error = refused(client.post_status(post()).await);
    assert_eq!(reason(&error), Some(Reason::AgentNotAttested));
}

#[tokio::test]
async fn a_renewed_certificate_counts_once_it_is_seen() {
    let rig = Rig::start().await;
    let (agent, old) = rig.attested().await;
    let key = KeyPair::generate().unwrap();
    let request = RenewAgentRequest {
        params: Some(AgentX509svidParams { csr: csr(&key) }),
    };
    let mut before = agents(&rig, Some(&old)).await;
    let renewed = before
        .renew_agent(request)
        .await
        .unwrap()
        .into_inner()
        .svid
        .unwrap();
    let prepared = rig.store.agent(&agent).await.unwrap().unwrap();
    assert!(!prepared.new_serial_number.is_empty());
    // Until then the old one does.
    before
        .post_status(PostStatusRequest::default())
        .await
        .unwrap();
    let new = Identity {
        chain: renewed.cert_chain.iter().map(|der| der.to_vec()).collect(),
        key: key.serialize_der(),
    };
    let mut after = agents(&rig, Some(&new)).await;
    after
        .post_status(PostStatusRequest::default())
        .await
        .unwrap();
    let current = rig.store.agent(&agent).await.unwrap().unwrap();
    assert_eq!(current.serial_number, prepared.new_serial_number);
    assert_eq!(current.new_serial_number, "");
    let error = refused(before.post_status(PostStatusRequest::default()).await);
    assert_eq!(reason(&error), Some(Reason::AgentNotActive));
}

#[tokio::test]
async fn strangers_may_read_the_bundle_and_attest_and_nothing_else() {
    let rig = Rig::start().await;
    let channel = rig.network(None).await.unwrap();
    let origin = Channel::origin();
    let mut bundles = BundleClient::with_origin(channel.clone(), origin.clone());
    bundles
        .get_bundle(GetBundleRequest::default())
        .await
        .unwrap();
    let mut entries = EntryClient::with_origin(channel.clone(), origin.clone());
    let error = refused(entries.list_entries(ListEntriesRequest::default()).await);
    assert_eq!(reason(&error), None);
    let error = entries
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await;
    assert_eq!(error.unwrap_err().code(), Code::PermissionDenied);
    let mut agents = AgentClient::with_origin(channel.clone(), origin.clone());
    let error = refused(agents.list_agents(ListAgentsRequest::default()).await);
    assert_eq!(error.code(), Code::PermissionDenied);
    // Only the local socket has health, and a stranger is not even told so.
    let mut health = HealthClient::with_origin(channel, origin);
    let error = refused(health.check(HealthCheckRequest::default()).await);
    assert_eq!(error.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_entry_makes_a_workload_an_administrator_or_a_downstream_server() {
    let rig = Rig::start().await;
    let nobody = rig.authority.issue(&id("/nobody"));
    let admin = rig.authority.issue(&id("/admin"));
    let server = rig.authority.issue(&id("/server"));
    let parent = id("/spire/agent/join_token/x");
    let as_admin = Entry {
        admin: true,
        ..entry("/admin", &parent)
    };
    let as_downstream = Entry {
        downstream: true,
        ..entry("/server", &parent)
    };
    for entry in [as_admin, as_downstream, entry("/nobody", &parent)] {
        let created = rig.store.create_entry(entry).await.unwrap();
        assert!(matches!(created, Created::New(_)));
    }
    for (identity, code) in [(&nobody, Code::PermissionDenied), (&admin, Code::Ok)] {
        let mut client = agents(&rig, Some(identity)).await;
        let listed = client
            .list_agents(ListAgentsRequest::default())
            .await
            .map(|_| ());
        assert_eq!(listed.err().map_or(Code::Ok, |error| error.code()), code);
    }
    let key = KeyPair::generate().unwrap();
    let request = NewDownstreamX509caRequest {
        csr: csr(&key),
        preferred_ttl: 60,
    };
    for (identity, code) in [(&admin, Code::PermissionDenied), (&server, Code::Ok)] {
        let channel = rig.network(Some(identity)).await.unwrap();
        let mut svids = SvidClient::with_origin(channel.clone(), Channel::origin());
        match svids.new_downstream_x509ca(request.clone()).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                assert_eq!(code, Code::Ok);
                assert_eq!(answer.x509_authorities, [rig.authority.root()]);
            }
            Err(error) => assert_eq!(error.code(), code),
        }
        let mut bundles = BundleClient::with_origin(channel, Channel::origin());
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        let published = bundles
            .publish_jwt_authority(PublishJwtAuthorityRequest {
                jwt_authority: Some(types::JwtKey {
                    public_key: spki.into(),
                    key_id: "k".into(),
                    expires_at: 0,
                    tainted: false,
                }),
            })
            .await;
        let published = published.map(|_| ());
        assert_eq!(published.err().map_or(Code::Ok, |error| error.code()), code);
        // Inventory section 8: Bundle `PublishWITAuthority`, of which upstream has nothing.
        let published = bundles.publish_wit_authority(PublishWitAuthorityRequest::default());
        let without = match code {
            Code::Ok => Code::Unimplemented,
            other => other,
        };
        assert_eq!(refused(published.await).code(), without);
    }
}

// `admin_ids`: administrators of other trust domains, and nobody else from there.
#[tokio::test]
async fn foreign_administrators_come_in_by_name() {
    let foreign = TrustDomain::new("foreign.org").unwrap();
    let admin = SpiffeId::new("spiffe://foreign.org/admin").unwrap();
    let rig = Rig::with(std::slice::from_ref(&admin)).await;
    let ca = TestAuthority::new("foreign.org");
    let roots = |ca: &TestAuthority| vec![CertificateDer::from(ca.root())];
    rig.bundles.send_replace(Arc::new(TrustBundles {
        unscoped: Vec::new(),
        domains: [
            (TrustDomain::new(DOMAIN).unwrap(), roots(&rig.authority)),
            (foreign, roots(&ca)),
        ]
        .into(),
    }));
    let mut client = agents(&rig, Some(&ca.issue(&admin))).await;
    client
        .list_agents(ListAgentsRequest::default())
        .await
        .unwrap();
    let other = SpiffeId::new("spiffe://foreign.org/other").unwrap();
    // A CA vouches for its own trust domain alone.
    let impostor = ca.issue(&id("/admin"));
    for refused in [ca.issue(&other), impostor] {
        let failed = match rig.network(Some(&refused)).await {
            // In TLS 1.3 the client has finished before the server judges its certificate.
            Ok(channel) => AgentClient::with_origin(channel, Channel::origin())
                .list_agents(ListAgentsRequest::default())
                .await
                .is_err(),
            Err(_) => true,
        };
        assert!(failed);
    }
}

#[tokio::test]
async fn an_agent_gets_svids_for_its_entries_alone() {
    let rig = Rig::start().await;
    let (agent, identity) = rig.attested().await;
    let mine = Entry {
        id: "mine".into(),
        ..entry("/w", &agent)
    };
    rig.cache.put(mine);
    let channel = rig.network(Some(&identity)).await.unwrap();
    let mut svids = SvidClient::with_origin(channel, Channel::origin());
    let key = KeyPair::generate().unwrap();
    let params = |entry_id: &str, csr: Vec<u8>| NewX509svidParams {
        entry_id: entry_id.into(),
        csr,
    };
    let mut forged = csr(&key);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let request = BatchNewX509svidRequest {
        params: vec![
            params("mine", csr(&key)),
            params("other", csr(&key)),
            params("", csr(&key)),
            params("mine", vec![]),
            params("mine", vec![1, 2, 3]),
            params("mine", forged),
        ],
    };
    let results = svids
        .batch_new_x509svid(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    let told = |at: usize| {
        let status = results[at].status.clone().unwrap();
        (Code::from(status.code), status.message)
    };
    assert_eq!(told(0), (Code::Ok, "OK".into()));
    assert_eq!(results[0].svid.clone().unwrap().id, wire("/w"));
    assert_eq!(
        told(1),
        (Code::NotFound, "entry not found or not authorized".into())
    );
    assert_eq!(told(2), (Code::InvalidArgument, "missing entry ID".into()));
    assert_eq!(told(3), (Code::InvalidArgument, "missing CSR".into()));
    assert!(told(4).1.starts_with("malformed CSR: "));
    assert!(
        told(5).1.starts_with("invalid CSR signature: "),
        "{}",
        told(5).1
    );
    let error = refused(
        svids
            .batch_new_x509svid(BatchNewX509svidRequest::default())
            .await,
    );
    assert_eq!(error.message(), "missing parameters");
    let request = BatchNewX509svidRequest {
        params: vec![params("mine", vec![]); 501],
    };
    let error = refused(svids.batch_new_x509svid(request).await);
    assert_eq!(error.code(), Code::ResourceExhausted);

    let jwt = |entry_id: &str| NewJwtsvidRequest {
        entry_id: entry_id.into(),
        audience: vec!["a".into()],
    };
    let svid = svids
        .new_jwtsvid(jwt("mine"))
        .await
        .unwrap()
        .into_inner()
        .svid
        .unwrap();
    assert_eq!(svid.id, wire("/w"));
    let error = refused(svids.new_jwtsvid(jwt("other")).await);
    assert_eq!(error.code(), Code::NotFound);
}

async fn sync(
    rig: &Rig,
    identity: &Identity,
    asked: Vec<SyncAuthorizedEntriesRequest>,
) -> Result<Vec<ah_spire_wire::server::entry::SyncAuthorizedEntriesResponse>, Status> {
    let channel = rig.network(Some(identity)).await.unwrap();
    let mut client = EntryClient::with_origin(channel, Channel::origin());
    let asked = tokio_stream::iter(asked);
    let mut answers = client.sync_authorized_entries(asked).await?.into_inner();
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await? {
        all.push(answer);
    }
    Ok(all)
}

#[tokio::test]
async fn a_large_set_of_entries_is_synchronized_by_revisions_and_pages() {
    let rig = Rig::start().await;
    let (agent, identity) = rig.attested().await;
    let numbered = |n: i64| Entry {
        id: format!("e{n:04}"),
        revision: n,
        created_at: n + 1,
        ..entry("/w", &agent)
    };
    let set = |count: i64| (0..count).rev().for_each(|n| rig.cache.put(numbered(n)));
    let ask = |ids: Vec<String>| SyncAuthorizedEntriesRequest {
        output_mask: None,
        ids,
    };
    // Few: all of them at once, and the end.
    set(500);
    let answers = sync(&rig, &identity, vec![ask(vec![])]).await.unwrap();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].entries.len(), 500);
    assert!(!answers[0].more && answers[0].entry_revisions.is_empty());

    // Many: revisions first, then what is asked for, in pages, sorted by ID, unknown ones left out.
    set(1201);
    let wanted: Vec<String> = (0..1001).map(|n| format!("e{n:04}")).collect();
    let few = ["e0002", "nothing", "e0001"].map(str::to_owned).to_vec();
    let asked = vec![
        ask(vec![]),
        ask(wanted),
        ask(few),
        ask(vec!["nothing".into()]),
    ];
    let answers = sync(&rig, &identity, asked).await.unwrap();
    let shape: Vec<_> = answers
        .iter()
        .map(|it| (it.entry_revisions.len(), it.entries.len(), it.more))
        .collect();
    assert_eq!(
        shape,
        [
            (500, 0, true),
            (500, 0, true),
            (201, 0, false),
            (0, 500, true),
            (0, 500, true),
            (0, 1, false),
            (0, 2, false),
            (0, 0, false),
        ]
    );
    let revision = &answers[0].entry_revisions[0];
    assert_eq!(revision.created_at, revision.revision_number + 1);
    assert_eq!(answers[6].entries[0].id, "e0001");

    // What no client may ask.
    let error = refused(sync(&rig, &identity, vec![ask(vec!["x".into()])]).await);
    assert_eq!(
        error.message(),
        "specifying IDs on initial request is not supported"
    );
    let masked = SyncAuthorizedEntriesRequest {
        output_mask: Some(types::EntryMask::default()),
        ids: vec![],
    };
    let error = refused(sync(&rig, &identity, vec![masked]).await);
    assert_eq!(error.message(), "revision number cannot be masked");

    // The whole set in one answer, for agents that do not synchronize.
    let channel = rig.network(Some(&identity)).await.unwrap();
    let mut client = EntryClient::with_origin(channel, Channel::origin());
    let all = client
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await;
    assert_eq!(all.unwrap().into_inner().entries.len(), 1201);
}
