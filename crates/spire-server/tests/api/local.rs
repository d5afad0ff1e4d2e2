//! The APIs over the local socket (inventory section 8).

use crate::rig::{Rig, TestAuthority, csr_for, refused, wire};
use ah_spire_wire::server::agent::{
    BanAgentRequest, CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest,
    ListAgentsRequest, RenewAgentRequest,
};
use ah_spire_wire::server::bundle::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchDeleteFederatedBundleRequest,
    BatchSetFederatedBundleRequest, BatchUpdateFederatedBundleRequest, CountBundlesRequest,
    GetBundleRequest, GetFederatedBundleRequest, ListFederatedBundlesRequest,
};
use ah_spire_wire::server::entry::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest,
    GetEntryRequest, ListEntriesRequest, list_entries_request,
};
use ah_spire_wire::server::svid::{MintJwtsvidRequest, MintWitsvidRequest, MintX509svidRequest};
use ah_spire_wire::types;
use rcgen::KeyPair;
use tonic::Code;

fn selector(kind: &str, value: &str) -> types::Selector {
    types::Selector {
        r#type: kind.into(),
        value: value.into(),
    }
}

fn entry(path: &str) -> types::Entry {
    types::Entry {
        spiffe_id: wire(path),
        parent_id: wire("/spire/agent/join_token/a"),
        selectors: vec![selector("unix", "uid:0")],
        ..Default::default()
    }
}

#[tokio::test]
async fn entries_are_created_found_changed_and_deleted() {
    let rig = Rig::start().await;
    let mut client = rig.entries().await;
    let request = BatchCreateEntryRequest {
        entries: vec![
            entry("/a"),
            entry("/a"),
            entry("/spire/x"),
            types::Entry {
                id: "mine".into(),
                hint: "h".into(),
                ..entry("/b")
            },
        ],
        output_mask: None,
    };
    let created = client
        .batch_create_entry(request)
        .await
        .unwrap()
        .into_inner();
    let status = |at: usize| created.results[at].status.clone().unwrap();
    let codes: Vec<i32> = (0..4).map(|at| status(at).code).collect();
    assert_eq!(
        codes,
        [
            0,
            Code::AlreadyExists as i32,
            Code::InvalidArgument as i32,
            0
        ]
    );
    assert_eq!(status(0).message, "OK");
    assert_eq!(status(1).message, "similar entry already exists");
    assert!(
        status(2)
            .message
            .starts_with("failed to convert entry: invalid spiffe ID: ")
    );
    assert_eq!(created.results[1].entry, created.results[0].entry);
    assert_eq!(created.results[2].entry, None);

    let list = |page_size, page_token: &str, hint: Option<&str>| ListEntriesRequest {
        filter: Some(list_entries_request::Filter {
            by_hint: hint.map(str::to_owned),
            ..Default::default()
        }),
        output_mask: Some(types::EntryMask {
            spiffe_id: true,
            ..Default::default()
        }),
        page_size,
        page_token: page_token.to_owned(),
    };
    let first = client
        .list_entries(list(1, "", None))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first.entries.len(), 1);
    assert_eq!(first.entries[0].selectors, []);
    let token = first.next_page_token;
    let second = client
        .list_entries(list(1, &token, None))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(second.entries[0].spiffe_id, wire("/b"));
    let hinted = client
        .list_entries(list(0, "", Some("h")))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(hinted.entries.len(), 1);
    let count = client
        .count_entries(CountEntriesRequest::default())
        .await
        .unwrap();
    assert_eq!(count.into_inner().count, 2);

    let request = BatchUpdateEntryRequest {
        entries: vec![
            types::Entry {
                id: "mine".into(),
                x509_svid_ttl: 77,
                ..Default::default()
            },
            types::Entry {
                id: "none".into(),
                ..Default::default()
            },
        ],
        input_mask: Some(types::EntryMask {
            x509_svid_ttl: true,
            ..Default::default()
        }),
        output_mask: None,
    };
    let updated = client
        .batch_update_entry(request)
        .await
        .unwrap()
        .into_inner();
    let entry = updated.results[0].entry.clone().unwrap();
    assert_eq!(
        (
            entry.x509_svid_ttl,
            entry.hint.as_str(),
            entry.revision_number
        ),
        (77, "h", 1)
    );
    assert_eq!(
        updated.results[1].status.clone().unwrap().code,
        Code::NotFound as i32
    );

    let ids = ["mine", "mine", ""].map(str::to_owned).to_vec();
    let deleted = client
        .batch_delete_entry(BatchDeleteEntryRequest { ids })
        .await
        .unwrap();
    let deleted = deleted.into_inner().results;
    let codes: Vec<i32> = deleted
        .iter()
        .map(|it| it.status.clone().unwrap().code)
        .collect();
    assert_eq!(
        codes,
        [0, Code::NotFound as i32, Code::InvalidArgument as i32]
    );
    let request = GetEntryRequest {
        id: "mine".into(),
        output_mask: None,
    };
    let error = refused(client.get_entry(request).await);
    assert_eq!(
        (error.code(), error.message()),
        (Code::NotFound, "entry not found")
    );
    let error = refused(client.get_entry(GetEntryRequest::default()).await);
    assert_eq!(
        (error.code(), error.message()),
        (Code::InvalidArgument, "missing ID")
    );
}

