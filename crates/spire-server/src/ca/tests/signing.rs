use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use ah_spire_wire::jwt::{UnverifiedJwt, validate_jwt_svid};
use ah_spire_wire::model::{Bundle, JwtKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use spiffe::{SpiffeId, TrustDomain};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::kit::{START, at, authorities, domain, jwt_request, key, request, verify, wit_request};
use crate::ca::authority::Token;
use crate::ca::{
    Authorities, BadHolderKey, Composers, HolderKey, Profile, SignError, Signer, Subject, UniqueId,
    X509Authority, X509Svid,
};
use crate::keys::KeyType;

const ALL: [KeyType; 4] = [
    KeyType::Rsa2048,
    KeyType::Rsa4096,
    KeyType::EcP256,
    KeyType::EcP384,
];

fn parse(der: &[u8]) -> X509Certificate<'_> {
    let (rest, certificate) = X509Certificate::from_der(der).unwrap();
    assert!(rest.is_empty());
    certificate
}

fn ca(authorities: &Authorities) -> std::sync::Arc<X509Authority> {
    authorities.x509_authority().unwrap()
}

#[test]
fn svids_of_every_key_type_verify() {
    for kind in ALL {
        let (authorities, _) = authorities(Profile::new(domain()), kind);
        let svid = authorities.sign_x509_svid(request("/w")).unwrap();
        assert_eq!(svid.chain.len(), 1);
        verify(&svid.chain, [ca(&authorities).der()], at(0));
    }
}

// Every extension in its place, its critical flag and its bytes are those of an SVID that upstream 1.14.1 made, but
// for keys and names. SV-23, SV-26 to SV-34.
#[test]
fn an_svid_is_made_like_upstreams() {
    let upstream =
        CertificateDer::from_pem_slice(include_bytes!("../../../tests/fixtures/upstream-svid.pem"))
            .unwrap();
    let theirs = parse(&upstream);
    let (authorities, _) = authorities(Profile::new(domain()), KeyType::EcP256);
    let mut wanted = request("/w");
    wanted.dns_names = vec!["a.example.org".into(), "b.example.org".into()];
    let svid = authorities.sign_x509_svid(wanted).unwrap();
    let ours = parse(&svid.chain[0]);
    assert_eq!(ours.subject().as_raw(), theirs.subject().as_raw());
    assert_eq!(ours.version(), theirs.version());
    assert_eq!(ours.signature_algorithm, theirs.signature_algorithm);
    same_extensions(&ours, &theirs);
}

#[test]
fn a_ca_is_made_like_upstreams() {
    let upstream =
        CertificateDer::from_pem_slice(include_bytes!("../../../tests/fixtures/upstream-ca.pem"))
            .unwrap();
    let theirs = parse(&upstream);
    let (authorities, _) = authorities(Profile::new(domain()), KeyType::EcP256);
    let ca = ca(&authorities);
    let ours = parse(ca.der());
    same_extensions(&ours, &theirs);
    let subject = |certificate: &X509Certificate<'_>| {
        let text = certificate.subject().to_string();
        text.replace(&certificate.serial.to_string(), "SERIAL")
    };
    assert_eq!(subject(&ours), subject(&theirs));
    assert_eq!(subject(&ours), "C=US, O=SPIFFE, serialNumber=SERIAL");
    assert_eq!(ours.subject().as_raw(), ours.issuer().as_raw());
    assert_eq!(ca.id().len(), 40);
    assert_eq!(ca.upstream_id(), "");
}

fn same_extensions(ours: &X509Certificate<'_>, theirs: &X509Certificate<'_>) {
    let list = |certificate: &X509Certificate<'_>| -> Vec<(String, bool, Vec<u8>)> {
        certificate
            .extensions()
            .iter()
            .map(|extension| {
                let id = extension.oid.to_id_string();
                // Key identifiers differ as the keys do.
                let bytes = match id.as_str() {
                    "2.5.29.14" | "2.5.29.35" => vec![u8::try_from(extension.value.len()).unwrap()],
                    _ => extension.value.to_vec(),
                };
                (id, extension.critical, bytes)
            })
            .collect()
    };
    assert_eq!(list(ours), list(theirs));
}

