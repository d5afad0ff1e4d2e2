//! `federation …` as upstream has it (inventory section 6).

use serde_json::json;

use crate::commands::{fails, json, ok, run};
use crate::rig::Rig;

const CREATE: [&str; 8] = [
    "federation",
    "create",
    "-trustDomain",
    "other.org",
    "-bundleEndpointURL",
    "https://127.0.0.1:1/x",
    "-bundleEndpointProfile",
    "https_web",
];

const SHOWN: &str = "\
Trust domain              : other.org
Bundle endpoint URL       : https://127.0.0.1:1/x
Bundle endpoint profile   : https_web
";

#[tokio::test]
async fn relationships_are_printed_as_upstream_prints_them() {
    let rig = Rig::start().await;
    assert_eq!(
        ok(&rig, &["federation", "list"]).await,
        "Found 0 federation relationships\n"
    );
    assert_eq!(ok(&rig, &CREATE).await, format!("\n{SHOWN}"));
    assert_eq!(
        ok(&rig, &["federation", "list"]).await,
        format!("Found 1 federation relationship\n\n{SHOWN}")
    );
    let again = run(&rig, &CREATE, "").await;
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(again.stdout, b"\n");
    let told = String::from_utf8(again.stderr).unwrap();
    let head = "Failed to create the following federation relationship (code: Internal, msg: \"failed to create federation relationship: ";
    assert!(told.starts_with(head), "{told}");
    let tail = format!("{SHOWN}Error: failed to create one or more federation relationships\n");
    assert!(told.ends_with(&tail), "{told}");

    let pem = ok(&rig, &["bundle", "show"]).await;
    let path = rig.folder.path().join("bundle.pem");
    std::fs::write(&path, pem).unwrap();
    let update = [
        "federation",
        "update",
        "-trustDomain",
        "other.org",
        "-bundleEndpointURL",
        "https://127.0.0.1:1/y",
        "-bundleEndpointProfile",
        "https_spiffe",
        "-endpointSpiffeID",
        "spiffe://other.org/spire/server",
        "-trustDomainBundlePath",
        path.to_str().unwrap(),
    ];
    let updated = "\
Trust domain              : other.org
Bundle endpoint URL       : https://127.0.0.1:1/y
Bundle endpoint profile   : https_spiffe
Endpoint SPIFFE ID        : spiffe://other.org/spire/server
";
    assert_eq!(ok(&rig, &update).await, format!("\n{updated}"));
    let show = ["federation", "show", "-trustDomain", "other.org"];
    let head = "Found a federation relationship with trust domain other.org:";
    assert_eq!(ok(&rig, &show).await, format!("{head}\n\n{updated}"));
    let mut shown = json(&rig, &show).await;
    let bundle = shown["trust_domain_bundle"].take();
    assert_eq!(bundle["x509_authorities"].as_array().unwrap().len(), 1);
    assert_eq!(
        shown,
        json!({
            "trust_domain": "other.org",
            "bundle_endpoint_url": "https://127.0.0.1:1/y",
            "https_spiffe": { "endpoint_spiffe_id": "spiffe://other.org/spire/server" },
            "trust_domain_bundle": null,
        })
    );

    let refresh = ["federation", "refresh", "-id", "other.org"];
    let failed = fails(&rig, &refresh).await;
    let why = "Error: failed to refresh bundle: rpc error: code = Internal desc = failed to refresh bundle: failed to fetch federated bundle from endpoint: failed to fetch bundle: https://127.0.0.1:1/y: 127.0.0.1:1: ";
    assert!(failed.starts_with(why), "{failed}");
    let delete = ["federation", "delete", "-id", "other.org"];
    assert_eq!(
        ok(&rig, &delete).await,
        "federation relationship deleted.\n"
    );
    for (command, why) in [
        (
            &delete[..],
            "failed to delete federation relationship \"other.org\": federation relationship not found",
        ),
        (
            &refresh[..],
            "there is no federation relationship with trust domain \"other.org\"",
        ),
        (
            &show[..],
            "error showing federation relationship: rpc error: code = NotFound desc = federation relationship does not exist",
        ),
        (
            &["federation", "show"][..],
            "a trust domain name is required",
        ),
        (&["federation", "delete"][..], "id is required"),
        (&["federation", "refresh"][..], "id is required"),
        (&["federation", "create"][..], "trust domain is required"),
    ] {
        assert_eq!(fails(&rig, command).await, format!("Error: {why}\n"));
    }
}

#[tokio::test]
async fn several_relationships_come_from_a_document() {
    let rig = Rig::start().await;
    let document = json!({ "federationRelationships": [
        { "trustDomain": "a.org", "bundleEndpointURL": "https://127.0.0.1:1", "bundleEndpointProfile": "https_web" },
        { "trustDomain": "example.org", "bundleEndpointURL": "https://127.0.0.1:1", "bundleEndpointProfile": "https_web" },
    ] })
    .to_string();
    let data = ["federation", "create", "-data", "-", "-output", "json"];
    let output = run(&rig, &data, &document).await;
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        told["results"][0],
        json!({
            "status": { "code": 0, "message": "OK" },
            "federation_relationship": {
                "trust_domain": "a.org",
                "bundle_endpoint_url": "https://127.0.0.1:1",
                "https_web": {},
            },
        })
    );
    assert_eq!(
        told["results"][1],
        json!({ "status": {
            "code": 3,
            "message": "unable to create federation relationship for server trust domain",
        } })
    );
    let both = [
        "federation",
        "create",
        "-data",
        "-",
        "-trustDomain",
        "a.org",
    ];
    assert_eq!(
        fails(&rig, &both).await,
        "Error: cannot use other flags to specify relationship fields when 'data' flag is set\n"
    );
    let listed = json(&rig, &["federation", "list"]).await;
    assert_eq!(
        listed["federation_relationships"][0]["trust_domain"],
        "a.org"
    );
    assert_eq!(listed["next_page_token"], "");
}
