//! Images that somebody signed, or did not: `sigstore` of `k8s` and `docker`, against a stand-in for all of sigstore.

use std::collections::BTreeMap;
use std::time::Duration;

use ah_spire_attest::workload::WorkloadAttestor;
use ah_spire_attest::workload::docker::{Docker, DockerConfig};
use ah_spire_attest::workload::k8s::{K8s, K8sConfig};
use ah_spire_attest::workload::sigstore::{Credential, SigstoreConfig};
use ah_testkit::ca::TestCa;
use ah_testkit::web::{Asked, Site};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::cgroups::{FakeProc, this_process};
use crate::kubelet::{POD, Rig, container, pod};
use signing::{HEX, ISSUER, Make, SUBJECT, Stand, then};

mod signing;

const ID: &str = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961";

/// A pod whose container has the image of `stand`, and the attestor.
async fn k8s(stand: &Stand, sigstore: SigstoreConfig) -> (Rig, K8s) {
    let mut server = container("server", ID);
    server["imageID"] = json!(stand.image());
    let rig = Rig::listing(&[pod(POD, json!([server]))]).await;
    let config = K8sConfig {
        sigstore: Some(sigstore),
        ..rig.config()
    };
    let k8s = K8s::configure(&config, rig.proc.root()).await;
    (
        rig,
        k8s.map_err(|error| error.explained().report()).unwrap(),
    )
}

/// The values that tell of signatures.
async fn values(stand: &Stand, sigstore: SigstoreConfig) -> Result<Vec<String>, String> {
    let (_rig, k8s) = k8s(stand, sigstore).await;
    of_signatures(&k8s).await
}

async fn of_signatures(attestor: &impl WorkloadAttestor) -> Result<Vec<String>, String> {
    let found = attestor.attest(&this_process()).await;
    let found = found.map_err(|error| error.explained().report())?;
    let values = found.into_iter().map(|selector| selector.value);
    Ok(values.filter(|value| value.starts_with("image-")).collect())
}

fn text<'a>(layer: &'a Value, key: &str) -> &'a str {
    layer["annotations"][key].as_str().unwrap()
}

/// What is told of the signature in `layer`.
fn told(layer: &Value) -> Vec<String> {
    let bundle: Value = serde_json::from_str(text(layer, "dev.sigstore.cosign/bundle")).unwrap();
    let log = bundle["Payload"]["logID"].as_str().unwrap();
    let set = bundle["SignedEntryTimestamp"].as_str().unwrap();
    let signature = text(layer, "dev.cosignproject.cosign/signature");
    vec![
        "image-signature:verified".to_owned(),
        format!("image-signature-subject:{SUBJECT}"),
        format!("image-signature-issuer:{ISSUER}"),
        format!("image-signature-value:{signature}"),
        format!("image-signature-log-id:{log}"),
        "image-signature-log-index:4711".to_owned(),
        "image-signature-integrated-time:1700000000".to_owned(),
        format!("image-signature-signed-entry-timestamp:{set}"),
    ]
}

#[tokio::test]
async fn a_signed_image_is_told_with_who_signed_it_and_asked_for_once() {
    let stand = Stand::start().await;
    let layer = stand.signature(&stand.make());
    stand.publish("sig", std::slice::from_ref(&layer));
    let (_rig, k8s) = k8s(&stand, stand.config()).await;
    assert_eq!(of_signatures(&k8s).await.unwrap(), told(&layer));
    let asked = stand.registry.asked().len();
    assert!(asked > 0);
    assert_eq!(of_signatures(&k8s).await.unwrap(), told(&layer));
    assert!(stand.registry.asked().is_empty());

    // One that is not right does not spoil one that is.
    let stranger = KeyPair::generate().unwrap();
    let bad = stand.signature(&Make {
        key: Some(&stranger),
        ..stand.make()
    });
    stand.publish("sig", &[bad, layer.clone()]);
    assert_eq!(values(&stand, stand.config()).await.unwrap(), told(&layer));
}

