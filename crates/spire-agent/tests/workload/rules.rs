//! What the standard and upstream ask of each call.

use std::collections::BTreeMap;
use std::sync::Arc;

use ah_spire_wire::Channel;
use ah_spire_wire::health::HealthCheckRequest;
use ah_spire_wire::health::health_check_response::ServingStatus;
use ah_spire_wire::health::health_client::HealthClient;
use ah_spire_wire::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, WitsvidRequest,
    X509BundlesRequest, X509svidRequest,
};
use ah_testkit::ca::TestCa;
use prost_types::value::Kind;
use serde_json::json;
use spire_agent::identities::JwtError;
use tonic::{Code, Request};

use super::rig::{Rig, Signer, WORKLOAD, bundle_of, domain, entry, identity, secured, svid};

fn jwt_request() -> JwtsvidRequest {
    JwtsvidRequest {
        audience: vec!["a".into(), "b".into()],
        spiffe_id: String::new(),
    }
}

// SV-69
#[test]
fn sv_69_without_the_header_a_call_is_an_invalid_argument() {
    let rig = Rig::new();
    let mut client = rig.client();
    let mut twice = secured(X509svidRequest {});
    let value = "true".parse().unwrap();
    twice.metadata_mut().append("workload.spiffe.io", value);
    let mut other = Request::new(X509svidRequest {});
    let value = "True".parse().unwrap();
    other.metadata_mut().insert("workload.spiffe.io", value);
    for request in [Request::new(X509svidRequest {}), twice, other] {
        let refused = rig.run(client.fetch_x509svid(request)).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(refused.message(), "security header missing from request");
    }
    let others = [
        rig.run(client.fetch_x509_bundles(X509BundlesRequest {}))
            .err(),
        rig.run(client.fetch_jwtsvid(jwt_request())).err(),
        rig.run(client.fetch_jwt_bundles(JwtBundlesRequest {}))
            .err(),
        rig.run(client.validate_jwtsvid(ValidateJwtsvidRequest::default()))
            .err(),
        rig.run(client.fetch_witsvid(WitsvidRequest::default()))
            .err(),
    ];
    for refused in others {
        assert_eq!(refused.unwrap().code(), Code::InvalidArgument);
    }
    assert_eq!(*rig.attestor.begun.borrow(), 0, "nobody was attested");
}

// SV-73, SV-80
#[test]
fn sv_80_wit_calls_and_unknown_ones_are_unimplemented() {
    let rig = Rig::new();
    let mut client = rig.client();
    let wit = rig.run(client.fetch_witsvid(secured(WitsvidRequest::default())));
    let refused = wit.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert_eq!(refused.message(), "fetching WIT-SVIDs is not implemented");
    let wit = rig.run(client.fetch_wit_bundles(secured(WitBundlesRequest {})));
    assert_eq!(wit.unwrap_err().code(), Code::Unimplemented);

    let mut grpc = tonic::client::Grpc::with_origin(rig.channel(), Channel::origin());
    let mut call = |path: &'static str| {
        rig.run(async {
            grpc.ready().await.unwrap();
            let codec = tonic_prost::ProstCodec::<X509svidRequest, X509svidRequest>::default();
            let path = http::uri::PathAndQuery::from_static(path);
            grpc.unary(secured(X509svidRequest {}), path, codec).await
        })
        .unwrap_err()
    };
    let refused = call("/SpiffeWorkloadAPI/FetchMore");
    assert_eq!(refused.code(), Code::Unimplemented);
    let text = "unknown method FetchMore for service SpiffeWorkloadAPI";
    assert_eq!(refused.message(), text);
    let refused = call("/spire.api.server.entry.v1.Entry/ListEntries");
    assert_eq!(refused.code(), Code::Unimplemented);
    let text = "unknown service spire.api.server.entry.v1.Entry";
    assert_eq!(refused.message(), text);
}

