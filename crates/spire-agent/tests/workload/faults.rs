//! What happens when things go wrong.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::Arc;

use ah_spire_wire::Channel;
use ah_spire_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use ah_spire_wire::workload::{
    JwtsvidRequest, ValidateJwtsvidRequest, X509svidRequest, X509svidResponse,
};
use ah_testkit::ca::TestCa;
use ah_testkit::process::{Process, eventually};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::Signal;
use spire_agent::workload::{Quota, WorkloadApi};
use tokio::net::UnixStream;
use tonic::{Code, Streaming};

use super::rig::{Rig, WORKLOAD, bundle_of, domain, secured};

/// The error of a socket that cannot be taken.
fn refusal(rig: &Rig) -> String {
    rig.run(async {
        let bound = WorkloadApi::bind(
            rig.config.clone(),
            Arc::clone(&rig.identities),
            Arc::clone(&rig.attestor),
        );
        bound.err().expect("the socket was taken").report()
    })
}

async fn stream(channel: &Channel) -> Result<Streaming<X509svidResponse>, tonic::Status> {
    let mut client = SpiffeWorkloadApiClient::with_origin(channel.clone(), Channel::origin());
    let call = client.fetch_x509svid(secured(X509svidRequest {}));
    Ok(call.await?.into_inner())
}

/// Waits until nobody watches the served set any more.
fn nobody_watches(rig: &Rig) {
    rig.run(rig.identities.served.closed());
}

// Inventory section 12: umask, public socket mode.
#[test]
fn the_socket_is_for_everybody_whatever_the_umask() {
    let rig = Rig::new();
    let mode = |path: &std::path::Path| path.metadata().unwrap().mode() & 0o777;
    assert_eq!(mode(rig.socket()), 0o777);
    assert_eq!(mode(rig.socket().parent().unwrap()), 0o755);
}

#[test]
fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
    let mut rig = Rig::new();
    let error = refusal(&rig);
    let path = rig.socket().display().to_string();
    assert!(error.contains(&path), "{error}");
    assert!(
        error.contains("another process is listening on it"),
        "{error}"
    );
    assert!(error.contains("hint: stop the other one"), "{error}");
    rig.run(stream(&rig.channel()))
        .expect("the first agent serves on");

    rig.stop();
    assert!(!rig.socket().exists(), "the socket goes with the agent");
    drop(std::os::unix::net::UnixListener::bind(rig.socket()).unwrap());
    assert!(rig.socket().exists());
    rig.start();
    rig.run(stream(&rig.channel()))
        .expect("a stale socket is replaced");
}

#[test]
fn a_path_that_is_no_socket_is_left_alone_and_named() {
    let mut rig = Rig::new();
    rig.stop();
    std::fs::write(rig.socket(), "mine").unwrap();
    let error = refusal(&rig);
    assert!(
        error.contains("something that is not a socket is there"),
        "{error}"
    );
    assert_eq!(std::fs::read(rig.socket()).unwrap(), b"mine");
    rig.config.socket = rig.socket().join("api.sock");
    let error = refusal(&rig);
    assert!(
        error.contains("cannot listen on the Workload API socket"),
        "{error}"
    );
    rig.config.socket = rig.path(&"x".repeat(200));
    let error = refusal(&rig);
    assert!(error.contains("longer than 107 bytes"), "{error}");
}

#[test]
fn a_socket_that_is_removed_comes_back_and_open_streams_stay() {
    let rig = Rig::new();
    let mut open = rig.run(stream(&rig.channel())).ok().unwrap();
    rig.run(open.message()).unwrap().unwrap();
    std::fs::remove_file(rig.socket()).unwrap();
    eventually("the socket is back", || rig.socket().exists().then_some(()));
    let mut new = eventually("it is served", || {
        let channel = rig.run(Channel::unix(rig.socket())).ok()?;
        rig.run(stream(&channel)).ok()
    });
    rig.run(new.message()).unwrap().unwrap();
    let leaf = rig.identities.rotate();
    let message = rig.run(open.message()).unwrap().unwrap();
    assert_eq!(message.svids[0].x509_svid, leaf.der().as_ref());
}

