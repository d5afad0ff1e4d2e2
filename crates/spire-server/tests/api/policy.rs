//! A policy in Rego between callers and services (inventory section 5, `auth_opa_policy_engine`).

use ah_spire_plugin::server::OpaPolicy;
use ah_spire_wire::changes::WatchRequest;
use ah_spire_wire::changes::changes_client::ChangesClient;
use ah_spire_wire::server::agent::PostStatusRequest;
use ah_spire_wire::server::agent::agent_client::AgentClient;
use ah_spire_wire::server::bundle::GetBundleRequest;
use ah_spire_wire::server::bundle::bundle_client::BundleClient;
use ah_spire_wire::server::entry::entry_client::EntryClient;
use ah_spire_wire::server::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, ListEntriesRequest,
};
use ah_spire_wire::{Channel, entry_to_wire};
use http_body_util::{BodyExt, Full};
use spiffe::SpiffeId;
use spire_server::api::RegoPolicy;
use spire_server::store::Agents;
use tempfile::TempDir;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::ServiceExt;

use crate::rig::{Rig, entry, id, reason, refused};

/// Entries below `/team` by one SPIFFE ID; what agents need; on the local socket what this test's program asks for,
/// but for deletions. Nothing is said of this project's own methods.
const POLICY: &str = r#"package spire

result := {"allow": allow, "allow_if_local": allow_if_local, "allow_if_admin": false, "allow_if_downstream": false, "allow_if_agent": allow_if_agent}

default allow := false
default allow_if_local := false
default allow_if_agent := false

allow if input.full_method in data.open

allow if {
	input.full_method == "/spire.api.server.entry.v1.Entry/BatchCreateEntry"
	input.caller == "spiffe://example.org/team/lead"
	every entry in input.req.entries { startswith(entry.spiffe_id.path, "/team/") }
}

allow_if_local if {
	input.caller == ""
	input.caller_file_path == data.program
	input.full_method != "/spire.api.server.entry.v1.Entry/BatchDeleteEntry"
}

allow_if_agent if input.full_method == "/spire.api.server.agent.v1.Agent/PostStatus"
"#;

fn policy() -> RegoPolicy {
    let folder = TempDir::new().unwrap();
    let (rego, data) = (folder.path().join("p.rego"), folder.path().join("d.json"));
    std::fs::write(&rego, POLICY).unwrap();
    let told = serde_json::json!({
        "open": [
            "/spire.api.server.agent.v1.Agent/AttestAgent",
            "/spire.api.server.bundle.v1.Bundle/GetBundle",
        ],
        "program": std::env::current_exe().unwrap(),
    });
    std::fs::write(&data, told.to_string()).unwrap();
    let policy = RegoPolicy::load(&OpaPolicy {
        rego_path: rego,
        policy_data_path: Some(data),
    });
    policy.unwrap()
}

async fn create(
    client: &mut EntryClient<Channel>,
    paths: &[&str],
    parent: &SpiffeId,
) -> Result<(), Status> {
    let entries = paths.iter().map(|path| entry_to_wire(&entry(path, parent)));
    let request = BatchCreateEntryRequest {
        entries: entries.collect(),
        ..Default::default()
    };
    let answer = client.batch_create_entry(request).await?.into_inner();
    assert_eq!(answer.results.len(), paths.len());
    for result in answer.results {
        assert_eq!(result.status.unwrap().code, 0);
    }
    Ok(())
}

#[tokio::test]
async fn callers_and_requests_are_judged_by_the_operators_policy() {
    let rig = Rig::with_policy(policy()).await;
    let node = id("/node");
    let denied = |result: Result<(), Status>| {
        let error = result.unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied);
        let told = "authorization denied for method /spire.api.server.entry.v1.Entry/Batch";
        assert!(error.message().starts_with(told), "{}", error.message());
        assert_eq!(error.details(), b"");
    };

    // On the network, by who calls and what is asked for.
    let lead = rig.authority.issue(&id("/team/lead"));
    let lead = rig.network(Some(&lead)).await.unwrap();
    let mut entries = EntryClient::with_origin(lead, Channel::origin());
    create(&mut entries, &["/team/a", "/team/b"], &node)
        .await
        .unwrap();
    denied(create(&mut entries, &["/team/c", "/elsewhere"], &node).await);
    let other = rig.authority.issue(&id("/team/other"));
    let other = rig.network(Some(&other)).await.unwrap();
    let mut entries = EntryClient::with_origin(other, Channel::origin());
    denied(create(&mut entries, &["/team/d"], &node).await);

    // On the local socket, by which program calls.
    let mut local = rig.entries().await;
    create(&mut local, &["/local"], &node).await.unwrap();
    let there = local.list_entries(ListEntriesRequest::default()).await;
    assert_eq!(there.unwrap().into_inner().entries.len(), 3);
    let delete = BatchDeleteEntryRequest {
        ids: vec!["1".into()],
    };
    denied(local.batch_delete_entry(delete).await.map(drop));

    // Without a certificate.
    let anybody = rig.network(None).await.unwrap();
    let mut bundles = BundleClient::with_origin(anybody, Channel::origin());
    bundles
        .get_bundle(GetBundleRequest::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn agents_stay_agents() {
    let rig = Rig::with_policy(policy()).await;
    // A stream, which is judged without its request.
    let (agent, identity) = rig.attested().await;
    let channel = rig.network(Some(&identity)).await.unwrap();
    let mut agents = AgentClient::with_origin(channel.clone(), Channel::origin());
    agents
        .post_status(PostStatusRequest::default())
        .await
        .unwrap();
    // What the policy does not know is refused without a word on the agent, who then does without.
    let mut changes = ChangesClient::with_origin(channel, Channel::origin());
    let error = refused(changes.watch(WatchRequest {}).await);
    assert_eq!(error.code(), Code::PermissionDenied);
    assert_eq!(error.details(), b"");
    // An agent that is evicted is told so by the policy's agents as by the built-in one's.
    rig.store.delete_agent(&agent).await.unwrap();
    let error = refused(agents.post_status(PostStatusRequest::default()).await);
    assert!(reason(&error).is_some());
}

/// How a call with this body ends.
async fn raw(rig: &Rig, path: &str, body: &[u8]) -> Code {
    let uri = Channel::origin().to_string();
    let request = http::Request::post(format!("{}{path}", uri.trim_end_matches('/')))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(Full::new(bytes::Bytes::copy_from_slice(body))));
    // The connection is there as long as one of these is.
    let channel = rig.local().await;
    let answer = channel.clone().oneshot(request.unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    let told = |headers: &http::HeaderMap| Status::from_header_map(headers).map(|it| it.code());
    let trailers = body.collect().await.unwrap();
    let trailers = trailers.trailers().and_then(told);
    told(&head.headers).or(trailers).unwrap()
}

// gRPC over HTTP/2, Length-Prefixed-Message.
#[tokio::test]
async fn only_one_whole_message_is_judged() {
    let rig = Rig::with_policy(policy()).await;
    let path = "/spire.api.server.entry.v1.Entry/ListEntries";
    for (body, code) in [
        (b"\0\0\0\0\0".to_vec(), Code::Ok),
        (b"\0\0\0\0\0\0\0\0\0\0".to_vec(), Code::Internal),
        (b"\0\0\0\0\x01".to_vec(), Code::Internal),
        (b"\0\0".to_vec(), Code::Internal),
        (b"\x01\0\0\0\0".to_vec(), Code::Unimplemented),
        (b"\0\0\0\0\x01\xff".to_vec(), Code::Internal),
    ] {
        assert_eq!(raw(&rig, path, &body).await, code, "{body:?}");
    }
}