#[tokio::test]
async fn a_filter_that_makes_no_sense_is_refused_by_name() {
    let rig = Rig::start().await;
    let mut client = rig.entries().await;
    let filter = list_entries_request::Filter::default();
    for (filter, text) in [
        (
            list_entries_request::Filter {
                by_selectors: Some(types::SelectorMatch::default()),
                ..filter.clone()
            },
            "malformed selectors filter: empty selector set",
        ),
        (
            list_entries_request::Filter {
                by_federates_with: Some(types::FederatesWithMatch::default()),
                ..filter.clone()
            },
            "malformed federates with filter: empty trust domain set",
        ),
        (
            list_entries_request::Filter {
                by_parent_id: Some(types::Spiffeid::default()),
                ..filter.clone()
            },
            "malformed parent ID filter: trust domain is missing",
        ),
    ] {
        let request = ListEntriesRequest {
            filter: Some(filter),
            ..Default::default()
        };
        let error = refused(client.list_entries(request).await);
        assert_eq!(
            (error.code(), error.message()),
            (Code::InvalidArgument, text)
        );
    }
}

#[tokio::test]
async fn join_tokens_come_with_the_entry_of_their_agent() {
    let rig = Rig::start().await;
    let mut client = rig.agents().await;
    let request = |ttl, token: &str, path: Option<&str>| CreateJoinTokenRequest {
        ttl,
        token: token.into(),
        agent_id: path.and_then(wire),
    };
    let token = client
        .create_join_token(request(60, "abc", Some("/node")))
        .await
        .unwrap();
    assert_eq!(token.into_inner().value, "abc");
    let entries = rig
        .entries()
        .await
        .list_entries(ListEntriesRequest::default())
        .await;
    let entries = entries.unwrap().into_inner().entries;
    assert_eq!(entries[0].spiffe_id, wire("/node"));
    assert_eq!(entries[0].parent_id, wire("/spire/agent/join_token/abc"));
    assert_eq!(
        entries[0].selectors,
        [selector(
            "spiffe_id",
            "spiffe://example.org/spire/agent/join_token/abc"
        )]
    );
    for (bad, code, text) in [
        (
            request(0, "", None),
            Code::InvalidArgument,
            "ttl is required, you must provide one",
        ),
        (
            request(-1, "", None),
            Code::InvalidArgument,
            "ttl is required, you must provide one",
        ),
        (
            request(60, "abc", None),
            Code::Internal,
            "failed to create token: ",
        ),
        (
            request(60, "a b", None),
            Code::InvalidArgument,
            "failed to create join token ID: ",
        ),
        (
            request(60, "", Some("/spire/x")),
            Code::InvalidArgument,
            "invalid agent ID: ",
        ),
    ] {
        let error = refused(client.create_join_token(bad).await);
        assert_eq!(error.code(), code);
        assert!(error.message().starts_with(text), "{}", error.message());
    }
}

#[tokio::test]
async fn agents_are_found_banned_and_evicted() {
    let rig = Rig::start().await;
    let (agent, _) = rig.attested().await;
    let mut client = rig.agents().await;
    let listed = client
        .list_agents(ListAgentsRequest::default())
        .await
        .unwrap();
    let listed = listed.into_inner().agents;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].attestation_type, "join_token");
    assert!(!listed[0].banned && !listed[0].can_reattest);
    let id = wire(agent.path());
    let ban = BanAgentRequest { id: id.clone() };
    client.ban_agent(ban).await.unwrap();
    let get = GetAgentRequest {
        id: id.clone(),
        output_mask: None,
    };
    let found = client.get_agent(get.clone()).await.unwrap().into_inner();
    assert!(found.banned);
    assert_eq!(found.x509svid_serial_number, "");
    client
        .delete_agent(DeleteAgentRequest { id: id.clone() })
        .await
        .unwrap();
    let error = refused(client.get_agent(get).await);
    assert_eq!(
        (error.code(), error.message()),
        (Code::NotFound, "agent not found")
    );
    for id in [id, wire("/spire/agent/x/y")] {
        let error = refused(client.ban_agent(BanAgentRequest { id }).await);
        assert_eq!(
            (error.code(), error.message()),
            (Code::NotFound, "agent not found")
        );
    }
    let error = refused(client.ban_agent(BanAgentRequest { id: wire("/w") }).await);
    assert!(
        error.message().starts_with("invalid agent ID: "),
        "{}",
        error.message()
    );
}