#[test]
fn a_mode_that_shuts_workloads_out_is_put_right() {
    let rig = Rig::new();
    std::fs::set_permissions(rig.socket(), PermissionsExt::from_mode(0o600)).unwrap();
    eventually("the mode is right again", || {
        (rig.socket().metadata().unwrap().mode() & 0o777 == 0o777).then_some(())
    });
}

#[test]
fn what_took_the_sockets_place_is_not_fought_and_not_removed() {
    let mut rig = Rig::new();
    std::fs::remove_file(rig.socket()).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(rig.socket()).unwrap();
    let theirs = rig.socket().metadata().unwrap().ino();
    rig.stop();
    assert_eq!(rig.socket().metadata().unwrap().ino(), theirs);
}

#[test]
fn a_workload_that_goes_while_it_is_attested_leaves_nothing_behind() {
    let rig = Rig::new();
    rig.attestor.held.send_replace(true);
    let mut workload = Process::start(
        Command::new(env!("CARGO_BIN_EXE_spire-agent"))
            .args(["api", "fetch", "-timeout", "1m", "-socketPath"])
            .arg(rig.socket()),
    );
    rig.run(async {
        rig.attestor
            .begun
            .subscribe()
            .wait_for(|begun| *begun == 1)
            .await
            .map(drop)
    })
    .unwrap();
    workload.kill();
    rig.run(async {
        rig.attestor
            .given_up
            .subscribe()
            .wait_for(|count| *count == 1)
            .await
            .map(drop)
    })
    .unwrap();
    assert_eq!(rig.identities.served.receiver_count(), 0);
}

#[test]
fn the_streams_of_a_workload_end_with_it() {
    let rig = Rig::new();
    let watching = Process::start(
        Command::new(env!("CARGO_BIN_EXE_spire-agent"))
            .args(["api", "watch", "-socketPath"])
            .arg(rig.socket()),
    );
    watching.wait_for("Received 1 svid");
    assert_eq!(rig.identities.served.receiver_count(), 1);
    watching.signal(Signal::SIGKILL);
    nobody_watches(&rig);
}

/// A child that inherits the connection is not whom it was made by: it would be served as its parent, whose process id
/// may be anybody's by then.
#[test]
fn a_connection_does_not_outlive_the_process_that_made_it() {
    if !ah_testkit::need("python3") {
        return;
    }
    let rig = Rig::new();
    let script = "
import os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
connection.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
connection.recv(1)
if os.fork():
    os._exit(0)
try:
    while connection.recv(4096):
        pass
except ConnectionResetError:
    pass
print('cut', flush=True)
";
    let child = Process::start(
        Command::new("python3")
            .args(["-c", script])
            .arg(rig.socket()),
    );
    child.wait_for("cut");
}

#[test]
fn ten_thousand_streams_of_one_process_are_bounded_and_the_error_says_so() {
    let rig = Rig::with(|config| {
        config.quota = Quota {
            calls_per_process: 300,
            connections_per_process: 4,
            ..Quota::default()
        };
    });
    rig.run(async {
        let channel = Channel::unix(rig.socket()).await.unwrap();
        let mut open = Vec::new();
        for _ in 0..300 {
            open.push(stream(&channel).await.unwrap());
        }
        // HTTP/2 has its own limit of calls that end in a reset on one connection, about a thousand.
        let mut refused = 0;
        let mut another = Channel::unix(rig.socket()).await.unwrap();
        while refused < 9_700 {
            if refused % 900 == 899 {
                another = Channel::unix(rig.socket()).await.unwrap();
            }
            let status = stream(&another).await.err().unwrap();
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            let text = format!(
                "too many calls: process {} has 300 open to the Workload API",
                std::process::id()
            );
            assert!(status.message().starts_with(&text), "{}", status.message());
            refused += 1;
        }
        assert_eq!(rig.identities.served.receiver_count(), 300);

        // One over the number of connections is told so too, whichever it is.
        let mut more = Vec::new();
        let mut told = 0;
        for _ in 0..3 {
            more.push(Channel::unix(rig.socket()).await.unwrap());
        }
        for channel in &more {
            let refused = stream(channel).await.err().unwrap();
            assert_eq!(refused.code(), Code::ResourceExhausted);
            told += usize::from(refused.message().contains("holds 4 to the Workload API"));
        }
        assert_eq!(told, 1);
        drop((another, more));

        // What is given back can be taken again.
        drop(open);
        rig.identities.served.closed().await;
        stream(&channel).await.expect("there is room again");
    });
}

