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

// Amazon S3 API Reference, "Authenticating Requests: Using Query Parameters": its example.
#[test]
fn a_signature_in_the_query_is_the_documented_one() {
    let key = Credentials {
        access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
        secret_access_key: Zeroizing::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into()),
        session_token: None,
    };
    let scope = Scope {
        region: "us-east-1",
        service: "s3",
    };
    let uri = Uri::from_static("https://examplebucket.s3.amazonaws.com/test.txt");
    let day = Duration::from_secs(86_400);
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
    let url = presigned(&uri, &key, scope, day, then).unwrap();
    assert_eq!(
        *url,
        "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256\
         &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
         &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
         &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    );
}

// What feature/rds/auth 1.6.0 of AWS's SDK for Go made at that moment, but for the `/` that it leaves out of the path.
#[test]
fn a_token_for_rds_is_the_one_that_aws_s_own_sdk_makes() {
    let mut key = key();
    key.session_token = Some(Zeroizing::new("of/a+session==".into()));
    let scope = Scope {
        region: "eu-central-1",
        service: "rds-db",
    };
    let uri = Uri::from_static(
        "https://spire.abcd.eu-central-1.rds.amazonaws.com:3306/?Action=connect&DBUser=spire%20o",
    );
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_384_914);
    let url = presigned(&uri, &key, scope, Duration::from_mins(15), then).unwrap();
    assert_eq!(
        *url,
        "https://spire.abcd.eu-central-1.rds.amazonaws.com:3306/?Action=connect&DBUser=spire%20o\
         &X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20261122%2Feu-central-1%2Frds-db%2Faws4_request\
         &X-Amz-Date=20261122T220154Z&X-Amz-Expires=900&X-Amz-Security-Token=of%2Fa%2Bsession%3D%3D&X-Amz-SignedHeaders=host\
         &X-Amz-Signature=dc82ea296d1625d0322fcf210256d80d3787536cbc2377a1f3c2c1ef0a0431da"
    );
}
