//! The bundle endpoint, and the trust domains that it is for.

use std::path::Path;

use ah_spire_plugin::server::{BundleEndpointProfile, FederationProfile};

use super::{minimum, refused, seconds, server};

// Inventory section 11: `federates_with "<td>" { bundle_endpoint_url }`, `federates_with "<td>" { bundle_endpoint_profile "https_web" { } }`,
// `federates_with "<td>" { bundle_endpoint_profile "https_spiffe" { endpoint_spiffe_id } }`.
#[test]
fn federation_arrives() {
    let config = server(include_str!("../../fixtures/server-every-key.conf")).unwrap();
    let endpoint = config.federation.bundle_endpoint.unwrap();
    assert_eq!(endpoint.refresh_hint, seconds(600));
    let BundleEndpointProfile::Acme(acme) = endpoint.profile else {
        panic!("acme")
    };
    assert_eq!(
        acme.directory_url.as_deref(),
        Some("https://acme.example.org")
    );
    assert_eq!(
        (acme.domain_name.as_str(), acme.email.as_str()),
        ("example.org", "mail@example.org")
    );
    assert!(acme.tos_accepted);
    assert_eq!(acme.cache_dir, Path::new("./data/bundle-acme"));
    let relations: Vec<_> = config
        .federation
        .federates_with
        .iter()
        .map(|(name, with)| (name.as_str(), with))
        .collect();
    assert_eq!(relations[0].0, "one.org");
    assert_eq!(relations[0].1.profile, FederationProfile::HttpsWeb);
    assert_eq!(relations[1].0, "two.org");
    let FederationProfile::HttpsSpiffe(id) = &relations[1].1.profile else {
        panic!("https_spiffe")
    };
    assert_eq!(id.to_string(), "spiffe://two.org/spire/server");
    assert_eq!(relations[1].1.bundle_endpoint_url, "HTTPS://two.org/bundle");
}

fn endpoint(keys: &str) -> Result<BundleEndpointProfile, String> {
    let text = minimum(&format!(
        "federation {{ bundle_endpoint {{ address = \"127.0.0.1\" port = 1 {keys} }} }}"
    ));
    let config = server(&text).map_err(|why| why.to_string())?;
    Ok(config.federation.bundle_endpoint.unwrap().profile)
}

#[test]
fn a_bundle_endpoint_has_one_profile() {
    let acme = r#"acme { domain_name = "d" email = "e" }"#;
    assert_eq!(
        endpoint(r#"profile "https_spiffe" {}"#),
        Ok(BundleEndpointProfile::HttpsSpiffe)
    );
    assert!(matches!(endpoint(acme), Ok(BundleEndpointProfile::Acme(_))));
    assert!(matches!(
        endpoint(&format!("profile \"https_web\" {{ {acme} }}")),
        Ok(BundleEndpointProfile::Acme(_))
    ));
    let file = |interval: &str| {
        endpoint(&format!(
            r#"profile "https_web" {{ serving_cert_file {{ cert_file_path = "/c" key_file_path = "/k" {interval} }} }}"#
        ))
    };
    let expected = |interval| {
        let (cert, key) = ("/c".into(), "/k".into());
        Ok(BundleEndpointProfile::ServingCertFile {
            cert,
            key,
            sync_interval: seconds(interval),
        })
    };
    assert_eq!(file(""), expected(3600));
    assert_eq!(file(r#"file_sync_interval = "5m""#), expected(300));

    let refusals = [
        (
            format!("{acme} profile \"https_spiffe\" {{}}"),
            "only one of acme and profile",
        ),
        (
            "profile \"https_web\" {} profile \"https_spiffe\" {}".to_owned(),
            "exactly one profile is expected, not 2",
        ),
        (
            "profile \"https_web\" {}".to_owned(),
            "needs acme { } or serving_cert_file { }",
        ),
        (
            "profile \"other\" {}".to_owned(),
            "use \"https_spiffe\" or \"https_web\"",
        ),
        (
            "acme { email = \"e\" }".to_owned(),
            "domain_name of acme must be configured",
        ),
        (
            "acme { domain_name = \"d\" }".to_owned(),
            "email of acme must be configured",
        ),
        (
            "refresh_hint = \"x\"".to_owned(),
            "could not parse federation.bundle_endpoint.refresh_hint",
        ),
        ("port = 70000".to_owned(), "must be a port"),
    ];
    for (keys, message) in refusals {
        let result = endpoint(&keys);
        assert!(
            result.as_ref().is_err_and(|why| why.contains(message)),
            "{keys}: {result:?}"
        );
    }
}

#[test]
fn a_relation_needs_a_url_and_a_profile() {
    let relation = |name: &str, keys: &str| {
        refused(&format!(
            "federation {{ federates_with {name:?} {{ {keys} }} }}"
        ))
    };
    let web = r#"bundle_endpoint_profile "https_web" {}"#;
    let url = r#"bundle_endpoint_url = "https://x""#;
    let key = "federation.federates_with[\"x.org\"]";
    assert_eq!(relation("x.org", &format!("{url} {web}")), "nothing");
    assert_eq!(
        relation("x.org", web),
        format!("{key}.bundle_endpoint_url must be configured")
    );
    assert_eq!(
        relation(
            "x.org",
            &format!("bundle_endpoint_url = \"http://x\" {web}")
        ),
        format!("{key}.bundle_endpoint_url must start with https://, unlike \"http://x\"")
    );
    assert_eq!(
        relation("x.org", url),
        format!("{key}.bundle_endpoint_profile must be configured")
    );
    assert!(
        relation(
            "x.org",
            &format!("{url} bundle_endpoint_profile \"other\" {{}}")
        )
        .contains("is unknown")
    );
    let spiffe = r#"bundle_endpoint_profile "https_spiffe" { endpoint_spiffe_id = "x" }"#;
    assert!(
        relation("x.org", &format!("{url} {spiffe}"))
            .contains("could not parse endpoint_spiffe_id")
    );
    assert!(relation("a b", &format!("{url} {web}")).contains("is not named by a trust domain"));
}
