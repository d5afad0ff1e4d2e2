//! The program `oidc-discovery-provider`, as people run it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use ah_testkit::process::{Process, eventually};
use nix::sys::signal::Signal;

fn program(config: &str, folder: &Path) -> Command {
    let path = folder.join("oidc.conf");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_oidc-discovery-provider"));
    command.arg("-config").arg(path);
    command
}

/// What it answers a client that takes it for `host`; `None` while it does not listen.
fn get(socket: &Path, host: &str, path: &str) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    Some(answer)
}

// Inventory section 11: `file`, `listen_socket_path`, `domains`. The key is that of RFC 7517 appendix A.1.
#[test]
fn keys_of_a_file_are_served_on_a_socket_until_it_is_told_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let (bundle, socket) = (folder.path().join("bundle"), folder.path().join("socket"));
    let key = r#"{"use":"jwt-svid","kty":"EC","kid":"k1","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}"#;
    std::fs::write(&bundle, format!(r#"{{"keys":[{key}]}}"#)).unwrap();
    let config = format!(
        "domains = [\"oidc.example.org\"]\nlisten_socket_path = \"{}\"\nfile {{\n  path = \"{}\"\n}}\n",
        socket.display(),
        bundle.display()
    );
    let mut provider = Process::start(&mut program(&config, folder.path()));
    let keys = eventually("the keys are served", || {
        assert!(provider.is_running(), "{:#?}", provider.lines());
        get(&socket, "oidc.example.org", "/keys").filter(|answer| answer.contains(" 200 "))
    });
    assert!(keys.contains("\"kid\": \"k1\"") && keys.contains("\"alg\": \"ES256\""));
    let document = "/.well-known/openid-configuration";
    let found = get(&socket, "oidc.example.org", document).unwrap();
    let place = "\"jwks_uri\": \"https://oidc.example.org/keys\"";
    assert!(found.contains(place), "{found}");
    let other = get(&socket, "example.com", document).unwrap();
    assert!(!other.contains(" 200 "), "{other}");
    provider.signal(Signal::SIGTERM);
    assert!(provider.wait().success(), "{:#?}", provider.lines());
}

#[test]
fn a_configuration_that_cannot_be_is_told_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let config = "domains = [\"oidc.example.org\"]\nfile {\n  path = 7 7\n}\n";
    let ended = program(config, folder.path()).output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("oidc.conf:3:12: "), "{said}");
}