// Each single thing that can be wrong.
#[tokio::test]
async fn what_is_not_right_is_not_verified() {
    let stand = Stand::start().await;
    let other = KeyPair::generate().unwrap();
    let stranger = TestCa::root("stranger.example")
        .valid_from(then() - Duration::from_hours(24))
        .issue();
    let another = "0".repeat(64);
    let right = || stand.make();
    let cases: Vec<(Make<'_>, &str)> = vec![
        (
            Make {
                key: Some(&other),
                ..right()
            },
            "the signature is not of the certificate's key",
        ),
        (
            Make {
                image: &another,
                ..right()
            },
            "the signature is of another image",
        ),
        (
            Make {
                subject: "https://ci.example/other",
                ..right()
            },
            "none of the expected identities matched",
        ),
        (
            Make {
                issuer: "https://other.example",
                ..right()
            },
            "none of the expected identities matched",
        ),
        (
            Make {
                issuer: "",
                ..right()
            },
            "none of the expected identities matched",
        ),
        (
            Make {
                authority: &stranger,
                ..right()
            },
            "certificate signed by unknown authority",
        ),
        (
            Make {
                code_signing: false,
                ..right()
            },
            "not for signing code",
        ),
        (
            Make {
                integrated: then() + Duration::from_hours(1),
                ..right()
            },
            "the certificate was not valid at",
        ),
        (
            Make {
                integrated: then() - Duration::from_hours(1),
                ..right()
            },
            "the certificate was not valid at",
        ),
        (
            Make {
                rekor: &other,
                ..right()
            },
            "unable to verify SET",
        ),
        (
            Make {
                rekor: &other,
                named_rekor: &other,
                ..right()
            },
            "rekor log public key not found",
        ),
        (
            Make {
                entry_of: Some(b"of another artifact"),
                ..right()
            },
            "matching bundle to payload",
        ),
        (
            Make {
                entry_signature: Some("AAAA"),
                ..right()
            },
            "signature in bundle does not match",
        ),
        (
            Make {
                entry_certificate: false,
                ..right()
            },
            "the bundle is of another certificate",
        ),
        (
            Make {
                bundle: false,
                ..right()
            },
            "no bundle of a Rekor entry",
        ),
        (
            Make {
                ct: None,
                ..right()
            },
            "does not include required embedded SCT",
        ),
        (
            Make {
                ct: Some(&other),
                ..right()
            },
            "error verifying embedded SCT",
        ),
        (
            Make {
                ct: Some(&other),
                named_ct: &other,
                ..right()
            },
            "ctfe public key not found",
        ),
        (
            Make {
                blob: Some(b"{}"),
                ..right()
            },
            "has another content than its digest says",
        ),
    ];
    let identities = BTreeMap::from([(ISSUER.to_owned(), vec![SUBJECT.to_owned()])]);
    let config = SigstoreConfig {
        allowed_identities: identities,
        ..stand.config()
    };
    stand.publish("sig", &[stand.signature(&right())]);
    assert!(values(&stand, config.clone()).await.is_ok());
    for (make, why) in &cases {
        stand.publish("sig", &[stand.signature(make)]);
        let error = values(&stand, config.clone()).await.expect_err(why);
        assert!(error.contains(why), "{why}: {error}");
        assert!(
            error.contains("error verifying sigstore image signature for imageID "),
            "{error}"
        );
    }
    stand.publish("sig", &[]);
    let error = values(&stand, config.clone()).await.unwrap_err();
    assert!(error.contains("no signatures found"), "{error}");
    let missing = status(StatusCode::NOT_FOUND);
    let tag = format!("/v2/shop/server/manifests/sha256-{HEX}.sig");
    stand.registry.answers_with(&tag, missing);
    let error = values(&stand, config.clone()).await.unwrap_err();
    assert!(error.contains("no signatures found"), "{error}");
    stand
        .registry
        .answers_with(&tag, status(StatusCode::FORBIDDEN));
    let error = values(&stand, config).await.unwrap_err();
    assert!(error.contains("403 Forbidden"), "{error}");
}

fn status(status: StatusCode) -> Response<Bytes> {
    let mut answer = Response::new(Bytes::new());
    *answer.status_mut() = status;
    answer
}

#[tokio::test]
async fn identities_are_texts_or_regular_expressions() {
    let stand = Stand::start().await;
    let signed_by = |subject: &'static str| {
        stand.publish(
            "sig",
            &[stand.signature(&Make {
                subject,
                ..stand.make()
            })],
        );
    };
    let allowed = |issuer: &str, subject: &str| SigstoreConfig {
        allowed_identities: BTreeMap::from([
            (
                "https://nobody.example".to_owned(),
                vec!["nobody".to_owned()],
            ),
            (
                issuer.to_owned(),
                vec!["no one".to_owned(), subject.to_owned()],
            ),
        ]),
        ..stand.config()
    };
    for (by, issuer, subject, good) in [
        (SUBJECT, ISSUER, SUBJECT, true),
        (
            SUBJECT,
            "^https://[a-z]+\\.example$",
            "^https://ci\\.example/shop/.*$",
            true,
        ),
        // Not anchored, as there.
        (SUBJECT, "accounts.*", "shop/server/(release|main)", true),
        // Without any of the signs it is the whole text.
        (SUBJECT, "accounts.example", SUBJECT, false),
        (SUBJECT, ISSUER, "^shop/", false),
        ("ci@example.org", ISSUER, "ci@example.org", true),
        ("ci@example.org", ISSUER, "^\\w+@example\\.org$", true),
        ("ci@example.org", ISSUER, "^\\d+@example\\.org$", false),
    ] {
        signed_by(by);
        let found = values(&stand, allowed(issuer, subject)).await;
        assert_eq!(found.is_ok(), good, "{issuer} {subject}: {found:?}");
    }
    for (issuer, subjects, why) in [
        (ISSUER, vec!["(".to_owned()], "is no regular expression"),
        (ISSUER, vec![], "issuers without subjects"),
    ] {
        let config = SigstoreConfig {
            allowed_identities: BTreeMap::from([(issuer.to_owned(), subjects)]),
            ..stand.config()
        };
        refused(config, why).await;
    }
}

