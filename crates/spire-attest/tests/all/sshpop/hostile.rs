//! Claims that no server may believe.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ah_spire_attest::AttestError;
use ah_spire_attest::node::{AgentHalf, Challenge, ServerHalf};
use ah_testkit::node_suite::{Says, Sends, Unasked, attest, claim};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{HOST, Keys, assert_error, beside};

fn payload(certificate: &[u8]) -> Vec<u8> {
    let payload = json!({ "Certificate": STANDARD.encode(certificate) });
    payload.to_string().into_bytes()
}

#[tokio::test]
async fn certificates_that_do_not_count_are_refused() {
    let Some(keys) = Keys::new() else { return };
    keys.host("ca", "host", "ed25519");
    keys.make("other", "ed25519");
    let compare = "ssh-keygen -L -f";
    assert_error!(
        keys.outcome("other", "host", |_| ()).await,
        Refused,
        "failed to check host key: no authorities for hostname: host.example.org",
        compare,
    );
    for (args, word) in [
        (
            &["-n", "host.example.org"][..],
            "certificate presented as a host key has type 1: it is a user's",
        ),
        (&["-h"], "cert has no valid principals"),
        (
            &["-h", "-n", "host", "-V", "20200101:20210101"],
            "failed to check host key: cert has expired",
        ),
        (
            &["-h", "-n", "host", "-V", "20990101:21000101"],
            "failed to check host key: cert is not yet valid",
        ),
        (
            &[
                "-h",
                "-n",
                "host",
                "-O",
                "critical:source-address=10.0.0.0/8",
            ],
            "unsupported critical option \"source-address\"",
        ),
    ] {
        keys.certify("ca", "host", args);
        assert_error!(keys.outcome("ca", "host", |_| ()).await, Refused, word);
    }
    keys.certify("ca", "host", HOST);
    for domain in ["example.com", "xample.org", "host.example.org"] {
        let outcome = keys.outcome("ca", "host", |config| {
            config.canonical_domain = domain.into()
        });
        assert_error!(
            outcome.await,
            Refused,
            "failed to decanonicalize hostname: cert principal is not in domain",
            "canonical_domain",
        );
    }
}

#[tokio::test]
async fn a_certificate_counts_within_its_dates_alone() {
    let Some(keys) = Keys::new() else { return };
    keys.host("ca", "host", "ed25519");
    keys.certify("ca", "host", &["-h", "-n", "host", "-V", "0x10000:0x20000"]);
    let server = keys.server("ca", |_| ()).await.unwrap();
    let agent = keys.agent("host").await.unwrap();
    for (second, valid) in [
        (0xffff, false),
        (0x10000, true),
        (0x1ffff, true),
        (0x20000, false),
    ] {
        let at = UNIX_EPOCH + Duration::from_secs(second);
        assert_eq!(
            attest(&agent, &server, at).await.is_ok(),
            valid,
            "{second:#x}"
        );
    }
    keys.certify("ca", "host", &["-h", "-n", "host", "-V", "always:forever"]);
    attest(&agent, &server, UNIX_EPOCH).await.unwrap();
}

#[tokio::test]
async fn a_signature_of_the_ca_over_sha1_is_refused() {
    let Some(keys) = Keys::new() else { return };
    keys.make("ca", "rsa -b 2048");
    keys.make("host", "ed25519");
    keys.certify("ca", "host", &[HOST, &["-t", "ssh-rsa"]].concat());
    assert_error!(
        keys.outcome("ca", "host", |_| ()).await,
        Refused,
        "certificate signature does not verify: it is a signature over SHA-1",
        "rsa-sha2-512",
    );
}

#[tokio::test]
async fn no_byte_of_a_certificate_can_change() {
    let Some(keys) = Keys::new() else { return };
    keys.host("ca", "host", "ed25519");
    let server = keys.server("ca", |_| ()).await.unwrap();
    let certificate = keys.certificate("host");
    let now = SystemTime::now();
    for place in 0..certificate.len() {
        let mut changed = certificate.clone();
        changed[place] ^= 1;
        let changed = [
            &changed[..],
            &certificate[..place],
            &[&certificate[..], b"x"].concat(),
        ]
        .map(payload);
        for payload in changed {
            let error = server.attest(claim(&payload, now), &mut Unasked).await;
            let error = error.unwrap_err();
            let fitting = matches!(error, AttestError::Invalid(_) | AttestError::Refused(_));
            assert!(fitting, "{error:?}");
        }
    }
}

