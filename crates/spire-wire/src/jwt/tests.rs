use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;

use super::*;
use crate::model::JwtKey;

const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

struct Issuer {
    key: EcdsaKeyPair,
    bundle: Bundle,
}

impl Issuer {
    fn new() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let spki: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        let bundle = Bundle {
            trust_domain: TrustDomain::new("example.org").unwrap(),
            x509: Vec::new(),
            jwt: vec![JwtKey {
                spki: spki.as_ref().to_vec(),
                id: "k".into(),
                expires_at: 0,
                tainted: false,
            }],
            wit: Vec::new(),
            refresh_hint: 0,
            sequence: 0,
        };
        Self { key, bundle }
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn validate(&self, token: &str) -> Result<Claims, InvalidJwtSvid> {
        validate_jwt_svid(
            token,
            "me",
            |of| (*of == self.bundle.trust_domain).then_some(&self.bundle),
            now(),
        )
    }

    /// The answer to a good token with one member of its claims changed.
    fn with_claim(&self, name: &str, value: Value) -> Result<Claims, InvalidJwtSvid> {
        let mut claims = claims();
        claims[name] = value;
        self.validate(&self.sign(&header(), &claims))
    }

    fn with_header(&self, name: &str, value: Value) -> Result<Claims, InvalidJwtSvid> {
        let mut header = header();
        header[name] = value;
        self.validate(&self.sign(&header, &claims()))
    }
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "k", "typ": "JWT"})
}

fn claims() -> Value {
    json!({"sub": "spiffe://example.org/w", "aud": ["you", "me"], "exp": NOW + 300, "iat": NOW, "x": [1, {"y": null}]})
}

fn without(mut value: Value, name: &str) -> Value {
    value.as_object_mut().unwrap().remove(name);
    value
}

#[test]
fn a_good_token_gives_its_claims() {
    let issuer = Issuer::new();
    let got = issuer.validate(&issuer.sign(&header(), &claims())).unwrap();
    assert_eq!(got.spiffe_id.to_string(), "spiffe://example.org/w");
    assert_eq!(got.audience, ["you", "me"]);
    assert_eq!(got.expires_at, now() + Duration::from_secs(300));
    assert_eq!(Value::Object(got.all.clone()), claims());
    let told = got.to_struct();
    assert_eq!(told.fields.len(), 5);
    assert_eq!(
        told.fields["iat"].kind,
        Some(prost_types::value::Kind::NumberValue(NOW as f64))
    );
}

// SV-57
#[test]
fn only_the_compact_form_is_read() {
    let issuer = Issuer::new();
    let token = issuer.sign(&header(), &claims());
    for other in [
        String::new(),
        "a.b".into(),
        format!("{token}.x"),
        format!(".{token}"),
        json!({"payload": "", "signatures": []}).to_string(),
        format!("{token}="),
        "a.".repeat(MAX_TOKEN_BYTES),
    ] {
        let error = issuer.validate(&other).unwrap_err();
        assert!(matches!(error, InvalidJwtSvid::Malformed(_)), "{error}");
    }
}

