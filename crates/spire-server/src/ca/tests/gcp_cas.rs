//! UpstreamAuthority `gcp_cas` against a stand-in for Google's services (inventory section 7).

use ah_spire_attest::node::gcp_iit::Account;
use ah_spire_wire::bundle::pem;
use ah_testkit::web::Web;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use rcgen::{Issuer, KeyPair, SubjectPublicKeyInfo};
use serde_json::{Value, json};

use super::kit::{place, signs_for_the_bundle};
use super::upstream::{below, params};
use crate::ca::{CaError, GcpCasAuthority, GcpCasSettings};

const REGION: &str = "/v1/projects/my-project/locations/us-central1/caPools";
const POOL: &str = "projects/my-project/locations/us-central1/caPools/mine";

fn settings(web: &Web, pool: Option<&str>) -> GcpCasSettings {
    let token = "/computeMetadata/v1/instance/service-accounts/default/token";
    web.answers(
        token,
        json!({ "access_token": "ya29.token", "expires_in": 3599 }),
    );
    GcpCasSettings {
        api: web.url(""),
        account: Account::new(None, web.url("")),
        project: "my-project".into(),
        region: "us-central1".into(),
        pool: pool.map(Into::into),
        label: ("spire".into(), "yes".into()),
    }
}

/// A CA of a pool, with the certificate of its root.
fn ca(name: &str, state: &str, made: &str, root: &str) -> Value {
    json!({
        "name": format!("{POOL}/certificateAuthorities/{name}"),
        "state": state,
        "createTime": made,
        "lifetime": "315360000s",
        "pemCaCertificates": ["an intermediate", root],
    })
}

/// A root with its key.
fn root(name: &str) -> (String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    (params(name).self_signed(&key).unwrap().pem(), key)
}

#[tokio::test]
async fn the_ca_that_ends_first_signs_and_all_roots_are_trusted() {
    let (_dir, store, clock) = place();
    let web = Web::start().await;
    let ((first, key), (second, _), (third, _)) = (root("first"), root("second"), root("third"));
    let listed = format!("{REGION}/mine/certificateAuthorities");
    let pages = [
        json!({ "certificateAuthorities": [
            ca("late", "ENABLED", "2026-03-01T00:00:00.5Z", &second),
            ca("gone", "DISABLED", "2019-01-01T00:00:00Z", &third),
        ], "nextPageToken": "more/" }),
        json!({ "certificateAuthorities": [
            ca("early", "ENABLED", "2026-02-01T00:00:00Z", &first),
            ca("again", "ENABLED", "2026-04-01T00:00:00Z", &second),
        ] }),
    ];
    let [one, two] = pages.map(|page| Response::new(Bytes::from(page.to_string())));
    web.answers_with(&listed, one);
    web.answers_if(&listed, "pageToken=more%2F", two);
    let root = first.clone();
    web.answers_by(&format!("/v1/{POOL}/certificates"), move |asked| {
        let wanted: Value = serde_json::from_str(&asked.body).unwrap();
        let public = wanted["config"]["publicKey"]["key"].as_str().unwrap();
        let public = String::from_utf8(STANDARD.decode(public).unwrap()).unwrap();
        let public = SubjectPublicKeyInfo::from_pem(&public).unwrap();
        let mut signed = params("SPIRE");
        signed.subject_alt_names = vec![rcgen::SanType::URI(
            "spiffe://example.org".try_into().unwrap(),
        )];
        let key = KeyPair::from_pem(&key.serialize_pem()).unwrap();
        let issuer = Issuer::new(params("first"), key);
        let signed = signed.signed_by(&public, &issuer).unwrap();
        let answer = json!({ "pemCertificate": signed.pem(), "pemCertificateChain": [root] });
        Response::new(answer.to_string().into())
    });
    let authority = GcpCasAuthority::new(settings(&web, Some("mine")));
    let manager = below(authority, &store, clock.clone()).await.unwrap();
    signs_for_the_bundle(manager.authorities(), &store);
    let roots: Vec<String> = store.own().x509.iter().map(|ca| pem(&ca.der)).collect();
    assert_eq!(
        roots,
        [&first, &second].map(|pem| pem.replace("\r\n", "\n"))
    );

    let asked = web.asked();
    // One token for all calls.
    let [_token, one, _two, made] = <[_; 4]>::try_from(asked).unwrap();
    assert_eq!(one.header("authorization"), "Bearer ya29.token");
    assert_eq!(
        one.target,
        format!("{listed}?pageSize=100&filter=labels.spire%3Ayes")
    );
    assert_eq!(made.method, Method::POST);
    let (_, query) = made.target.split_once('?').unwrap();
    let (id, issuer) = query.split_once('&').unwrap();
    assert_eq!(issuer, "issuingCertificateAuthorityId=early");
    assert_eq!(id.strip_prefix("certificateId=").unwrap().len(), 43);
    let wanted: Value = serde_json::from_str(&made.body).unwrap();
    assert_eq!(wanted["lifetime"], "86400s");
    assert_eq!(
        wanted["config"]["subjectConfig"],
        json!({
            "subject": { "organization": "SPIFFE" },
            "subjectAltName": { "uris": ["spiffe://example.org"] },
        })
    );
    assert_eq!(
        wanted["config"]["x509Config"],
        json!({
            "caOptions": { "isCa": true, "maxIssuerPathLength": 0 },
            "keyUsage": { "baseKeyUsage": { "certSign": true, "crlSign": true } },
        })
    );
}

