use std::time::Duration;

use serde_json::Value;

use super::*;

/// 2015-08-30 12:36:00 UTC, when all requests of the published vectors are signed.
fn then() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160)
}

fn key() -> Credentials {
    Credentials {
        access_key_id: "AKIDEXAMPLE".into(),
        secret_access_key: Zeroizing::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into()),
        session_token: None,
    }
}

const SCOPE: Scope<'_> = Scope {
    region: "us-east-1",
    service: "service",
};

// The vectors that AWS publishes for its own SDKs (awslabs/aws-c-auth, aws-signing-test-suite/v4), those whose URI is one.
#[test]
fn signatures_are_those_that_aws_publishes() {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("vectors.json")).unwrap();
    assert_eq!(vectors.len(), 26);
    for vector in vectors {
        let text = |name: &str| vector[name].as_str().unwrap().to_owned();
        let body = text("body");
        let mut request = Request::builder()
            .method(text("method").as_str())
            .uri(format!("https://example.amazonaws.com{}", text("target")));
        for header in vector["headers"].as_array().unwrap() {
            request = request.header(
                header[0].as_str().unwrap(),
                header[1].as_str().unwrap().trim(),
            );
        }
        if vector["sign_body"] == true {
            request = request.header(CONTENT, hex(digest(&SHA256, body.as_bytes()).as_ref()));
        }
        let mut request = request.body(Bytes::from(body)).unwrap();
        let mut key = key();
        key.session_token = vector["token"]
            .as_str()
            .map(|token| Zeroizing::new(token.to_owned()));
        sign(&mut request, &key, SCOPE, then()).unwrap();
        let authorization = request.headers()[header::AUTHORIZATION].to_str().unwrap();
        let (_, signature) = authorization.split_once("Signature=").unwrap();
        assert_eq!(signature, text("signature"), "{}", text("name"));
        assert!(
            authorization
                .starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders="),
            "{authorization}"
        );
    }
}

// The example of S3's documentation ("Signature Calculations for the Authorization Header", GET Object).
#[test]
fn s3_is_signed_with_the_path_as_it_is_and_the_digest_in_a_header() {
    let mut request = Request::get("https://examplebucket.s3.amazonaws.com/test.txt")
        .header("Range", "bytes=0-9")
        .body(Bytes::new())
        .unwrap();
    let key = Credentials {
        access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
        secret_access_key: Zeroizing::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into()),
        session_token: None,
    };
    let scope = Scope {
        region: "us-east-1",
        service: "s3",
    };
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
    sign(&mut request, &key, scope, then).unwrap();
    assert_eq!(
        request.headers()[header::AUTHORIZATION],
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    );
}

#[test]
fn secrets_are_in_no_text() {
    let mut key = key();
    key.session_token = Some(Zeroizing::new("of-a-session\n".into()));
    assert_eq!(
        format!("{key:?}"),
        "Credentials { access_key_id: \"AKIDEXAMPLE\", .. }"
    );
    let mut request = Request::get("https://example.org/")
        .body(Bytes::new())
        .unwrap();
    let error = sign(&mut request, &key, SCOPE, then()).unwrap_err();
    assert_eq!(error, "the session token has characters that no header has");
    key.session_token = Some(Zeroizing::new("of-a-session".into()));
    sign(&mut request, &key, SCOPE, then()).unwrap();
    let shown = format!("{request:?}");
    assert!(
        !shown.contains("of-a-session") && !shown.contains("Signature="),
        "{shown}"
    );
}

#[test]
fn what_cannot_be_signed_is_named() {
    for (uri, expected) in [
        (
            "https://example.org/?a=%x1",
            "\"%x1\" is not percent-encoded",
        ),
        ("https://example.org/?a=%1", "\"%1\" is not percent-encoded"),
        ("/path", "/path has no host"),
    ] {
        let mut request = Request::get(uri).body(Bytes::new()).unwrap();
        let error = sign(&mut request, &key(), SCOPE, then()).unwrap_err();
        assert_eq!(error, expected);
    }
    assert_eq!(percent_encoded("a b/ü~"), "a%20b%2F%C3%BC~");
}