// SV-74, SV-75
#[test]
fn sv_75_the_full_set_comes_at_once_and_again_with_each_change() {
    let rig = Rig::new();
    let mut client = rig.client();
    let call = rig.run(client.fetch_x509svid(secured(X509svidRequest {})));
    let mut stream = call.unwrap().into_inner();
    let first = rig.run(stream.message()).unwrap().unwrap();
    assert_eq!(first.svids.len(), 1);
    assert_eq!(first.svids[0].spiffe_id, WORKLOAD);
    assert_eq!(first.svids[0].bundle, rig.identities.ca.der().as_ref());
    assert!(first.crl.is_empty() && first.federated_bundles.is_empty());

    let leaf = rig.identities.rotate();
    let second = rig.run(stream.message()).unwrap().unwrap();
    assert_eq!(second.svids.len(), 1);
    assert_eq!(second.svids[0].x509_svid, leaf.der().as_ref());
    assert_eq!(second.svids[0].x509_svid_key, leaf.key_der());
    assert_eq!(*rig.attestor.begun.borrow(), 1, "attested once for a call");
}

// SV-76
#[test]
fn sv_76_what_a_workload_is_no_longer_entitled_to_is_left_out_or_refused() {
    let rig = Rig::new();
    let other = Arc::new(bundle_of("other.org", &[&TestCa::new("other.org")], &[]));
    rig.identities.change(|update| {
        update.federated.insert(domain("other.org"), other);
    });
    let mut client = rig.client();
    let call = rig.run(client.fetch_x509svid(secured(X509svidRequest {})));
    let mut stream = call.unwrap().into_inner();
    let first = rig.run(stream.message()).unwrap().unwrap();
    assert!(first.federated_bundles.contains_key("spiffe://other.org"));
    rig.identities.change(|update| update.federated.clear());
    let second = rig.run(stream.message()).unwrap().unwrap();
    assert!(second.federated_bundles.is_empty());
    rig.identities.unregister();
    let refused = rig.run(stream.message()).err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), "no identity issued");
}

// SV-71, ER-10
#[test]
fn whoever_has_no_entry_is_told_so_by_every_call_but_validation() {
    let rig = Rig::new();
    rig.identities.unregister();
    let mut client = rig.client();
    let refusals = [
        rig.run(client.fetch_x509svid(secured(X509svidRequest {})))
            .err(),
        rig.run(client.fetch_x509_bundles(secured(X509BundlesRequest {})))
            .err(),
        rig.run(client.fetch_jwtsvid(secured(jwt_request()))).err(),
        rig.run(client.fetch_jwt_bundles(secured(JwtBundlesRequest {})))
            .err(),
    ];
    for refused in refusals {
        let refused = refused.unwrap();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert_eq!(refused.message(), "no identity issued");
    }
    let token = rig.identities.signer.svid(WORKLOAD, &["a".into()]);
    let request = ValidateJwtsvidRequest {
        audience: "a".into(),
        svid: token,
    };
    let valid = rig.run(client.validate_jwtsvid(secured(request))).unwrap();
    assert_eq!(valid.into_inner().spiffe_id, WORKLOAD);
}

// Inventory 1.1, allow_unauthenticated_verifiers
#[test]
fn unauthenticated_verifiers_get_the_own_bundles_alone_where_that_is_allowed() {
    let rig = Rig::with(|config| config.allow_unauthenticated_verifiers = true);
    let other = Arc::new(bundle_of("other.org", &[&TestCa::new("other.org")], &[]));
    rig.identities.change(|update| {
        update.identities.clear();
        update.federated.insert(domain("other.org"), other);
    });
    let mut client = rig.client();
    let call = rig.run(client.fetch_x509_bundles(secured(X509BundlesRequest {})));
    let message = rig.run(call.unwrap().into_inner().message());
    let x509 = message.unwrap().unwrap().bundles;
    assert_eq!(
        x509.into_keys().collect::<Vec<_>>(),
        ["spiffe://example.org"]
    );
    let call = rig.run(client.fetch_jwt_bundles(secured(JwtBundlesRequest {})));
    let message = rig.run(call.unwrap().into_inner().message());
    let jwt = message.unwrap().unwrap().bundles;
    assert_eq!(
        jwt.into_keys().collect::<Vec<_>>(),
        ["spiffe://example.org"]
    );
    let svids = rig.run(client.fetch_x509svid(secured(X509svidRequest {})));
    assert_eq!(svids.unwrap_err().code(), Code::PermissionDenied);
}

