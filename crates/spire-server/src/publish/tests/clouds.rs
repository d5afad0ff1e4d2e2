use std::sync::{Arc, Mutex};

use ah_spire_attest::node::gcp_iit::Account;
use ah_testkit::web::Web;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::json;
use zeroize::Zeroizing;

use super::*;

fn status(status: StatusCode, body: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::copy_from_slice(body.as_bytes()));
    *response.status_mut() = status;
    response
}

/// An object of a bucket on `web`, which is the machine's metadata server as well.
fn object(web: &Web) -> GcsObject {
    let token = "/computeMetadata/v1/instance/service-accounts/default/token";
    web.answers(token, json!({"access_token": "ya29.token"}));
    GcsObject {
        api: web.url(""),
        account: Account::new(None, web.url("")),
        bucket: "trust".into(),
        object: "example.org/bundle".into(),
    }
}

// BundlePublisher `gcp_cloudstorage`
#[tokio::test]
async fn a_bundle_is_put_into_a_bucket_of_google() {
    let web = Web::start().await;
    let formatted = Formatted::read("spiffe", "1h").unwrap();
    let publisher = GcsPublisher::new(object(&web), formatted);
    let upload = "/upload/storage/v1/b/trust/o";
    let refused = json!({"error": {"message": "no such bucket"}}).to_string();
    web.answers_with(upload, status(StatusCode::NOT_FOUND, &refused));
    let bundle = bundle(3);
    let error = publisher.publish(&bundle).await.unwrap_err();
    assert_eq!(
        error,
        "failed to write bundle: trust/example.org/bundle: 404 Not Found: no such bucket"
    );
    web.answers(upload, "{}");
    web.asked();
    publisher.publish(&bundle).await.unwrap();
    let [token, put] = <[_; 2]>::try_from(web.asked()).unwrap();
    assert!(
        token
            .target
            .ends_with("?scopes=https://www.googleapis.com/auth/devstorage.read_write")
    );
    assert_eq!(
        (put.method.clone(), put.target.as_str()),
        (
            Method::POST,
            "/upload/storage/v1/b/trust/o?uploadType=media&name=example.org%2Fbundle"
        )
    );
    assert_eq!(put.header("authorization"), "Bearer ya29.token");
    assert_eq!(put.header("content-type"), "application/json");
    assert_eq!(put.body, formatted.of(&bundle).unwrap());
}

// Notifier `gcs_bundle`: two servers may write at a time.
#[tokio::test]
async fn an_object_of_google_is_written_for_the_generation_that_was_read() {
    let web = Web::start().await;
    let stored = Arc::new(Stored(Mutex::new(bundle(1))));
    let notifier = GcsBundle::new(object(&web), stored.clone());
    let newer = bundle(2);
    let expected = certificates(&newer);
    let found = "/storage/v1/b/trust/o/example.org%2Fbundle";
    web.answers_by(found, {
        let first = Mutex::new(true);
        move |_| match std::mem::take(&mut *first.lock().unwrap()) {
            true => status(StatusCode::NOT_FOUND, ""),
            false => Response::new(json!({"generation": "77"}).to_string().into()),
        }
    });
    web.answers_by("/upload/storage/v1/b/trust/o", move |asked| {
        if asked.target.ends_with("&ifGenerationMatch=77") {
            return Response::new("{}".into());
        }
        assert!(asked.target.ends_with("&ifGenerationMatch=0"));
        *stored.0.lock().unwrap() = newer.clone();
        status(StatusCode::PRECONDITION_FAILED, "")
    });
    notifier.updated(&bundle(1)).await.unwrap();
    assert_eq!(web.asked().pop().unwrap().body, expected);
}

fn blob(web: &Web, identity: AzureIdentity) -> AzureBlob {
    let azure = Azure {
        login: web.url(""),
        metadata: web.url(""),
    };
    AzureBlob::new(
        azure,
        (web.url(""), "account".into()),
        ("trust".into(), "example.org/bundle".into()),
        identity,
        Formatted::read("pem", "").unwrap(),
    )
}

