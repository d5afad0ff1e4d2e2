//! Certificates as people make them with openssl (FI-1, EN-3, AP-3).

use ah_testkit::need;
use ah_testkit::process::Host;

use crate::kit::{Files, failed, host, sh};

const RSA: &str = "rsa:2048";
const P256: &str = "ec -pkeyopt ec_paramgen_curve:P-256";
const P384: &str = "ec -pkeyopt ec_paramgen_curve:P-384";
const ED25519: &str = "ed25519";

/// A self-made root, `NAME.pem`.
fn root(host: &Host, name: &str, key: &str) {
    sh(
        host,
        &format!(
            "openssl req -x509 -newkey {key} -nodes -keyout {name}-key.pem -out {name}.pem -days 365 -subj '/CN={name}'"
        ),
    );
}

/// A certificate under `ca` with these extensions, `NAME.pem`.
fn signed(host: &Host, name: &str, key: &str, extensions: &str, ca: &str) {
    sh(
        host,
        &format!(
            "openssl req -new -newkey {key} -nodes -keyout {name}-key.pem -out {name}.csr -subj '/CN={name}'
             printf '{extensions}\\n' > {name}.ext
             openssl x509 -req -in {name}.csr -CA {ca}.pem -CAkey {ca}-key.pem -CAcreateserial \
                 -out {name}.pem -days 30 -extfile {name}.ext"
        ),
    );
}

fn leaf(host: &Host, name: &str, key: &str, sans: &str, ca: &str) {
    signed(host, name, key, &format!("subjectAltName={sans}"), ca);
}

#[test]
fn fi_1_every_kind_of_key_and_of_name_enrolls_under_a_self_made_ca() {
    if !need("openssl") {
        return;
    }
    let host = host();
    root(&host, "ca", "rsa:4096");
    let kinds = [
        (RSA, "DNS:worker-1.example.com", "worker-1.example.com"),
        (P256, "IP:10.1.2.3", "10.1.2.3"),
        (
            P384,
            "URI:spiffe://example.org/ah/agent/1",
            "spiffe://example.org/ah/agent/1",
        ),
        (ED25519, "DNS:a.example.com,IP:10.1.2.4", "a.example.com"),
    ];
    for (n, (key, sans, _)) in kinds.iter().enumerate() {
        let server = format!("DNS:localhost,IP:127.0.0.1,URI:spiffe://example.org/server/{n}");
        leaf(&host, &format!("server-{n}"), key, &server, "ca");
        leaf(&host, &format!("executor-{n}"), key, sans, "ca");
    }
    for n in 0..kinds.len() {
        let server = Files::named(&host, &format!("server-{n}"), "ca");
        let access_point = server.access_point(&host, &[]);
        for (m, (_, _, id)) in kinds.iter().enumerate() {
            let executor = Files::named(&host, &format!("executor-{m}"), "ca");
            // Each server by address and by name, and once by SPIFFE ID (EN-5).
            let by_name = format!("localhost:{}", access_point.address.port());
            match m {
                0 => executor.enrolls_as(&host, access_point.address, id, &[]),
                1 => executor.enrolls_as(&host, by_name, id, &[]),
                _ => {
                    let expected = format!("spiffe://example.org/server/{n}");
                    let expect = ["--expected-server-id", &expected];
                    executor.enrolls_as(&host, access_point.address, id, &expect);
                }
            }
        }
    }
}