#[tokio::test]
async fn what_belongs_to_agents_is_not_for_the_local_socket() {
    let rig = Rig::start().await;
    let error = refused(
        rig.agents()
            .await
            .renew_agent(RenewAgentRequest::default())
            .await,
    );
    assert_eq!(error.code(), Code::PermissionDenied);
    assert_eq!(
        error.message(),
        "authorization denied for method /spire.api.server.agent.v1.Agent/RenewAgent"
    );
}

// Inventory section 8: SVID `MintX509SVID`, `MintJWTSVID`.
#[tokio::test]
async fn svids_are_minted_for_workloads_of_the_domain() {
    let rig = Rig::start().await;
    let mut client = rig.svids().await;
    let key = KeyPair::generate().unwrap();
    let csr = csr_for(&key, &["spiffe://example.org/w"], &["w.example.org"]);
    let request = MintX509svidRequest { csr, ttl: 60 };
    let minted = client.mint_x509svid(request).await.unwrap().into_inner();
    assert_eq!(minted.svid.unwrap().id, wire("/w"));
    for (uris, dns, text) in [
        (&[][..], &[][..], "CSR URI SAN is required"),
        (
            &["spiffe://example.org/a", "spiffe://example.org/b"],
            &[],
            "only one URI SAN is expected",
        ),
        (&["spiffe://other.org/a"], &[], "CSR URI SAN is invalid: "),
        (
            &["spiffe://example.org/spire/server"],
            &[],
            "CSR URI SAN is invalid: ",
        ),
        (
            &["spiffe://example.org/a//b"],
            &[],
            "CSR URI SAN is invalid: ",
        ),
        (
            &["spiffe://example.org/a"],
            &["a_b"],
            "CSR DNS name is invalid: ",
        ),
        (
            &["spiffe://example.org/a"],
            &["*.example.org", "a.example.org"],
            "CSR DNS name contains a wildcard that covers another non-wildcard name: ",
        ),
    ] {
        let csr = csr_for(&key, uris, dns);
        let error = refused(
            client
                .mint_x509svid(MintX509svidRequest { csr, ttl: 0 })
                .await,
        );
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().starts_with(text), "{}", error.message());
    }
    let request = MintJwtsvidRequest {
        id: wire("/w"),
        audience: vec!["a".into()],
        ttl: 60,
    };
    let minted = client
        .mint_jwtsvid(request)
        .await
        .unwrap()
        .into_inner()
        .svid
        .unwrap();
    assert_eq!(minted.token, "spiffe://example.org/w for a");
    assert_eq!(minted.expires_at - minted.issued_at, 60);
    let request = MintJwtsvidRequest {
        id: wire("/w"),
        ..Default::default()
    };
    let error = refused(client.mint_jwtsvid(request).await);
    assert_eq!(error.message(), "at least one audience is required");
    let error = refused(client.mint_witsvid(MintWitsvidRequest::default()).await);
    assert_eq!(error.code(), Code::Unimplemented);
}

// Hostile input: each is an answer, and the server lives on.
#[tokio::test]
async fn oversized_and_damaged_requests_are_refused() {
    let rig = Rig::start().await;
    let mut svids = rig.svids().await;
    for csr in [vec![], vec![0x30; 64], vec![0xff; 1024 * 1024]] {
        let error = refused(
            svids
                .mint_x509svid(MintX509svidRequest { csr, ttl: 0 })
                .await,
        );
        assert_eq!(error.code(), Code::InvalidArgument);
    }
    let csr = vec![0x30; 10 * 1024 * 1024];
    assert!(
        svids
            .mint_x509svid(MintX509svidRequest { csr, ttl: 0 })
            .await
            .is_err()
    );
    let mut entries = rig.entries().await;
    let mut many = entry("/many");
    many.selectors = (0..1_000_000)
        .map(|n| selector("unix", &n.to_string()))
        .collect();
    let request = BatchCreateEntryRequest {
        entries: vec![many],
        output_mask: None,
    };
    assert!(entries.batch_create_entry(request).await.is_err());
    let mut entries = rig.entries().await;
    let count = entries
        .count_entries(CountEntriesRequest::default())
        .await
        .unwrap();
    assert_eq!(count.into_inner().count, 0);
}