// SV-58
#[test]
fn other_header_members_are_refused() {
    let issuer = Issuer::new();
    for name in ["jku", "jwk", "x5c", "crit", "b64"] {
        let error = issuer.with_header(name, json!("x")).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

// SV-59
#[test]
fn algorithms_that_are_not_listed_are_refused_before_all_else() {
    let issuer = Issuer::new();
    for alg in ["none", "HS256", "EdDSA", "es256", ""] {
        let mut header = without(header(), "kid");
        header["alg"] = json!(alg);
        header["typ"] = json!("other");
        let error = issuer
            .validate(&issuer.sign(&header, &claims()))
            .unwrap_err()
            .to_string();
        assert!(error.contains("unexpected signature algorithm"), "{error}");
    }
    // A listed one that is not the key's.
    for alg in ["ES384", "RS256", "PS512"] {
        assert!(matches!(
            issuer.with_header("alg", json!(alg)),
            Err(InvalidJwtSvid::Signature(_))
        ));
    }
}

// SV-60
#[test]
fn the_type_is_jwt_or_jose_or_missing() {
    let issuer = Issuer::new();
    assert!(issuer.with_header("typ", json!("JOSE")).is_ok());
    assert!(
        issuer
            .validate(&issuer.sign(&without(header(), "typ"), &claims()))
            .is_ok()
    );
    assert!(issuer.with_header("typ", json!("at+jwt")).is_err());
}

// SV-61
#[test]
fn the_subject_is_a_spiffe_id() {
    let issuer = Issuer::new();
    let token = issuer.sign(&header(), &without(claims(), "sub"));
    assert_eq!(issuer.validate(&token), Err(InvalidJwtSvid::NoSubject));
    assert_eq!(
        issuer.with_claim("sub", json!("")),
        Err(InvalidJwtSvid::NoSubject)
    );
    for other in [
        json!("w"),
        json!("https://example.org/w"),
        json!("spiffe://example.org/w/"),
    ] {
        let error = issuer.with_claim("sub", other).unwrap_err();
        assert!(matches!(error, InvalidJwtSvid::Subject(_)), "{error}");
    }
    assert!(issuer.with_claim("sub", json!(5)).is_err());
}

// SV-62, SV-63
#[test]
fn my_audience_is_in_the_tokens() {
    let issuer = Issuer::new();
    assert!(issuer.with_claim("aud", json!("me")).is_ok());
    let token = issuer.sign(&header(), &without(claims(), "aud"));
    assert!(matches!(
        issuer.validate(&token),
        Err(InvalidJwtSvid::Audience { .. })
    ));
    let error = issuer.with_claim("aud", json!(["you"])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "expected audience in [\"me\"] (audience=[\"you\"])"
    );
    assert!(issuer.with_claim("aud", json!([])).is_err());
    assert!(issuer.with_claim("aud", json!(["me", 5])).is_err());
}

// SV-64, SV-65
#[test]
fn a_token_ends() {
    let issuer = Issuer::new();
    let token = issuer.sign(&header(), &without(claims(), "exp"));
    assert_eq!(issuer.validate(&token), Err(InvalidJwtSvid::NoExpiry));
    let leeway = LEEWAY.as_secs();
    assert!(issuer.with_claim("exp", json!(NOW - leeway)).is_ok());
    assert_eq!(
        issuer.with_claim("exp", json!(NOW - leeway - 1)),
        Err(InvalidJwtSvid::Expired)
    );
    assert!(issuer.with_claim("exp", json!(NOW as f64 + 0.5)).is_ok());
    for other in [json!("soon"), json!(-1), json!(1e300), json!(null)] {
        let error = issuer.with_claim("exp", other).unwrap_err();
        assert!(matches!(error, InvalidJwtSvid::Malformed(_)), "{error}");
    }
}

#[test]
fn a_token_from_the_future_waits() {
    let issuer = Issuer::new();
    for name in ["nbf", "iat"] {
        let soon = NOW + LEEWAY.as_secs();
        assert!(issuer.with_claim(name, json!(soon)).is_ok());
        assert_eq!(
            issuer.with_claim(name, json!(soon + 1)),
            Err(InvalidJwtSvid::NotYet(name))
        );
    }
}

// SV-68
#[test]
fn only_the_bundle_of_the_subjects_domain_counts() {
    let issuer = Issuer::new();
    let error = issuer
        .with_claim("sub", json!("spiffe://other.org/w"))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "no keys found for trust domain \"other.org\""
    );
    // A bundle that is found under another domain's name is not taken.
    let mut claims = claims();
    claims["sub"] = json!("spiffe://other.org/w");
    let token = issuer.sign(&header(), &claims);
    let got = validate_jwt_svid(&token, "me", |_| Some(&issuer.bundle), now());
    assert!(matches!(got, Err(InvalidJwtSvid::UnknownDomain(_))));
}

// SV-67: what a document says of other uses does not come into `Bundle::jwt`; here, only those keys are looked at.
#[test]
fn an_unknown_key_is_named() {
    let issuer = Issuer::new();
    let error = issuer.with_header("kid", json!("other")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "public key \"other\" not found in trust domain \"example.org\""
    );
    let token = issuer.sign(&without(header(), "kid"), &claims());
    assert_eq!(issuer.validate(&token), Err(InvalidJwtSvid::NoKeyId));
    let mut jwk = json!({"use": "x509-svid", "kid": "k"});
    let document =
        crate::bundle::to_document(&issuer.bundle, crate::bundle::Contents::Spiffe).unwrap();
    let document: Value = serde_json::from_str(&document).unwrap();
    for name in ["kty", "crv", "x", "y"] {
        jwk[name] = document["keys"][0][name].clone();
    }
    let document = json!({"keys": [jwk]}).to_string();
    let bundle =
        crate::bundle::from_document(&issuer.bundle.trust_domain, document.as_bytes()).unwrap();
    let token = issuer.sign(&header(), &claims());
    assert!(validate_jwt_svid(&token, "me", |_| Some(&bundle), now()).is_err());
}

#[test]
fn a_changed_token_is_refused() {
    let issuer = Issuer::new();
    let token = issuer.sign(&header(), &claims());
    let other = Issuer::new();
    assert!(matches!(
        other.validate(&token),
        Err(InvalidJwtSvid::Signature(_))
    ));
    let (signed, _) = token.rsplit_once('.').unwrap();
    for signature in ["", "AAAA"] {
        let token = format!("{signed}.{signature}");
        assert!(matches!(
            issuer.validate(&token),
            Err(InvalidJwtSvid::Signature(_))
        ));
    }
}
