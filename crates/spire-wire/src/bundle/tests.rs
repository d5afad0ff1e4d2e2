use serde_json::{Value, json};

use super::*;

fn domain() -> TrustDomain {
    TrustDomain::new("example.org").unwrap()
}

fn ca(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let params = rcgen::CertificateParams::default();
    params.self_signed(&key).unwrap().der().to_vec()
}

fn spki(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
    use rcgen::PublicKeyData as _;
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    key.subject_public_key_info()
}

fn bundle() -> Bundle {
    let authority = |der| X509Authority {
        der,
        tainted: false,
    };
    let key = |spki, id: &str| JwtKey {
        spki,
        id: id.into(),
        expires_at: 0,
        tainted: false,
    };
    Bundle {
        trust_domain: domain(),
        x509: vec![
            authority(ca(&rcgen::PKCS_ECDSA_P256_SHA256)),
            authority(ca(&rcgen::PKCS_ED25519)),
        ],
        jwt: vec![
            key(spki(&rcgen::PKCS_ECDSA_P256_SHA256), "a"),
            key(spki(&rcgen::PKCS_ECDSA_P384_SHA384), "b"),
            key(spki(&rcgen::PKCS_ECDSA_P521_SHA512), "c"),
            key(spki(&rcgen::PKCS_RSA_SHA256), "d"),
        ],
        wit: Vec::new(),
        refresh_hint: 300,
        sequence: u64::MAX,
    }
}

fn document() -> Value {
    serde_json::from_str(&to_document(&bundle(), Contents::Spiffe).unwrap()).unwrap()
}

fn read(document: &Value) -> Result<Bundle, Invalid> {
    from_document(&domain(), document.to_string().as_bytes())
}

// SV-43, SV-44: 64 bits and seconds, both ways.
#[test]
fn a_document_gives_back_the_bundle() {
    let bundle = bundle();
    let document = to_document(&bundle, Contents::Spiffe).unwrap();
    assert_eq!(from_document(&domain(), document.as_bytes()), Ok(bundle));
}

#[test]
fn elements_are_what_the_standards_say() {
    let document = document();
    let keys = document["keys"].as_array().unwrap();
    let (x509, jwt) = keys.split_at(2);
    // SV-40
    for key in x509 {
        assert_eq!(key["use"], "x509-svid");
        assert!(key.get("kid").is_none());
        assert_eq!(key["x5c"].as_array().unwrap().len(), 1);
    }
    // SV-66, SV-48
    for key in jwt {
        assert_eq!(key["use"], "jwt-svid");
        assert!(!key["kid"].as_str().unwrap().is_empty());
        assert!(key["kty"].is_string());
        assert!(key.get("x5c").is_none());
    }
    assert_eq!(document["spiffe_sequence"], u64::MAX);
    assert_eq!(document["spiffe_refresh_hint"], 300);
}

// What upstream writes for a bundle without keys, to the byte.
#[test]
fn the_layout_is_upstreams() {
    let mut bundle = bundle();
    bundle.x509.clear();
    bundle.jwt.clear();
    bundle.sequence = 7;
    let text = to_document(&bundle, Contents::Spiffe).unwrap();
    assert_eq!(
        text,
        "{\n    \"keys\": [],\n    \"spiffe_sequence\": 7,\n    \"spiffe_refresh_hint\": 300\n}"
    );
}

