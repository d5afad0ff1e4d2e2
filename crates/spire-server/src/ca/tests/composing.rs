//! CredentialComposers (inventory section 7).

use std::sync::Arc;

use serde_json::{Map, Value, json};
use spiffe::SpiffeId;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::kit::{at, authorities, domain, jwt_request, key, request, verify};
use crate::ca::{
    Composer, Composers, Extension, Holder, Profile, Signer, UniqueId, X509Attributes,
};
use crate::keys::KeyType;

/// Changes everything that may be changed, and says of whom.
struct Everything;

impl Composer for Everything {
    fn name(&self) -> &str {
        "everything"
    }

    fn x509_ca(&self, mut attributes: X509Attributes) -> Result<X509Attributes, String> {
        attributes.subject.locality = vec!["Graz".into()];
        attributes.policies = vec!["1.3.6.1.4.1.99999.1".parse().unwrap()];
        attributes.extensions.push(extension("1.3.6.1.4.1.99999.2"));
        Ok(attributes)
    }

    fn x509_svid(
        &self,
        of: Holder<'_>,
        mut attributes: X509Attributes,
    ) -> Result<X509Attributes, String> {
        let unit = match of {
            Holder::Server => "server".to_owned(),
            Holder::Agent(id, spki) => format!("agent {} {}", id.path(), spki.len()),
            Holder::Workload(id, spki) => format!("workload {} {}", id.path(), spki.len()),
        };
        attributes.subject.organizational_unit = vec![unit];
        attributes.dns_names.push("composed.example.org".into());
        attributes.extensions.push(extension("1.3.6.1.4.1.99999.3"));
        Ok(attributes)
    }

    fn jwt_svid(
        &self,
        _: &SpiffeId,
        mut claims: Map<String, Value>,
    ) -> Result<Map<String, Value>, String> {
        claims.insert("team".into(), json!({"name": "blue", "size": 3}));
        Ok(claims)
    }
}

/// Gives back what it was made with.
struct Wrong(X509Attributes, Map<String, Value>);

impl Composer for Wrong {
    fn name(&self) -> &str {
        "wrong"
    }

    fn x509_svid(&self, _: Holder<'_>, _: X509Attributes) -> Result<X509Attributes, String> {
        Ok(self.0.clone())
    }

    fn jwt_svid(&self, _: &SpiffeId, _: Map<String, Value>) -> Result<Map<String, Value>, String> {
        Ok(self.1.clone())
    }
}

fn extension(id: &str) -> Extension {
    Extension {
        id: id.parse().unwrap(),
        critical: false,
        value: vec![5, 0],
    }
}

fn profile(composers: Vec<Arc<dyn Composer>>) -> Profile {
    Profile {
        composers: Composers::new(composers),
        ..Profile::new(domain())
    }
}

fn parse(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).unwrap().1
}

fn has(certificate: &X509Certificate<'_>, id: &str) -> bool {
    let mut all = certificate.extensions().iter();
    all.any(|extension| extension.oid.to_id_string() == id)
}

#[test]
fn a_composer_changes_what_is_signed() {
    let profile = profile(vec![Arc::new(UniqueId), Arc::new(Everything)]);
    let (authorities, _) = authorities(profile, KeyType::EcP256);
    let ca = authorities.x509_authority().unwrap();
    let parsed = parse(ca.der());
    assert!(parsed.subject().to_string().contains("L=Graz"));
    assert!(has(&parsed, "2.5.29.32") && has(&parsed, "1.3.6.1.4.1.99999.2"));
    let below = authorities
        .sign_downstream_ca(key(KeyType::EcP256).spki(), None)
        .unwrap();
    assert!(has(&parse(&below.chain[0]), "1.3.6.1.4.1.99999.2"));

    let svid = authorities.sign_x509_svid(request("/w")).unwrap();
    let parsed = parse(&svid.chain[0]);
    let subject = parsed.subject().to_string();
    assert!(subject.contains("OU=workload /w 91"), "{subject}");
    assert!(subject.contains("uniqueIdentifier="), "{subject}");
    assert!(has(&parsed, "1.3.6.1.4.1.99999.3"));
    let names = format!("{:?}", parsed.subject_alternative_name().unwrap());
    assert!(names.contains("composed.example.org"), "{names}");
    verify(&svid.chain, [ca.der()], at(0));

    let agent = authorities
        .sign_agent_svid(request("/spire/agent/a"))
        .unwrap();
    let subject = parse(&agent.chain[0]).subject().to_string();
    assert!(subject.contains("OU=agent /spire/agent/a 91"), "{subject}");
    assert!(!subject.contains("uniqueIdentifier="), "{subject}");
    let server = authorities
        .sign_server_svid(key(KeyType::EcP256).spki())
        .unwrap();
    assert!(
        parse(&server.chain[0])
            .subject()
            .to_string()
            .contains("OU=server")
    );

    let token = authorities.sign_jwt_svid(jwt_request()).unwrap().token;
    let claims = claims(&token);
    assert_eq!(claims["team"], json!({"name": "blue", "size": 3}));
    assert!(claims["exp"].is_i64() && claims["iat"].is_i64(), "{claims}");
}

fn claims(token: &str) -> Value {
    use base64::Engine as _;
    let part = token.split('.').nth(1).unwrap();
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(part)
        .unwrap();
    serde_json::from_slice(&json).unwrap()
}

// Nobody would take what these make: SV-23 to SV-34, SV-61.
#[test]
fn what_is_no_svid_any_more_is_not_signed() {
    let with = |change: &dyn Fn(&mut X509Attributes, &mut Map<String, Value>)| {
        let mut attributes = X509Attributes::default();
        let Value::Object(mut claims) =
            json!({"sub": "spiffe://example.org/w", "aud": ["a"], "exp": i64::MAX})
        else {
            unreachable!()
        };
        change(&mut attributes, &mut claims);
        let profile = profile(vec![Arc::new(Wrong(attributes, claims))]);
        authorities(profile, KeyType::EcP256).0
    };
    for (extensions, why) in [
        (vec!["2.5.29.17"], "cannot be replaced"),
        (vec!["2.5.29.19"], "cannot be replaced"),
        (vec!["1.2.3", "1.2.3"], "is there twice"),
    ] {
        let authorities = with(&|attributes, _| {
            attributes.extensions = extensions.iter().map(|id| extension(id)).collect();
        });
        let error = authorities.sign_x509_svid(request("/w")).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("credentialcomposer(wrong): ") && error.contains(why),
            "{error}"
        );
    }
    let authorities = with(&|attributes, _| attributes.dns_names = vec!["ö".into()]);
    assert!(authorities.sign_x509_svid(request("/w")).is_err());
    for (name, value, why) in [
        ("sub", json!("spiffe://example.org/other"), "\"sub\""),
        ("aud", json!([]), "\"aud\""),
        ("aud", json!([""]), "\"aud\""),
        ("exp", json!(1), "\"exp\""),
        ("exp", json!("soon"), "\"exp\""),
        ("nbf", json!(i64::MAX), "\"nbf\""),
    ] {
        let authorities = with(&|_, claims| {
            claims.insert(name.into(), value.clone());
        });
        let error = authorities.sign_jwt_svid(jwt_request()).err().unwrap();
        assert!(error.to_string().contains(why), "{error}");
    }
}
