//! A server that uses AWS (inventory sections 6 and 7), against a stand-in that verifies signatures.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use ah_testkit::aws::kms::Kms;
use ah_testkit::aws::pca::{CA, PrivateCa};
use ah_testkit::aws::{OWN, refusal, signed, variables};
use ah_testkit::process::eventually;
use ah_testkit::web::Web;
use bytes::Bytes;
use http::{Response, StatusCode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::keys::{lives, shown};
use crate::server::{PROGRAM, Server, place};

fn conf(plugins: &str) -> String {
    format!(
        r#"server {{ bind_address = "127.0.0.1" bind_port = "8081" socket_path = "/run/spire/server.sock" trust_domain = "example.org" data_dir = "/var/lib/spire/server" }}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "/var/lib/spire/server/datastore.sqlite3" }} }}
{plugins}
}}"#
    )
}

/// The program, with AWS on `web`.
fn program(web: &Web) -> Command {
    let mut command = Command::new(PROGRAM);
    command.envs(variables(web));
    command
}

fn unavailable() -> Response<Bytes> {
    refusal(
        StatusCode::SERVICE_UNAVAILABLE,
        "InternalFailure",
        "not now",
    )
}

// BundlePublisher `aws_s3`: S3 is down when the server starts, and each new bundle gets there.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_publishes_its_bundle_in_s3_once_s3_is_there() {
    let web = Web::start().await;
    let object = "/s3/trust/bundle.pem";
    web.answers_with(object, unavailable());
    let publisher = r#"KeyManager "memory" { plugin_data {} }
  BundlePublisher "aws_s3" { plugin_data { region = "eu-central-1" bucket = "trust" object_key = "bundle.pem" format = "pem" } }"#;
    let server = Server::start_in(place(&conf(publisher)), program(&web));
    eventually("the failure is told", || {
        server.log().contains("failed to put object").then_some(())
    });
    let put = Arc::new(Mutex::new(String::new()));
    let kept = put.clone();
    web.answers_by(
        object,
        signed(OWN, "s3", move |asked| {
            kept.lock().unwrap().clone_from(&asked.body);
            Response::new(Bytes::new())
        }),
    );
    let holds_the_bundle = || {
        eventually("the object holds the bundle", || {
            let shown = server.command("bundle show");
            (put.lock().unwrap().trim() == shown.trim()).then_some(())
        });
    };
    holds_the_bundle();
    server.command("localauthority x509 prepare");
    holds_the_bundle();
    assert_eq!(put.lock().unwrap().matches("BEGIN CERTIFICATE").count(), 2);
    assert!(!server.log().contains(OWN.secret));
}

/// A port of AWS's that nobody listens on.
fn without_aws() -> Command {
    let mut command = Command::new(PROGRAM);
    command.envs([
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
        ("AWS_ACCESS_KEY_ID", OWN.id),
        ("AWS_SECRET_ACCESS_KEY", OWN.secret),
    ]);
    command
}

/// What is said by a server that cannot start.
fn refused(conf: &str, mut program: Command) -> String {
    let folder = place(conf);
    let run = program
        .args(["run", "-config"])
        .arg(folder.path().join("etc/server.conf"))
        .output()
        .unwrap();
    assert!(!run.status.success());
    String::from_utf8([run.stdout, run.stderr].concat()).unwrap()
}

// UpstreamAuthority `aws_pca`: not there at the start, throttled, and another CA for each rotation.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_ca_of_aws_signs_the_cas_of_a_server() {
    let web = Web::start().await;
    let pca = PrivateCa::start(&web, OWN);
    let conf = conf(&format!(
        r#"KeyManager "memory" {{ plugin_data {{}} }}
  UpstreamAuthority "aws_pca" {{ plugin_data {{ region = "eu-central-1" certificate_authority_arn = "{CA}" }} }}"#
    ));
    let told = refused(&conf, without_aws());
    assert!(
        told.contains("failed to describe CertificateAuthority: 127.0.0.1:1: Connection refused"),
        "{told}"
    );
    let slow = refusal(
        StatusCode::BAD_REQUEST,
        "ThrottlingException",
        "Rate exceeded",
    );
    web.answers_once(slow);
    let server = Server::start_in(place(&conf), program(&web));
    let mint = "d=$(mktemp -d)
        spire-server x509 mint -socketPath /run/spire/server.sock -spiffeID spiffe://example.org/w -write $d
        spire-server bundle show -socketPath /run/spire/server.sock > $d/roots.pem
        openssl verify -CAfile $d/roots.pem -untrusted $d/svid.pem $d/svid.pem";
    assert!(server.ok(mint).contains("svid.pem: OK"));
    let roots = server.command("bundle show").replace("\r\n", "\n");
    assert_eq!(roots.trim(), pca.root().replace("\r\n", "\n").trim());
    let prepared = server.json("localauthority x509 prepare")["prepared_authority"].clone();
    let id = prepared["authority_id"].as_str().unwrap();
    server.command(&format!("localauthority x509 activate -authorityID {id}"));
    assert!(server.ok(mint).contains("svid.pem: OK"));
    let issued = pca.asked().into_iter();
    let issued = issued.filter(|(operation, _)| operation == "IssueCertificate");
    assert_eq!(issued.count(), 2);
}

// KeyManager `aws_kms`: not there at the start; kill -9 at any time while a key is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_its_keys_in_kms() {
    let web = Web::start().await;
    let role = "arn:aws:sts::123456789012:assumed-role/spire-server/i-1";
    let kms = Kms::start(&web, role);
    let conf = conf(
        r#"KeyManager "aws_kms" { plugin_data { region = "eu-central-1" key_identifier_file = "/var/lib/spire/server-id" } }"#,
    );
    let told = refused(&conf, without_aws());
    assert!(
        told.contains(
            "KeyManager \"aws_kms\": failed to fetch aliases: 127.0.0.1:1: Connection refused"
        ),
        "{told}"
    );
    let variables = variables(&web);
    let variables = variables.iter();
    let environment: Vec<_> = variables
        .map(|(name, value)| (name.as_str(), Path::new(value)))
        .collect();
    let mut server = Server::start(&conf, &environment);
    lives(&mut server, &environment);
    // Two slots of either kind, of which the second of the JWT keys was never needed.
    eventually("what was replaced is deleted", || {
        (kms.keys().len() == 3).then_some(())
    });
    for (operation, left) in [
        ("GetPublicKey", 4),
        ("UpdateAlias", 5),
        ("ScheduleKeyDeletion", 5),
    ] {
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        kms.asked();
        server.restart(program(&web));
        let mut refreshed = 0;
        eventually("the aliases are refreshed", || {
            let asked = kms.asked().into_iter();
            refreshed += asked.filter(|(asked, _)| asked == "UpdateAlias").count();
            (refreshed == kms.aliases().len()).then_some(())
        });
        let active = shown(&server)["active"].clone();
        let pid = Pid::from_raw(i32::try_from(server.child.id()).unwrap());
        kms.meanwhile(operation, move || kill(pid, Signal::SIGKILL).unwrap());
        server.sh("spire-server localauthority x509 prepare -socketPath /run/spire/server.sock");
        server.child.wait().unwrap();
        server.restart(program(&web));
        assert_eq!(shown(&server)["active"], active, "{operation}");
        // What was being made then is nobody's, and in nobody's way.
        assert_eq!(kms.keys().len(), left, "{operation}");
    }
    lives(&mut server, &environment);
    assert!(!server.log().contains(OWN.secret));
}