// SV-77
#[test]
fn sv_77_of_entries_with_one_hint_the_oldest_is_served() {
    let rig = Rig::new();
    let ids =
        ["newest", "older", "oldest", "plain", "bare"].map(|name| format!("{WORKLOAD}/{name}"));
    let ages = [(30, "x"), (20, "x"), (10, "x"), (40, ""), (5, "")];
    let entries: Vec<_> = ids
        .iter()
        .zip(ages)
        .map(|(id, (created_at, hint))| {
            let mut entry = (*entry(id, hint)).clone();
            entry.created_at = created_at;
            Arc::new(entry)
        })
        .collect();
    rig.identities.change(|update| {
        let ca = &rig.identities.ca;
        let identities = entries.iter().zip(&ids);
        update.identities = identities
            .map(|(entry, id)| identity(&svid(ca, id), entry))
            .collect();
    });
    let mut client = rig.client();
    let call = rig.run(client.fetch_x509svid(secured(X509svidRequest {})));
    let message = rig
        .run(call.unwrap().into_inner().message())
        .unwrap()
        .unwrap();
    let served: Vec<_> = message
        .svids
        .iter()
        .map(|svid| svid.spiffe_id.as_str())
        .collect();
    assert_eq!(served, &ids[2..]);
    assert_eq!(message.svids[0].hint, "x");

    // JWT-SVIDs come in the order of their entries.
    let mut by_age = entries.clone();
    by_age.sort_by_key(|entry| entry.created_at);
    *rig.identities.entries.lock().unwrap() = by_age;
    let answer = rig
        .run(client.fetch_jwtsvid(secured(jwt_request())))
        .unwrap();
    let hinted: Vec<_> = answer
        .into_inner()
        .svids
        .into_iter()
        .filter(|svid| svid.hint == "x")
        .collect();
    assert_eq!(hinted.len(), 1);
    assert_eq!(hinted[0].spiffe_id, ids[2]);
}

// SV-78
#[test]
fn sv_78_the_leaf_comes_first_and_the_key_is_pkcs8() {
    let rig = Rig::new();
    let intermediate = rig.identities.ca.intermediate().issue();
    let leaf = intermediate.leaf().spiffe(WORKLOAD).issue();
    let chain: Vec<u8> = leaf.chain().iter().flat_map(|der| der.to_vec()).collect();
    assert!(leaf.chain().len() > 1);
    rig.identities.change(|update| {
        let entry = Arc::clone(&update.identities[0].entry);
        update.identities[0] = identity(&leaf, &entry);
    });
    let mut client = rig.client();
    let call = rig.run(client.fetch_x509svid(secured(X509svidRequest {})));
    let message = rig
        .run(call.unwrap().into_inner().message())
        .unwrap()
        .unwrap();
    assert_eq!(message.svids[0].x509_svid, chain);
    let key = pkcs8::PrivateKeyInfoRef::try_from(message.svids[0].x509_svid_key.as_slice());
    assert!(key.is_ok());
}