#[test]
fn subjects() {
    let mut profile = Profile::new(domain());
    profile.composers = Composers::new(vec![Arc::new(UniqueId)]);
    profile.ca_subject = Subject {
        country: vec!["DE".into(), "AT".into()],
        organization: vec!["Grüße".into()],
        common_name: "ca".into(),
        ..Subject::default()
    };
    let (authorities, _) = authorities(profile, KeyType::EcP256);
    let name = |der: &[u8]| parse(der).subject().to_string();
    assert!(name(ca(&authorities).der()).starts_with("C=AT + C=DE, O=Grüße, CN=ca, serialNumber="));
    let svid = authorities.sign_x509_svid(request("/w")).unwrap();
    // The first half of the SHA-256 of the ID: what upstream's plugin makes of it.
    assert_eq!(
        name(&svid.chain[0]),
        "C=US, O=SPIRE, uniqueIdentifier=21e288668667254f8998994c69c78794"
    );
    let agent = authorities
        .sign_agent_svid(request("/spire/agent/a"))
        .unwrap();
    assert_eq!(name(&agent.chain[0]), "C=US, O=SPIRE");
    let server = authorities
        .sign_server_svid(key(KeyType::EcP256).spki())
        .unwrap();
    assert_eq!(name(&server.chain[0]), "C=US, O=SPIRE");
    let text = format!(
        "{:?}",
        parse(&server.chain[0]).subject_alternative_name().unwrap()
    );
    assert!(
        text.contains("URI(\"spiffe://example.org/spire/server\")"),
        "{text}"
    );
}

#[test]
fn lifetimes_are_backdated_and_capped() {
    let mut profile = Profile::new(domain());
    profile.agent_ttl = Duration::from_secs(7200);
    let (authorities, clock) = authorities(profile, KeyType::EcP256);
    let ends = |svid: &X509Svid| {
        let certificate = parse(&svid.chain[0]);
        let validity = certificate.validity();
        let end = u64::try_from(validity.not_after.timestamp()).unwrap();
        assert_eq!(svid.not_after, UNIX_EPOCH + Duration::from_secs(end));
        let start = u64::try_from(validity.not_before.timestamp()).unwrap();
        (start.checked_signed_diff(START).unwrap(), end - START)
    };
    let day = 24 * 3600;
    assert_eq!(
        ends(&authorities.sign_x509_svid(request("/w")).unwrap()),
        (-10, 3600)
    );
    assert_eq!(
        ends(&authorities.sign_agent_svid(request("/a")).unwrap()),
        (-10, 7200)
    );
    for (ttl, end) in [(60, 60), (0, 3600), (day + 1, day), (u64::MAX, day)] {
        let mut wanted = request("/w");
        wanted.ttl = Some(Duration::from_secs(ttl));
        assert_eq!(
            ends(&authorities.sign_x509_svid(wanted).unwrap()).1,
            end,
            "{ttl}"
        );
    }
    // A CA that has ended signs nothing.
    clock.advance(Duration::from_secs(day));
    assert_eq!(
        authorities
            .sign_x509_svid(request("/w"))
            .unwrap_err()
            .to_string(),
        "X509 CA is not available for signing"
    );
}

#[test]
fn serial_numbers_are_random_and_told_in_decimal() {
    let (authorities, _) = authorities(Profile::new(domain()), KeyType::EcP256);
    let mut seen = BTreeSet::new();
    for _ in 0..100 {
        let svid = authorities.sign_x509_svid(request("/w")).unwrap();
        assert_eq!(parse(&svid.chain[0]).serial.to_string(), svid.serial_number);
        assert!(seen.insert(svid.serial_number));
    }
}

#[test]
fn dates_beyond_2049_are_written_as_rfc_5280_says() {
    let mut profile = Profile::new(domain());
    profile.ca_ttl = Duration::from_secs(40 * 365 * 24 * 3600);
    let (authorities, _) = authorities(profile, KeyType::EcP256);
    let ca = ca(&authorities);
    verify(
        &authorities.sign_x509_svid(request("/w")).unwrap().chain,
        [ca.der()],
        at(0),
    );
    assert_eq!(
        parse(ca.der()).validity().not_after.to_datetime().year(),
        2067
    );
}