/// That `sigstore` cannot be started with.
async fn refused(sigstore: SigstoreConfig, why: &str) {
    let config = DockerConfig {
        sigstore: Some(sigstore),
        ..Default::default()
    };
    let error = Docker::configure(&config, FakeProc::with("").root()).await;
    let report = error.err().expect(why).explained().report();
    assert!(report.contains(why), "{report}");
    assert!(report.contains("hint: "), "{report}");
}

#[tokio::test]
async fn attestations_count_unless_they_are_ignored() {
    let stand = Stand::start().await;
    let layer = stand.signature(&stand.make());
    stand.publish("sig", std::slice::from_ref(&layer));
    let with = || SigstoreConfig {
        ignore_attestations: false,
        ..stand.config()
    };
    let mut both = told(&layer);
    both.insert(1, "image-attestations:verified".to_owned());
    for kind in ["dsse", "intoto"] {
        stand.publish("att", &[stand.attestation(&stand.make(), kind)]);
        assert_eq!(values(&stand, with()).await.unwrap(), both, "{kind}");
    }
    let other = KeyPair::generate().unwrap();
    let another = "0".repeat(64);
    for (make, why) in [
        (
            Make {
                key: Some(&other),
                ..stand.make()
            },
            "no signature of the envelope is of the certificate's key",
        ),
        (
            Make {
                image: &another,
                ..stand.make()
            },
            "the attestation is of another image",
        ),
        (
            Make {
                rekor: &other,
                ..stand.make()
            },
            "unable to verify SET",
        ),
        (
            Make {
                ct: None,
                ..stand.make()
            },
            "required embedded SCT",
        ),
    ] {
        stand.publish("att", &[stand.attestation(&make, "dsse")]);
        let error = values(&stand, with()).await.unwrap_err();
        assert!(error.contains(why), "{why}: {error}");
    }
    stand.publish("att", &[]);
    let error = values(&stand, with()).await.unwrap_err();
    assert!(error.contains("no matching attestations"), "{error}");
    assert_eq!(values(&stand, stand.config()).await.unwrap(), told(&layer));
}

#[tokio::test]
async fn what_is_ignored_or_skipped_is_not_looked_at() {
    let stand = Stand::start().await;
    let skipping = SigstoreConfig {
        skipped_images: [stand.image()].into(),
        ..stand.config()
    };
    assert_eq!(values(&stand, skipping).await, Ok(Vec::new()));
    assert!(stand.registry.asked().is_empty());

    let layer = stand.signature(&Make {
        ct: None,
        ..stand.make()
    });
    stand.publish("sig", std::slice::from_ref(&layer));
    let no_sct = SigstoreConfig {
        ignore_sct: true,
        ..stand.config()
    };
    assert_eq!(values(&stand, no_sct).await.unwrap(), told(&layer));
    // Without the log nothing says when it was signed: the certificate has to be valid now.
    let no_log = SigstoreConfig {
        ignore_tlog: true,
        ignore_sct: true,
        ..stand.config()
    };
    let error = values(&stand, no_log).await.unwrap_err();
    assert!(
        error.contains("the certificate was not valid at"),
        "{error}"
    );
}

#[tokio::test]
async fn roots_come_from_what_cosign_initialize_leaves() {
    let stand = Stand::start().await;
    let layer = stand.signature(&stand.make());
    stand.publish("sig", std::slice::from_ref(&layer));
    let with = |roots| SigstoreConfig {
        roots,
        ..stand.config()
    };
    let found = values(&stand, with(stand.trusted_root(None))).await;
    assert_eq!(found.unwrap(), told(&layer));
    let ended = with(stand.trusted_root(Some("2022-10-31T23:59:59.999Z")));
    let error = values(&stand, ended).await.unwrap_err();
    assert!(error.contains("was not in use at"), "{error}");

    let mut nowhere = stand.trusted_root(None);
    nowhere.tuf_root = stand.folder.path().join("nowhere");
    refused(with(nowhere), "cosign initialize").await;
    refused(with(Default::default()), "neither TUF_ROOT nor HOME is set").await;
    let mut not_a_key = stand.config();
    not_a_key.roots.rekor = not_a_key.roots.fulcio.clone();
    refused(not_a_key, "SIGSTORE_REKOR_PUBLIC_KEY").await;
    let mut not_there = stand.config();
    not_there.roots.fulcio = "/nowhere/fulcio.pem".into();
    refused(not_there, "/nowhere/fulcio.pem").await;
}