#[tokio::test]
async fn another_hosts_key_is_no_proof() {
    let Some(keys) = Keys::new() else { return };
    for (victim, thief, kind) in [
        ("a", "b", "ed25519"),
        ("c", "d", "ecdsa"),
        ("e", "f", "rsa -b 2048"),
    ] {
        let ca = format!("ca-{victim}");
        keys.host(&ca, victim, kind);
        keys.make(thief, kind);
        keys.certify(&ca, thief, HOST);
        let server = keys.server(&ca, |_| ()).await.unwrap();
        let thief = keys.agent(thief).await.unwrap();
        let claimed = Sends {
            payload: payload(&keys.certificate(victim)),
            agent: &thief,
        };
        assert_error!(
            attest(&claimed, &server, SystemTime::now()).await,
            Refused,
            "failed to verify signature: signature does not verify",
            "host_key_path",
        );
    }
}

/// Signs with `openssl`, and changes the answer.
struct Signs<F> {
    key: String,
    digest: &'static str,
    change: F,
}

impl<F: FnMut(&mut Value) + Send> Challenge for Signs<F> {
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        let challenge: Value = serde_json::from_slice(&challenge).unwrap();
        let nonce = STANDARD
            .decode(challenge["Nonce"].as_str().unwrap())
            .unwrap();
        let own = [7; 32];
        let folder = tempfile::tempdir().unwrap();
        let data = beside(folder.path(), "data");
        let both = digest(&SHA256, &[nonce, own.to_vec()].concat());
        std::fs::write(&data, both).unwrap();
        let mut openssl = Command::new("openssl");
        let openssl = openssl.args(["dgst", self.digest, "-sign", &self.key, &data]);
        let signed = openssl.output().unwrap();
        assert!(signed.status.success(), "{signed:?}");
        let format = match self.digest {
            "-sha1" => "ssh-rsa",
            _ => "rsa-sha2-256",
        };
        let mut answer = json!({
            "Nonce": STANDARD.encode(own),
            "Signature": { "Format": format, "Blob": STANDARD.encode(signed.stdout), "Rest": null },
        });
        (self.change)(&mut answer);
        Ok(answer.to_string().into_bytes())
    }
}

#[tokio::test]
async fn proofs_of_other_agents_are_taken_as_they_are_and_no_other_way() {
    let Some(keys) = Keys::new() else { return };
    if !ah_testkit::need("openssl") {
        return;
    }
    keys.host("ca", "host", "rsa -b 2048 -m PEM");
    let server = keys.server("ca", |_| ()).await.unwrap();
    let payload = payload(&keys.certificate("host"));
    let judge = async |digest, change: fn(&mut Value)| {
        let key = keys.path("host").to_str().unwrap().to_owned();
        let mut way = Signs {
            key,
            digest,
            change,
        };
        server
            .attest(claim(&payload, SystemTime::now()), &mut way)
            .await
    };
    // Upstream's agents sign with RSA keys over SHA-1.
    for digest in ["-sha1", "-sha256"] {
        judge(digest, |_| ()).await.unwrap();
    }
    for (change, word) in [
        (
            (|it| it["Signature"]["Format"] = "rsa-sha2-512".into()) as fn(&mut Value),
            "signature does not verify",
        ),
        (
            |it| it["Signature"]["Format"] = "ssh-ed25519".into(),
            "is not of this key's type",
        ),
        (
            |it| it["Signature"]["Blob"] = "".into(),
            "signature does not verify",
        ),
        (
            |it| it["Signature"] = Value::Null,
            "is not of this key's type",
        ),
        (
            |it| it["Nonce"] = STANDARD.encode([8; 32]).into(),
            "signature does not verify",
        ),
    ] {
        assert_error!(
            judge("-sha256", change).await,
            Refused,
            "failed to verify signature: ",
            word
        );
    }
    for (change, word) in [
        (
            (|it| it["Nonce"] = "".into()) as fn(&mut Value),
            "invalid response nonce size",
        ),
        (
            |it| it["Nonce"] = "!".into(),
            "failed to unmarshal challenge response",
        ),
    ] {
        assert_error!(judge("-sha256", change).await, Invalid, word);
    }
}

#[tokio::test]
async fn an_answer_counts_once() {
    let Some(keys) = Keys::new() else { return };
    keys.host("ca", "host", "ed25519");
    let server = keys.server("ca", |_| ()).await.unwrap();
    let agent = keys.agent("host").await.unwrap();
    let (payload, mut conversation) = agent.begin().await.unwrap();
    let nonce = json!({ "Nonce": STANDARD.encode([1; 32]) }).to_string();
    let old = ah_spire_attest::node::Conversation::answer(&mut conversation, nonce.as_bytes());
    let mut way = Says(old.await.unwrap());
    let again = server
        .attest(claim(payload.expose(), SystemTime::now()), &mut way)
        .await;
    assert_error!(again, Refused, "signature does not verify");
    let second = ah_spire_attest::node::Conversation::answer(&mut conversation, nonce.as_bytes());
    assert_error!(second.await, Internal, "server sent a second challenge");
}