#[test]
fn what_cannot_be_signed_is_said() {
    let (authorities, _) = authorities(Profile::new(domain()), KeyType::EcP256);
    let mut wanted = request("/w");
    wanted.spiffe_id = SpiffeId::new("spiffe://other.org/w").unwrap();
    assert_eq!(
        authorities.sign_x509_svid(wanted).unwrap_err().to_string(),
        "invalid X509-SVID ID: \"spiffe://other.org/w\" is not a member of trust domain \"example.org\""
    );
    let mut wanted = request("/w");
    wanted.spiffe_id = SpiffeId::new("spiffe://example.org").unwrap();
    let error = authorities.sign_x509_svid(wanted).unwrap_err().to_string();
    assert!(error.ends_with("; path is empty"), "{error}");
    for spki in [vec![], vec![0x30; 10 << 20], b"key".to_vec()] {
        let mut wanted = request("/w");
        wanted.spki = spki;
        let error = authorities.sign_x509_svid(wanted).unwrap_err();
        assert!(matches!(error, SignError::Invalid(_)), "{error}");
    }
}

#[test]
fn a_downstream_ca_signs_below_ours() {
    let (authorities, _) = authorities(Profile::new(domain()), KeyType::EcP256);
    let below_key = key(KeyType::EcP256);
    let below = authorities
        .sign_downstream_ca(below_key.spki(), None)
        .unwrap();
    let certificate = parse(&below.chain[0]);
    assert!(certificate.is_ca());
    assert_eq!(
        certificate.subject().to_string().split(", serial").next(),
        Some("C=US, O=SPIFFE, OU=DOWNSTREAM-1")
    );
    let downstream = X509Authority {
        key: below_key,
        certificate: crate::ca::authority::Certificate::read(below.chain[0].clone()).unwrap(),
        upstream_chain: below.chain.clone(),
    };
    assert_eq!(downstream.upstream_id(), ca(&authorities).id());
    let root = ca(&authorities);
    authorities.set_x509(Some(std::sync::Arc::new(downstream)));
    let svid = authorities.sign_x509_svid(request("/w")).unwrap();
    assert_eq!(svid.chain.len(), 2);
    verify(&svid.chain, [root.der()], at(0));
}

fn bundle(authorities: &Authorities) -> Bundle {
    let jwt = authorities.active_token(Token::Jwt, at(0)).unwrap();
    Bundle {
        trust_domain: TrustDomain::new("example.org").unwrap(),
        x509: Vec::new(),
        jwt: vec![JwtKey {
            spki: jwt.key.spki().to_vec(),
            id: jwt.id.clone(),
            expires_at: 0,
            tainted: false,
        }],
        wit: Vec::new(),
        refresh_hint: 0,
        sequence: 0,
    }
}

// SV-57 to SV-62, SV-64
#[test]
fn jwt_svids_of_every_key_type_are_believed() {
    for kind in ALL {
        let (authorities, _) = authorities(Profile::new(domain()), kind);
        // Numbers of a signature may be short: often enough to meet one.
        for _ in 0..if kind == KeyType::EcP256 { 300 } else { 3 } {
            let svid = authorities.sign_jwt_svid(jwt_request()).unwrap();
            let bundle = bundle(&authorities);
            let claims = validate_jwt_svid(&svid.token, "b", |_| Some(&bundle), at(0)).unwrap();
            assert_eq!(claims.expires_at, svid.expires_at);
            assert_eq!(claims.audience, ["a", "b"]);
        }
    }
}

#[test]
fn the_claims_of_a_jwt_svid() {
    let mut profile = Profile::new(domain());
    profile.jwt_issuer = Some("https://issuer".into());
    let (authorities, clock) = authorities(profile, KeyType::EcP256);
    let claims = |wanted| {
        let svid = authorities.sign_jwt_svid(wanted).unwrap();
        let bundle = bundle(&authorities);
        validate_jwt_svid(&svid.token, "a", |_| Some(&bundle), at(0))
            .unwrap()
            .all
    };
    let got = serde_json::Value::Object(claims(jwt_request()));
    let expected = serde_json::json!({
        "aud": ["a", "b"], "exp": START + 300, "iat": START, "iss": "https://issuer", "sub": "spiffe://example.org/w"
    });
    assert_eq!(got, expected);
    let mut wanted = jwt_request();
    wanted.include_jti = true;
    let (one, two) = (claims(wanted.clone()), claims(wanted));
    assert_eq!(one["jti"].as_str().unwrap().len(), 22);
    assert_ne!(one["jti"], two["jti"]);
    let mut wanted = jwt_request();
    wanted.ttl = Some(Duration::from_secs(3 * 24 * 3600));
    assert_eq!(claims(wanted)["exp"], START + 24 * 3600);
    let mut wanted = jwt_request();
    wanted.audience = vec![String::new()];
    assert_eq!(
        authorities.sign_jwt_svid(wanted).err().unwrap().to_string(),
        "invalid JWT-SVID audience: cannot be empty"
    );
    clock.advance(Duration::from_secs(24 * 3600));
    assert_eq!(
        authorities
            .sign_jwt_svid(jwt_request())
            .err()
            .unwrap()
            .to_string(),
        "JWT key is not available for signing"
    );
}