#[tokio::test]
async fn federated_bundles_are_kept_apart_from_the_own_one() {
    let rig = Rig::start().await;
    let mut client = rig.bundles().await;
    let bundle = |domain: &str| types::Bundle {
        trust_domain: domain.into(),
        x509_authorities: vec![types::X509Certificate {
            asn1: TestAuthority::new("other.org").root().into(),
            tainted: false,
        }],
        refresh_hint: 60,
        wit_authorities: vec![types::WitKey {
            public_key: vec![1].into(),
            key_id: "wit".into(),
            expires_at: 5,
            tainted: true,
        }],
        ..Default::default()
    };
    let create = |domain: &str| BatchCreateFederatedBundleRequest {
        bundle: vec![bundle(domain)],
        output_mask: None,
    };
    let status = |it: Option<types::Status>| {
        let status = it.unwrap();
        (Code::from(status.code), status.message)
    };
    let created = client
        .batch_create_federated_bundle(create("spiffe://other.org"))
        .await;
    let created = created.unwrap().into_inner().results.remove(0);
    assert_eq!(status(created.status), (Code::Ok, "OK".into()));
    let created = created.bundle.unwrap();
    assert_eq!(created.trust_domain, "other.org");
    assert_eq!(created.wit_authorities, bundle("other.org").wit_authorities);
    for (domain, code, text) in [
        ("other.org", Code::AlreadyExists, "bundle already exists"),
        (
            "example.org",
            Code::InvalidArgument,
            "creating a federated bundle for the server's own trust domain is not allowed",
        ),
        (
            "",
            Code::InvalidArgument,
            "trust domain argument is not valid: trust domain is missing",
        ),
    ] {
        let created = client
            .batch_create_federated_bundle(create(domain))
            .await
            .unwrap();
        let created = created.into_inner().results.remove(0);
        assert_eq!(status(created.status), (code, text.into()));
    }
    let request = BatchUpdateFederatedBundleRequest {
        bundle: vec![types::Bundle {
            trust_domain: "other.org".into(),
            refresh_hint: 7,
            ..Default::default()
        }],
        input_mask: Some(types::BundleMask {
            refresh_hint: true,
            ..Default::default()
        }),
        output_mask: None,
    };
    let updated = client.batch_update_federated_bundle(request).await.unwrap();
    let updated = updated.into_inner().results.remove(0).bundle.unwrap();
    assert_eq!(
        (updated.refresh_hint, updated.x509_authorities.len()),
        (7, 1)
    );
    assert_eq!(updated.wit_authorities.len(), 1);
    let request = BatchSetFederatedBundleRequest {
        bundle: vec![bundle("third.org")],
        output_mask: None,
    };
    client.batch_set_federated_bundle(request).await.unwrap();
    let listed = client
        .list_federated_bundles(ListFederatedBundlesRequest::default())
        .await;
    let listed = listed.unwrap().into_inner().bundles;
    let domains: Vec<&str> = listed.iter().map(|it| it.trust_domain.as_str()).collect();
    assert_eq!(domains, ["other.org", "third.org"]);
    let count = client.count_bundles(CountBundlesRequest {}).await.unwrap();
    assert_eq!(count.into_inner().count, 3);
    let request = BatchDeleteFederatedBundleRequest {
        trust_domains: ["other.org", "example.org", "none.org"]
            .map(str::to_owned)
            .to_vec(),
        mode: 0,
    };
    let deleted = client.batch_delete_federated_bundle(request).await.unwrap();
    let codes = deleted
        .into_inner()
        .results
        .into_iter()
        .map(|it| status(it.status).0);
    let codes: Vec<Code> = codes.collect();
    assert_eq!(codes, [Code::Ok, Code::InvalidArgument, Code::NotFound]);
    let request = GetFederatedBundleRequest {
        trust_domain: "other.org".into(),
        output_mask: None,
    };
    let error = refused(client.get_federated_bundle(request).await);
    assert_eq!(
        (error.code(), error.message()),
        (Code::NotFound, "bundle not found")
    );

    let before = client
        .get_bundle(GetBundleRequest::default())
        .await
        .unwrap()
        .into_inner();
    let request = AppendBundleRequest {
        x509_authorities: bundle("x").x509_authorities,
        ..Default::default()
    };
    let after = client.append_bundle(request).await.unwrap().into_inner();
    assert_eq!(
        after.x509_authorities.len(),
        before.x509_authorities.len() + 1
    );
    assert!(after.sequence_number > before.sequence_number);
    let error = refused(client.append_bundle(AppendBundleRequest::default()).await);
    assert_eq!(error.message(), "no authorities to append");
}
