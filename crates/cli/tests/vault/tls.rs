//! TLS towards Vault, as a load balancer that ends it speaks it, with a real server behind (VA-8, ER-18).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use ah_testkit::ca::{LeafFiles, TestCa};
use ah_testkit::need;
use ah_testkit::process::{AccessPoint, Finished, Process};

use crate::fleet::{Fleet, id};
use crate::kit::{failed, sh};
use crate::tokens_of_others::python;

/// What ends TLS.
struct Front {
    url: String,
    _process: Process,
}

impl Front {
    fn before(fleet: &Fleet, files: &LeafFiles, more: &[String]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vault/tls_front.py");
        let vault = fleet.bao.url().rsplit(':').next().unwrap();
        let mut command = Command::new(python());
        command
            .arg(script)
            .arg(vault)
            .args([&files.cert, &files.key])
            .args(more);
        let process = Process::start(&mut command);
        let line = process.wait_for("ending TLS on ");
        let port = line.rsplit(' ').next().unwrap();
        Self {
            url: format!("https://127.0.0.1:{port}"),
            _process: process,
        }
    }
}

/// Runs an executor until it is enrolled or gives up. It logs in and gets its certificate through `front`.
fn once(
    fleet: &Fleet,
    access_point: &AccessPoint,
    front: &Front,
    trust: &Path,
    client: Option<&LeafFiles>,
) -> Finished {
    let credentials = fleet.realm.credentials(&fleet.bao, "executor");
    let trust = trust.display().to_string();
    let args = ["--once=enrolled", "--vault-ca", &trust];
    let server = access_point.address;
    let mut command = fleet.enroll(&front.url, Some(&credentials), server, "tls", &args);
    if let Some(client) = client {
        command
            .env("VAULT_CLIENT_CERT", &client.cert)
            .env("VAULT_CLIENT_KEY", &client.key);
    }
    Finished::from(command.output().unwrap())
}

#[track_caller]
fn enrolled(done: &Finished) {
    assert_eq!(done.code, 0, "{}", done.stderr);
    let line = format!(" enrolled executor.id={} ", id("tls"));
    assert!(done.stderr.contains(&line), "{}", done.stderr);
}

// VA-8: a load balancer that lets nobody through without a certificate. AppRole logs in: the certificate is for TLS
// alone.
#[test]
fn va_8_login_and_certificate_over_https_with_a_client_certificate() {
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let access_point = fleet.access_point(&[]);
    let folder = fleet.host.path("");
    let (servers, clients) = (TestCa::new("example.org"), TestCa::new("example.org"));
    let trust = servers.write(&folder, "vault-ca");
    let files = servers.leaf().ip("127.0.0.1").issue();
    let files = files.write(&folder, "vault");
    let admitted = clients.write(&folder, "clients-ca");
    let front = Front::before(&fleet, &files, &[format!("clients={}", admitted.display())]);
    let ours = clients.leaf().dns("machine-1.example.com").issue();
    let ours = ours.write(&folder, "ours");
    let before = fleet.realm.issued(&fleet.bao, "executor").1;
    enrolled(&once(&fleet, &access_point, &front, &trust, Some(&ours)));
    assert_eq!(fleet.realm.issued(&fleet.bao, "executor").1, before + 1);

    let stranger = TestCa::new("example.org");
    let stranger = stranger.leaf().dns("machine-1.example.com").issue();
    let stranger = stranger.write(&folder, "stranger");
    for client in [None, Some(&stranger)] {
        // In TLS 1.3 the server's reason comes after the handshake, and may be lost with the connection.
        let told = failed(&once(&fleet, &access_point, &front, &trust, client), 1);
        assert!(told.text.starts_with("vault gave no answer: "), "{told:?}");
    }
    assert_eq!(fleet.realm.issued(&fleet.bao, "executor").1, before + 1);
}

/// A certificate that signs itself, as `openssl req -x509` makes it. It is a CA's by default.
fn self_signed(fleet: &Fleet, name: &str, ca: bool) -> LeafFiles {
    let config = format!(
        "[req]\nprompt = no\ndistinguished_name = dn\nx509_extensions = v3\n[dn]\nCN = vault\n[v3]\n\
         basicConstraints = critical,CA:{ca}\nsubjectAltName = IP:127.0.0.1\n"
    );
    std::fs::write(fleet.host.path("self.cnf"), config).unwrap();
    let script = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 \
         -config self.cnf -keyout {name}-key.pem -out {name}.pem 2> /dev/null"
    );
    sh(&fleet.host, &script);
    LeafFiles {
        cert: fleet.host.path(format!("{name}.pem")),
        key: fleet.host.path(format!("{name}-key.pem")),
    }
}

// VA-8, ER-18
#[test]
fn va_8_servers_that_are_not_the_one_that_vault_ca_vouches_for() {
    if !need("openssl") {
        return;
    }
    let Some(fleet) = Fleet::begin() else {
        return;
    };
    let access_point = fleet.access_point(&[]);
    let folder = fleet.host.path("");
    let ca = TestCa::new("example.org");
    let trust = ca.write(&folder, "vault-ca");
    let write = |leaf: ah_testkit::ca::LeafBuilder, name: &str| leaf.issue().write(&folder, name);
    let hour = Duration::from_secs(3600);
    let right = || ca.leaf().ip("127.0.0.1");
    let ended = right()
        .valid_from(SystemTime::now() - 2 * hour)
        .valid_for(hour);
    let own = self_signed(&fleet, "own-ca", true);
    let cases: [(&str, LeafFiles, PathBuf, &str); 4] = [
        (
            "certificate signed by unknown authority",
            write(TestCa::new("example.org").leaf().ip("127.0.0.1"), "unknown"),
            trust.clone(),
            "--vault-ca",
        ),
        (
            "certificate verify failed: certificate not valid for name \"127.0.0.1\"",
            write(ca.leaf().dns("elsewhere.example.com"), "elsewhere"),
            trust.clone(),
            "--vault-addr",
        ),
        (
            "certificate has expired or is not yet valid",
            write(ended, "ended"),
            trust,
            "TLS certificate",
        ),
        (
            "certificate verify failed: it is a CA's own certificate; give Vault one that this CA issued",
            LeafFiles {
                cert: own.cert.clone(),
                key: own.key,
            },
            own.cert,
            "--vault-ca",
        ),
    ];
    for (text, files, trust, advice) in cases {
        let front = Front::before(&fleet, &files, &[]);
        let told = failed(&once(&fleet, &access_point, &front, &trust, None), 1);
        let text = format!("failed to connect to vault: {text}");
        assert!(told.text.starts_with(&text), "no {text}: {told:?}");
        told.says(&told.text, &[&front.url], advice);
    }

    // One that signed itself and is no CA's is trusted as it is; and TLS 1.2 will do.
    let own = self_signed(&fleet, "own", false);
    let front = Front::before(&fleet, &own, &["tls1.2".to_owned()]);
    enrolled(&once(&fleet, &access_point, &front, &own.cert, None));
}