#[test]
fn fi_1_chains_and_bundles_as_people_put_them_together() {
    if !need("openssl") {
        return;
    }
    let host = host();
    root(&host, "root", P384);
    root(&host, "other-root", P256);
    root(&host, "third-root", RSA);
    let may_sign = "basicConstraints=critical,CA:TRUE\\nkeyUsage=critical,keyCertSign,cRLSign";
    signed(&host, "intermediate", P256, may_sign, "root");
    leaf(
        &host,
        "server",
        RSA,
        "DNS:localhost,IP:127.0.0.1",
        "intermediate",
    );
    leaf(
        &host,
        "executor",
        P256,
        "DNS:worker-1.example.com",
        "intermediate",
    );
    // The root in the middle of others, with openssl's description of each before it.
    sh(
        &host,
        "for name in other-root root third-root; do echo \"# $name\"; openssl x509 -in $name.pem -text; done > bundle.pem
         cat intermediate.pem >> server.pem",
    );
    let access_point = Files::named(&host, "server", "bundle").access_point(&host, &[]);
    let cases = [
        ("in-order", "cat executor.pem intermediate.pem"),
        (
            "root-sent-along",
            "cat executor.pem intermediate.pem root.pem",
        ),
        ("wrong-order", "cat intermediate.pem executor.pem"),
        ("root-first", "cat root.pem intermediate.pem executor.pem"),
        (
            "twice",
            "cat executor.pem intermediate.pem intermediate.pem",
        ),
        (
            "windows-lines",
            "cat executor.pem intermediate.pem | sed 's/$/\\r/'",
        ),
        (
            "described",
            "openssl x509 -in executor.pem -text; cat intermediate.pem",
        ),
        (
            "blank-around",
            "echo; sed 's/$/  /' executor.pem; echo; cat intermediate.pem; echo",
        ),
    ];
    for (name, script) in cases {
        let end = if name == "windows-lines" {
            "sed 's/$/\\r/'"
        } else {
            "cat"
        };
        sh(
            &host,
            &format!(
                "{{ {script}; }} > {name}.pem
                 {end} < executor-key.pem > {name}-key.pem; chmod 600 {name}-key.pem
                 {end} < bundle.pem > {name}-ca.pem"
            ),
        );
        let executor = Files::named(&host, name, &format!("{name}-ca"));
        executor.enrolls_as(&host, access_point.address, "worker-1.example.com", &[]);
    }
    // Without the intermediate it cannot be told who signed.
    let bare = Files::named(&host, "executor", "bundle").once(&host, access_point.address, &[]);
    failed(&bare, 1).says(
        "client certificate rejected: certificate signed by unknown authority",
        &["CN=intermediate"],
        "--ca",
    );
}

#[test]
fn fi_1_an_encrypted_key_takes_its_passphrase_from_a_file() {
    if !need("openssl") {
        return;
    }
    let host = host();
    root(&host, "ca", P256);
    leaf(&host, "server", P256, "DNS:localhost,IP:127.0.0.1", "ca");
    leaf(&host, "executor", RSA, "DNS:worker-1.example.com", "ca");
    sh(
        &host,
        "umask 077
         cp executor-key.pem plain.pem
         printf 'correct horse\\n' > passphrase; printf 'battery staple\\n' > wrong
         openssl pkcs8 -topk8 -v2 aes-256-cbc -in plain.pem -passout file:passphrase -out executor-key.pem
         openssl rsa -aes256 -traditional -in plain.pem -passout file:passphrase -out legacy-key.pem
         cp executor.pem legacy.pem",
    );
    let access_point = Files::named(&host, "server", "ca").access_point(&host, &[]);
    let address = access_point.address;
    let executor = Files::named(&host, "executor", "ca");

    let refused = failed(&executor.once(&host, address, &[]), 1);
    let key = executor.key.display();
    assert!(
        refused.text.starts_with(&format!("cannot use {key}: ")),
        "{refused:?}"
    );
    assert!(
        refused.hint.contains("--key-passphrase-file"),
        "{refused:?}"
    );

    let wrong = executor.once(&host, address, &["--key-passphrase-file", "wrong"]);
    let refused = failed(&wrong, 1);
    assert!(refused.text.contains("passphrase"), "{refused:?}");
    assert!(!wrong.stderr.contains("battery"), "{}", wrong.stderr);

    let id = "worker-1.example.com";
    executor.enrolls_as(&host, address, id, &["--key-passphrase-file", "passphrase"]);

    // What the hint for the older way says to type works.
    let legacy = Files::named(&host, "legacy", "ca");
    let refused = failed(&legacy.once(&host, address, &[]), 1);
    assert!(
        refused
            .hint
            .contains("openssl pkcs8 -topk8 -v2 aes-256-cbc"),
        "{refused:?}"
    );
    sh(
        &host,
        "umask 077
         openssl pkcs8 -topk8 -v2 aes-256-cbc -in legacy-key.pem -passin file:passphrase -passout 'pass:correct horse' -out legacy-key.pem.p8
         mv legacy-key.pem.p8 legacy-key.pem",
    );
    legacy.enrolls_as(&host, address, id, &["--key-passphrase-file", "passphrase"]);
}