#[tokio::test]
async fn a_registry_is_shown_what_it_asks_for() {
    let stand = Stand::start().await;
    let layer = stand.signature(&stand.make());
    stand.publish("sig", std::slice::from_ref(&layer));
    let shown = |asked: &Asked| asked.header("authorization").to_owned();
    let basic = format!("Basic {}", STANDARD.encode("user:secret"));
    let realm = stand.registry.url("/token");
    let challenge = move |scheme: &str| {
        let asked = match scheme {
            "Basic" => "Basic realm=\"x\"".to_owned(),
            _ => format!("Bearer realm=\"{realm}\",service=\"registry\",scope=\"x\""),
        };
        let mut answer = status(StatusCode::UNAUTHORIZED);
        answer
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, asked.parse().unwrap());
        answer
    };
    let manifest = format!("/v2/shop/server/manifests/sha256-{HEX}.sig");
    let blob = format!(
        "/v2/shop/server/blobs/{}",
        layer["digest"].as_str().unwrap()
    );
    let body = json!({"layers": [layer.clone()]}).to_string();
    let token = basic.clone();
    stand.registry.answers_by("/token", move |asked| {
        assert!(
            asked.target.contains("service=registry"),
            "{}",
            asked.target
        );
        assert!(
            asked
                .target
                .contains("scope=repository%3Ashop%2Fserver%3Apull"),
            "{}",
            asked.target
        );
        match shown(asked) == token {
            true => Response::new(json!({"token": "t-1"}).to_string().into()),
            false => status(StatusCode::UNAUTHORIZED),
        }
    });
    let with = SigstoreConfig {
        registry_credentials: BTreeMap::from([(
            stand.registry.address.to_string(),
            Credential {
                username: "user".into(),
                password: Zeroizing::new("secret".into()),
            },
        )]),
        ..stand.config()
    };
    for (scheme, wanted) in [("Bearer", "Bearer t-1".to_owned()), ("Basic", basic)] {
        let (ask, body) = (challenge(scheme), body.clone());
        stand
            .registry
            .answers_by(&manifest, move |asked| match shown(asked) == wanted {
                true => Response::new(body.clone().into()),
                false => ask.clone(),
            });
        assert_eq!(values(&stand, with.clone()).await.unwrap(), told(&layer));
        assert!(values(&stand, stand.config()).await.is_err());
    }
    // Contents lie elsewhere, where nothing is shown.
    let elsewhere = ah_testkit::web::Web::start().await;
    let payload = json!({"not": "this"}).to_string();
    elsewhere.answers("/blob", payload);
    let mut moved = status(StatusCode::TEMPORARY_REDIRECT);
    let place = elsewhere.url("/blob").parse().unwrap();
    moved.headers_mut().insert(header::LOCATION, place);
    stand.registry.answers_with(&blob, moved);
    let error = values(&stand, with.clone()).await.unwrap_err();
    assert!(error.contains("has another content"), "{error}");
    let asked = elsewhere.asked();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].headers.get(header::AUTHORIZATION).is_none());
    assert!(!format!("{with:?}").contains("secret"));
}

#[tokio::test]
async fn docker_tells_of_the_image_that_its_container_was_made_of() {
    let stand = Stand::start().await;
    let layer = stand.signature(&stand.make());
    stand.publish("sig", std::slice::from_ref(&layer));
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("docker.sock");
    let engine = Site::on_socket(&socket);
    engine.answers(
        &format!("/containers/{ID}/json"),
        json!({"Id": ID, "Image": "sha256:i", "Config": {"Image": "server:1.2"}}),
    );
    let image = |digests: Value| json!({"Id": "sha256:i", "RepoDigests": digests});
    let proc = FakeProc::with(&format!("0::/docker/{ID}\n"));
    let config = DockerConfig {
        docker_socket_path: format!("unix://{}", socket.display()),
        sigstore: Some(stand.config()),
        ..Default::default()
    };
    let docker = Docker::configure(&config, proc.root()).await.unwrap();
    let other = format!("{}/other@sha256:{HEX}", stand.registry.address);
    for (digests, why) in [
        (json!(null), "no repo digest found"),
        (json!([other]), "no signatures found"),
    ] {
        engine.answers("/images/server:1.2/json", image(digests));
        let error = of_signatures(&docker).await.unwrap_err();
        assert!(
            error.contains("sigstore signature verification failed for image server:1.2: "),
            "{error}"
        );
        assert!(error.contains(why), "{error}");
    }
    engine.answers(
        "/images/server:1.2/json",
        image(json!([other, stand.image()])),
    );
    assert_eq!(of_signatures(&docker).await.unwrap(), told(&layer));
}