#[test]
fn a_slow_reader_delays_nobody_and_gets_the_newest_set_in_the_end() {
    let rig = Rig::new();
    // Larger than what a connection takes in unread, so that the reader is slow at once.
    let filler = TestCa::new("filler.org");
    let filler = Arc::new(bundle_of("filler.org", &vec![&filler; 4_000], &[]));
    rig.identities.change(|update| {
        update.federated.insert(domain("filler.org"), filler);
    });
    let slow = rig.channel();
    let quick = rig.channel();
    rig.run(async {
        let mut slow = stream(&slow).await.ok().unwrap();
        let mut quick = stream(&quick).await.ok().unwrap();
        let mut newest = Vec::new();
        for _ in 0..20 {
            newest = rig.identities.rotate().der().to_vec();
            loop {
                let message = quick.message().await.unwrap().unwrap();
                if message.svids[0].x509_svid == newest {
                    break;
                }
            }
        }
        let mut read = 1;
        while slow.message().await.unwrap().unwrap().svids[0].x509_svid != newest {
            read += 1;
        }
        // The one that was on its way and those that were taken up to be sent; the rest was skipped.
        assert!(read <= 4, "{read} messages were kept for a slow reader");
    });
}

#[test]
fn hostile_requests_are_refused_and_others_are_served() {
    let rig = Rig::new();
    let mut client = rig.client();
    let audience = vec!["a".repeat(100); 10_000];
    let request = JwtsvidRequest {
        audience,
        spiffe_id: String::new(),
    };
    let refused = rig
        .run(client.fetch_jwtsvid(secured(request)))
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "the request is larger than 64 KiB");
    let request = ValidateJwtsvidRequest {
        audience: "a".into(),
        svid: "x".repeat(1 << 20),
    };
    let refused = rig
        .run(client.validate_jwtsvid(secured(request)))
        .unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);

    let mut request = secured(X509svidRequest {});
    for at in 0..64 {
        let name = format!("x-{at}");
        let name = tonic::metadata::MetadataKey::from_bytes(name.as_bytes()).unwrap();
        request
            .metadata_mut()
            .insert(name, "v".repeat(1024).parse().unwrap());
    }
    rig.run(client.fetch_x509svid(request))
        .expect_err("64 KiB of metadata are refused");

    let message = rig.run(async {
        let mut stream = stream(&Channel::unix(rig.socket()).await.unwrap())
            .await
            .ok()
            .unwrap();
        stream.message().await.unwrap().unwrap()
    });
    assert_eq!(message.svids[0].spiffe_id, WORKLOAD);
}

#[test]
fn what_is_no_grpc_call_gets_an_http_status() {
    let rig = Rig::new();
    rig.run(async {
        let connection = UnixStream::connect(rig.socket()).await.unwrap();
        let (mut requests, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(connection))
                .await
                .unwrap();
        tokio::spawn(driver);
        for (method, kind, expected) in [
            ("GET", "application/grpc", 405),
            ("POST", "text/plain", 415),
            ("POST", "application/grpc", 200),
        ] {
            let request = http::Request::builder()
                .method(method)
                .uri("http://localhost/SpiffeWorkloadAPI/FetchX509SVID")
                .header("content-type", kind)
                .header("workload.spiffe.io", "true")
                .body(Empty::<bytes::Bytes>::new())
                .unwrap();
            let response = requests.send_request(request).await.unwrap();
            assert_eq!(response.status().as_u16(), expected);
            if expected == 200 {
                // Without a message there is no call.
                assert_eq!(response.headers()["grpc-status"], "13");
            }
            response.into_body().collect().await.unwrap();
        }
    });
}

#[test]
fn a_workload_is_told_that_the_agent_stops() {
    let mut rig = Rig::new();
    let mut open = rig.run(stream(&rig.channel())).ok().unwrap();
    rig.run(open.message()).unwrap().unwrap();
    rig.stop();
    assert!(rig.run(open.message()).is_err());
}