/// The three parts of a token, the first two as the JSON that they are.
fn parts(token: &str) -> [String; 2] {
    let mut parts = token.split('.').map(|part| {
        let bytes = URL_SAFE_NO_PAD.decode(part).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    [parts.next().unwrap(), parts.next().unwrap()]
}

// As upstream's server writes one, member by member.
#[test]
fn a_wit_svid_is_made_like_upstreams() {
    let mut profile = Profile::new(domain());
    profile.wit_issuer = Some("https://issuer".into());
    let (authorities, clock) = authorities(profile, KeyType::EcP384);
    let holder = key(KeyType::EcP256);
    let point = &holder.spki()[holder.spki().len() - 64..];
    let [x, y] = [&point[..32], &point[32..]].map(|part| URL_SAFE_NO_PAD.encode(part));
    let mut wanted = wit_request();
    wanted.holder = HolderKey::new(holder.spki(), "ES256").unwrap();
    let svid = authorities.sign_wit_svid(wanted.clone()).unwrap();
    assert_eq!((svid.issued_at, svid.expires_at), (at(0), at(3600)));
    let kid = UnverifiedJwt::parse(&svid.token).unwrap().key_id.unwrap();
    let (exp, iat) = (START + 3600, START);
    let expected = [
        format!(r#"{{"alg":"ES384","kid":"{kid}","typ":"wit+jwt"}}"#),
        format!(
            r#"{{"cnf":{{"jwk":{{"kty":"EC","crv":"P-256","alg":"ES256","x":"{x}","y":"{y}"}}}},"exp":{exp},"iat":{iat},"iss":"https://issuer","sub":"spiffe://example.org/w"}}"#
        ),
    ];
    assert_eq!(parts(&svid.token), expected);
    let rsa = key(KeyType::Rsa2048);
    wanted.holder = HolderKey::new(rsa.spki(), "PS512").unwrap();
    let svid = authorities.sign_wit_svid(wanted.clone()).unwrap();
    let start = r#"{"cnf":{"jwk":{"kty":"RSA","alg":"PS512","n":""#;
    let [_, claims] = parts(&svid.token);
    assert!(
        claims.starts_with(start) && claims.contains(r#"","e":"AQAB"}}"#),
        "{claims}"
    );
    wanted.ttl = Some(Duration::from_secs(3 * 24 * 3600));
    let svid = authorities.sign_wit_svid(wanted.clone()).unwrap();
    assert_eq!(svid.expires_at, at(24 * 3600));
    wanted.spiffe_id = SpiffeId::new("spiffe://other.org/w").unwrap();
    assert!(matches!(
        authorities.sign_wit_svid(wanted.clone()),
        Err(SignError::Invalid(_))
    ));
    clock.advance(Duration::from_secs(24 * 3600));
    assert_eq!(
        authorities
            .sign_wit_svid(wit_request())
            .err()
            .unwrap()
            .to_string(),
        "WIT key is not available for signing"
    );
}

#[test]
fn a_holders_key_has_to_fit_its_algorithm() {
    for (kind, fitting, wrong, text) in [
        (KeyType::EcP256, "ES256", "RS256", "ec-p256 key: RS256"),
        (KeyType::EcP384, "ES384", "ES256", "ec-p384 key: ES256"),
        (KeyType::Rsa2048, "RS384", "none", "RSA key: none"),
    ] {
        let spki = key(kind).spki().to_vec();
        HolderKey::new(&spki, fitting).unwrap();
        let error = HolderKey::new(&spki, wrong).unwrap_err();
        let text = format!("unsupported signing algorithm for {text}");
        assert_eq!(error.to_string(), text);
    }
    assert!(matches!(
        HolderKey::new(b"no key", "ES256"),
        Err(BadHolderKey::Key(_))
    ));
}