// SV-52, SV-79
#[test]
fn sv_79_bundles_come_by_trust_domain_and_jwt_bundles_hold_jwt_keys_alone() {
    let rig = Rig::new();
    let (other_ca, other_signer) = (TestCa::new("other.org"), Signer::new("key-2"));
    let other = bundle_of("other.org", &[&other_ca], &[&other_signer]);
    rig.identities.change(|update| {
        update
            .federated
            .insert(domain("other.org"), Arc::new(other));
    });
    let mut client = rig.client();
    let call = rig.run(client.fetch_x509_bundles(secured(X509BundlesRequest {})));
    let message = rig
        .run(call.unwrap().into_inner().message())
        .unwrap()
        .unwrap();
    let found: BTreeMap<_, _> = message.bundles.into_iter().collect();
    let expected = [
        (
            "spiffe://example.org".to_owned(),
            rig.identities.ca.der().to_vec(),
        ),
        ("spiffe://other.org".to_owned(), other_ca.der().to_vec()),
    ];
    assert_eq!(found, expected.into());

    let call = rig.run(client.fetch_jwt_bundles(secured(JwtBundlesRequest {})));
    let message = rig
        .run(call.unwrap().into_inner().message())
        .unwrap()
        .unwrap();
    for (name, kid) in [("example.org", "key-1"), ("other.org", "key-2")] {
        let document: serde_json::Value =
            serde_json::from_slice(&message.bundles[&format!("spiffe://{name}")]).unwrap();
        let keys = document["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 1, "{document}");
        assert_eq!(keys[0]["kid"], kid);
        assert!(document.get("spiffe_sequence").is_none() && keys[0].get("x5c").is_none());
    }
}

#[test]
fn a_new_svid_is_no_news_to_who_watches_bundles() {
    let rig = Rig::new();
    let mut client = rig.client();
    let call = rig.run(client.fetch_x509_bundles(secured(X509BundlesRequest {})));
    let mut x509 = call.unwrap().into_inner();
    let call = rig.run(client.fetch_jwt_bundles(secured(JwtBundlesRequest {})));
    let mut jwt = call.unwrap().into_inner();
    rig.run(x509.message()).unwrap().unwrap();
    rig.run(jwt.message()).unwrap().unwrap();
    rig.identities.rotate();
    let (next, signer) = (TestCa::new("example.org"), Signer::new("key-9"));
    let roots = [&rig.identities.ca, &next];
    let bundle = Arc::new(bundle_of("example.org", &roots, &[&signer]));
    rig.identities.change(|update| update.bundle = bundle);
    // The next message is the one with news, whatever was published before it.
    let message = rig.run(x509.message()).unwrap().unwrap();
    let both = [rig.identities.ca.der().as_ref(), next.der().as_ref()].concat();
    assert_eq!(message.bundles["spiffe://example.org"], both);
    let message = rig.run(jwt.message()).unwrap().unwrap();
    let document = &message.bundles["spiffe://example.org"];
    let bundle = String::from_utf8_lossy(document);
    assert!(bundle.contains("key-9"), "{bundle}");
}

// SV-62, SV-61
#[test]
fn a_jwt_svid_is_for_an_audience_and_perhaps_for_one_of_several_ids() {
    let rig = Rig::new();
    let second = "spiffe://example.org/second";
    let mut client = rig.client();
    let mut fetch = |audience: &[&str], id: &str| {
        let request = JwtsvidRequest {
            audience: audience
                .iter()
                .map(|&audience| audience.to_owned())
                .collect(),
            spiffe_id: id.to_owned(),
        };
        let answer = rig.run(client.fetch_jwtsvid(secured(request)));
        answer.map(|answer| answer.into_inner().svids)
    };
    let refused = fetch(&[], "").err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "audience must be specified");
    let refused = fetch(&["a"], "no id").err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused
            .message()
            .starts_with("invalid requested SPIFFE ID: ")
    );
    let refused = fetch(&["a"], second).err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);

    rig.identities
        .entries
        .lock()
        .unwrap()
        .push(entry(second, ""));
    let ids = |svids: Vec<ah_spire_wire::workload::Jwtsvid>| {
        svids
            .into_iter()
            .map(|svid| svid.spiffe_id)
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(fetch(&["a"], "").ok().unwrap()), [WORKLOAD, second]);
    assert_eq!(ids(fetch(&["a"], second).ok().unwrap()), [second]);

    let down = JwtError::Unavailable("the server is away".into());
    *rig.identities.jwt_fault.lock().unwrap() = Some(down);
    let refused = fetch(&["a"], "").err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    let text = "could not fetch JWT-SVID: the server is away";
    assert_eq!(refused.message(), text);
}