// BundlePublisher `azure_blob`
#[tokio::test]
async fn a_bundle_is_put_into_a_blob_with_the_accounts_key() {
    let web = Web::start().await;
    let key = b"a key of the storage account";
    let publisher = blob(&web, AzureIdentity::SharedKey(Zeroizing::new(key.to_vec())));
    web.answers("/trust/example.org/bundle", "");
    let bundle = bundle(1);
    publisher.publish(&bundle).await.unwrap();
    let put = web.asked().remove(0);
    assert_eq!(put.method, Method::PUT);
    assert_eq!(put.body, certificates(&bundle));
    assert_eq!(put.header("x-ms-blob-type"), "BlockBlob");
    // What Azure signs itself, from the request as it came.
    let text = [
        "PUT",
        "",
        "",
        put.header("content-length"),
        "",
        put.header("content-type"),
        "",
        "",
        "",
        "",
        "",
        "",
        "x-ms-blob-type:BlockBlob",
        &format!("x-ms-date:{}", put.header("x-ms-date")),
        &format!("x-ms-version:{}", put.header("x-ms-version")),
        "/account/trust/example.org/bundle",
    ]
    .join("\n");
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
    let signature = STANDARD.encode(aws_lc_rs::hmac::sign(&key, text.as_bytes()));
    assert_eq!(
        put.header("authorization"),
        format!("SharedKey account:{signature}")
    );
    assert!(put.header("x-ms-date").ends_with(" GMT"));

    let mut refused = status(StatusCode::FORBIDDEN, "");
    let code = http::HeaderValue::from_static("AuthenticationFailed");
    refused.headers_mut().insert("x-ms-error-code", code);
    web.answers_with("/trust/example.org/bundle", refused);
    let error = publisher.publish(&bundle).await.unwrap_err();
    assert_eq!(
        error,
        "failed to upload blob: trust/example.org/bundle: the answer is 403 Forbidden AuthenticationFailed"
    );
}

#[tokio::test]
async fn a_bundle_is_put_into_a_blob_with_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "of-the-platform\n").unwrap();
    let (tenant, app) = ("t-1".to_owned(), "a-1".to_owned());
    for (identity, words) in [
        (
            AzureIdentity::Secret {
                tenant: tenant.clone(),
                app: app.clone(),
                secret: Zeroizing::new("s/1".into()),
            },
            "client_secret=s%2F1",
        ),
        (
            AzureIdentity::Federated { tenant, app, token },
            "client_assertion=of-the-platform",
        ),
        (AzureIdentity::Managed(Some("a-1".into())), "&client_id=a-1"),
    ] {
        let web = Web::start().await;
        for path in ["/t-1/oauth2/v2.0/token", "/metadata/identity/oauth2/token"] {
            let given = json!({"access_token": "eyJ.token"}).to_string();
            web.answers_if(path, words, Response::new(given.into()));
        }
        web.answers("/trust/example.org/bundle", "");
        blob(&web, identity).publish(&bundle(1)).await.unwrap();
        let put = web.asked().pop().unwrap();
        assert_eq!(put.header("authorization"), "Bearer eyJ.token");
    }
}

#[test]
fn the_identity_of_the_environment_is_found() {
    let with = |set: &'static [&'static str]| {
        AzureIdentity::found(|name| set.contains(&name).then(|| name.to_lowercase()))
    };
    let both = ["AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"];
    assert!(matches!(
        with(&["AZURE_CLIENT_ID"]),
        AzureIdentity::Managed(Some(_))
    ));
    assert!(matches!(with(&[]), AzureIdentity::Managed(None)));
    let found = AzureIdentity::found(|name| both.contains(&name).then(|| name.to_lowercase()));
    assert!(matches!(found, AzureIdentity::Secret { .. }));
    let found = with(&[
        "AZURE_TENANT_ID",
        "AZURE_CLIENT_ID",
        "AZURE_FEDERATED_TOKEN_FILE",
    ]);
    assert!(matches!(found, AzureIdentity::Federated { .. }));
}
