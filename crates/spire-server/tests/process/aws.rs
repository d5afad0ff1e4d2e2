//! A server that uses AWS (inventory sections 6 and 7), against a stand-in that verifies signatures.

use std::process::Command;
use std::sync::{Arc, Mutex};

use ah_testkit::aws::{OWN, refusal, signed, variables};
use ah_testkit::process::eventually;
use ah_testkit::web::Web;
use bytes::Bytes;
use http::{Response, StatusCode};

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