// SV-79
#[test]
fn a_jwt_bundle_holds_jwt_keys_alone() {
    let text = to_document(&bundle(), Contents::JwtKeys).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let ids: Vec<_> = document["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["kid"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["a", "b", "c", "d"]);
    assert_eq!(document.as_object().unwrap().len(), 1, "{text}");
    assert!(!text.contains("x5c"));
}

// SV-41
#[test]
fn no_x5c_passes_over_the_entry_and_more_than_one_counts_as_the_first() {
    let mut document = document();
    let second = document["keys"][1]["x5c"][0].clone();
    document["keys"][0]["x5c"]
        .as_array_mut()
        .unwrap()
        .push(second);
    document["keys"][1]["x5c"] = json!([]);
    let got = read(&document).unwrap();
    assert_eq!(got.x509.len(), 1);
    document["keys"][1].as_object_mut().unwrap().remove("x5c");
    assert_eq!(read(&document).unwrap().x509, got.x509);
}

// SV-42
#[test]
fn unknown_parameters_change_nothing() {
    let mut document = document();
    let plain = read(&document).unwrap();
    document["other"] = json!({"x": 1});
    document["keys"][0]["alg"] = json!("ES256");
    assert_eq!(read(&document), Ok(plain));
}

// SV-42: neither has to be there.
#[test]
fn sequence_and_refresh_hint_may_be_missing_but_not_malformed() {
    let got = read(&json!({"keys": []})).unwrap();
    assert_eq!((got.sequence, got.refresh_hint), (0, 0));
    for name in ["spiffe_sequence", "spiffe_refresh_hint"] {
        for value in [json!("1"), json!(1.5), json!(-1)] {
            let mut document = json!({"keys": []});
            document[name] = value;
            assert!(read(&document).is_err(), "{document}");
        }
    }
}

// SV-45
#[test]
fn keys_have_to_be_there_and_may_be_empty() {
    assert!(
        read(&json!({"spiffe_sequence": 1}))
            .unwrap_err()
            .0
            .contains("keys")
    );
    assert!(read(&json!({"keys": null})).is_err());
    let empty = read(&json!({"keys": []})).unwrap();
    assert!(empty.x509.is_empty() && empty.jwt.is_empty());
}

// SV-46, SV-48, SV-49
#[test]
fn elements_of_unknown_type_or_use_are_passed_over() {
    let mut document = document();
    let whole = read(&document).unwrap();
    let keys = document["keys"].as_array_mut().unwrap();
    let known = keys[2].clone();
    for (name, value) in [
        ("kty", json!("AKP")),
        ("kty", json!(null)),
        ("use", json!("JWT-SVID")),
        ("use", json!("wit-svid")),
        ("use", json!(null)),
        ("crv", json!("secp256k1")),
    ] {
        let mut other = known.clone();
        other[name] = value;
        keys.push(other);
    }
    keys.push(json!(5));
    keys.push(json!({"kty": "EC", "use": "future-svid", "kid": 7, "x5c": "text"}));
    assert_eq!(read(&document), Ok(whole));
}

// SV-66: what is known and wrong is not dropped in silence.
#[test]
fn a_damaged_element_fails_the_document() {
    for (at, name, value, said) in [
        (2, "kid", json!(null), "missing key ID in jwt-svid entry 2"),
        (2, "kid", json!(""), "missing key ID in jwt-svid entry 2"),
        (2, "kid", json!("b"), "duplicate key ID \"b\""),
        (
            2,
            "x",
            json!("AAAA"),
            "jwt-svid entry 2: x or y has the wrong length",
        ),
        (
            2,
            "y",
            json!("?"),
            "jwt-svid entry 2: y is not a base64url number",
        ),
        (
            5,
            "e",
            json!(""),
            "jwt-svid entry 5: e is not a base64url number",
        ),
        (0, "x5c", json!(["AAAA"]), "x509-svid entry 0: x5c"),
        (0, "x5c", json!(["?"]), "x509-svid entry 0: x5c"),
    ] {
        let mut document = document();
        document["keys"][at][name] = value;
        let error = read(&document).unwrap_err().0;
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_point_beside_its_curve_is_refused() {
    let mut document = document();
    document["keys"][2]["x"] = document["keys"][2]["y"].clone();
    let error = read(&document).unwrap_err().0;
    assert_eq!(error, "jwt-svid entry 2: the public key is not valid");
}

// SV-50
#[test]
fn a_map_with_a_domain_twice_is_refused() {
    let one = r#"{"trust_domains": {"a.org": {"keys": []}, "b.org": {"keys": []}}}"#;
    assert_eq!(map_from_document(one.as_bytes()).unwrap().len(), 2);
    for name in ["a.org", "spiffe://a.org"] {
        let twice = one.replace("b.org", name);
        let error = map_from_document(twice.as_bytes()).unwrap_err().0;
        assert!(error.contains("duplicate trust domain"), "{error}");
    }
    assert!(map_from_document(br#"{}"#).is_err());
    assert!(map_from_document(br#"{"trust_domains": {"A B": {"keys": []}}}"#).is_err());
}

// SV-51
#[test]
fn a_maps_bundles_have_no_refresh_hint() {
    let map = json!({"trust_domains": {"example.org": document()}}).to_string();
    let got = map_from_document(map.as_bytes()).unwrap();
    assert_eq!(got[&domain()].refresh_hint, 0);
    assert_eq!(got[&domain()].jwt.len(), 4);
}

#[test]
fn pem_goes_both_ways() {
    let bundle = bundle();
    let got = from_pem(&domain(), to_pem(&bundle).as_bytes()).unwrap();
    assert_eq!(got.x509, bundle.x509);
    assert!(to_pem(&bundle).lines().all(|line| line.len() <= 64));
    assert!(from_pem(&domain(), b"nothing").is_err());
    let broken = pem(b"no certificate");
    assert!(from_pem(&domain(), broken.as_bytes()).is_err());
}

#[test]
fn the_wire_and_the_datastore_keep_everything() {
    let mut bundle = bundle();
    bundle.x509[0].tainted = true;
    bundle.jwt[1].tainted = true;
    bundle.jwt[1].expires_at = 5;
    // Of whatever kind upstream's server makes.
    bundle.wit.push(JwtKey {
        spki: vec![1],
        id: "w".into(),
        expires_at: 6,
        tainted: true,
    });
    let wire = bundle_to_wire(&bundle);
    assert_eq!(wire.trust_domain, "example.org");
    assert_eq!(bundle_from_wire(&wire), Ok(bundle.clone()));
    let stored = bundle_to_stored(&bundle);
    assert_eq!(stored.trust_domain_id, "spiffe://example.org");
    assert_eq!(bundle_from_stored(&stored), Ok(bundle));
}

#[test]
fn what_is_no_bundle_is_named() {
    let mut wire = bundle_to_wire(&bundle());
    wire.jwt_authorities[0].key_id.clear();
    let error = bundle_from_wire(&wire).unwrap_err().0;
    assert_eq!(error, "unable to parse JWT authority: missing key ID");
    let mut wire = bundle_to_wire(&bundle());
    wire.x509_authorities[0].asn1 = vec![0x30].into();
    let error = bundle_from_wire(&wire).unwrap_err().0;
    assert!(
        error.starts_with("unable to parse X.509 authority: "),
        "{error}"
    );
}

#[test]
fn several_certificates_in_one_authority_come_apart() {
    let mut wire = bundle_to_wire(&bundle());
    let both: Vec<u8> = wire
        .x509_authorities
        .iter()
        .flat_map(|ca| ca.asn1.to_vec())
        .collect();
    wire.x509_authorities.truncate(1);
    wire.x509_authorities[0].asn1 = both.into();
    assert_eq!(bundle_from_wire(&wire).unwrap().x509.len(), 2);
}
