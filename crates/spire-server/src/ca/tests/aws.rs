//! UpstreamAuthorities `awssecret` and `aws_pca` against stand-ins that verify signatures (inventory section 7).

use std::sync::Arc;

use ah_spire_wire::aws::Caller;
use ah_spire_wire::bundle::pem;
use ah_testkit::aws::pca::{CA, PrivateCa};
use ah_testkit::aws::secrets::{Secret, Secrets, arn};
use ah_testkit::aws::{OWN, REGION, ROLE, assumes, refusal, variables};
use ah_testkit::web::Web;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use serde_json::{Value, json};

use super::kit::{domain, place, signs_for_the_bundle};
use super::upstream::{below, intermediate, root};
use crate::ca::{
    CaError, Files, LocalAuthorities as _, PcaAuthority, PcaSettings, SecretAuthority,
    SecretSettings, UpstreamAuthority,
};

fn caller(web: &Web) -> Caller {
    Caller::new(variables(web).into_iter().collect(), REGION, None)
}

fn text(path: &std::path::Path) -> Secret {
    Secret {
        string: Some(std::fs::read_to_string(path).unwrap()),
        ..Secret::default()
    }
}

/// Keeps the parts of a CA as secrets.
fn keep(secrets: &Secrets, files: &Files) {
    secrets.set("cert", text(&files.certificate));
    secrets.set("key", text(&files.key));
    if let Some(bundle) = &files.bundle {
        secrets.set("bundle", text(bundle));
    }
}

fn settings(caller: Caller, files: &Files) -> SecretSettings {
    SecretSettings {
        caller: Arc::new(caller),
        certificate: arn("cert"),
        key: arn("key"),
        bundle: files.bundle.as_ref().map(|_| arn("bundle")),
    }
}