// SV-57, SV-61 to SV-68: the texts are upstream's; each rule has its own test beside the validation.
#[test]
fn sv_68_a_jwt_svid_is_valid_by_the_bundle_of_its_own_trust_domain_alone() {
    let rig = Rig::with(|config| config.allowed_foreign_jwt_claims = vec!["role".into()]);
    let other = Signer::new("key-2");
    let bundle = bundle_of("other.org", &[], &[&other]);
    rig.identities.change(|update| {
        update
            .federated
            .insert(domain("other.org"), Arc::new(bundle));
    });
    let mut client = rig.client();
    let mut validate = |audience: &str, svid: String| {
        let request = ValidateJwtsvidRequest {
            audience: audience.to_owned(),
            svid,
        };
        let answer = rig.run(client.validate_jwtsvid(secured(request)));
        answer.map(tonic::Response::into_inner)
    };
    let claims = |subject: &str| json!({"sub": subject, "aud": "a", "exp": 4_000_000_000_u64, "role": "r", "more": 1});
    let own = &rig.identities.signer;
    let foreign_id = "spiffe://other.org/w";

    let names = |answer: ah_spire_wire::workload::ValidateJwtsvidResponse| {
        answer
            .claims
            .unwrap()
            .fields
            .into_keys()
            .collect::<Vec<_>>()
    };
    let answer = validate("a", own.sign(&claims(WORKLOAD))).ok().unwrap();
    assert_eq!(answer.spiffe_id, WORKLOAD);
    let audience = answer.claims.as_ref().unwrap().fields["aud"].kind.clone();
    assert!(matches!(audience, Some(Kind::ListValue(list)) if list.values.len() == 1));
    assert_eq!(names(answer), ["aud", "exp", "more", "role", "sub"]);
    // allowed_foreign_jwt_claims
    let answer = validate("a", other.sign(&claims(foreign_id))).ok().unwrap();
    assert_eq!(names(answer), ["aud", "exp", "role", "sub"]);

    let stranger = Signer::new("key-3");
    for (audience, token, text) in [
        (
            "",
            own.sign(&claims(WORKLOAD)),
            "audience must be specified",
        ),
        ("a", String::new(), "svid must be specified"),
        ("a", "x.y".into(), "unable to parse JWT token"),
        (
            "b",
            own.sign(&claims(WORKLOAD)),
            "expected audience in [\"b\"]",
        ),
        (
            "a",
            own.sign(&claims(foreign_id)),
            "public key \"key-1\" not found",
        ),
        (
            "a",
            other.sign(&claims(WORKLOAD)),
            "public key \"key-2\" not found",
        ),
        (
            "a",
            stranger.sign(&claims("spiffe://third.org/w")),
            "no keys found for trust domain",
        ),
        (
            "a",
            own.sign(&json!({"sub": WORKLOAD, "aud": "a", "exp": 1})),
            "token has expired",
        ),
    ] {
        let refused = validate(audience, token).err().unwrap();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(text), "{}", refused.message());
    }
}

#[test]
fn an_attestation_that_fails_gives_nothing_and_shows_in_the_health() {
    let rig = Rig::new();
    let mut health = HealthClient::with_origin(rig.channel(), Channel::origin());
    let answer = rig
        .run(health.check(HealthCheckRequest::default()))
        .unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    // Without an entry for itself the agent is healthy all the same.
    rig.identities.unregister();
    let answer = rig
        .run(health.check(HealthCheckRequest::default()))
        .unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);

    rig.attestor.broken.send_replace(true);
    let answer = rig
        .run(health.check(HealthCheckRequest::default()))
        .unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::NotServing);
    let mut client = rig.client();
    let refused = rig
        .run(client.fetch_x509svid(secured(X509svidRequest {})))
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(refused.message(), "workload attestation failed");

    let service = "SpiffeWorkloadAPI".to_owned();
    let refused = rig
        .run(health.check(HealthCheckRequest { service }))
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "per-service health is not supported");
}

#[test]
fn disable_workload_api_leaves_the_health_service() {
    let rig = Rig::with(|config| config.disabled = true);
    let mut health = HealthClient::with_origin(rig.channel(), Channel::origin());
    let answer = rig
        .run(health.check(HealthCheckRequest::default()))
        .unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    let mut client = rig.client();
    let refused = rig
        .run(client.fetch_x509svid(secured(X509svidRequest {})))
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert_eq!(refused.message(), "unknown service SpiffeWorkloadAPI");
}
