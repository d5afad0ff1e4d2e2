use ah_spire_wire::aws::{Caller, Environment};
use ah_testkit::aws::{OWN, REGION, ROLE, assumes, refusal, signed, variables};
use ah_testkit::web::Web;
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::json;

use super::*;

fn caller(web: &Web) -> Caller {
    Caller::new(variables(web).into_iter().collect(), REGION, None)
}

fn publisher(caller: Caller) -> S3Publisher {
    let place = ("trust".to_owned(), "example.org/bundle 1.json".to_owned());
    let formatted = Formatted::read("spiffe", "1h").unwrap();
    S3Publisher::new(caller, place, false, formatted)
}

const OBJECT: &str = "/s3/trust/example.org/bundle%201.json";

// BundlePublisher `aws_s3`
#[tokio::test]
async fn a_bundle_is_put_into_a_bucket_of_s3() {
    let web = Web::start().await;
    let publisher = publisher(caller(&web));
    web.answers_by(OBJECT, signed(OWN, "s3", |_| Response::new(Bytes::new())));
    let bundle = bundle(3);
    publisher.publish(&bundle).await.unwrap();
    let put = web.asked().remove(0);
    assert_eq!((&put.method, put.target.as_str()), (&Method::PUT, OBJECT));
    assert_eq!(put.header("content-type"), "application/json");
    assert_eq!(
        put.body,
        Formatted::read("spiffe", "1h")
            .unwrap()
            .of(&bundle)
            .unwrap()
    );

    // The stand-in knows signatures.
    let environment: Environment = variables(&web)
        .into_iter()
        .map(|(name, value)| match name.as_str() {
            "AWS_SECRET_ACCESS_KEY" => (name, "another".to_owned()),
            _ => (name, value),
        })
        .collect();
    let other = self::publisher(Caller::new(environment, REGION, None));
    let error = other.publish(&bundle).await.unwrap_err();
    assert!(error.contains("SignatureDoesNotMatch"), "{error}");

    for (status, body, why) in [
        (
            StatusCode::FORBIDDEN,
            "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
            "403 Forbidden: AccessDenied: Access Denied",
        ),
        (
            StatusCode::MOVED_PERMANENTLY,
            "<Error><Code>PermanentRedirect</Code><Message>elsewhere</Message></Error>",
            "301 Moved Permanently: PermanentRedirect: elsewhere (region has to be the bucket's)",
        ),
    ] {
        let mut refused = Response::new(Bytes::from(body));
        *refused.status_mut() = status;
        web.answers_with(OBJECT, refused);
        let error = publisher.publish(&bundle).await.unwrap_err();
        let url = web.url("/s3");
        assert_eq!(
            error,
            format!("failed to put object: trust/example.org/bundle 1.json: {url}: {why}")
        );
    }
}

// What S3 throttles is put again, in the role that was taken on.
#[tokio::test]
async fn a_bundle_that_s3_throttles_is_put_again() {
    let web = Web::start().await;
    let role = "arn:aws:iam::123456789012:role/publisher";
    assumes(&web, role);
    web.answers_by(OBJECT, signed(ROLE, "s3", |_| Response::new(Bytes::new())));
    let caller = caller(&web).assuming(role.to_owned());
    let publisher = publisher(caller);
    publisher.publish(&bundle(1)).await.unwrap();
    web.asked();
    let slow =
        "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
    for _ in 0..2 {
        let mut slow = Response::new(Bytes::from(slow));
        *slow.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        web.answers_once(slow);
    }
    publisher.publish(&bundle(2)).await.unwrap();
    let asked = web.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|it| it.body == asked[0].body));
}

// BundlePublisher `aws_rolesanywhere_trustanchor`
#[tokio::test]
async fn a_bundle_is_put_into_a_trust_anchor() {
    let web = Web::start().await;
    let id = "12345678-90ab-4def-8234-567890abcdef";
    let path = format!("/rolesanywhere/trustanchor/{id}");
    let told = json!({"trustAnchor": {"trustAnchorId": id, "name": "spire"}}).to_string();
    let answer = move |_: &_| Response::new(told.clone().into());
    web.answers_by(&path, signed(OWN, "rolesanywhere", answer));
    let publisher = TrustAnchor::new(caller(&web), id.to_owned());
    let mut bundle = bundle(1);
    publisher.publish(&bundle).await.unwrap();
    let asked = web.asked().remove(0);
    assert_eq!(asked.method, Method::PATCH);
    assert_eq!(asked.header("content-type"), "application/json");
    let source = json!({
        "sourceType": "CERTIFICATE_BUNDLE",
        "sourceData": {"x509CertificateData": certificates(&bundle)},
    });
    let body: Value = serde_json::from_str(&asked.body).unwrap();
    assert_eq!(body, json!({"source": source}));

    let mut refused = refusal(StatusCode::NOT_FOUND, "", "no such anchor");
    let code = http::HeaderValue::from_static("ResourceNotFoundException:");
    refused.headers_mut().insert("x-amzn-errortype", code);
    web.answers_with(&path, refused);
    let error = publisher.publish(&bundle).await.unwrap_err();
    let url = web.url("/rolesanywhere");
    assert_eq!(
        error,
        format!(
            "failed to update trust anchor: {id}: {url}: 404 Not Found: ResourceNotFoundException: no such anchor"
        )
    );
    web.asked();
    let root = bundle.x509[0].clone();
    bundle.x509 = vec![root; 30];
    let error = publisher.publish(&bundle).await.unwrap_err();
    assert!(error.starts_with("bundle too large: "), "{error}");
    assert!(web.asked().is_empty());
}