#[tokio::test]
async fn what_google_refuses_is_told() {
    let (_dir, store, clock) = place();
    let web = Web::start().await;
    let told = async |pool: Option<&str>| {
        let authority = GcpCasAuthority::new(settings(&web, pool));
        match below(authority, &store, clock.clone()).await {
            Err(CaError::Upstream(error)) => error.to_string(),
            other => panic!("{:?}", other.map(|_| ())),
        }
    };
    let (pem, _) = root("root");
    let listed = |pool: &str| format!("{REGION}/{pool}/certificateAuthorities");
    let one = |state| json!({ "certificateAuthorities": [ca("one", state, "2026-02-01T00:00:00Z", &pem)] });

    let mut refused = Response::new(Bytes::from(
        json!({ "error": { "message": "no rights" } }).to_string(),
    ));
    *refused.status_mut() = StatusCode::FORBIDDEN;
    web.answers_with(&listed("mine"), refused.clone());
    let text = told(Some("mine")).await;
    assert!(
        text.starts_with("failed to load root CAs: projects/my-project/"),
        "{text}"
    );
    assert!(text.ends_with(": 403 Forbidden: no rights"), "{text}");
    web.answers(&listed("mine"), "{}");
    assert_eq!(
        told(Some("mine")).await,
        "no certificate authorities found with label pair \"spire\":\"yes\""
    );
    web.answers(&listed("mine"), one("STAGED"));
    assert_eq!(
        told(Some("mine")).await,
        "no certificate authorities found in ENABLED state with label pair \"spire\":\"yes\""
    );
    // Without ca_pool all pools of the region are looked through.
    let pools = ["mine", "other"].map(|pool| json!({ "name": POOL.replace("mine", pool) }));
    web.answers(REGION, json!({ "caPools": pools }));
    for pool in ["mine", "other"] {
        web.answers(&listed(pool), one("ENABLED"));
    }
    let text = told(None).await;
    assert!(
        text.contains("across multiple pools: name one in ca_pool"),
        "{text}"
    );
    web.answers(&listed("other"), "{}");
    web.answers_with(&format!("/v1/{POOL}/certificates"), refused);
    assert_eq!(
        told(None).await,
        "failed to create certificate: 403 Forbidden: no rights"
    );
}