async fn refused<T: UpstreamAuthority>(authority: T) -> String {
    let (_dir, store, clock) = place();
    match below(authority, &store, clock).await {
        Err(CaError::Upstream(error)) => error.to_string(),
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[tokio::test]
async fn a_ca_in_secrets_of_aws_signs_and_the_one_read_last_stays() {
    let (dir, store, clock) = place();
    let web = Web::start().await;
    let secrets = Secrets::start(&web, OWN);
    let files = intermediate(dir.path());
    keep(&secrets, &files);
    let authority =
        |caller| SecretAuthority::new(settings(caller, &files), domain(), clock.clone());
    let manager = below(authority(caller(&web)), &store, clock.clone()).await;
    let manager = manager.unwrap();
    signs_for_the_bundle(manager.authorities(), &store);
    let roots = std::fs::read_to_string(files.bundle.as_ref().unwrap()).unwrap();
    assert_eq!(pem(&store.own().x509[0].der), roots.replace("\r\n", "\n"));

    // Another key half way through a change, then no service at all.
    let other = tempfile::tempdir().unwrap();
    let other = root(other.path());
    secrets.set("key", text(&other.key));
    manager.prepare_x509().await.unwrap();
    web.answers("/secrets_manager/", "");
    manager.prepare_x509().await.unwrap();

    // In a role, for a CA that signed itself.
    let role = "arn:aws:iam::123456789012:role/reader";
    assumes(&web, role);
    let secrets = Secrets::start(&web, ROLE);
    keep(&secrets, &other);
    let settings = settings(caller(&web).assuming(role.into()), &other);
    let authority = SecretAuthority::new(settings, domain(), clock.clone());
    let (_dir, store, clock) = place();
    let manager = below(authority, &store, clock).await.unwrap();
    signs_for_the_bundle(manager.authorities(), &store);
}

#[tokio::test]
async fn what_is_wrong_with_secrets_is_told() {
    let (dir, _store, clock) = place();
    let web = Web::start().await;
    let secrets = Secrets::start(&web, OWN);
    let files = intermediate(dir.path());
    let authority = |files: &Files| {
        SecretAuthority::new(settings(caller(&web), files), domain(), clock.clone())
    };
    let (key, url) = (arn("key"), web.url("/secrets_manager"));
    let told = refused(authority(&files)).await;
    assert_eq!(
        told,
        format!(
            "unable to read {key}: {url}: 400 Bad Request: ResourceNotFoundException: Secrets Manager can't find the specified secret."
        )
    );
    keep(&secrets, &files);
    let own = Files {
        bundle: None,
        ..files.clone()
    };
    let other = tempfile::tempdir().unwrap();
    let other = root(other.path());
    let binary = Secret {
        binary: Some(b"x".to_vec()),
        ..Secret::default()
    };
    let not_pem = Secret {
        string: Some("x".into()),
        ..Secret::default()
    };
    for (secret, files, why) in [
        (
            binary,
            &files,
            "it is no text; keep the PEM as a secret string",
        ),
        (
            not_pem,
            &files,
            "unable to load upstream CA key: arn:aws:secretsmanager:",
        ),
        (
            text(&other.key),
            &files,
            "certificate and private key do not match",
        ),
    ] {
        secrets.set("key", secret);
        let told = refused(authority(files)).await;
        assert!(told.contains(why), "{told}");
    }
    keep(&secrets, &files);
    let mut two = text(&files.certificate);
    if let (Some(two), Some(more)) = (&mut two.string, secrets.secret("bundle").unwrap().string) {
        two.push_str(&more);
    }
    secrets.set("cert", two);
    assert_eq!(
        refused(authority(&own)).await,
        "with no bundle_file_arn configured only self-signed CAs are supported"
    );
    let denied = refusal(StatusCode::BAD_REQUEST, "AccessDeniedException", "not you");
    web.answers_with("/secrets_manager/", denied);
    let told = refused(authority(&files)).await;
    assert!(told.ends_with(": AccessDeniedException: not you"), "{told}");
}

fn pca(caller: Caller) -> PcaSettings {
    PcaSettings {
        caller: Arc::new(caller),
        ca: CA.into(),
        algorithm: None,
        template: None,
        supplement: Vec::new(),
    }
}

#[tokio::test]
async fn a_private_ca_of_aws_signs_after_a_while() {
    let web = Web::start().await;
    let ca = PrivateCa::start(&web, OWN);
    let (_dir, store, clock) = place();
    ca.waits(1);
    let authority = PcaAuthority::new(pca(caller(&web)), clock.clone());
    let manager = below(authority, &store, clock).await.unwrap();
    signs_for_the_bundle(manager.authorities(), &store);
    let roots: Vec<String> = store.own().x509.iter().map(|it| pem(&it.der)).collect();
    assert_eq!(roots, [ca.root().replace("\r\n", "\n")]);
    let asked = ca.asked();
    let operations: Vec<_> = asked
        .iter()
        .map(|(operation, _)| operation.as_str())
        .collect();
    assert_eq!(
        operations,
        [
            "DescribeCertificateAuthority",
            "IssueCertificate",
            "GetCertificate",
            "GetCertificate"
        ]
    );
    let issue = &asked[1].1;
    let csr = STANDARD.decode(issue["Csr"].as_str().unwrap()).unwrap();
    assert!(csr.starts_with(b"-----BEGIN CERTIFICATE REQUEST-----"));
    for (name, value) in [
        ("SigningAlgorithm", json!("SHA384WITHECDSA")),
        (
            "TemplateArn",
            json!("arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1"),
        ),
    ] {
        assert_eq!(issue[name], value);
    }

    // In a role, by template and algorithm of its own, and with more roots.
    let role = "arn:aws:iam::123456789012:role/issuer";
    assumes(&web, role);
    let ca = PrivateCa::start(&web, ROLE);
    let (_dir, store, clock) = place();
    let more = ah_testkit::ca::TestCa::new("example.org")
        .root_der()
        .to_vec();
    let authority = PcaAuthority::new(
        PcaSettings {
            algorithm: Some("SHA256WITHECDSA".into()),
            template: Some("arn:aws:acm-pca:::template/own".into()),
            supplement: vec![more.clone(), more.clone()],
            ..pca(caller(&web).assuming(role.into()))
        },
        clock.clone(),
    );
    let manager = below(authority, &store, clock).await.unwrap();
    signs_for_the_bundle(manager.authorities(), &store);
    let roots: Vec<_> = store.own().x509.into_iter().map(|it| it.der).collect();
    assert_eq!((roots.len(), &roots[1]), (2, &more));
    let issue = &ca.asked()[1].1;
    assert_eq!(issue["SigningAlgorithm"], "SHA256WITHECDSA");
    assert_eq!(issue["TemplateArn"], "arn:aws:acm-pca:::template/own");
}

// A call that is made again carries the same token, so that nothing is issued twice.
#[tokio::test]
async fn what_a_private_ca_throttles_is_asked_again() {
    let web = Web::start().await;
    let _ca = PrivateCa::start(&web, OWN);
    let (_dir, store, clock) = place();
    let described = json!({"CertificateAuthority": {
        "Status": "ACTIVE",
        "CertificateAuthorityConfiguration": {"SigningAlgorithm": "SHA384WITHECDSA"},
    }});
    web.answers_once(http::Response::new(described.to_string().into()));
    let slow = refusal(
        StatusCode::BAD_REQUEST,
        "ThrottlingException",
        "Rate exceeded",
    );
    web.answers_once(slow);
    let authority = PcaAuthority::new(pca(caller(&web)), clock.clone());
    below(authority, &store, clock).await.unwrap();
    let asked = web.asked().into_iter();
    let issues = asked.filter(|it| it.header("x-amz-target") == "ACMPrivateCA.IssueCertificate");
    let tokens: Vec<String> = issues
        .map(|asked| {
            let fields: Value = serde_json::from_str(&asked.body).unwrap();
            fields["IdempotencyToken"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(tokens.len(), 2);
    assert_eq!(tokens[0], tokens[1]);
}

#[tokio::test]
async fn what_a_private_ca_refuses_is_told() {
    let web = Web::start().await;
    let (_dir, _store, clock) = place();
    let authority = |ca: &str| {
        let settings = PcaSettings {
            ca: ca.into(),
            ..pca(caller(&web))
        };
        PcaAuthority::new(settings, clock.clone())
    };
    let ca = PrivateCa::start(&web, OWN);
    ca.is("DISABLED");
    let url = web.url("/acm_pca");
    for (name, why) in [
        (
            CA,
            format!(
                "failed submitting CSR: {url}: 400 Bad Request: InvalidStateException: the CA is not active"
            ),
        ),
        (
            "another",
            format!(
                "failed to describe CertificateAuthority: {url}: 400 Bad Request: ResourceNotFoundException: no such CA"
            ),
        ),
    ] {
        assert_eq!(refused(authority(name)).await, why);
    }
    let gone = Caller::new(
        [(
            "AWS_ENDPOINT_URL".to_owned(),
            "http://127.0.0.1:1".to_owned(),
        )]
        .into_iter()
        .chain(
            variables(&web)
                .into_iter()
                .filter(|(name, _)| !name.contains("URL")),
        )
        .collect(),
        REGION,
        None,
    );
    let told = refused(PcaAuthority::new(pca(gone), clock.clone())).await;
    assert!(told.contains("127.0.0.1:1: Connection refused"), "{told}");
}
